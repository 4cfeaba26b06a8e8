"""What a run looks at: a batch of one picture before its first step, and what makes its result doubtful."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires import data, nn
from minires.data import Loader, Normalize, Splits
from minires.errors import ConfigError, ShapeError
from minires.models import build
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor
from minires.train import Config, Trainer, checks, evaluate

pytestmark = pytest.mark.usefixtures("no_figures")


def run(out, *, model=None, splits=None, said=None, resume=False, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), "schedule": {"name": "constant"}, **changes})
    return Trainer(
        config, out, splits=splits or small_splits(), model=model or small_model(), progress=False,
        resume=resume, say=(said if said is not None else []).append,
    )  # fmt: skip


# -------------------------------------------------------------------------------- a batch of one picture


def pooled(classes=3):
    """A batch norm behind the pool has one value per channel and picture."""
    return nn.Sequential(
        conv=nn.Conv2d(3, 4, 3), pool=nn.GlobalAvgPool2d(), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, classes)
    )


def shrinking(classes=3):
    """Convolutions until the maps are 1x1, and a batch norm there."""
    return nn.Sequential(
        conv1=nn.Conv2d(3, 4, 3, stride=4), conv2=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4),
        flatten=nn.Flatten(), fc=nn.Linear(4, classes),
    )  # fmt: skip


@pytest.mark.parametrize("make", [pooled, shrinking])
def test_a_last_batch_of_one_is_named_before_the_first_step_with_the_ways_out(make, tmp_path):
    sizes = [93, 24, 24]
    assert sizes[0] % 23 == 1 and sizes[0] % 24 != 1
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", model=make(), batch_size=23)
    text = str(caught.value)
    assert "the last batch of each epoch has one picture (93 = 4 x 23 + 1)" in text
    assert "bn: batch_norm: training needs at least two values per channel" in text
    assert "drop_last=True, or use another batch size, such as 24" in text
    assert not (tmp_path / "run").exists()
    for changes in ({"batch_size": 24}, {"batch_size": 23, "drop_last": True}):
        assert run(tmp_path / str(changes), model=make(), epochs=1, **changes).run()["steps"] == 4
    # Validation may come down to one picture.
    splits = Splits(stripes(92, 0), stripes(47, 1), stripes(1, 2), "stripes")
    assert run(tmp_path / "val", model=make(), splits=splits, batch_size=23, epochs=1).run()["steps"] == 4


def test_batches_of_one_and_a_set_of_one_are_named():
    def check(count, size, model, **options):
        checks.batches_of_one(model, Loader(stripes(count, 0), size, **options))

    with pytest.raises(ConfigError, match="batch_size is 1, .*Use a batch size of at least 2"):
        check(6, 1, pooled())
    with pytest.raises(ConfigError, match="batch_size is 1, "):
        check(6, 1, pooled(), drop_last=True)
    with pytest.raises(ConfigError, match="there is one training picture, .*Train on at least two pictures"):
        check(1, 5, pooled())
    with pytest.raises(ConfigError, match=r"\(2 = 1 x 1|\(7 = 2 x 3 \+ 1\).* such as 4"):
        check(7, 3, pooled())
    check(1, 5, small_model())  # its maps are larger
    check(6, 1, small_model())
    check(7, 3, pooled(), drop_last=True)
    frozen = pooled()
    frozen.bn.frozen = True
    check(7, 3, frozen)


def test_the_look_leaves_the_model_as_it_is_and_another_fault_to_the_first_step():
    model = pooled()
    model.conv.eval()
    before = model.state_dict()
    with pytest.raises(ConfigError):
        checks.batches_of_one(model, Loader(stripes(7, 0), 3))
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert not model.conv.training and model.bn.training
    unfit = nn.Sequential(nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
    checks.batches_of_one(unfit, Loader(stripes(7, 0), 3))  # no number of pictures fits


@pytest.mark.parametrize(("size", "fits"), [(64, True), (32, False)])  # maps of 2x2 before the pool, or 1x1
def test_registered_models_are_trained_on_one_picture_where_their_maps_are_large_enough(size, fits):
    black = np.zeros((3, size, size, 3), np.uint8)
    pictures = data.Dataset(black, np.zeros(3, np.int64), ("a", "b"), ("1", "2", "3"), "black")
    refused = pytest.raises(ConfigError, match="one picture .3 = 1 x 2 . 1.*: bn5a_branch")
    with nullcontext() if fits else refused:
        checks.batches_of_one(build("resnet50_signs", size=size), Loader(pictures, 2))


def test_a_loop_of_ones_own_is_told_what_to_do():
    loader = Loader(stripes(7, 0), 3)
    model = pooled()
    with pytest.raises(ShapeError, match=r"shape \(1, 4\).*leave it out: Loader\(drop_last=True\)"):
        for x, y in loader.epoch(0):
            cross_entropy(model(Tensor(x)), y).backward()
    with pytest.raises(ConfigError, match="2 training pictures, fewer than .* 3: .* Use batch_size=1"):
        Loader(stripes(2, 0), 3, drop_last=True)


# ---------------------------------------------------------------------------- what makes a result doubtful


def test_a_run_that_diverges_with_finite_numbers_says_so(tmp_path):
    said = []
    sgd = {"name": "sgd", "lr": 1e6}
    summary = run(tmp_path / "run", said=said, epochs=1, ema=0.0, optimizer=sgd).run()
    assert np.isfinite(summary["train_loss"]) and summary["train_loss"] > 100
    (loss,) = [text for text in summary["warnings"] if "the training loss of the last epoch" in text]
    times = f"{summary['train_loss'] / np.log(3):.3g} times chance level, ln 3 = 1.0986"
    assert loss.startswith("the run diverged: ") and f"is {summary['train_loss']:.6g}, {times}" in loss
    assert summary["diverged"]
    assert "lower learning rate" in loss
    assert f"warning: {loss}" in said[:-1] and said[-1].startswith("test accuracy")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["warnings"] == summary["warnings"]


def test_a_good_run_has_no_warnings(tmp_path):
    adam = {"name": "adam", "lr": 0.01}
    summary = run(tmp_path / "run", epochs=8, optimizer=adam, ema=0.0).run()
    assert summary["warnings"] == [] and not summary["diverged"] and summary["train_loss"] < np.log(3)


def bright_pixel(x, rng):
    """One pixel of each batch is far out of range, but finite."""
    y = x.astype(np.float32)
    y[0, 3, 3, 0] = 1e25
    return y


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setitem(data.augment.AUGMENTATIONS, "bright", lambda: bright_pixel)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_running_statistics_that_are_not_finite_are_named_once_and_kept_over_a_stop(tmp_path, bright):
    said = []
    changes = {"epochs": 2, "augment": ["bright"], "normalize": "none", "ema": 0.9}
    summary = run(tmp_path / "run", said=said, **changes).run()
    (after,) = [text for text in summary["warnings"] if text.startswith("after epoch")]
    assert after.startswith("after epoch 1 these have numbers that are NaN or infinite: bn1.running_var (8")
    assert "average of bn1.running_var" in after
    assert sum("after epoch" in line for line in said) == 1
    assert any(text.startswith("in the model that is kept") for text in summary["warnings"])
    assert any(text == "the test loss is nan" for text in summary["warnings"])
    assert summary["test_loss"] is None
    (tmp_path / "run" / "summary.json").unlink()  # as if its end had not been reached
    again = run(tmp_path / "run", resume=True, **changes)
    assert after in again.warnings


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_recalibration_mends_statistics_that_are_not_finite(tmp_path, bright):
    summary = run(
        tmp_path / "run", epochs=1, augment=["bright"], normalize="none", ema=0.0, recalibrate=True
    ).run()
    assert not any("kept" in text for text in summary["warnings"]) and summary["test_loss"] is not None


def test_pictures_of_one_colour_are_noticed(tmp_path):
    splits = small_splits()
    splits.train.images[...] = 7
    said = []
    made = run(tmp_path / "run", splits=splits, said=said, epochs=1)
    assert made.normalize.std == (1.0, 1.0, 1.0)
    summary = made.run()
    (text,) = [text for text in summary["warnings"] if "are equal in" in text]
    assert "red, green, blue" in text and f"warning: {text}" == said[1]
    assert checks.constant_channels(Normalize((0, 0, 0), (0.2, 1.0, 0.2)))[0].count("green") == 1
    assert checks.constant_channels(Normalize.imagenet()) == []


def test_the_facts_at_the_end_are_those_of_chance():
    labels = np.array([0, 0, 0, 1, 2])
    assert checks.outcome(1.0, 0.7, labels, "abc") == []
    assert checks.outcome(np.log(3), 0.61, labels, "abc", test=2.0, validation=None) == []
    (text,) = checks.outcome(1.0, 0.6, labels, "abc")
    assert text.startswith("the training accuracy of the last epoch is 60.00%, not above 60.00%, that of")
    (text,) = checks.outcome(1.2, 0.7, labels, "abc")
    assert text.startswith("the training loss of the last epoch is 1.2, above") and "rate" not in text
    (text,) = checks.outcome(1e13, 0.7, labels, "abc")
    assert text.startswith(checks.LOST) and "is 1e+13, 9.1e+12 times chance level, ln 3 = 1.0986" in text
    assert [checks.diverged(loss, 3) for loss in (1.2, 10.9, 11.0, np.nan)] == [False, False, True, True]
    assert not checks.diverged(1e-7, 1)
    (text,) = checks.outcome(0.3, 1.0, labels, "abc", validation=13.26, test=1.0)
    assert "the validation loss is 13.26, 12.1 times chance level, and that of training 0.3. After" in text
    assert "recalibrate" in text and checks.outcome(0.3, 1.0, labels, "abc", validation=3.2, test=None) == []
    assert len(checks.outcome(float("nan"), 0.7, labels, "abc", test=float("inf"))) == 2
    assert checks.outcome(0.0, 1.0, labels[:3], "a") == []


def test_a_picture_whose_scores_are_nan_is_not_right():
    model, pictures = small_model(), stripes(12, 0)
    model.bn1.running_var[...] = np.nan
    found = evaluate(model, pictures, Normalize.none())
    assert np.isnan(found.loss) and found.accuracy == 0.0
