"""What a trial finds, and that each picture is asked for once by a way that has not seen it."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
from train.small_run import CONFIG, small_splits

from minires.errors import ConfigError, DataError
from minires.interrupt import Stopped
from minires.train import Trainer, trial
from minires.train.trial import FOLDS, STEPS, folds

SMALL = replace(CONFIG, model="resnet20_cifar", variant={"widths": [4, 4, 4]}, ema=0.0, batch_size=16,
                schedule={"name": "one-cycle", "peak": 0.25}, augment=[], seed=1)  # fmt: skip


@pytest.fixture
def runs(monkeypatch):
    """The trainers that a trial makes."""
    made = []

    class Noted(Trainer):
        def __init__(self, config, out, **options):
            super().__init__(config, out, **options)
            made.append(self)

    monkeypatch.setattr(trial, "Trainer", Noted)
    return made


@pytest.mark.parametrize("counts", [(3, 3), (4, 5, 6), (24, 24, 24), (7, 50)])
def test_each_part_leaves_out_a_third_of_each_class(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    found = folds(labels, len(counts), seed=0)
    for label, count in enumerate(counts):
        sizes = np.bincount(found[labels == label], minlength=FOLDS)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1 and sizes.min() >= 1
    assert np.array_equal(found, folds(labels, len(counts), seed=0))
    if sum(counts) > 10:
        assert not np.array_equal(found, folds(labels, len(counts), seed=1))


def test_too_few_pictures_are_refused():
    with pytest.raises(DataError, match="class 1 has 2 pictures, too few for 3 parts"):
        folds(np.array([0, 0, 0, 1, 1]), 2, seed=0)


def test_each_picture_is_asked_for_once_by_a_run_that_has_not_seen_it(runs):
    pictures = small_splits().train
    found = trial.trial(pictures, {"one": SMALL}, progress=False)
    asked = [name for run in runs for name in run.splits.test.names]
    assert sorted(asked) == sorted(pictures.names) and len(runs) == FOLDS
    for run in runs:
        assert not {*run.train_set.names} & {*run.splits.test.names}
        assert {*run.train_set.names} | {*run.splits.test.names} == {*pictures.names}
        assert run.progress.step == STEPS and run.config.seed == SMALL.seed
        assert not run.out.exists()
    right = sum(run.history[-1]["val_accuracy"] * len(run.splits.test) for run in runs)
    assert found == {"one": pytest.approx(right / len(pictures))}
    assert found["one"] > 0.9, "stripes are told apart in a hundred steps"


def test_the_way_that_learns_is_told_from_one_that_does_not(runs):
    slow = replace(SMALL, optimizer={"name": "adam", "lr": 1e-9})
    found = trial.trial(small_splits().train, {"learns": SMALL, "does not": slow}, progress=False)
    assert found["learns"] > 0.9 and found["does not"] < 0.6
    assert [run.config.optimizer for run in runs] == [SMALL.optimizer] * FOLDS + [slow.optimizer] * FOLDS


def test_a_signal_ends_it_and_nothing_stays(runs, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def stops(trainer):
        if trainer.progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trial._Bar, "stepped", lambda bar, run: stops(run))
    with pytest.raises(Stopped, match="nothing was begun") as stop:
        trial.trial(small_splits().train, {"one": SMALL}, progress=False)
    assert stop.value.number == signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_said_as_it_is():
    with pytest.raises(ConfigError, match="no part 'res9'"):
        trial.trial(small_splits().train, {"one": replace(SMALL, freeze=["res9"])}, progress=False)
