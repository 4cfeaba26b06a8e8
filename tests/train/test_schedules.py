"""Schedules: against PyTorch's where it has the same one, warm-up, state, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minires.errors import ConfigError
from minires.train.schedules import SCHEDULES, Schedule

S = 200


def rates(spec, lr=0.4, steps=S):
    schedule = Schedule(spec, lr=lr, total_steps=steps)
    return np.array([schedule.lr(step) for step in range(steps)])


def torch_rates(make, lr=0.4, steps=S):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = make(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(found)


@pytest.mark.parametrize("steps", [S, 54, 7])
def test_one_cycle_equals_pytorch(steps):
    for peak in (0.3, 0.25):
        expected = torch_rates(
            lambda lib, opt, peak=peak: lib.OneCycleLR(opt, 0.4, total_steps=steps, pct_start=peak),
            steps=steps - 1,
        )
        ours = rates({"name": "one-cycle", "peak": peak}, steps=steps)
        np.testing.assert_allclose(ours[:-1], expected, rtol=1e-12)
        assert ours[-1] == pytest.approx(0.4 / 25 / 1e4, rel=1e-9)


def test_linear_falls_evenly_to_its_final_share():
    found = rates({"name": "linear", "final": 0.1}, lr=1.0)
    np.testing.assert_allclose(np.diff(found), -0.9 / S, rtol=1e-9)
    assert found[0] == 1.0 and found[-1] == pytest.approx(0.1 + 0.9 / S)


def test_cosine_and_step_equal_pytorch():
    cosine = torch_rates(lambda lib, opt: lib.CosineAnnealingLR(opt, S))
    np.testing.assert_allclose(rates({"name": "cosine"}), cosine, rtol=1e-9, atol=1e-12)
    step = torch_rates(lambda lib, opt: lib.MultiStepLR(opt, [100, 150]))
    np.testing.assert_allclose(rates({"name": "step", "at": [0.5, 0.75]}), step, rtol=1e-12)


def test_plateau_equals_pytorch_and_continues_from_its_state():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, min_lr=0.03)
    spec = {"name": "plateau", "factor": 0.5, "patience": 2, "minimum": 0.03}
    ours = Schedule(spec, lr=0.4, total_steps=60)
    losses = [3, 2, 2, 2, 2, 1, 1.5, 1.5, 1.4, 0.9, 0.89999, 0.9, 0.9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    seen = set()
    for epoch, loss in enumerate(losses):
        ours.epoch_end(loss)
        theirs.step(loss)
        state = json.loads(json.dumps(ours.state_dict()))
        ours = Schedule(spec, lr=0.4, total_steps=60)
        ours.load_state_dict(state)
        assert ours.lr(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        seen.add(ours.lr(epoch))
    assert len(seen) >= 4 and min(seen) == 0.03


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_is_a_straight_line_up_to_the_schedule(name):
    plain, warm = rates({"name": name}, steps=160), rates({"name": name, "warmup": 0.2, "warmup_start": 0.1})
    np.testing.assert_allclose(warm[40:], plain, rtol=1e-12)
    np.testing.assert_allclose(np.diff(warm[:40]), 0.9 * plain[0] / 40, rtol=1e-9)
    assert warm[39] == pytest.approx(plain[0]) and warm[0] == pytest.approx((0.1 + 0.9 / 40) * plain[0])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_tiny_runs_have_finite_rates(name, steps):
    schedule = Schedule({"name": name, "warmup": 0.5}, lr=0.1, total_steps=steps)
    found = [schedule.lr(step) for step in range(steps + 2)]
    assert np.all(np.isfinite(found)) and min(found) >= 0 and max(found) <= 0.1


def test_bad_specs_are_refused():
    for spec, message in [
        ({"name": "cosin"}, "Did you mean 'cosine'"),
        ({}, "unknown schedule None"),
        ({"name": "cosine", "finl": 0.1}, "Did you mean 'final'"),
        ({"name": "cosine", "at": [0.5]}, "option of the cosine schedule 'at'"),
        ({"name": "step", "at": [0.5, 80]}, "at of the step schedule"),
        ({"name": "step", "factor": "x"}, "factor of the step schedule must be a number, not 'x'"),
        ({"name": "constant", "warmup": 1.5}, "warmup"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Schedule(spec, lr=0.1, total_steps=10)
    with pytest.raises(ConfigError, match="total_steps of a schedule must be .* at least 1, not 0"):
        Schedule({"name": "constant"}, lr=0.1, total_steps=0)
