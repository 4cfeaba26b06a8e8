"""The best epoch by validation: stopping when none is better for long, and keeping its weights."""

from __future__ import annotations

import json
import os
import signal
from contextlib import nullcontext

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.errors import CheckpointError, ConfigError
from minires.train import Config, Trainer, checkpoint, evaluate, recalibrate
from minires.train.best import best, spent, steps_to_keep
from minires.train.checkpoint import Checkpoints
from minires.train.evaluation import Evaluation

EPOCHS = 5
BEST = [(0.5, 1.0), (0.75, 0.9), (0.75, 0.8), (0.75, 0.8), (0.5, 0.1)]  # the third

pytestmark = pytest.mark.usefixtures("no_figures")


def rows(figures):
    return [
        {"epoch": k, "step": 12 * k, "val_accuracy": accuracy, "val_loss": loss}
        for k, (accuracy, loss) in enumerate(figures, 1)
    ]


class Judged(Trainer):
    """Validation gives ``figures`` epoch by epoch: which epoch is the best is known beforehand."""

    figures = BEST

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.dies_after = None

    def _validated(self):
        found = super()._validated()
        accuracy, loss = self.figures[self.progress.epoch]
        return Evaluation(loss, accuracy, found.probabilities)

    def _step(self, x, y):
        if self.progress.step == self.dies_after:
            raise RuntimeError("the power fails")
        super()._step(x, y)


def run_of(out, *, resume=False, said=None, figures=None, dies_after=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), "epochs": EPOCHS, **changes})
    say = (lambda line: None) if said is None else said.append
    given = {"splits": small_splits(), "model": small_model(), "progress": False, "say": say}
    run = Judged(config, out, resume=resume, **given)
    run.dies_after = dies_after
    run.figures = figures or BEST
    return run


def kept(out):
    return checkpoint.read(out / "model.safetensors")[0]


def names(out):
    return [path.name for path in Checkpoints(out).paths()]


def test_the_best_is_the_most_accurate_then_the_lowest_loss_then_the_first():
    assert best([]) is None and best(rows([(None, None)])) is None
    assert best(rows(BEST))["epoch"] == 3
    assert best(rows([(0.5, None), (0.5, 9.0)]))["epoch"] == 2  # a loss that is not finite is worse than any
    assert best(rows([(0.0, None), (0.0, None)]))["epoch"] == 1
    assert steps_to_keep(rows(BEST)) == {36} and steps_to_keep(rows(BEST[:3])) == {36, 24}
    assert steps_to_keep([]) == set()


def test_patience_counts_the_epochs_since_the_best():
    history = rows(BEST)
    assert spent(history[:4], 2) is None and spent(history, 3) is None and spent(history, None) is None
    assert "not got better for 2 epochs (patience): the best was epoch 3, with 75.00%" in spent(history, 2)
    assert "for 1 epoch " in spent(history[:4], 1) and spent([], 1) is None


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("recalibrates", [False, True])
def test_the_weights_of_the_best_epoch_are_tested_and_kept(ema, recalibrates, tmp_path):
    out, changes = tmp_path / "run", {"keep": "best", "ema": ema, "recalibrate": recalibrates}
    said: list[str] = []
    run = run_of(out, said=said, **changes)
    summary = run.run()
    assert "the weights of epoch 3, the best by validation, are tested and kept" in said
    own = run.model.state_dict()
    assert (summary["best_epoch"], summary["kept_epoch"], summary["epochs_done"]) == (3, 3, 5)
    assert names(out) == []
    # A run of three epochs, whose schedule does not know how many there are, ends with these weights.
    short = run_of(tmp_path / "short", epochs=EPOCHS, dies_after=36, **{**changes, "keep": "all"})
    with pytest.raises(RuntimeError):
        short.run()
    with short.ema.swap() if ema else nullcontext():
        if recalibrates:
            recalibrate(short.model, short.train_set.images, short.normalize)
        expected = short.model.state_dict()
        tested = evaluate(short.model, short.splits.test, short.normalize)
        validated = evaluate(short.model, short.val_set, short.normalize)
    assert kept(out).keys() == expected.keys()
    for name, array in kept(out).items():
        assert np.array_equal(array, expected[name]), name
    assert (summary["test_loss"], summary["test_accuracy"]) == (tested.loss, tested.accuracy)
    assert (summary["val_loss"], summary["val_accuracy"]) == (validated.loss, validated.accuracy)
    # Behind it the model has its own again, and a second test needs no checkpoint.
    last = run_of(tmp_path / "last", **{**changes, "keep": "last"})
    assert last.run()["kept_epoch"] == 5
    if not recalibrates:  # which moves the own statistics
        assert all(np.array_equal(array, own[name]) for name, array in last.model.state_dict().items())
    if ema and not recalibrates:
        averages = last.ema.state_dict()
        assert all(np.array_equal(array, averages[name]) for name, array in run.ema.state_dict().items())
    if not ema:
        assert any(not np.array_equal(kept(out)[name], own[name]) for name in own)
    again = run.run()
    assert again["test_loss"] == summary["test_loss"] and again["kept_epoch"] == 3


