"""Observers hear how a run goes, and cost it nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.errors import ConfigError, MiniresError
from minires.train import Config, Observer, Trainer
from minires.train.checkpoint import Checkpoints
from minires.train.lock import Lost

CHANGES = {"epochs": 2, "checkpoint_every": 0}

pytestmark = pytest.mark.usefixtures("no_figures")


def trainer(out, *observers, said=None, **changes):
    config = Config.from_dict({**CONFIG.to_dict(), **CHANGES, **changes})
    say = (lambda line: None) if said is None else said.append
    return Trainer(
        config, out, splits=small_splits(), model=small_model(), progress=False, say=say, observers=observers
    )


class Notes(Observer):
    def __init__(self):
        self.heard, self.summary = [], None

    def begins(self, run):
        self.heard.append(("begins", run.progress.step, run.out.name, len(run.train_set), len(run.val_set)))

    def stepped(self, run):
        self.heard.append(("stepped", run.progress.step))

    def epoch_ended(self, run, row, val):
        on_disk = (run.out / "metrics.csv").read_text().splitlines()[-1].split(",")
        saved = Checkpoints(run.out).paths()[-1].name
        self.heard.append(("epoch", row["epoch"], on_disk[0], saved, row is run.history[-1]))
        assert val.accuracy == row["val_accuracy"] and val.probabilities.shape == (24, 3)

    def ends(self, run, summary):
        self.heard.append(("ends",))
        self.summary = summary


def test_each_moment_is_told_in_its_turn(tmp_path):
    notes = Notes()
    summary = trainer(tmp_path / "run", notes).run()
    assert notes.summary == summary
    steps = [("stepped", step) for step in range(1, 25)]
    assert notes.heard == [
        ("begins", 0, "run", 93, 24),
        *steps[:12], ("epoch", 1, "1", "checkpoint-00000012.safetensors", True),
        *steps[12:], ("epoch", 2, "2", "checkpoint-00000024.safetensors", True),
        ("ends",),
    ]  # fmt: skip


class Broken(Observer):
    def __init__(self, moment, error):
        self.calls = 0

        def fail(*given):
            self.calls += 1
            raise error

        setattr(self, moment, fail)


@pytest.mark.parametrize("moment", ["begins", "stepped", "epoch_ended", "ends"])
def test_one_that_fails_is_left_out_and_the_run_goes_on_to_the_same_bits(moment, tmp_path):
    trainer(tmp_path / "alone").run()
    said, broken, notes = [], Broken(moment, ZeroDivisionError("by nought")), Notes()
    trainer(tmp_path / "run", broken, notes, said=said).run()
    warnings = [line for line in said if "observer" in line]
    assert warnings == [
        f"warning: the observer Broken has failed in {moment}() and is left out from here on: "
        "ZeroDivisionError: by nought"
    ]
    assert broken.calls == 1 and notes.heard[-1] == ("ends",)
    one, other = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("alone", "run"))
    assert one == other
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not any("observer" in text for text in summary["warnings"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Lost("somebody else")])
def test_what_ends_a_run_ends_it_from_an_observer_too(error, tmp_path):
    with pytest.raises(type(error)):
        trainer(tmp_path / "run", Broken("stepped", error)).run()


def test_a_run_that_is_stopped_by_its_loss_ends_and_one_that_is_interrupted_does_not(tmp_path):
    class Stops(Notes):
        def epoch_ended(self, run, row, val):
            raise KeyboardInterrupt

    notes = Stops()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "stopped", notes).run()
    assert notes.summary is None and notes.heard[-1] == ("stepped", 12)
    run = trainer(tmp_path / "lost", notes)
    run.loader.normalize = lambda x: np.full(x.shape, np.nan, np.float32)
    with pytest.raises(MiniresError, match="the loss is nan"):
        run.run()
    assert "the loss is nan" in notes.summary["warnings"][-1] and notes.summary["test_accuracy"] is None


def test_what_is_no_observer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="an observer is of a subclass of minires.train.Observer; 3 is not"):
        trainer(tmp_path / "run", 3)
    assert not (tmp_path / "run").exists()
