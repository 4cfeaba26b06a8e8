"""What is read of a run: all that its files say, whatever state they are in, and nothing of it is changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from train.small_run import CONFIG, small_model, small_splits

from minires.errors import CheckpointError, ConfigError
from minires.train import Trainer
from minires.watch.reading import READ, Reading, seconds_left
from minires.watch.terminal import follow, screen, sparks


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_is_shown_with_all_that_it_wrote(finished):
    before = {path: path.stat().st_mtime_ns for path in [finished, *finished.iterdir()]}
    found = Reading(finished).now()
    assert found["state"] == "finished" and not found["broken"] and found["who"] is None
    summary = json.loads((finished / "summary.json").read_text())
    assert found["summary"]["test_accuracy"] == summary["test_accuracy"]
    assert [row["epoch"] for row in found["metrics"]] == [1, 2, 3]
    assert found["metrics"][-1]["train_loss"] == summary["train_loss"]
    assert [one["epoch"] for one in found["inside"]["epochs"]] == [1, 2, 3]
    assert found["progress"]["step"] == 36 and found["samples"]["count"] == 32
    assert found["config"]["model"] == "small" and seconds_left(found) is None
    assert Reading(finished).samples().startswith(b"\x89PNG")
    assert before == {path: path.stat().st_mtime_ns for path in [finished, *finished.iterdir()]}


def test_a_run_that_was_stopped_or_is_under_way_says_so(stopped, tmp_path):
    found = Reading(stopped).now()
    assert found["state"] == "stopped" and found["progress"]["step"] == 16
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    reading = Reading(run)
    version = reading.now()["version"]
    assert reading.now()["version"] == version
    held = Trainer(
        CONFIG.from_dict({**CONFIG.to_dict(), "normalize": "none"}), run, splits=small_splits(),
        model=small_model(), resume=True, progress=False, say=lambda line: None,
    )  # fmt: skip
    found = reading.now()
    assert found["state"] == "running" and "this process" in found["who"] and found["version"] != version
    progress = {**found["progress"], "left": 100.0}
    assert 0 <= seconds_left({**found, "progress": progress}) <= 100  # of what has passed since is less
    assert held.run()["steps"] == 36  # nobody has disturbed it
    assert reading.now()["state"] == "finished"


@pytest.mark.parametrize("name", [name for name in READ if name != "samples.png"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 50, b"{", b"[1]", b'{"kind": "watch"}', b"\xff\xfe", b"[" * 100_000, "folder", "half"],
)
def test_a_damaged_file_is_named_and_the_others_are_shown(name, content, run):
    whole = (run / name).read_bytes()
    (run / name).unlink()
    if content == "folder":
        (run / name).mkdir()
    else:
        (run / name).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    found = Reading(run).now()
    json.dumps(found, allow_nan=False)
    said = " ".join(found["broken"])
    empty = name == "metrics.csv" and content == b""
    fine = name in ("config.json", "summary.json") and content == b'{"kind": "watch"}'
    assert (name in said) == (not empty and not fine), found["broken"]
    others = [one for one in ("inside", "progress", "summary") if found[one] is not None]
    assert len(others) >= 2 and len(screen(found)) <= 24
    assert name == "metrics.csv" or len(found["metrics"]) == 3


@pytest.mark.parametrize("gone", READ)
def test_a_run_of_an_older_version_is_shown_as_far_as_it_goes(gone, run):
    (run / gone).unlink()
    found = Reading(run).now()
    assert not found["broken"] and screen(found)
    for name in ("watch.json", "progress.json", "samples.png"):
        (run / name).unlink(missing_ok=True)
    found = Reading(run).now()
    assert found["inside"] is found["progress"] is found["samples"] is None
    assert any("this run has written nothing of them" in line for line in screen(found))


def test_numbers_that_are_none_break_nothing(run):
    lines = (run / "metrics.csv").read_text().splitlines()
    (run / "metrics.csv").write_text("\n".join([*lines[:2], lines[2].replace(",", ",nan", 3), "x,y"]))
    found = Reading(run).now()
    assert len(found["metrics"]) == 1 and found["broken"] == [
        "metrics.csv: its lines after epoch 1 are damaged"
    ]
    summary = {"test_accuracy": "high", "warnings": [1, "a"], "diverged": 1}
    (run / "summary.json").write_text(json.dumps(summary))
    found = Reading(run).now()
    assert found["summary"]["test_accuracy"] is None and found["summary"]["warnings"] == ["a"]
    assert found["state"] == "stopped"


def test_a_folder_that_goes_meanwhile_is_said(run):
    reading = Reading(run)
    reading.now()
    shutil.rmtree(run)
    assert reading.now()["state"] == "gone"
    with pytest.raises(CheckpointError, match="samples.png"):
        reading.samples()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no run in .*: it has neither config.json nor metrics.csv"):
        Reading(tmp_path)
    with pytest.raises(CheckpointError, match="nothing does not exist"):
        Reading(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file is a file: give the folder"):
        Reading(tmp_path / "file")
    with pytest.raises(ConfigError, match="give its path"):
        Reading(3)


def test_the_screen_fits_and_has_the_last_figures(finished):
    found = Reading(finished).now()
    for columns, lines in ((80, 24), (40, 12), (200, 60), (80, 3)):
        shown = screen(found, columns, lines)
        assert len(shown) <= lines and all(len(line) < columns for line in shown)
    text = "\n".join(screen(found))
    last = found["metrics"][-1]
    assert f"{last['val_loss']:.4f}" in text and f"{100 * last['train_accuracy']:.2f}%" in text
    assert "finished" in text and "100%" in text and "conv1" in text and "fc" in text


def test_the_screen_has_responses_and_the_ways_of_blocks(run):
    inside = json.loads((run / "watch.json").read_text())
    inside["blocks"] = [{"path": f"res2{letter}", "kind": "ResidualBlock"} for letter in "abc"]
    inside["epochs"][-1] |= {"branch": [0.5, 1.0, 0.3], "shortcut": [2.0, None, 1.0]}
    (run / "watch.json").write_text(json.dumps(inside))
    lines = screen(Reading(run).now())
    head = next(line for line in lines if line.startswith("after epoch"))
    row = next(line for line in lines if line.startswith("conv2"))
    assert head.split()[-1] == "response"
    assert row.split()[-1] == f"{inside['epochs'][-1]['response'][1]:.2g}"
    assert next(line for line in lines if line.startswith("branch / shortcut")).endswith("  0.25 to 0.3")
    for one in inside["epochs"]:
        for name in ("response", "branch", "shortcut"):
            one.pop(name, None)
    del inside["responses"], inside["blocks"]
    (run / "watch.json").write_text(json.dumps(inside))  # as an older version wrote it
    found = Reading(run).now()
    text = "\n".join(screen(found))
    assert not found["broken"] and "response" not in text and "branch" not in text and "conv2" in text


def test_names_in_the_screen_cannot_command_a_terminal(run):
    inside = json.loads((run / "watch.json").read_text())
    inside["layers"][0]["path"] = "a\x1b[2Jb"
    (run / "watch.json").write_text(json.dumps(inside))
    text = "\n".join(screen(Reading(run).now()))
    assert "\x1b" not in text and "[2Jb" in text


def test_it_is_followed_until_it_ends_and_drawn_anew_only_if_it_changed(stopped, tmp_path, monkeypatch):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    held = Trainer(
        CONFIG.from_dict({**CONFIG.to_dict(), "normalize": "none"}), run, splits=small_splits(),
        model=small_model(), resume=True, progress=False, say=lambda line: None,
    )  # fmt: skip
    looks, written = [], []

    def wait(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            held.run()

    monkeypatch.setattr("minires.watch.terminal.time.sleep", wait)
    follow(run, write=written.append, size=(80, 30))
    assert len(looks) == 2 and len(written) == 2
    assert all(text.startswith("\x1b[H\x1b[2J") for text in written) and "finished" in written[-1]
    follow(run, once=True, write=written.append, size=(80, 30))
    assert written[-1] == written[-2].removeprefix("\x1b[H\x1b[2J")


def test_a_small_curve_has_as_many_letters_as_there_is_room():
    assert sparks([1.0], 5) == "▁" and sparks([3.0] * 4, 9) == "▁▁▁▁"
    assert len(sparks(list(range(1000)), 20)) == 20 and sparks(list(range(1000)), 20)[-1] == "█"


@pytest.mark.skipif(os.name == "nt", reason="named pipes are of POSIX")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run):
    for name in ("watch.json", "metrics.csv"):
        (run / name).unlink()
        os.mkfifo(run / name)
    assert len(Reading(run).now()["broken"]) == 2
