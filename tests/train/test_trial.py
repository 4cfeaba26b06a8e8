"""What a trial finds, and that each picture is asked for once by a way that has not seen it."""

from __future__ import annotations

import errno
import itertools
import signal
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from train.small_run import CONFIG, small_splits, write_pictures

from minires import data
from minires.errors import ConfigError, DataError, MiniresError
from minires.interrupt import Stopped
from minires.train import Trainer, run_folder, trial
from minires.train.steps import parts
from minires.train.trial import FOLDS, STEPS, folds

SMALL = replace(CONFIG, model="resnet20_cifar", variant={"widths": [8, 8, 8]}, ema=0.0, batch_size=16,
                schedule={"name": "one-cycle", "peak": 0.25}, augment=[], seed=1)  # fmt: skip


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


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
    classes = tuple(f"class{k}" for k in range(len(counts)))
    found = folds(labels, classes, seed=0)
    for label, count in enumerate(counts):
        sizes = np.bincount(found[labels == label], minlength=FOLDS)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1 and sizes.min() >= 1
    assert np.array_equal(found, folds(labels, classes, seed=0))
    if sum(counts) > 10:
        assert not np.array_equal(found, folds(labels, classes, seed=1))


def test_too_few_pictures_are_refused():
    with pytest.raises(DataError, match="class 'dog' has 2 pictures, too few for 3 parts"):
        folds(np.array([0, 0, 0, 1, 1]), ("cat", "dog"), seed=0)


