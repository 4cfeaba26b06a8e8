"""A batch that goes through the model in parts gives the gradient of the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits, stripes

from minires import backend, nn, ops
from minires.data import Loader
from minires.errors import ConfigError, MiniresError
from minires.optim import SGD
from minires.tensor import Tensor
from minires.train import Config, Trainer, checks, planned, steps
from minires.train.state import Progress

pytestmark = pytest.mark.usefixtures("no_figures")


def without_norm(dtype="float32"):
    rng = np.random.default_rng(3)
    model = nn.Sequential(
        conv=nn.Conv2d(3, 6, 3, stride=2, rng=rng), relu=nn.ReLU(), flatten=nn.Flatten(),
        fc=nn.Linear(150, 3, rng=rng),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(dtype)
    return model


@pytest.mark.parametrize(("pictures", "batch_size", "accumulate", "sizes"), [
    (32, 32, 4, [8, 8, 8, 8]), (13, 32, 4, [7, 6]), (10, 10, 6, [2, 2, 2, 2, 1, 1]), (3, 10, 10, [1, 1, 1]),
    (5, 8, 1, [5]), (2, 50, 50, [1, 1]), (20, 32, 3, [10, 10]),
])  # fmt: skip
def test_the_parts_are_even_and_as_large_as_those_of_a_whole_batch(pictures, batch_size, accumulate, sizes):
    found = steps.parts(pictures, batch_size, accumulate)
    assert found == sizes and sum(found) == pictures
    assert max(found) <= -(-batch_size // accumulate)


class Sum:
    """An optimiser of no effect, that keeps the gradients."""

    def __init__(self, model):
        self.parameters, self.optimizer = list(model.parameters()), SGD(model.named_parameters(), 0.0)
        self.zero_grad, self.gradient_norm = self.optimizer.zero_grad, self.optimizer.gradient_norm

    def step(self, norm):
        self.gradients = [parameter.grad.copy() for parameter in self.parameters]


@pytest.mark.parametrize("pictures", [16, 7])
def test_gradient_loss_and_hits_are_those_of_the_whole_batch(pictures):
    rng, found = np.random.default_rng(0), {}
    x, y = rng.standard_normal((pictures, 12, 12, 3)), rng.integers(0, 3, pictures)
    for accumulate in (1, 3, 16):
        model = without_norm("float64")
        optimizer, progress = Sum(model), Progress()
        step = steps.Steps(
            model, optimizer, model, lambda logits, y: ops.cross_entropy(logits, y, label_smoothing=0.1),
            pytest.fail, device="cpu", activations=np.float64, ema=None, capture=None,
            parts=lambda count, accumulate=accumulate: steps.parts(count, 16, accumulate),
        )  # fmt: skip
        step(x, y, progress, 0.1)
        found[accumulate] = optimizer.gradients, progress
    whole = ops.cross_entropy(without_norm("float64")(Tensor(x)), y, label_smoothing=0.1).item()
    for gradients, progress in found.values():
        for one, other in zip(gradients, found[1][0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
        assert progress.loss == pytest.approx(whole * pictures, rel=1e-12)
        assert progress.right == found[1][1].right and progress.pictures == pictures
        assert progress.norm == pytest.approx(found[1][1].norm, rel=1e-12)


def run_of(out, *, model=None, kind=Trainer, resume=False, said=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **changes})
    say = (lambda line: None) if said is None else said.append
    model = small_model() if model is None else model
    return kind(config, out, splits=small_splits(), model=model, resume=resume, progress=False, say=say)


def test_a_run_in_parts_is_one_of_whole_batches(tmp_path):
    """With clipping, a moving average, checkpoints, and a last batch of 5 pictures."""
    runs = {}
    for accumulate in (1, 2, 8):
        changes = {"accumulate": accumulate, "optimizer": {"name": "sgd", "lr": 0.05, "clip_norm": 0.2}}
        run = runs[accumulate] = run_of(tmp_path / str(accumulate), model=without_norm(), **changes)
        run.run()
        assert run.progress.step == 36
    for accumulate in (2, 8):
        for name, array in runs[1].ema.state_dict().items():
            np.testing.assert_allclose(runs[accumulate].ema.state_dict()[name], array, atol=2e-5)
        for row, other in zip(runs[1].history, runs[accumulate].history, strict=True):
            assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
            assert row["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=1.5 / 93)
            assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


class Dying(Trainer):
    def _step(self, x, y):
        if self.progress.step == 17:
            raise RuntimeError("the power fails")
        super()._step(x, y)


@pytest.mark.parametrize("by_a_plan", [False, True])
def test_a_run_that_goes_on_gives_the_same_bits_by_a_plan_too(by_a_plan, tmp_path, monkeypatch):
    """With dropout, which draws anew for each part, and batch norm."""
    if by_a_plan and not backend.HAS_NUMBA:
        pytest.skip("a plan needs Numba")
    expected = run_of(tmp_path / "whole", accumulate=2)
    expected.run()
    if by_a_plan:
        monkeypatch.setattr(planned, "WORTH", 1)
    with pytest.raises(RuntimeError, match="the power fails"):
        run_of(tmp_path / "run", kind=Dying, accumulate=2).run()
    again = run_of(tmp_path / "run", resume=True, accumulate=2)
    assert again.progress.step == 15
    again.run()
    assert (again._forward.plan is not None) == by_a_plan
    assert again._forward.plan is None or again._forward.plan.shape[0] == 4
    for name, array in expected.model.state_dict().items():
        assert np.array_equal(array, again.model.state_dict()[name]), name
    assert [row["train_loss"] for row in expected.history] == [row["train_loss"] for row in again.history]


def test_what_is_not_finite_is_found_in_its_part(tmp_path):
    run = run_of(tmp_path / "run", model=without_norm(), accumulate=4)
    normalize = run.loader.normalize

    def spoiled(x):
        x = normalize(x)
        x[5] = np.nan
        return x

    run.loader.normalize = spoiled
    with pytest.raises(MiniresError, match=r"pictures \[1\] of the batch, in part 3 of 4 of the batch"):
        run.run()
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_parts_of_one_picture_are_refused_where_a_batch_norm_cannot_take_them(tmp_path):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        pool=nn.GlobalAvgPool2d(), fc1=nn.Linear(3, 4, rng=rng), bn=nn.BatchNorm2d(4),
        fc2=nn.Linear(4, 3, rng=rng),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="6: a batch of 8 has parts of one picture.*Use accumulate=4"):
        checks.batches_of_one(model, Loader(stripes(16, 0), 8), accumulate=6)
    checks.batches_of_one(model, Loader(stripes(16, 0), 8), accumulate=4)
    with pytest.raises(ConfigError, match="last batch of each epoch has one picture"):
        checks.batches_of_one(model, Loader(stripes(17, 0), 8), accumulate=4)
    with pytest.raises(ConfigError, match="accumulate is 33; it must be at most batch_size=32, as"):
        Config(accumulate=33)
