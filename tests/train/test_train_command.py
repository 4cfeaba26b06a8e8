"""``minires train`` as a program: its folders, its statuses, and an audience that leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_line
import pytest
from quick_runs import dark_and_light

from minires import cli
from minires.train.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
OWN = """
import sys
import time
import numpy as np
from minires import models, nn
from minires.train import run_folder

if sys.argv[0].endswith("minires/__main__.py"):  # in a process of its own: they take most of such a small run
    for name in ("draw_curves", "draw_confusion", "draw_mistakes"):
        setattr(run_folder, name, lambda *_, **__: None)

@models.register("tiny", size=8, classes=2)
class Tiny(nn.Module):
    def __init__(self, *, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.pool = nn.GlobalAvgPool2d()
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        time.sleep(0.02 * self.training)
        return self.fc(self.pool(self.conv(x)))
"""
MINIRES = [sys.executable, "-m", "minires", "--import", "tiny_of_mine"]
TRAIN = [*MINIRES, "train", "--data", "pictures", "--model", "tiny", "--batch-size", "4"]
END = ["config.json", "layers.csv", "metrics.csv", "model.safetensors", "progress.json", "samples.png",
       "summary.json", "watch.json"]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with pictures of two classes, and a module of the user's with a small model."""
    dark_and_light(tmp_path / "pictures")
    (tmp_path / "tiny_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIRES_THREADS", "1")
    return tmp_path


def start(*more, out="run", **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen([*TRAIN, *(["--out", out] if out else []), *more], **options)


def wait_for(process, word):
    for line in process.stdout:
        if line.startswith(word):
            return
    raise AssertionError(process.stderr.read())


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def refused(capsys, status, *arguments):
    """The line with which the program refuses."""
    return command_line.refused(capsys, status, "--import", "tiny_of_mine", *arguments)


def test_two_at_once_get_two_numbers_and_one_folder_is_for_one(place):
    several = [start("--epochs", "1", out=None) for _ in range(2)] + [
        start("--epochs", "1") for _ in range(2)
    ]
    ended = [(one.communicate(timeout=120), one.returncode) for one in several]
    assert [status for _, status in ended[:2]] == [0, 0], ended
    assert names("runs") == ["pictures-auto-1", "pictures-auto-2"]
    assert all(names(folder) == END for folder in (*Path("runs").iterdir(), Path("run")))
    assert sorted(status for _, status in ended[2:]) in ([0, 1], [0, 2]), ended
    (_, err), status = max(ended[2:], key=lambda one: one[1])
    # The second came while the first was under way, or after it had ended.
    assert ("is being trained by process" if status == 1 else "holds a run already") in err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_says_how_to_go_on_and_the_bits_are_the_same(number, status, place):
    process = start("--epochs", "4", "--keep", "all")
    wait_for(process, "epoch 2/4")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    way = "Go on with: minires --import tiny_of_mine train --resume run"
    assert err.splitlines()[-1].startswith("minires: stopped after step ") and err.rstrip().endswith(way)
    if number != signal.SIGHUP:
        return
    done = subprocess.run([*MINIRES, *way.split()[6:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = start("--epochs", "4", out="whole")
    assert whole.communicate(timeout=60) and whole.returncode == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert names("whole") == END and set(names("run")) > set(END)


def test_a_run_that_is_killed_goes_on_and_leaves_nothing_behind(place):
    process = start("--epochs", "3")
    wait_for(process, "epoch 2/3")
    process.kill()
    process.communicate()
    (place / "run" / ".checkpoint-00000008.safetensors.abcdefgh.tmp").write_bytes(b"half")
    assert ".lock" in names("run")
    done = subprocess.run([*MINIRES, "train", "--resume", "run"], capture_output=True, text=True)
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    assert names("run") == END


@pytest.mark.parametrize("gone", ["head", "neither", "full"])
def test_a_run_whose_audience_leaves_comes_to_its_end(gone, place):
    shell = {"head": "{} | head -1", "neither": "{} >&- 2>&-", "full": "{} >/dev/full"}[gone]
    line = shell.format(" ".join([*TRAIN, "--epochs", "1", "--out", "run"]))
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr
    deadline = time.time() + 60
    while gone == "head" and names("run") != END and time.time() < deadline:
        time.sleep(0.05)
    assert names("run") == END


LOOKS = ["evaluate", "run"], ["predict", "run", "pictures/dark/0.png"], ["trace", "run", "--html", "t.html"]


def looks_inside(capsys, *commands):
    """Each command that uses a model takes the newest checkpoint of the run, and says so in a line."""
    for command in commands:
        capsys.readouterr()
        assert cli.main(["--import", "tiny_of_mine", *command]) == 0, command
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and "the run in run is not finished: this is its newest checkpoint" in said[0]


@pytest.mark.usefixtures("place")
def test_what_cannot_go_on_is_answered_with_the_way_on(capsys, monkeypatch, registries_as_before):
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.delitem(sys.modules, "tiny_of_mine", raising=False)
    process = start("--epochs", "999")
    wait_for(process, "epoch  34/999")  # of so many epochs each 34th is told of
    looks_inside(capsys, *LOOKS)
    line = refused(capsys, 1, "train", "--resume", "run")
    assert f"run is being trained by process {process.pid} on" in line and "stop it first" in line
    process.send_signal(signal.SIGINT)
    process.communicate()
    looks_inside(capsys, LOOKS[0])
    way = "go on with it: minires train --resume run"
    assert way in refused(capsys, 2, "train", "--data", "pictures", "--out", "run")
    line = refused(capsys, 2, "train", "--resume", "run", "--out", "other")
    assert "--resume run goes on in that folder, but --out is other" in line
    assert "holds no run" in refused(capsys, 1, "train", "--resume", "--out", "pictures")
    # A configuration that was edited by hand: the file is named, and what is wrong in it.
    config = json.loads(Path("run/config.json").read_text())
    for changes, said in [({"freeze": [1]}, "freeze"), ({"optimizer": {"name": "adam", "lr": [1]}}, "lr"),
                          ({"epochs": "3"}, "epochs"), ({"data": None}, "data")]:  # fmt: skip
        Path("run/config.json").write_text(json.dumps({**config, **changes}))
        line = refused(capsys, 2, "train", "--resume", "run")
        assert line.startswith("minires: error: run/config.json: ") and said in line, line
    Path("run/config.json").write_text("[" * 100_000)
    assert "nested too deeply" in refused(capsys, 1, "train", "--resume", "run")
    Path("run/config.json").write_text(json.dumps(config))
    # All checkpoints damaged: twice the same, and nothing is overwritten.
    for path in Checkpoints("run").paths():
        path.write_bytes(path.read_bytes()[:-1])
    before = names("run")
    for _ in range(2):
        assert "damaged, and nothing was changed" in refused(capsys, 1, "train", "--resume", "run")
    assert names("run") == before


def test_a_run_that_cannot_begin_eats_no_number(place, capsys, monkeypatch, registries_as_before):
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "tiny_of_mine", raising=False)
    nothing, here = ["--data", "nothing/here"], ["--data", "pictures"]
    none_whole = [*here, "--out", "a/b/c", "--batch-size", "999", "--drop-last"]
    for wrong in (nothing, [*here, "--freeze", "nothing"], none_whole):
        refused(capsys, 2 if wrong[1] == "pictures" else 1, "train", "--model", "tiny", *wrong)
        assert not Path("runs").exists() and not Path("a").exists()
