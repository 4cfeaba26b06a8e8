"""The Trainer on a small net: what it leaves behind, what it refuses, and how it stops."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import warnings

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires import backend, models, nn
from minires.data import Splits
from minires.errors import CheckpointError, ConfigError, MiniresError, ShapeError
from minires.nn.module import Module
from minires.tensor import Tensor, record
from minires.train import Config, Trainer, checkpoint, evaluate, load_model, predict, recalibrate
from minires.train.checkpoint import Checkpoints
from minires.train.diagnose import first_not_finite


def trainer(out, *, model=None, splits=None, resume=False, progress=False, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    return Trainer(
        config, out, splits=splits or small_splits(), model=model or small_model(), resume=resume,
        progress=progress, say=lambda line: None,
    )  # fmt: skip

pytestmark = pytest.mark.usefixtures("no_figures")  # one run, made before, and test_run_folder.py draw


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 epochs that learns its three classes."""
    out, said = tmp_path_factory.mktemp("runs") / "a" / "run", []
    adam, cosine = {"name": "adam", "lr": 0.01}, {"name": "cosine"}
    changes = {"epochs": 12, "optimizer": adam, "schedule": cosine, "seed": 4}
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    run = Trainer(config, out, splits=small_splits(), model=small_model(), progress=False, say=said.append)
    return out, run.run(), said, config


def test_it_learns_and_says_so(finished):
    out, summary, said, config = finished
    assert summary["test_accuracy"] >= 0.9 and summary["val_accuracy"] >= 0.9
    assert said[0].startswith("small on stripes (made from a seed): 93 training, 24 validation, 24 test")
    epochs = [line for line in said if not line.startswith("compiling the kernels")][1:-1]
    assert epochs[0].startswith("epoch  1/12  loss ") and "validation loss" in epochs[0]
    assert len(epochs) == 12 and "pictures/s" in epochs[0]
    assert f"test accuracy {100 * summary['test_accuracy']:.2f}%" in said[-1]


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="there are no kernels without Numba")
@pytest.mark.parametrize("progress", [False, True])
def test_it_says_that_it_compiles(tmp_path, monkeypatch, capsys, progress):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "cache"))

    class Compiling(nn.Linear):
        def forward(self, x):
            backend.kernel(lambda one: one + 1)(1)  # new in this process, and in the cache after the first
            return super().forward(x)

    model = nn.Sequential(flatten=nn.Flatten(), fc=Compiling(432, 3, rng=np.random.default_rng(0)))
    run = trainer(tmp_path / "run", model=model, epochs=1, progress=progress)
    run.say = lambda line: print(line, flush=True)
    run.run()
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning: ")]
    assert [line.split()[0] for line in said] == ["small", "compiling", "epoch", "test"]


def test_the_folder_holds_the_whole_record(finished):
    out, summary, _, config = finished
    assert {path.name for path in out.iterdir()} == {
        "config.json", "metrics.csv", "curves.png", "confusion.png", "mistakes.png", "summary.json",
        "watch.json", "progress.json", "samples.png", "layers.csv",
        "model.safetensors", "checkpoint-00000140.safetensors", "checkpoint-00000144.safetensors",
    }  # fmt: skip
    assert Config.from_dict(json.loads((out / "config.json").read_text())) == config
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["steps"] == 144 and summary["dataset"] == "stripes" and summary["seed"] == 4
    assert summary["source"] == "stripes (made from a seed)" and 0 < summary["seconds"] < 600
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(n) for n in range(1, 13)]
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < 0.6 * losses[0] and float(rows[-1]["val_accuracy"]) >= 0.9
    assert 0 < float(rows[-1]["lr"]) < 1e-5 < float(rows[0]["lr"]) <= 0.01
    assert all(float(row["pictures_per_second"]) > 0 and float(row["gradient_norm"]) > 0 for row in rows)


