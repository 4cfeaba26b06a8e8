"""What a run leaves about its inside: right figures, the same bits as without, whole after every resume."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires.data import Splits
from minires.errors import ConfigError
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor
from minires.train import Config, Interrupted, Observer, Trainer, checkpoint, watched
from minires.train.checkpoint import Checkpoints
from minires.train.probe import Probe, layers_of

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def each_epoch(monkeypatch):
    monkeypatch.setattr(watched, "SHARE", math.inf)


def trainer(out, *, resume=False, observers=(), said=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    said = [] if said is None else said
    return Trainer(
        config, out, splits=small_splits(), model=small_model(), resume=resume, progress=False,
        observers=observers, say=said.append,
    )  # fmt: skip


def read(out, name="watch.json"):
    return json.loads((out / name).read_text())


class Ends(Observer):
    """Ends the run at a step, as a signal does, or as a kill does."""

    def __init__(self, step, error=Interrupted):
        self.step, self.error = step, error

    def stepped(self, run):
        if run.progress.step == self.step:
            raise self.error("now")


class Stopped(BaseException):
    pass


def test_a_run_gives_the_same_bits_whether_it_is_watched_or_not(tmp_path, each_epoch):
    for watch in (True, False):
        trainer(tmp_path / str(watch), watch=watch).run()
    assert len(read(tmp_path / "True")["epochs"]) == CONFIG.epochs
    assert not (tmp_path / "False" / "watch.json").exists()
    for path in (tmp_path / "True").glob("*.safetensors"):
        arrays, info = checkpoint.read(path)
        other, their = checkpoint.read(tmp_path / "False" / path.name)
        assert arrays.keys() == other.keys() and len(arrays) > 5
        assert all(arrays[name].tobytes() == other[name].tobytes() for name in arrays)
        assert info.get("random") == their.get("random")


@pytest.mark.parametrize("step", [7, 11, 12, 18, 24, 30])
def test_a_run_that_was_killed_and_goes_on_writes_what_it_would_have_written(
    step, tmp_path, each_epoch, monkeypatch
):
    monkeypatch.setattr(watched, "PAUSE", 0.0)
    trainer(tmp_path / "whole").run()
    killed = trainer(tmp_path / "run", observers=[Ends(step, Stopped)])
    with pytest.raises(Stopped):
        killed.run()
    killed._lock.release()
    for path in Checkpoints(tmp_path / "run").paths()[-1:]:
        at = int(path.stem[-8:])
    trainer(tmp_path / "run", resume=True).run()
    found, whole = read(tmp_path / "run"), read(tmp_path / "whole")
    assert [one["epoch"] for one in found["epochs"]] == [1, 2, 3]
    for one, other in zip(found["epochs"], whole["epochs"], strict=True):
        assert {k: v for k, v in one["layers"].items()} == other["layers"], one["epoch"]
        assert one["confusion"] == other["confusion"]
    points = [one[0] for one in read(tmp_path / "run", "progress.json")["points"]]
    assert points == list(range(1, 37)) and at in points


def test_figures_are_those_of_the_model_and_of_its_last_step(tmp_path, each_epoch):
    class Looks(Observer):
        before = None

        def stepped(self, run):
            if run.progress.step == 11:
                self.before = run.model.conv2.weight.data.copy(), run.model.conv2.bias.data.copy()
            if run.progress.step == 12:
                self.after = run.model.conv2.weight.data.copy(), run.model.conv2.bias.data.copy()

        def epoch_ended(self, run, row, val):
            if row["epoch"] == 1:
                model = small_model()
                model.load_state_dict(run.model.state_dict())
                model.load_random_states(run.model.random_states())
                places = np.linspace(0, 92, 8).round().astype(int)
                x = run.normalize(run.train_set.images[places])
                kept = []
                forward = model.conv2.forward
                model.conv2.forward = lambda x: kept.append(forward(x)) or kept[0]
                logits = model.train()(Tensor(x))
                cross_entropy(logits, run.train_set.labels[places], label_smoothing=0.1).backward()
                self.y, self.gradients = kept[0].numpy(), [model.conv2.weight.grad, model.conv2.bias.grad]
                guesses = val.probabilities.argmax(axis=1)
                self.table = [[int(t), int(g)] for t, g in zip(run.val_set.labels, guesses, strict=True)]

    looks = Looks()
    trainer(tmp_path / "run", observers=[looks]).run()
    found = read(tmp_path / "run")
    assert [one["path"] for one in found["layers"]] == ["conv1", "conv2", "fc"]
    first = found["epochs"][0]
    conv2 = {name: values[1] for name, values in first["layers"].items()}

    def size(*arrays):
        return math.sqrt(sum((array.astype(float) ** 2).sum() for array in arrays))

    moved = [b - a for a, b in zip(looks.before, looks.after, strict=True)]
    assert conv2["update"] == pytest.approx(size(*moved) / size(*looks.after), rel=1e-4)
    assert conv2["weight"] == pytest.approx(size(*looks.after), rel=1e-4)
    assert conv2["gradient"] == pytest.approx(size(*looks.gradients), rel=1e-4)
    assert conv2["mean"] == pytest.approx(looks.y.mean(), rel=1e-3)
    assert conv2["std"] == pytest.approx(looks.y.std(), rel=1e-4)
    cells = {(t, g): n for t, g, n in first["confusion"]["cells"]}
    assert cells == {(t, g): looks.table.count([t, g]) for t, g in looks.table}


def test_a_probe_leaves_gradients_hooks_and_running_statistics_as_they_are():
    model = small_model()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 12, 12, 3)).astype(np.float32), np.arange(4) % 3
    model.fc.weight.requires_grad = False
    model.fc.bias.grad = np.ones(3, np.float32)
    model.bn1.eval()
    before, random = model.state_dict(), model.random_states()
    probe = Probe(model, layers_of(model), x, y)
    found = probe()
    assert probe() == found  # dropout, too, draws the same
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.random_states() == random and not model.bn1.training and model.training
    assert model.fc.bias.grad.tolist() == [1, 1, 1] and model.conv1.weight.grad is None
    assert not model.fc.weight.requires_grad and found.layers["gradient"][2] is not None  # of the bias alone


def test_how_often_follows_from_counts_alone_and_costs_little():
    def due(pictures, epochs):
        return [epoch for epoch in range(1, epochs + 1) if watched.is_due(epoch, pictures, epochs)]

    assert due(864, 4) == [1, 2, 3, 4]
    assert due(93, 12) == [1, 9, 12] and due(10**6, 1) == [1]
    assert 200 <= len(due(50_000, 1999)) <= 202
    for pictures in (50, 93, 864, 50_000):
        every = watched.every(pictures, 20)
        assert watched.COST["cpu"] / (every * pictures) <= watched.SHARE
    assert watched.every(864, 20, "cuda:1") > 50 and watched.every(10**6, 90, "cuda:0") == 1


def test_the_samples_are_the_first_pictures_of_the_run_as_its_model_gets_them(tmp_path):
    seen = []

    class First(Observer):
        def begins(self, run):
            batches = run.loader.epoch(0, 0)
            seen.extend(next(batches) for _ in range(4))

    trainer(tmp_path / "run", epochs=1, observers=[First()]).run()
    about = read(tmp_path / "run")["samples"]
    assert (about["count"], about["columns"]) == (32, 8)
    sheet = np.asarray(Image.open(tmp_path / "run" / "samples.png"))
    assert sheet.shape == (4 * 96, 8 * 96, 3)
    x, y = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    splits = small_splits()
    assert about["labels"] == [splits.train.classes[k] for k in y]
    mean, std = splits.train.images.mean((0, 1, 2)), splits.train.images.std((0, 1, 2))
    shown = sheet[3 * 96 : 4 * 96 : 8, 5 * 96 : 6 * 96 : 8].astype(float)
    assert np.abs(shown - (x[29] * std + mean).clip(0, 255)).max() < 1.0


def test_a_large_confusion_table_keeps_its_largest_counts(monkeypatch):
    monkeypatch.setattr(watched, "CELLS", 3)
    table = np.array([[9, 1, 0], [2, 7, 0], [0, 0, 5]])
    assert watched._cells(table) == {"cells": [[0, 0, 9], [1, 1, 7], [2, 2, 5]], "left_out": 3}


@pytest.mark.parametrize("name", ["watch.json", "progress.json"])
@pytest.mark.parametrize("content", [b'{"mine": 1}', b"notes"])
def test_a_file_of_somebody_elses_stays_and_the_run_goes_on(name, content, tmp_path):
    stopped = trainer(tmp_path / "run", watch=False, observers=[Ends(14, Stopped)])
    with pytest.raises(Stopped):
        stopped.run()
    stopped._lock.release()
    (tmp_path / "run" / name).write_bytes(content)
    said = []
    trainer(tmp_path / "run", resume=True, said=said).run()
    assert (tmp_path / "run" / name).read_bytes() == content
    assert any(f"{name}" in line and "it stays as it is" in line for line in said)


@pytest.mark.parametrize("name", ["watch.json", "progress.json", "samples.png"])
def test_no_run_begins_in_a_folder_with_such_a_file(name, tmp_path):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"holds .*already .{name}.; choose another folder"):
        trainer(tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize("left", [b"", bytes(900)])
def test_what_a_power_failure_leaves_is_written_anew(left, tmp_path, each_epoch):
    stopped = trainer(tmp_path / "run", observers=[Ends(14, Stopped)])
    with pytest.raises(Stopped):
        stopped.run()
    stopped._lock.release()
    (tmp_path / "run" / "watch.json").write_bytes(left)
    trainer(tmp_path / "run", resume=True).run()
    assert [one["epoch"] for one in read(tmp_path / "run")["epochs"]] == [1, 2, 3]


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    killed = trainer(tmp_path / "run", observers=[Ends(3, Stopped)])
    with pytest.raises(Stopped):
        killed.run()
    killed._lock.release()
    assert (tmp_path / "run" / "samples.png").exists()
    with pytest.raises(ConfigError, match="go on with it"):
        trainer(tmp_path / "run")
    assert trainer(tmp_path / "run", resume=True).run()["steps"] == 36


def test_watching_may_be_chosen_anew_when_a_run_goes_on(tmp_path):
    killed = trainer(tmp_path / "run", observers=[Ends(14, Stopped)])
    with pytest.raises(Stopped):
        killed.run()
    killed._lock.release()
    trainer(tmp_path / "run", resume=True, watch=False).run()
    assert read(tmp_path / "run", "config.json")["watch"] is False
    assert [one["epoch"] for one in read(tmp_path / "run")["epochs"]] == [1]


def test_without_validation_there_is_no_table(tmp_path):
    one = Splits(stripes(48, 0), stripes(24, 1), stripes(24, 2), "stripes")
    config = Config.from_dict({**CONFIG.to_dict(), "train_on": "train+val", "epochs": 1})
    Trainer(
        config, tmp_path / "run", splits=one, model=small_model(), progress=False, say=lambda _: None
    ).run()  # fmt: skip
    assert [one["confusion"] for one in read(tmp_path / "run")["epochs"]] == [None]
