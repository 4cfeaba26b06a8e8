"""Runs that begin with a rate of their own until the training error falls: when it ends, resumed, in parts,
on several ranks, and where the figures of a step come later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires import distributed, optim
from minires.distributed import Solo
from minires.train import Observer, Trainer, steps
from minires.train.captured import Figures
from minires.train.schedules import Schedule
from minires.train.state import Progress

BATCHES, SHARE = 4, 0.5
RUN = replace(
    CONFIG, optimizer={"name": "adam", "lr": 0.02}, epochs=3, checkpoint_every=1, augment=[],
    schedule={
        "name": "step", "at": [25, 30], "begin": {"lr": 0.004, "until_error": SHARE, "batches": BATCHES},
    },
)  # fmt: skip


class Noting(Observer):
    """Keeps of each step how many pictures were wrong, of how many, and its rate."""

    def __init__(self):
        self.seen, self._before = [], (0, 0)

    def begins(self, run):
        self._before = run.progress.right, run.progress.pictures

    def stepped(self, run):
        right, pictures = run.progress.right - self._before[0], run.progress.pictures - self._before[1]
        self.seen.append((pictures - right, pictures, run.optimizer.lr))
        self._before = run.progress.right, run.progress.pictures
        if run.progress.batch == len(run.loader):
            self._before = 0, 0


def trainer(out, *, kind=Trainer, comm=None, said=None, resume=False, noting=None, **changes):
    return kind(
        None if resume else replace(RUN, **changes), out, splits=small_splits(), model=small_model(),
        resume=resume, progress=False, say=[].append if said is None else said.append, figures=False,
        comm=comm or Solo(), observers=[noting] if noting else [],
    )  # fmt: skip


def by_hand(seen):
    """The first step with the rate of the schedule."""
    for last in range(BATCHES, len(seen) + 1):
        wrong, pictures = (sum(one[k] for one in seen[last - BATCHES : last]) for k in (0, 1))
        if wrong / pictures < SHARE:
            return last - 1 + 2
    raise AssertionError("it never learns")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    noting, said = Noting(), []
    run = trainer(tmp_path_factory.mktemp("whole") / "run", noting=noting, said=said)
    run.run()
    return run, noting.seen, said


def test_the_rate_goes_up_when_the_error_of_the_last_batches_is_below(whole):
    run, seen, said = whole
    ends = by_hand(seen)
    assert BATCHES + 2 < ends < 23, "else this shows nothing"
    rates = [0.004] * ends + [0.02] * (25 - ends) + [0.002] * 5 + [0.0002] * 6
    assert [rate for *_, rate in seen] == pytest.approx(rates)
    line = f"after step {ends} the training error is below 50%: the learning rate goes from 0.004 to that of "
    assert [one for one in said if "rate goes" in one] == [f"{line}the schedule"]


class Dying(Trainer):
    at = 0

    def _step(self, x, y):
        if self.progress.step == self.at:
            raise RuntimeError("the power fails")
        super()._step(x, y)


@pytest.mark.parametrize("before", [6, 2, 1, 0, -1])
def test_a_run_that_goes_on_around_the_end_of_it_has_the_same_bits(before, whole, tmp_path):
    expected, seen, _ = whole
    ends = by_hand(seen)
    run, said = trainer(tmp_path / "run", kind=Dying), []
    run.at = ends - before
    with pytest.raises(RuntimeError, match="the power fails"):
        run.run()
    again = trainer(tmp_path / "run", resume=True, said=said)
    assert again.progress.step == ends - before
    again.run()
    assert again.schedule.begin.ends == ends
    for name, array in expected.model.state_dict().items():
        assert np.array_equal(array, again.model.state_dict()[name]), name
    assert len([one for one in said if "rate goes" in one]) == (before > 0)


def test_in_parts_the_batch_counts(tmp_path):
    noting = Noting()
    trainer(tmp_path / "run", noting=noting, accumulate=2).run()
    ends = by_hand(noting.seen)
    assert [rate for *_, rate in noting.seen[ends - 1 : ends + 1]] == pytest.approx([0.004, 0.02])


def test_all_ranks_decide_alike(tmp_path):
    def work(comm):
        run = trainer(tmp_path / str(comm.size), comm=comm, batch_norm="sync")
        run.run()
        return run.schedule.begin.ends, [row["lr"] for row in run.history]

    found = distributed.run(3, work)
    assert found[0][0] is not None and found == [found[0]] * 3
    assert found[0] == work(Solo())


def test_one_that_never_ends_is_said(tmp_path):
    said = []
    begin = {"lr": 1e-6, "until_error": 0.01}
    trainer(tmp_path / "run", said=said, epochs=1, schedule={"name": "constant", "begin": begin}).run()
    assert "warning: the training error never fell below 1%: all 12 steps had the learning rate" in str(said)
    begin["at_most"], said[:] = 3, []
    trainer(tmp_path / "other", said=said, epochs=1, schedule={"name": "constant", "begin": begin}).run()
    assert "3 steps are done, the most for a beginning: the learning rate goes from 1e-06" in str(said)
    assert "warning: the training error never" not in str(said)


class Later:
    """In the place of a captured step: its figures are to be had only when the next one has begun."""

    def __init__(self, rights):
        self.rights, self.is_possible = iter(rights), True

    def __call__(self, x, y, pictures):
        return lambda x, y: self

    def read(self):
        return Figures(1.0, next(self.rights), 1.0)


@pytest.mark.parametrize("settled", [(), (5,), (6,), (7,), tuple(range(20))])
def test_where_figures_come_later_the_rates_are_the_same_wherever_it_is_saved(settled):
    rights = [3, 0, 0, 0, 3, 3, 1, 9, 9, 9, 9, 9, 9, 9]
    spec = {"name": "constant", "begin": {"lr": 0.01, "until_error": 0.8, "batches": 3}}
    schedule, progress, model = Schedule(spec, lr=0.1, total_steps=20), Progress(), small_model()
    capture = Later(rights)
    step = steps.Steps(
        model, optim.SGD(list(model.parameters()), lr=1.0), model, lambda logits, y: logits, pytest.fail,
        device="cpu", activations=np.float32, ema=None, capture=capture, heard=schedule.stepped,
    )  # fmt: skip
    used = []
    x, y = np.zeros((10, 12, 12, 3), np.float32), np.zeros(10, int)
    for number in range(len(rights)):
        used.append(schedule.lr(progress.step))
        step(x, y, progress, used[-1])
        assert len(step._pending) == 1, "nobody waits for the figures"
        if number in settled:
            step.settle()
    assert used == [0.01] * 8 + [0.1] * 6  # the batches up to number 6 are the first below 80%
