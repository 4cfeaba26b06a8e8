"""What the guide says to those who come from Keras with a picture folder: options, parts, waiting."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from oracle import keras
from PIL import Image

from minires import cli, data, models, nn
from minires.train import Config, Trainer
from minires.train.best import spent
from minires.train.schedules import Schedule

GUIDE = Path(__file__).parents[2] / "tutorials" / "guide" / "commands.md"
SECTION = GUIDE.read_text(encoding="utf-8").partition("### Coming from Keras")[2].partition("\n## ")[0]
COUNTS = {"Zebra": 20, "ape": 30, "cat10": 50, "cat9": 10}  # as Keras and we sort them

# Each option of the table, and what it sets.
OPTIONS = {
    "--seed 123": {"seed": 123},
    "--size 64": {"size": 64},
    "--batch-size 32": {"batch_size": 32},
    "--no-drop-last": {"drop_last": False},
    "--no-stream": {"stream": False},
    "--cache": {"cache": "pixels"},
    "--set normalize=none": {"normalize": "none"},
    """--set normalize='{"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}'""": {
        "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}
    },
    "--model resnet50v2_keras": {"model": "resnet50v2_keras"},
    """--set 'optimizer={"name":"adam","lr":1e-3,"convention":"keras"}' """
    """--set 'schedule={"name":"constant"}'""": {
        "optimizer": {"name": "adam", "lr": 1e-3, "convention": "keras"}, "schedule": {"name": "constant"},
    },
    "--set label_smoothing=0": {"label_smoothing": 0},
    "--epochs 30": {"epochs": 30},
    """--set 'schedule={"name":"plateau","factor":0.2,"patience":4}'""": {
        "schedule": {"name": "plateau", "factor": 0.2, "patience": 4}
    },
    "--patience 10": {"patience": 10},
    "--keep best": {"keep": "best"},
}  # fmt: skip


class Tiny(nn.Module):
    def __init__(self, *, classes, rng):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=2, rng=rng)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(2, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder ``pictures`` where the test runs; the model ``tiny``, and no figures."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8))
            picture.save(tmp_path / "pictures" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=8, classes=2))
    for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(f"minires.train.run_folder.{name}", lambda *_, **__: None)
    return Path("pictures")


def test_the_table_has_these_options_and_no_other():
    rows = [line.split(" | ")[1:] for line in SECTION.splitlines() if line.startswith("| `")]
    found = [words for cells in rows for words in re.findall(r"`(--[^`]*)`", " ".join(cells))]
    others = {"--data pictures", "--start-from", "--resume FOLDER"}  # tested where they are made
    assert sorted({*found} - others) == sorted(OPTIONS)


class Begun(Exception):
    """A run would begin now."""


@pytest.mark.parametrize("words", OPTIONS, ids=range(len(OPTIONS)))
def test_an_option_of_the_table_sets_what_it_stands_beside(words, folder, monkeypatch):
    def run(self):
        raise Begun

    def config_of(out, *options):
        model = () if "--model" in options else ("--model", "tiny")
        with pytest.raises(Begun):
            cli.main(["train", "--data", "pictures", "--out", out, *model, *options])
        return json.loads(Path(out, "config.json").read_text())

    monkeypatch.setattr(Trainer, "run", run)
    plain, config = config_of("plain"), config_of("run", *shlex.split(words))
    for name, value in OPTIONS[words].items():
        assert config[name] == value
        assert plain[name] != value or name in ("normalize", "keep") and value in ("none", "best"), name


def test_a_run_has_the_same_parts_whatever_its_seed_and_the_way_of_reading(folder, tmp_path):
    def run(seed, splits=None, **way):
        config = Config(model="tiny", data="pictures", size=8, seed=seed, epochs=1, batch_size=16, **way)
        trainer = Trainer(config, tmp_path / f"run-{seed}", say=lambda line: None, splits=splits)
        trainer.run()
        return [part.names for part in (trainer.train_set, trainer.val_set, trainer.splits.test)]

    for seed, way in enumerate(({}, {"stream": True}, {"cache": "pixels"})):
        splits = data.load("pictures", size=8, **way)
        parts = [splits.train, splits.val, splits.test]
        assert run(seed, **way) == [part.names for part in parts]
        names = [name for part in parts for name in part.names]
        assert len(names) == len({*names}) == sum(COUNTS.values())
        shares = [np.bincount(part.labels) / [*COUNTS.values()] for part in parts]
        assert np.abs(np.subtract(shares, [[0.64], [0.16], [0.2]])).max() < 0.07  # of 10 pictures, 0.6 of one
    other = data.load("pictures", size=8, seed=123)
    assert run(123, splits=other)[2] == other.test.names != splits.test.names


def test_classes_their_order_and_labels_are_those_of_keras(folder):
    keras()
    from keras.src.utils.dataset_utils import index_directory

    paths, labels, classes = index_directory(
        str(folder), "inferred", (".png",), shuffle=False, verbose=False
    )
    ours = data.load_part(folder, "all", size=8).pictures
    assert ours.classes == tuple(classes)
    names = [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]
    assert list(zip(ours.names, ours.labels, strict=True)) == list(zip(names, labels, strict=True))


def test_the_rate_falls_after_the_epoch_after_which_it_falls_in_keras():
    k = keras()
    network = k.Sequential([k.layers.Input((1,)), k.layers.Dense(1)])
    network.compile(k.optimizers.SGD(1.0))
    theirs = k.callbacks.ReduceLROnPlateau(factor=0.2, patience=5)
    theirs.set_model(network)
    theirs.on_train_begin()
    ours = Schedule({"name": "plateau", "factor": 0.2, "patience": 4}, lr=1.0, total_steps=100)
    losses = [3.0, 2.0, *[2.5] * 4, 1.0, *[1.5] * 12, 0.5, *[0.75] * 6]
    rates = []
    for epoch, loss in enumerate(losses):
        theirs.on_epoch_end(epoch, {"val_loss": loss})
        ours.epoch_end(loss)
        rates.append(ours.lr(epoch))
        assert rates[-1] == pytest.approx(float(network.optimizer.learning_rate), rel=1e-5)
    assert len({*rates}) == 4


def test_a_run_ends_after_the_epoch_after_which_keras_ends_it():
    k = keras()
    network = k.Sequential([k.layers.Input((1,)), k.layers.Dense(1)])
    ended = []
    for seed in range(20):
        theirs = k.callbacks.EarlyStopping("val_accuracy", patience=3, mode="max")
        theirs.set_model(network)
        theirs.on_train_begin()
        network.stop_training = False
        history = []
        for epoch, accuracy in enumerate(np.random.default_rng(seed).permutation(12) / 12):
            theirs.on_epoch_end(epoch, {"val_accuracy": accuracy})
            history.append({"epoch": epoch + 1, "val_accuracy": float(accuracy), "val_loss": 1.0})
            assert bool(spent(history, 3)) == network.stop_training
            if network.stop_training:
                ended.append(epoch)
                break
    assert len({*ended}) > 2