def test_its_checkpoint_stays_as_long_as_it_may_be_needed(tmp_path):
    """Also that of the best but for the last epoch, which counts where the newest checkpoint is damaged."""
    out, seen = tmp_path / "run", []
    run = run_of(out, keep="best", checkpoint_every=5)
    save = run.save

    def watched():
        path = save()
        seen.append([int(name[11:19]) for name in names(out)])
        return path

    run.save = watched
    run.run()
    assert seen[:6] == [[5], [5, 10], [10, 12], [12, 15], [12, 15, 20], [12, 20, 24]]
    assert seen[9] == [24, 35, 36] and seen[10] == [24, 36, 40] and seen[-1] == [36, 55, 60]


@pytest.mark.parametrize("step", [1, 12, 13, 36, 37, 50, 59])
def test_a_run_that_goes_on_at_any_step_keeps_the_same_weights(step, tmp_path_factory, tmp_path):
    expected = _whole(tmp_path_factory)
    changes = {"keep": "best", "patience": 2, "recalibrate": True}
    with pytest.raises(RuntimeError):
        run_of(tmp_path / "run", dies_after=step, **changes).run()
    summary = run_of(tmp_path / "run", resume=True, **changes).run()
    assert summary["kept_epoch"] == 3 and summary["stopped_early"] is None  # the last epoch is done
    assert all(np.array_equal(array, expected[name]) for name, array in kept(tmp_path / "run").items())


_wholes: dict[str, dict] = {}


def _whole(tmp_path_factory):
    if "best" not in _wholes:
        out = tmp_path_factory.mktemp("whole") / "run"
        run_of(out, keep="best", patience=2, recalibrate=True).run()
        _wholes["best"] = kept(out)
    return _wholes["best"]


