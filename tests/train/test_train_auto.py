"""``minires train --data FOLDER`` tries which layers should learn: with what, when, and what follows."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import command_line
import numpy as np
import pytest
from quick_runs import dark_and_light, draw_nothing

from minires.data import Stream
from minires.train import Trainer, auto, load_model, lock, starters, state, trial


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with pictures of two classes, and runs that take few steps."""
    dark_and_light(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "STEPS", 2)
    monkeypatch.setattr(auto, "STEPS", 4)
    monkeypatch.setattr(auto, "EPOCHS", 1)
    draw_nothing(monkeypatch)
    return tmp_path


@pytest.fixture
def tried(monkeypatch):
    """What each of the ways is given; ``right`` is what they get right, by the way."""
    seen = {"right": {auto.ALL: 10, auto.LAST: 11}}

    def noted(pictures, ways, *, say):
        seen.update(pictures=pictures, ways=ways)
        return seen["right"]

    monkeypatch.setattr(trial, "trial", noted)
    return seen


def config():
    return json.loads(Path("run/config.json").read_text())


def train(capsys, *options):
    return command_line.call(capsys, "train", "--data", "pictures", "--out", "run", *options)


def test_the_better_way_is_what_the_run_does(place, tried, capsys):
    status, said, _ = train(capsys)
    last, run = tried["ways"][auto.LAST], config()
    assert status == 0 and run["freeze"] == last.freeze and len(run["freeze"]) > 3
    assert (run["optimizer"], run["recalibrate"]) == ({"name": "adam", "lr": 1e-2}, False)
    assert len(tried["pictures"]) == 19 and tried["pictures"].classes == ("dark", "light")
    assert "trying on the 19 pictures, some left out, whether all layers or the last layer alone" in said
    assert "of 19 pictures, each left out once, got right: all layers 10, the last layer alone 11" in said
    start = load_model(starters.path_of("starter")).model.state_dict()
    found = load_model("run").model.state_dict()
    others = {name for name, array in start.items() if not np.array_equal(array, found[name])}
    assert others == {"fc.weight", "fc.bias"}


def test_all_layers_learn_where_they_are_as_good(place, tried, capsys):
    tried["right"][auto.ALL] = 11
    assert train(capsys)[0] == 0
    run = config()
    assert run["freeze"] == [] and run["optimizer"]["lr"] == 1e-3 and run["recalibrate"] is True


def test_it_is_really_tried(place, capsys):
    status, said, _ = train(capsys, "--no-watch")
    assert status == 0 and "whether all layers or the last layer alone should learn: 12 steps" in said
    assert sorted(os.listdir(place)) == ["pictures", "run"]


def test_what_is_tried_has_all_that_is_given(place, tried, capsys):
    given = ["--lr", "0.004", "--clip-norm", "2", "--set", "optimizer.name=sgd", "--set", "ema=0.5",
             "--set", "label_smoothing=0", "--seed", "7"]  # fmt: skip
    status, said, _ = train(capsys, *given)
    assert status == 0 and said.count("seed 7") == 1
    for one in tried["ways"].values():
        assert one.optimizer == {"name": "sgd", "lr": 0.004, "clip_norm": 2.0}
        assert (one.ema, one.label_smoothing, one.seed) == (0.5, 0, 7)
    run = config()
    assert {**run, "data": None, "recipe": None} == {
        **tried["ways"][auto.LAST].to_dict(), "data": None, "recipe": None
    }  # fmt: skip


@pytest.mark.parametrize(
    "given", [["--freeze", "conv1"], ["--set", "freeze=[]"], ["--epochs", "1"], ["--start-from", "none"]]
)
def test_nothing_is_tried_where_nothing_hangs_on_it(given, place, tried, capsys):
    status, said, _ = train(capsys, *given)
    assert status == 0 and "ways" not in tried and "trying on" not in said


def test_pictures_are_tried_as_the_run_has_them(place, tried, capsys, monkeypatch):
    asked, load = [], state.data.load
    monkeypatch.setattr(state.data, "load", lambda *a, **b: asked.append(b) or load(*a, **b))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    assert train(capsys, "--draft", "--cache", "--train-on", "train")[0] == 0
    assert asked == [{"size": 32, "stream": None, "draft": True, "cache": "pixels"}], "once, for both"
    assert len(tried["pictures"]) == 15 and config()["train_on"] == "train"


def test_a_size_that_is_the_models_is_that_of_the_trial_too(place, tried, capsys):
    assert train(capsys, "--set", "size=null")[0] == 0
    assert tried["pictures"].images.shape[1:] == (32, 32, 3)


