"""The model of a run that is not finished: that of its newest good checkpoint, and the run is let alone."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from train.small_run import small_model, small_splits
from train.test_continuing import DAMAGE, NEWEST, changed, contents, stopped, trainer  # noqa: F401

from minires.errors import CheckpointError
from minires.train import checkpoint, evaluate, load_model, start_from
from minires.train.checkpoint import Checkpoints

OLDER = "checkpoint-00000005.safetensors"

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def run(stopped, tmp_path):  # noqa: F811
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def loaded(run, said):
    with pytest.warns(UserWarning, match=said):
        return load_model(run, model=small_model(seed=9))


def test_the_newest_checkpoint_with_its_averaged_weights_is_taken_and_said(run):
    before = contents(run)
    trained = loaded(run, r"run is not finished: .* of step 10 .in epoch 1 of 3., its averaged weights$")
    assert contents(run) == before
    arrays, info = checkpoint.read(run / NEWEST)
    state = trained.model.state_dict()
    for name, array in state.items():
        assert np.array_equal(array, arrays[f"ema/{name}"]), name
    assert not np.array_equal(state["fc.weight"], arrays["model/fc.weight"])
    assert trained.classes == ("rows", "columns", "slant") and trained.size == (12, 12)
    normalize = info["trained"]["normalize"]
    assert list(trained.normalize.mean) == normalize["mean"] and trained.name == "small"
    assert not any(module.training for module in trained.model.modules())


def test_it_says_what_the_trainer_itself_would_find(tmp_path):
    held = trainer(tmp_path / "run", ema=0.0, epochs=2)
    epoch = held._epoch

    def one_epoch(*given):
        if held.progress.epoch == 1:
            raise KeyboardInterrupt
        epoch(*given)

    held._epoch = one_epoch
    with pytest.raises(KeyboardInterrupt):
        held.run()
    trained = loaded(tmp_path / "run", r"of step 12 .after epoch 1 of 2.$")
    val = small_splits().val
    assert evaluate(trained.model, val, trained.normalize).loss == held.history[0]["val_loss"]


def test_it_is_taken_from_a_run_that_is_under_way_and_takes_nothing_from_it(run):
    held = trainer(run, resume=True)
    loaded(run, "of step 10")
    assert held.run()["steps"] == 36
    with warnings.catch_warnings(action="error"):
        load_model(run, model=small_model())


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if "changed byte" in kind or kind in (
    "empty", "a folder", "a link to nowhere", "a place that cannot be")])  # fmt: skip
def test_of_a_damaged_one_the_one_before_is_taken_and_nothing_is_moved(kind, run):
    DAMAGE[kind](run / NEWEST)
    names = sorted(run.iterdir())
    if kind == "a place that cannot be":  # its weights are whole
        loaded(run, "of step 10")
    else:
        loaded(run, r"of step 5 .*; 1 newer one is damaged$")
    assert sorted(run.iterdir()) == names
    (run / OLDER).write_bytes(b"")
    if kind != "a place that cannot be":
        with pytest.raises(CheckpointError, match="no model in .*run yet, and no checkpoint that is whole"):
            load_model(run, model=small_model())


def test_a_checkpoint_that_goes_while_it_is_looked_at_is_looked_for_again(run, monkeypatch):
    paths = Checkpoints.paths
    looked = []

    def late(self):
        found = paths(self)
        looked.append(found)
        if len(looked) == 1:  # the run writes another one and removes its older ones
            (run / NEWEST).rename(run / "checkpoint-00000015.safetensors")
        return found

    monkeypatch.setattr(Checkpoints, "paths", late)
    loaded(run, "of step 10")
    assert len(looked) == 2


def test_of_an_older_version_all_that_it_says_is_taken_or_what_is_missing_is_said(run):
    (run / OLDER).unlink()

    def older(arrays, info, **config):
        del info["trained"]
        info["config"].update(config)

    changed(run / NEWEST, older)
    said = "older version, which does not say how the pictures were normalised and the size of the pictures;"
    with pytest.raises(CheckpointError, match=said):
        load_model(run, model=small_model())
    changed(run / NEWEST, lambda arrays, info: info["config"].update(normalize="none", size=12))
    trained = loaded(run, "of step 10")
    assert trained.normalize.mean == (0, 0, 0) and trained.size == (12, 12)
    assert trained.classes == ("rows", "columns", "slant")
    changed(run / NEWEST, lambda arrays, info: info.update(data="0123"))
    with pytest.raises(CheckpointError, match="does not say the names of the classes; go on with the run"):
        load_model(run, model=small_model())


def test_what_has_neither_model_nor_checkpoint_says_why(run, tmp_path):
    with pytest.raises(CheckpointError, match="model.safetensors does not exist"):
        load_model(tmp_path)
    for name in (NEWEST, OLDER):
        (run / name).unlink()
    with pytest.raises(CheckpointError, match="stopped before its first checkpoint; .* train --resume"):
        load_model(run)
    held = trainer(tmp_path / "new")
    with pytest.raises(CheckpointError, match="is being trained by this process, since 20.*has no check"):
        load_model(tmp_path / "new")
    del held


def test_no_run_starts_from_one_that_is_not_finished(run):
    with pytest.raises(CheckpointError, match="is not finished, and has no model yet; go on with it"):
        start_from(small_model(), run)