def test_each_picture_is_asked_for_once_by_a_run_that_has_not_seen_it(runs, monkeypatch):
    pictures, drawn = small_splits().train, []
    for figure in ("draw_curves", "draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(run_folder, figure, lambda path, *_, **__: drawn.append(path.name))
    found = trial.trial(pictures, {"one": SMALL}, progress=False)
    asked = [name for run in runs for name in run.splits.test.names]
    assert sorted(asked) == sorted(pictures.names) and len(runs) == FOLDS and not drawn
    for run in runs:
        assert not {*run.train_set.names} & {*run.splits.test.names}
        assert {*run.train_set.names} | {*run.splits.test.names} == {*pictures.names}
        assert run.progress.step == STEPS and run.config.seed == trial.SEED != SMALL.seed
        assert not run.out.exists()
    right = sum(run.history[-1]["val_accuracy"] * len(run.splits.test) for run in runs)
    assert found == {"one": round(right)}
    assert found["one"] > 0.9 * len(pictures), "stripes are told apart in a hundred steps"


def test_the_way_that_learns_is_told_from_one_that_does_not(runs):
    slow = replace(SMALL, optimizer={"name": "adam", "lr": 1e-9})
    found = trial.trial(small_splits().train, {"learns": SMALL, "does not": slow}, progress=False)
    assert found["learns"] > 80 and found["does not"] < 56, "of 93"
    assert [run.config.optimizer for run in runs] == [SMALL.optimizer] * FOLDS + [slow.optimizer] * FOLDS


def test_a_signal_ends_it_and_nothing_stays(runs, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def stops(trainer):
        if trainer.progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trial._Progress, "stepped", lambda watched, run: stops(run))
    with pytest.raises(Stopped, match="stopped before the run began") as stop:
        trial.trial(small_splits().train, {"one": SMALL}, progress=False)
    assert stop.value.number == signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_said_as_it_is():
    with pytest.raises(ConfigError, match="no part 'res9'"):
        trial.trial(small_splits().train, {"one": replace(SMALL, freeze=["res9"])}, progress=False)
    with pytest.raises(ConfigError, match="a trial needs ways to try"):
        trial.trial(small_splits().train, {}, progress=False)


def test_a_large_batch_makes_no_longer_trial_and_no_more_copies(runs, monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 6)
    monkeypatch.setattr(trial, "MEMORY", 100_000)  # 231 of these pictures
    pictures = small_splits().train
    large = replace(SMALL, batch_size=1000, accumulate=100)
    trial.trial(pictures, {"small": replace(SMALL, batch_size=5), "large": large}, progress=False)
    for run in runs[:FOLDS]:
        assert run.progress.step == 6 and len(run.train_set) == 30 and run.config.epochs == 1
    for run in runs[FOLDS:]:
        others = len(pictures) - len(run.splits.test)
        assert run.progress.step == 6 and run.config.batch_size == others // 10 * 10 <= 100
        assert parts(run.config.batch_size, run.config.batch_size, run.config.accumulate) == [10] * 6
        assert len(run.train_set) == 3 * run.config.batch_size and {*run.train_set.names} <= {*pictures.names}


def test_all_others_are_learnt_from_as_often_in_whichever_order_the_pictures_come(runs, monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 10)
    pictures = small_splits().train
    pictures = pictures.take(np.argsort(pictures.labels, kind="stable"))  # as folders of classes come
    trial.trial(pictures, {"one": replace(SMALL, batch_size=16)}, progress=False)
    for run in runs:
        counts = Counter(run.train_set.names)
        assert {*counts.values()} == {2, 3} and counts.keys() == {*pictures.names} - {*run.splits.test.names}
        classes = np.bincount(run.train_set.labels)
        assert classes.min() > 0.75 * classes.max(), "what is left over is of all classes"
    runs.clear()
    trial.trial(pictures, {"few": replace(SMALL, batch_size=2)}, progress=False)
    for run in runs:
        assert len({*run.train_set.names}) == 20 and min(np.bincount(run.train_set.labels, minlength=3)) >= 3


def test_a_trial_has_what_the_run_has_but_what_it_says(runs, monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 4)
    whole = replace(
        SMALL, data="elsewhere", epochs=7, batch_size=6, accumulate=2, drop_last=False, seed=9, keep="all",
        train_on="train+val", recalibrate=True, watch=True, checkpoint_every=1, augment=["flip"], ema=0.9,
        balance="weights", label_smoothing=0.3, freeze=["conv1"], plan=False, pictures=90,
    )  # fmt: skip
    trial.trial(small_splits().train, {"one": whole}, progress=False)
    may_differ = {"data", "epochs", "drop_last", "seed", "keep", "train_on", "recalibrate", "watch",
                  "checkpoint_every", "pictures"}  # fmt: skip
    for run in runs:
        differ = {name for name, value in whole.to_dict().items() if run.config.to_dict()[name] != value}
        assert differ == may_differ
        assert not {*run.train_set.names} & {*run.splits.test.names}, "nothing is asked for that was learnt"
        assert not run.model.conv1.weight.requires_grad
    runs.clear()
    patient = replace(SMALL, patience=1, epochs=9, batch_size=20)
    monkeypatch.setattr(trial, "MEMORY", 1)
    monkeypatch.setattr(trial, "STEPS", 12)
    trial.trial(small_splits().train, {"one": patient}, progress=False)
    assert [run.progress.step for run in runs] == [12] * FOLDS and runs[0].config.epochs == 4
    assert [run.config.patience for run in runs] == [None] * FOLDS


def test_a_way_that_diverges_has_none_right(monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 10)
    wild = replace(SMALL, optimizer={"name": "sgd", "lr": 1e30}, schedule={"name": "constant"})
    with np.errstate(all="ignore"):
        found = trial.trial(small_splits().train, {"wild": wild, "calm": SMALL}, progress=False)
    assert found["wild"] == 0 < found["calm"]
    wrong = replace(SMALL, freeze=["res9"])
    with np.errstate(all="ignore"), pytest.raises(ConfigError, match="no part 'res9'"):
        trial.trial(small_splits().train, {"wild": wild, "wrong": wrong}, progress=False)


def test_what_goes_wrong_is_said_without_a_run_that_nobody_has(monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "STEPS", 3)
    pictures = small_splits().train
    full = raises(MiniresError("no space left on device"))
    with monkeypatch.context() as patch, pytest.raises(MiniresError) as said:
        patch.setattr("minires.train.checkpoint.Checkpoints.save", full)
        trial.trial(pictures, {"one": SMALL}, progress=False)
    begin = "the trial of how to train could not go on, and no run was begun: "
    assert str(said.value) == begin + "no space left on device"
    with monkeypatch.context() as patch, pytest.raises(MiniresError) as said:
        patch.setattr("os.fsync", raises(OSError(errno.ENOSPC, "No space left on device")))
        trial.trial(pictures, {"one": SMALL}, progress=False)
    assert str(said.value).startswith(begin) and str(said.value).endswith(trial.ROOM) and trial.ROOM
    with pytest.raises(FileNotFoundError, match="palette"):  # of the user's own: said as it is
        monkeypatch.setattr(trial, "Trainer", raises(FileNotFoundError("palette.txt")))
        trial.trial(pictures, {"one": SMALL}, progress=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(MiniresError, match="no run was begun: .*gone.*; TMPDIR can name another folder"):
        trial.trial(pictures, {"one": SMALL}, progress=False)


def test_a_picture_that_cannot_be_read_is_named_once_and_before_anything_is_tried(tmp_path, runs):
    root = write_pictures(tmp_path / "pictures")
    train = data.load(root, size=12, stream=True).train
    broken = [train.names[place] for place in (3, 70)]
    for name in broken:
        (root / name).write_bytes(b"")
    with pytest.raises(DataError) as said:
        trial.trial(train, {"one": SMALL}, progress=False)
    assert [str(said.value).count(name) for name in broken] == [1, 1] and not runs


def test_who_sees_no_bar_hears_now_and_then_how_far_it_is(monkeypatch):
    clock = itertools.count(step=20.0)
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(trial, "STEPS", 2)
    said = []
    trial.trial(small_splits().train, {"one": SMALL}, say=said.append)
    assert [line for line in said if "tried" in line] == [
        "tried 3 of 6 steps, about 60 s left", "tried 5 of 6 steps, about 20 s left"
    ]  # fmt: skip
    said.clear()
    trial.trial(small_splits().train, {"one": SMALL}, progress=False, say=said.append)
    assert said == []
    both = {"one": SMALL, "other": SMALL}
    trial.trial(small_splits().train, both, say=said.append)
    assert said[-1] == "tried 11 of 12 steps, about 20 s left"
