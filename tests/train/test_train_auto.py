"""``minires train --data FOLDER`` tries which layers should learn: with what, when, and what follows."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import command_line
import numpy as np
import pytest
from quick_runs import dark_and_light, draw_nothing

from minires.data import Stream
from minires.train import Trainer, auto, load_model, starters, trial


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
    assert status == 0 and "ways" not in tried and "trying" not in said


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
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_tried(given, why, place, tried, capsys):
    (place / "held").mkdir()
    (place / "held/summary.json").write_text("{}")
    line = command_line.refused(capsys, 2, "train", "--data", "pictures", *given)
    assert why in line and "ways" not in tried


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


def test_evaluate_on_validation_pictures_that_were_trained_on_says_so(place, tried, capsys):
    assert train(capsys)[0] == 0
    for part, known in (("val", True), ("test", False)):
        status, _, err = command_line.call(capsys, "evaluate", "run", "--split", part)
        assert status == 0 and ("run was trained on" in err) is known
