"""``minires responses``: runs and fresh models beside each other, on the same pictures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import call, refused
from quick_runs import dark_and_light, draw_nothing

from minires import cli, data, models, nn
from minires.inspect import responses_of
from minires.train import load_model, recalibrate


class Tiny(nn.Module):
    def __init__(self, *, classes, rng, size=8, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, rng=rng)
        self.norm = nn.BatchNorm2d(width, momentum=0.5, relu=True)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(width, classes, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.norm(self.conv(x))))


class Deeper(Tiny):
    def __init__(self, *, classes, rng, size=8):
        super().__init__(classes=classes, rng=rng)
        self.more = nn.Conv2d(4, 4, 1, rng=rng)

    def forward(self, x):
        return self.fc(self.pool(self.more(self.norm(self.conv(x)))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs on the same pictures, of other sizes, in a folder."""
    place = tmp_path_factory.mktemp("runs")
    dark_and_light(place / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=8, classes=2))
        patch.chdir(place)
        draw_nothing(patch)
        for name, size in (("one", "8"), ("two", "12")):
            given = ["--data", str(place / "pictures"), "--model", "tiny", "--size", size, "--epochs", "1"]
            assert cli.main(["train", *given, "--batch-size", "8", "--out", name, "--json"]) == 0
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    monkeypatch.delenv("MINIRES_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.MODELS, "tiny", models.Entry(Tiny, size=8, classes=2))
    monkeypatch.setitem(models.MODELS, "deeper", models.Entry(Deeper, size=8, classes=7))
    return trained


def got(capsys, *arguments):
    status, out, err = call(capsys, "responses", *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_the_responses_of_a_run_are_those_to_its_test_pictures(place, capsys):
    found = got(capsys, place / "one")
    (one,) = found["models"]
    test = data.load(place / "pictures", size=8).test
    assert (found["split"], found["pictures"], found["out"]) == ("test", len(test), None)
    assert (one["run"], one["model"], one["fresh"]) == (str(place / "one"), "tiny", False)
    known = load_model(place / "one")
    expected = responses_of(known.model, test.images, known.normalize)
    for layer, right in zip(one["layers"], expected, strict=True):
        assert (layer["path"], layer["op"], layer["shape"]) == (right.path, right.op, list(right.shape[1:]))
        assert (layer["mean"], layer["std"]) == pytest.approx((right.mean, right.std), rel=1e-5)
    status, text, _ = call(capsys, "responses", place / "one")
    lines = text.splitlines()
    assert status == 0 and lines[0].startswith(f"{len(test)} pictures of ") and "test" in lines[0]
    assert lines[3].split() == ["conv", "conv2d", f"{expected[0].std:.4g}"] and len(lines) == 5


def test_several_see_the_same_pictures_each_at_its_size(place, capsys):
    one, two, fresh = got(capsys, place / "one", "--against", place / "two", "tiny")["models"]
    assert [one["layers"][0]["shape"], two["layers"][0]["shape"]] == [[3, 3, 4], [5, 5, 4]]
    assert one["layers"] == got(capsys, place / "one")["models"][0]["layers"]
    assert two["layers"] == got(capsys, place / "two")["models"][0]["layers"]
    assert fresh["fresh"] and fresh["run"] == fresh["model"] == "tiny"
    text = call(capsys, "responses", place / "one", "--against", place / "two", "tiny")[1].splitlines()
    assert text[2].split() == ["layer", "kind", str(place / "one"), str(place / "two"), "tiny"]
    assert len(text[3].split()) == 5 and text[-1].endswith("batch statistics of these pictures: tiny")


def test_others_with_other_layers_stand_beside_with_their_own(place, capsys):
    text = call(capsys, "responses", "tiny", "--against", "deeper", "--data", place / "pictures")[1]
    head, *rows = (line.split() for line in text.splitlines()[2:6])
    assert head == ["layer", "kind", "tiny", "layer", "kind", "deeper"]
    assert [row[0] for row in rows[:2]] == ["conv", "fc"] and [row[3] for row in rows[:2]] == ["conv", "more"]
    assert rows[2][:2] == ["fc", "linear"] and len(rows[2]) == 3


def test_fresh_weights_have_the_statistics_of_the_pictures(place, capsys):
    (one,) = got(capsys, "deeper", "--data", place / "pictures", "--split", "all")["models"]
    model = models.build("deeper", seed=0)
    pictures = data.load_part(place / "pictures", "all", size=8).pictures.images
    normalize = data.Normalize((0.5,) * 3, (0.25,) * 3)
    recalibrate(model, pictures, normalize)
    expected = responses_of(model, pictures, normalize)
    assert [layer["std"] for layer in one["layers"]] == pytest.approx([one.std for one in expected], rel=1e-4)
    assert one["layers"][0]["std"] == pytest.approx(1, abs=0.01)  # behind a batch norm


def test_of_many_pictures_some_are_taken_evenly(place, capsys):
    every = data.load_part(place / "pictures", "all", size=8).pictures
    known = load_model(place / "one")
    found = got(capsys, place / "one", "--split", "all", "--pictures", "4")
    assert found["pictures"] == 4
    places = [math.floor(k * len(every) / 4) for k in range(4)]
    assert len(set(every.labels[places])) == 2
    expected = responses_of(known.model, every.images[places], known.normalize)
    assert found["models"][0]["layers"][0]["std"] == pytest.approx(expected[0].std, rel=1e-5)


def test_the_figure_is_written(place, capsys):
    assert got(capsys, place / "one", "--out", "figure.svg")["out"] == "figure.svg"
    assert b"<svg" in Path("figure.svg").read_bytes()
    text = call(capsys, "responses", place / "one", "--out", "figure.png")[1]
    assert text.endswith("The figure: figure.png\n") and Path("figure.png").read_bytes()[1:4] == b"PNG"


def test_what_cannot_be_is_refused_in_words(place, capsys):
    line = refused(capsys, 2, "responses", "tinny")
    assert "tinny is neither a run folder, a model.safetensors file nor a model (the nearest is tiny" in line
    assert "tinny is neither" in refused(capsys, 2, "responses", place / "one", "--against", "tinny")
    assert "on which pictures? use --data" in refused(capsys, 2, "responses", "tiny", "--against", "deeper")
    alone = Path(shutil.copy(place / "one" / "model.safetensors", "alone.safetensors"))
    assert "use --data" in refused(capsys, 2, "responses", alone)
    assert "--pictures is 0" in refused(capsys, 2, "responses", place / "one", "--pictures", "0")
    assert "written as .png or .svg" in refused(capsys, 2, "responses", place / "one", "--out", "a.gif")
    own = place / "one" / "curves.png"
    assert "is a file of the run" in refused(capsys, 2, "responses", place / "one", "--out", own)
    assert np.size(load_model(place / "one").classes) == 2  # and nothing was written over it


def test_the_first_model_can_be_changed_and_that_is_said(trained, place, capsys):
    runs = [str(trained / name) for name in ("one", "two")]
    given = ("responses", runs[0], "--against", runs[1], "--json")
    _, plain, _ = call(capsys, *given)
    status, out, _ = call(capsys, *given, "--change", "norm=0")
    before, after = json.loads(plain)["models"], json.loads(out)["models"]
    assert status == 0 and after[0]["changes"] and not before[0]["changes"] and after[1] == before[1]
    conv, fc = zip(before[0]["layers"], after[0]["layers"], strict=True)
    assert conv[0] == conv[1] and fc[1]["std"] < 0.1 * fc[0]["std"]  # of the bias alone
    _, text, _ = call(capsys, *given[:-1], "--change", "norm=0")
    assert "changed: norm" in text
    assert "nothing" in refused(capsys, 2, *given, "--change", "nothing=0.5")