def test_a_run_killed_between_its_model_and_its_summary_comes_to_the_same_end(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", keep="best")
    monkeypatch.setattr("minires.train.report.summary", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    monkeypatch.undo()
    first = kept(tmp_path / "run")
    said = []
    again = run_of(tmp_path / "run", resume=True, keep="best", said=said)
    assert again.progress.epoch == EPOCHS
    assert again.run()["kept_epoch"] == 3 and any("testing again" in line for line in said)
    assert all(np.array_equal(array, first[name]) for name, array in kept(tmp_path / "run").items())
    assert names(tmp_path / "run") == []


def test_the_newest_checkpoint_may_be_damaged(tmp_path):
    """The epoch before the damaged one is then the last, and its best one is still there."""
    figures = [(0.9, 0.1), (0.5, 1.0), (0.6, 1.0), (0.95, 0.1), (0.1, 9.0)]
    changes = {"keep": "best", "checkpoint_every": 0, "figures": figures}
    run_of(tmp_path / "whole", **changes).run()
    out = tmp_path / "run"
    with pytest.raises(RuntimeError):
        run_of(out, dies_after=48, **changes).run()
    assert [int(name[11:19]) for name in names(out)] == [12, 36, 48]
    newest = Checkpoints(out).paths()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        again = run_of(out, resume=True, **changes)
    assert again.progress.step == 36
    assert again.run()["kept_epoch"] == 4
    whole = kept(tmp_path / "whole")
    assert all(np.array_equal(array, whole[name]) for name, array in kept(out).items())


def test_the_best_checkpoint_that_is_damaged_is_named_and_the_last_weights_can_be_taken(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError):
        run_of(out, keep="best", dies_after=59).run()
    path = Checkpoints(out).path(36)
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    run = run_of(out, resume=True, keep="best")
    with pytest.raises(CheckpointError, match="weights of epoch 3, the best by.*00000036.*keep='last'"):
        run.run()
    assert len(names(out)) == 3 and not (out / "model.safetensors").exists()
    path.write_bytes(content)
    assert run_of(out, resume=True, keep="best").run()["kept_epoch"] == 3


@pytest.mark.parametrize(("before", "after"), [
    ("best", "none"), ("best", "last"), ("best", "all"), ("all", "best"), ("none", "best"),
])  # fmt: skip
def test_what_is_kept_may_change_where_the_weights_are_there(before, after, tmp_path):
    """In the middle of epoch 4; the third is the best, and is still among the last two where none is kept."""
    whole = tmp_path / "whole"
    run_of(whole, keep=after, checkpoint_every=0).run()
    out = tmp_path / "run"
    with pytest.raises(RuntimeError):
        run_of(out, keep=before, checkpoint_every=0, dies_after=40).run()
    summary = run_of(out, resume=True, keep=after, checkpoint_every=0).run()
    assert summary["kept_epoch"] == (3 if after == "best" else 5)
    assert json.loads((out / "config.json").read_text())["keep"] == after
    assert all(np.array_equal(array, kept(whole)[name]) for name, array in kept(out).items())
    left = {"none": [], "best": [], "last": [48, 60], "all": [24, 36, 48, 60]}[after]
    assert [int(name[11:19]) for name in names(out)] == left


def test_a_change_to_the_best_is_refused_where_its_weights_are_gone(tmp_path):
    out, figures = tmp_path / "run", [(0.9, 0.1), *BEST[1:]]
    changes = {"checkpoint_every": 0, "figures": figures}
    with pytest.raises(RuntimeError):
        run_of(out, keep="none", dies_after=40, **changes).run()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CheckpointError, match="needs the weights of epoch 1, .*00000012.*keep='last'"):
        run_of(out, resume=True, keep="best", **changes)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run_of(out, resume=True, keep="none", **changes).run()["kept_epoch"] == 5


def test_a_run_stops_when_validation_does_not_get_better(tmp_path):
    said = []
    summary = run_of(tmp_path / "run", patience=1, said=said).run()
    assert summary["epochs_done"] == 4 and summary["epochs"] == 5 and summary["steps"] == 48
    why = "validation has not got better for 1 epoch (patience): the best was epoch 3, with 75.00%"
    assert summary["stopped_early"] == why and f"stopped after epoch 4 of 5: {why}" in said
    assert summary["test_accuracy"] is not None and summary["kept_epoch"] == 4
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 5
    for step in (30, 47):
        out = tmp_path / str(step)
        with pytest.raises(RuntimeError):
            run_of(out, patience=1, dies_after=step).run()
        again = run_of(out, patience=1, resume=True).run()
        assert again["stopped_early"] == why
        assert all(np.array_equal(a, kept(tmp_path / "run")[name]) for name, a in kept(out).items())
    with pytest.raises(CheckpointError, match="is finished"):
        run_of(tmp_path / "30", patience=1, resume=True)


def test_a_run_killed_after_its_last_epoch_trains_no_other(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", patience=1, keep="best")
    monkeypatch.setattr(Judged, "_finish", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    monkeypatch.undo()
    again = run_of(tmp_path / "run", patience=1, keep="best", resume=True, dies_after=48)
    summary = again.run()
    assert summary["epochs_done"] == 4 and summary["kept_epoch"] == 3


def test_what_asks_for_validation_is_refused_where_nothing_is_validated():
    for changes, message in [
        ({"patience": 3}, "patience is 3, and asks for validation, but with train_on='train.val' nothing is"),
        ({"keep": "best"}, "keep is 'best', and asks for validation"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Config(train_on="train+val", **changes)
        assert Config(**changes)
    with pytest.raises(ConfigError, match="patience is 0; it must be at least 1"):
        Config(patience=0)
    with pytest.raises(ConfigError, match="unknown value of keep 'bets'. Did you mean 'best'"):
        Config(keep="bets")


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_a_signal_after_the_best_epoch_loses_nothing(tmp_path, tmp_path_factory):
    expected, changes = _whole(tmp_path_factory), {"keep": "best", "patience": 2, "recalibrate": True}
    run = run_of(tmp_path / "run", **changes)
    step = run._step

    def signalled(x, y):
        step(x, y)
        if run.progress.step == 51:
            os.kill(os.getpid(), signal.SIGTERM)

    run._step = signalled
    with pytest.raises(KeyboardInterrupt, match="stopped after step 51"):
        run.run()
    del run._step
    assert run.run()["kept_epoch"] == 3
    assert all(np.array_equal(array, expected[name]) for name, array in kept(tmp_path / "run").items())