def test_another_variant_starts_from_the_beginning(place, tried, capsys):
    status, said, _ = train(capsys, "--variant", "widths=[4,4,4]")
    assert status == 0 and "ways" not in tried and "from the beginning" in said
    assert "minires summary resnet20_cifar --classes 2 --input 32 --variant 'widths=[4,4,4]'" in said


def test_a_new_layer_that_is_frozen_and_a_rate_that_stays_are_told(place, tried, capsys):
    status, said, _ = train(capsys, "--freeze", "fc", "--set", "optimizer.name=sgd")
    assert status == 0 and "warning: fc.bias, fc.weight: new, and frozen" in said
    assert "the learning rate stays 0.001, that for adam: see --lr" in said
    Path("run").rename("before")
    said = train(capsys, "--set", "optimizer.name=sgd", "--lr", "0.1")[1]
    assert "the learning rate stays" not in said


def test_pictures_that_must_be_streamed_are(place, tried, capsys):
    cut = 'augment=[["scale_crop", {"shorter": [32, 40]}], "flip"]'
    assert train(capsys, "--set", cut)[0] == 0
    assert isinstance(tried["pictures"].images, Stream)


@pytest.mark.parametrize(
    "given, why",
    [
        (["--set", "epochs=many"], "epochs"),
        (["--set", "epochs=null"], "epochs"),
        (["--set", "optimizer.speed=3"], "speed"),
        (["--lr", "-1"], "lr"),
        (["--set", "nothing=3"], "unknown setting 'nothing'"),
        (["--out", "pictures/run"], "inside that of the pictures"),
        (["--out", "held"], "holds a run already"),
        (["--out", "file"], "is a file"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_tried(given, why, place, tried, capsys):
    (place / "held").mkdir()
    (place / "held/summary.json").write_text("{}")
    (place / "file").touch()
    line = command_line.refused(capsys, 2, "train", "--data", "pictures", *given)
    assert why in line and "ways" not in tried


def test_a_folder_where_somebody_trains_is_refused_before_anything_is_tried(place, tried, capsys):
    held = lock.Lock("held", make=True)
    held.busy = True
    line = command_line.refused(capsys, 1, "train", "--data", "pictures", "--out", "held")
    held.remove_folder()
    assert "is being trained by" in line and "ways" not in tried


def test_what_lies_in_the_folder_of_runs_is_none_of_the_runs_concern(place, tried, capsys):
    (place / "runs").mkdir()
    (place / "runs/curves.png").touch()
    assert command_line.call(capsys, "train", "--data", "pictures")[0] == 0
    assert (place / "runs/pictures-auto-1/summary.json").is_file()


def test_few_pictures_are_doubted_before_anything_is_tried(place, monkeypatch, capsys):
    monkeypatch.setattr(trial, "trial", lambda *_, **__: pytest.fail("tried already"))
    with warnings.catch_warnings(action="error"), pytest.raises(UserWarning, match="few"):
        command_line.call(capsys, "train", "--data", "pictures", "--out", "run")


def test_a_picture_that_cannot_be_read_is_named_once(place, capsys):
    (place / "pictures/dark/3.png").write_bytes(b"")
    line = command_line.call(capsys, "train", "--data", "pictures", "--out", "run", "--stream")[2]
    assert line.count("dark/3.png") == 1 and "--resume" not in line and not Path("run").exists()


def test_own_parts_in_the_folder_of_the_pictures_are_refused_too(place):
    from minires import data

    splits = data.load("pictures", size=32)
    with pytest.raises(ValueError, match="inside that of the pictures"):
        Trainer({"data": "pictures", "model": "resnet20_cifar"}, "pictures/run", splits=splits)


def test_pictures_that_came_or_went_since_the_training_are_noticed(place, tried, capsys):
    assert train(capsys)[0] == 0
    assert "others than when" not in command_line.call(capsys, "evaluate", "run")[2]
    shutil.copy("pictures/dark/3.png", "pictures/dark/99.png")
    for part in ("val", "test", "train"):
        err = command_line.call(capsys, "evaluate", "run", "--split", part)[2]
        assert err.count("are others than when run was trained (15 train, 4 val, 5 test; now 16") == 1
        assert "was trained on " not in err, "which they were is no longer known"
    err = command_line.call(capsys, "evaluate", "run", "--data", "pictures")[2]
    assert "others than when" in err
    (place / "pictures/dark/99.png").unlink()
    (place / "pictures/dark/4.png").rename("pictures/dark/44.png")  # as many, and others
    assert "others than when" in command_line.call(capsys, "evaluate", "run")[2]


def test_evaluate_on_validation_pictures_that_were_trained_on_says_so(place, tried, capsys):
    assert train(capsys)[0] == 0
    for part, known in (("val", True), ("test", False)):
        status, _, err = command_line.call(capsys, "evaluate", "run", "--split", part)
        assert status == 0 and ("run was trained on" in err) is known
