"""Schedules: against PyTorch's where it has the same one, warm-up, state, and what they refuse."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from minires.errors import ConfigError
from minires.train.schedules import SCHEDULES, Curve, Schedule

S = 200
BEGIN = {"lr": 0.01, "until_error": 0.8}


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


def test_places_and_warm_up_in_steps_are_those_of_the_run():
    """As papers give them: divided by 10 at steps 60 and 120 of the run, whatever its length and warm-up."""
    spec = {"name": "step", "at": [60, 120], "warmup": 8, "warmup_start": 0.1}
    found = rates(spec, lr=1.0)
    np.testing.assert_allclose(found[:8], 0.1 + 0.9 * np.arange(1, 9) / 8, rtol=1e-12)
    for at, expected in ((8, 1), (59, 1), (60, 0.1), (119, 0.1), (120, 0.01), (199, 0.01)):
        assert found[at] == pytest.approx(expected), at
    np.testing.assert_allclose(rates(spec, lr=1.0, steps=100), found[:100], rtol=1e-12)
    assert set(rates(spec, lr=1.0, steps=50)[8:]) == {1.0}  # a place behind the end is never reached
    half = torch_rates(lambda lib, opt: lib.MultiStepLR(opt, [60, 120]))
    np.testing.assert_allclose(rates({"name": "step", "at": [60, 120]}), half, rtol=1e-12)


def test_shares_and_steps_may_stand_together_and_one_is_the_whole_run():
    found = rates({"name": "step", "at": [0.25, 120, 1, 1.0], "factor": 0.5}, lr=1.0)
    assert [found[at] for at in (49, 50, 119, 120, 199)] == [1, 0.5, 0.5, 0.25, 0.25]
    line = rates({"name": "constant", "warmup": 1}, lr=1.0, steps=10)
    np.testing.assert_allclose(line, np.arange(1, 11) / 10, rtol=1e-12)
    longer = rates({"name": "constant", "warmup": 40}, lr=1.0, steps=10)
    np.testing.assert_allclose(longer, np.arange(1, 11) / 40, rtol=1e-12)
    by_steps, by_share = (rates({"name": "cosine", "warmup": length}).tolist() for length in (50, 0.25))
    assert by_steps == by_share


def begun(rights, **begin):
    """The schedule after steps whose batches of 10 pictures had so many right."""
    spec = {"name": "step", "at": [6, 0.5], "begin": {**BEGIN, "batches": 3, **begin}}
    schedule = Schedule(spec, lr=0.1, total_steps=20)
    used = []
    for step, right in enumerate(rights):
        used.append(schedule.lr(step))
        schedule.stepped(step, right, 10)
    return schedule, used


def test_a_beginning_ends_when_the_error_of_the_last_batches_is_below_the_share():
    rights = [3, 0, 0, 0, 3, 3, 1, 1, 1, 9]  # wrong of the last three, from batch 2: 27, 30, 27, 24, 23
    schedule, used = begun(rights)
    # 23 of 30 is below 80%, with batch 6. Two steps later the rate is the schedule's, which has gone on.
    assert schedule.begin.ends == 8 and used == [0.01] * 8 + [pytest.approx(0.01)] * 2
    assert [schedule.lr(step) for step in (7, 8, 9, 10)] == pytest.approx([0.01, 0.01, 0.01, 0.001])
    schedule, used = begun([0, 0, 0, 1, 3, 3])
    assert schedule.begin.ends == 7 and schedule.lr(7) == pytest.approx(0.01)
    schedule, used = begun([3, 3, 3])  # the very first three batches
    assert schedule.begin.ends == 4 and [schedule.lr(s) for s in (3, 4, 5, 6)] == pytest.approx(
        [0.01, 0.1, 0.1, 0.01]
    )


def test_exactly_the_share_is_not_below_it_and_fewer_batches_say_nothing():
    assert begun([2, 2, 2, 2])[0].begin.ends is None
    assert begun([9, 9])[0].begin.ends is None


def test_a_beginning_counts_pictures_and_does_not_come_back():
    schedule = Schedule({"name": "constant", "begin": {**BEGIN, "batches": 2}}, lr=0.1, total_steps=20)
    schedule.stepped(0, 0, 100)
    schedule.stepped(1, 2, 4)  # the mean of the batches' errors would be 75%, that of the pictures is 98%
    assert schedule.begin.ends is None
    schedule.stepped(2, 60, 100)
    assert schedule.begin.ends == 4
    for step in range(3, 9):
        schedule.stepped(step, 0, 100)
    assert schedule.begin.ends == 4 and schedule.lr(8) == 0.1


def test_a_beginning_ends_after_so_many_steps_at_most():
    schedule, used = begun([0] * 8, at_most=5)
    assert used[:5] == [0.01] * 5 and used[5] == 0.1 and schedule.begin.ends == 5
    assert begun([9, 9, 9, 9, 9, 9], at_most=5)[0].begin.ends == 4
    assert begun([0, 0, 9, 9], at_most=5)[0].begin.ends == 4
    assert begun([0, 0, 0, 9], at_most=5)[0].begin.ends == 5
    assert begun([0, 0, 0, 0, 9], at_most=5)[0].begin.ends == 5  # and no later


@pytest.mark.parametrize("name", ["step", "plateau"])
def test_a_beginning_goes_on_from_its_state_at_every_step(name):
    rights = [0, 0, 5, 0, 1, 3, 3, 9, 0, 0]
    spec = {"name": name, "begin": {**BEGIN, "batches": 3}}
    for stop in range(len(rights)):
        found = []
        for stops in (None, stop):
            schedule = Schedule(spec, lr=0.1, total_steps=20)
            for step, right in enumerate(rights):
                if step == stops:
                    state = json.loads(json.dumps(schedule.state_dict()))
                    schedule = Schedule(spec, lr=0.1, total_steps=20)
                    schedule.load_state_dict(state)
                schedule.stepped(step, right, 10)
                if step == 4:
                    schedule.epoch_end(1.0)
            found.append((schedule.state_dict(), [schedule.lr(step) for step in range(20)]))
        assert found[0] == found[1] and found[0][0]["begin"]["ends"] == 8


def test_a_schedule_of_ones_own_may_have_places_in_steps_and_a_beginning(monkeypatch):
    @dataclasses.dataclass
    class Drops(Curve):
        once: float = 0.5
        in_steps = ("once",)

        def __call__(self, lr, step, steps):
            return 0.0 if self.reached(self.once, step, steps) else lr

    monkeypatch.setitem(SCHEDULES, "drops", Drops)
    assert rates({"name": "drops", "once": 7, "warmup": 5}, lr=1.0, steps=10)[5:].tolist() == [1, 1, 0, 0, 0]
    assert rates({"name": "drops", "once": 0.6}, lr=1.0, steps=10).tolist() == [1] * 6 + [0] * 4
    own = Schedule({"name": "drops", "begin": {**BEGIN, "at_most": 3}}, lr=1.0, total_steps=10)
    assert [own.lr(step) for step in range(6)] == [0.01, 0.01, 0.01, 1, 1, 0]
    with pytest.raises(ConfigError, match="once of the drops schedule has 7.5"):
        rates({"name": "drops", "once": 7.5})


def test_bad_specs_are_refused():
    for spec, message in [
        ({"name": "cosin"}, "Did you mean 'cosine'"),
        ({}, "unknown schedule None"),
        ({"name": "cosine", "finl": 0.1}, "Did you mean 'final'"),
        ({"name": "cosine", "at": [0.5]}, "option of the cosine schedule 'at'"),
        ({"name": "step", "at": [0.5, 80.5]}, "at of the step schedule has 80.5, .* for steps write 80, for"),
        ({"name": "step", "at": [0.5, -1]}, r"at of the step schedule\[1\] is -1; it must be at least 0"),
        ({"name": "step", "factor": "x"}, "factor of the step schedule must be a number, not 'x'"),
        ({"name": "constant", "warmup": 1.5}, "warmup of the constant schedule has 1.5, .* write 2, for a"),
        ({"name": "constant", "warmup_start": 2}, "warmup_start of the constant schedule is 2"),
        ({"name": "constant", "begin": 0.01}, "begin of the constant schedule must be a dict of options"),
        ({"name": "constant", "begin": {"lr": 0.01}}, "needs until_error, for example {\"lr\": 0.01, "),
        ({"name": "constant", "begin": {}}, "needs lr and until_error, for example"),
        ({"name": "constant", "begin": {"lr": 1, "until_eror": 1}}, "Did you mean 'until_error'"),
        ({"name": "step", "begin": {"lr": -1, "until_error": 0.8}}, "lr of begin is -1; it must be at least"),
        ({"name": "step", "begin": {"lr": 1, "until_error": 80}}, "until_error of begin is 80; .* at most 1"),
        ({"name": "step", "begin": {"lr": 1, "until_error": 0}}, "until_error of begin is 0"),
        ({"name": "step", "begin": {**BEGIN, "batches": 0}}, "batches of begin must be a whole number"),
        ({"name": "step", "begin": {**BEGIN, "at_most": 0.5}}, "at_most of begin must be a whole number"),
        ({"name": "step", "begin": BEGIN, "warmup": 0.1}, "both warmup and begin, .* give one of them"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Schedule(spec, lr=0.1, total_steps=10)
    with pytest.raises(ConfigError, match="total_steps of a schedule must be .* at least 1, not 0"):
        Schedule({"name": "constant"}, lr=0.1, total_steps=0)