def test_the_weights_file_alone_gives_the_same_predictions(finished):
    out, summary, _, _ = finished
    trained, test = load_model(out, model=small_model(seed=9)), small_splits().test
    assert trained.classes == test.classes and trained.size == (12, 12) and trained.name == "small"
    found = evaluate(trained.model, test, trained.normalize)
    assert found.accuracy == summary["test_accuracy"] and found.loss == summary["test_loss"]
    probabilities = predict(trained.model, test.images[:5], trained.normalize, batch_size=2)
    np.testing.assert_allclose(probabilities, found.probabilities[:5], atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    assert -np.log(found.probabilities[np.arange(24), test.labels]).mean() == pytest.approx(found.loss)
    with pytest.raises(ShapeError, match="float64"):
        predict(trained.model, test.images / 255, trained.normalize)
    with pytest.raises(CheckpointError, match="(?s)model.safetensors holds a small.*misshapen: fc.weight"):
        load_model(out, model=small_model(classes=4))
    with pytest.raises(CheckpointError, match="is a checkpoint of a run.*--resume"):
        load_model(out / "checkpoint-00000144.safetensors")
    with pytest.raises(CheckpointError, match="none.*model.safetensors does not exist"):
        (out / "none").mkdir(exist_ok=True)
        load_model(out / "none")


def test_validation_pictures_are_trained_on_only_when_asked(tmp_path):
    splits = small_splits()
    both = trainer(tmp_path / "both", splits=splits, train_on="train+val", epochs=1)
    assert len(both.train_set) == 117 and both.val_set is None
    summary = both.run()
    row = (tmp_path / "both" / "metrics.csv").read_text().splitlines()[1].split(",")
    assert row[5:7] == ["", ""] and summary["val_accuracy"] is None and summary["train_pictures"] == 117
    alone = trainer(tmp_path / "alone", splits=splits)
    assert alone.train_set is splits.train and alone.val_set is splits.val


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    out = tmp_path / "run"
    trainer(out, epochs=1).run()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match="holds a run already .config.json.*finished; .*other folder"):
        trainer(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        trainer(tmp_path / "file")
    with pytest.raises(CheckpointError, match="holds no run to continue"):
        trainer(tmp_path / "other", resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("a folder with other things in it is fine")
    assert trainer(tmp_path / "notes", epochs=1).run()["steps"] == 12


def stop_after(run, steps):
    """Run until this many steps are done, as if the program ended there."""
    step = run._step

    def limited(x, y):
        if run.progress.step == steps:
            raise KeyboardInterrupt
        step(x, y)

    run._step = limited
    with pytest.raises(KeyboardInterrupt):
        run.run()


def test_only_the_same_run_is_continued(tmp_path):
    out = tmp_path / "run"
    stop_after(trainer(out), 7)
    other_pictures = Splits(stripes(93, 8), stripes(24, 1), stripes(24, 2), "others")
    for changes, message in [
        ({"seed": 1}, "checkpoint-00000005.safetensors belongs to another run: seed is 0 there and 1 here"),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, "optimizer is .*'adam'.* there and .*'sgd'.* here"),
        ({"model": small_model(classes=5)}, "(?s)is of another model: .*misshapen: fc.bias"),
        ({"splits": other_pictures}, "other data than others holds now; changed: the training pictures. "),
    ]:
        with pytest.raises(CheckpointError, match=message):
            trainer(out, resume=True, **changes)
    other_model = Config.from_dict({**CONFIG.to_dict(), "model": "resnet50_signs"})
    with pytest.raises(CheckpointError, match="model is 'small' there and 'resnet50_signs' here"):
        Trainer(other_model, out, splits=small_splits(), model=small_model(), resume=True)
    again = Trainer(None, out, splits=small_splits(), model=small_model(), resume=True, progress=False)
    assert again.config == CONFIG and again.progress.step == 5
    with pytest.raises(ConfigError, match="needs a configuration"):
        Trainer(None, tmp_path / "new")


def test_another_number_of_threads_is_pointed_out(tmp_path, monkeypatch):
    stop_after(trainer(tmp_path / "run"), 6)
    threads = backend.threads()
    monkeypatch.setattr("minires.backend.threads", lambda: threads + 3)
    with pytest.warns(UserWarning, match=f"used {threads} threads and continues with {threads + 3}"):
        trainer(tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path):
    trainer(tmp_path / "whole").run()
    out = tmp_path / "run"
    stop_after(trainer(out), 11)
    newest = out / "checkpoint-00000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="checkpoint-00000010.safetensors is damaged"):
        again = trainer(out, resume=True)
    assert again.progress.step == 5
    again.run()
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_full_disk_stops_the_run_with_what_was_saved(tmp_path, monkeypatch):
    run, replace = trainer(tmp_path / "run"), os.replace

    def full(source, target):
        if "00000010" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr("minires.files.os.replace", full)
    with pytest.raises(MiniresError, match="00000010.safetensors: No space left"):
        run.run()
    monkeypatch.undo()
    assert trainer(tmp_path / "run", resume=True).progress.step == 5


class Breaks(Module):
    """Passes x on, but its output or its gradient is infinite in one place from a given call on."""

    def __init__(self, what, call):
        super().__init__()
        self.what, self.left = what, call

    def forward(self, x):
        self.left -= self.training
        y = x.data.copy()
        if self.what == "output" and self.left < 0:
            y.flat[3] = np.inf

        def backward(dy):
            dx = dy.copy()
            if self.what == "gradient" and self.left < 0:
                dx.flat[1] = np.nan
            return (dx,)

        return record("breaks", y, inputs={"x": x}, backward=backward)


def broken_model(what, call):
    model = small_model()
    model.relu1 = Breaks(what, call)
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("output", r"the loss is nan at step 6 \(epoch 1, batch 6\). First not finite: "
                   r"the output of relu1 \(Breaks\) \(8, 12, 12, 8\): 0 NaN and 1 infinite of 9216 values"),
        ("gradient", r"the norm of the gradients is nan at step 6 .* First not finite: "
                     r"the gradient that relu1 \(breaks\) hands back, \(8, 12, 12, 8\): 1 NaN"),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_named_and_the_checkpoint_is_sound(what, message, tmp_path):
    with pytest.raises(MiniresError, match=message):
        trainer(tmp_path / "run", model=broken_model(what, 6)).run()
    arrays, info = checkpoint.read(Checkpoints(tmp_path / "run").paths()[-1])
    assert info["progress"]["step"] == 5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["diverged"] and summary["steps"] >= 6 and summary["test_accuracy"] is None
    assert re.search(message, summary["warnings"][-1]) and "lower learning rate" in summary["warnings"][-1]
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_an_input_or_a_parameter_that_is_not_finite_is_named():
    def loss_of(logits):
        return logits.sum()

    x = np.zeros((4, 12, 12, 3), np.float32)
    x[2, 5, 5, 1] = np.nan
    assert first_not_finite(small_model(), Tensor(x), loss_of) == (
        "the input: 1 NaN and 0 infinite of 1728 values in the pictures [2] of the batch"
    )
    model = small_model()
    model.conv2.weight.data[0, 0, 0, 0] = -np.inf
    assert first_not_finite(model, Tensor(np.ones_like(x)), loss_of).startswith(
        "the parameter conv2.weight (3, 3, 8, 8): 0 NaN and 1 infinite"
    )
    model = small_model()
    assert first_not_finite(model, Tensor(np.ones_like(x)), loss_of).startswith("nothing")
    assert all("forward" not in vars(module) for _, module in model.named_modules())


def test_in_a_block_whose_layers_take_options_the_layer_is_named():
    """The last batch norm of a block of a ResNet is called with ``add=``."""
    net = models.build("resnet20_cifar", classes=3, widths=[4, 8, 8])
    dict(net.named_modules())["bn3a_branch2b"].gamma.data[:] = 3e38
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with np.errstate(over="ignore"):
        said = first_not_finite(net, Tensor(x), lambda logits: logits.sum())
    assert re.match(r"the output of bn3a_branch2b \(BatchNorm2d\) .* infinite", said), said


def test_a_learning_rate_that_is_too_high_is_stopped(tmp_path):
    with pytest.raises(MiniresError, match="not finite: .*lower learning rate"):
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            trainer(tmp_path / "run", ema=0.0, optimizer={"name": "sgd", "lr": 1e30}).run()


def test_a_run_that_meets_a_picture_that_is_not_finite_has_not_diverged(tmp_path, monkeypatch):
    drawn = []
    curves = lambda path, rows, **_: drawn.append(len(rows))  # noqa: E731
    monkeypatch.setattr("minires.train.run_folder.draw_curves", curves)
    run = trainer(tmp_path / "run", epochs=2)
    run.loader.normalize = lambda x: np.full(x.shape, np.nan if run.history else 0.5, np.float32)
    with pytest.raises(MiniresError, match="^the loss is nan at .* the input: .* mend the pictures"):
        run.run()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["diverged"] and summary["train_loss"] == run.history[0]["train_loss"]
    assert drawn == [1, 1]  # after the epoch, and where it was stopped


def test_pictures_that_are_left_out_are_counted(tmp_path):
    said = []
    config = {**CONFIG.to_dict(), "epochs": 1, "drop_last": True}
    splits = small_splits()  # 93 pictures, 11 batches of 8
    summary = Trainer(config, tmp_path / "run", splits=splits, model=small_model(), say=said.append).run()
    assert said[1].startswith("each epoch leaves out 5 of the 93 training pictures, ")
    assert summary["left_out_of_each_epoch"] == 5 and summary["steps"] == 11


def test_a_batch_that_is_larger_than_the_set_is_all_of_it_and_it_is_said(tmp_path):
    said = []
    config = {**CONFIG.to_dict(), "epochs": 2, "batch_size": 100, "accumulate": 4}
    run = Trainer(config, tmp_path / "run", splits=small_splits(), model=small_model(), say=said.append)
    assert run.run()["steps"] == 2
    assert said[1] == (
        "batch_size is 100, and there are 93 training pictures: each epoch is one step, on all of them"
    )
    with pytest.raises(ConfigError, match="93 training pictures, fewer than one batch of 100"):
        trainer(tmp_path / "other", batch_size=100, drop_last=True)


def test_the_bar_shows_loss_accuracy_speed_and_time_left(tmp_path, capsys):
    trainer(tmp_path / "run", progress=True, epochs=1).run()
    bar = capsys.readouterr().err
    assert "epoch 1/1 100%" in bar and " pictures/s, " in bar and " left" in bar
    assert "loss " in bar and "accuracy " in bar


def test_averaged_weights_are_validated_and_kept_and_training_goes_on_with_its_own(tmp_path):
    run = trainer(tmp_path / "run", epochs=1, ema=0.5)
    run.run()
    own, kept = run.model.state_dict(), load_model(tmp_path / "run", model=small_model()).model.state_dict()
    for name, average in run.ema.averages.items():
        assert np.array_equal(kept[name], average) and not np.array_equal(own[name], kept[name]), name


def test_recalibration_replaces_running_statistics_by_averages_over_the_pictures(tmp_path):
    images, model = stripes(60, 3).images, small_model()
    model.bn2.convention, model.bn2.momentum = "torch", 0.1
    run = trainer(tmp_path / "run", epochs=1, recalibrate=True, ema=0.0)
    normalize = run.normalize
    model.train()
    recalibrate(model, images, normalize, batch_size=60)
    inner = model.conv1(Tensor(normalize(images))).data.astype(np.float64)
    np.testing.assert_allclose(model.bn1.running_mean, inner.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.bn1.running_var, inner.var((0, 1, 2)), rtol=1e-4, atol=1e-5)
    second = model.conv2(model.relu1(model.bn1(Tensor(inner.astype(np.float32)))))
    np.testing.assert_allclose(model.bn2.running_var, second.data.var((0, 1, 2), ddof=1), rtol=1e-3)
    recalibrate(model, images, normalize, batch_size=25)  # 25, 25, 10: weighted by their sizes
    np.testing.assert_allclose(model.bn1.running_mean, inner.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    assert model.training and model.bn1.training and (model.bn1.momentum, model.bn2.momentum) == (0.9, 0.1)
    run.run()
    kept = load_model(tmp_path / "run", model=small_model()).model
    x = kept.conv1(Tensor(normalize(run.train_set.images))).data
    np.testing.assert_allclose(kept.bn1.running_mean, x.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)


def test_normalisation_is_measured_on_the_training_pictures_only(tmp_path):
    run = trainer(tmp_path / "a")
    expected = run.splits.train.images.reshape(-1, 3).mean(axis=0) / 255
    np.testing.assert_allclose(run.normalize.mean, expected, rtol=1e-9)
    assert trainer(tmp_path / "b", normalize="none").normalize.std == (1.0, 1.0, 1.0)
    given = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    assert trainer(tmp_path / "c", normalize=given).normalize.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="mean and std, not men"):
        trainer(tmp_path / "d", normalize={"men": [1, 2, 3]})


def test_the_registered_model_is_built_with_its_size_and_classes(tmp_path):
    changes = {"model": "resnet50_signs", "size": 40, "variant": {"last_gamma": 0.25}}
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    run = Trainer(config, tmp_path / "run", splits=small_splits(), progress=False)
    assert run.variant == {"last_gamma": 0.25, "size": 40} and run.model.fc6.bias.shape == (3,)
    assert float(run.model.res2a.bn2a_branch2c.gamma.data[0]) == 0.25
    with pytest.raises(ConfigError, match="option of resnet50_signs 'lastgamma'"):
        Trainer(Config.of("blog", variant={"lastgamma": 1}), tmp_path / "other", splits=small_splits())
    assert not (tmp_path / "other").exists()
