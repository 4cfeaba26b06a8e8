"""The scripts of this folder run, find what they are for, and their cases are what they say.

They are run by hand, for long; here each is a real process with a few seconds' worth of cases.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from minires.backend import thread_pool

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched as Linux lets one")


def result_of(script: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """What a script saves; it ends with 0 or, where it found a fault, with 1."""
    saved = tmp_path / "result.json"
    command = [sys.executable, str(HERE / script), *options, "--save", str(saved)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert ended.returncode in (0, 1), ended.stderr
    result: dict[str, Any] = json.loads(saved.read_text())
    assert {"date", "commit", "processor"} <= result["machine"].keys()
    return {**result, "status": ended.returncode, "printed": ended.stdout}


def test_runs_that_are_killed_come_to_the_same_end(tmp_path):
    result = result_of("kills.py", tmp_path, "--kills", "2", "--kinds", "one", "--seed", "3")
    assert result["kills"] >= 2 and sum(result["windows"].values()) == result["kills"]
    assert not {"lost", "different", "traceback", "hang", "this script"} & result["faults"].keys(), result[
        "printed"
    ]


def test_other_disasters_leave_a_run_that_goes_on(tmp_path):
    kinds = "file size,closed output"
    result = result_of("kills.py", tmp_path, "--cases", "2", "--kinds", kinds, "--seed", "1")
    assert result["cases"] == 2
    assert not {"lost", "different", "traceback", "hang", "this script"} & result["faults"].keys(), result[
        "printed"
    ]


def test_damaged_files_give_the_same_content_or_one_refusal(tmp_path):
    kinds = ["own model", "safetensors", "keras .h5", "signs", "png", "zip"]
    kinds += ["pth"] if importlib.util.find_spec("torch") else []
    result = result_of("files.py", tmp_path, "--cases", "21", "--kinds", ",".join(kinds))
    assert result["cases"] == 21 and result["refused"] > 5
    assert not result["crash"] + result["hang"] + result["code run"] + result["wrote outside"], result[
        "printed"
    ]


def test_a_file_that_runs_code_is_seen_if_it_does(tmp_path):
    """The canary is there to be found: a door that unpickles is caught."""
    program = (
        "import os, pickle, sys; sys.path.insert(0, sys.argv[1]); os.environ['TORTURE_CANARY'] = '-';"
        "import files, hostile; from pathlib import Path;"
        "door = lambda folder, path: {'x': str(pickle.loads(path.read_bytes()))};"
        "hostile.FILES[:] = [hostile.Hostile('bad', hostile.pickled('x.pth'), door)];"
        "print(files.case(files.Samples(Path(sys.argv[2])), 'hostile', 0)[0])"
    )
    command = [sys.executable, "-c", program, str(HERE), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "code run", ended.stderr


def attempts_module():
    """attempts.py alone; its sisters would add to the registries of minires."""
    spec = importlib.util.spec_from_file_location("attempts", HERE / "attempts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def fails():
    raise KeyError("x")


DOORS = {
    "same": lambda: {"x": "1"},
    "silently different": lambda: {"x": "2"},
    "traceback": fails,
    "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(60),
    "memory": lambda: {"x": str(len((b"x" * 600_000_000, time.sleep(1))[0]))},
    "left a process": lambda: {"x": str(subprocess.Popen(["sleep", "60"]).pid)},
}


@pytest.mark.parametrize("verdict", DOORS)
def test_each_fault_is_called_by_its_name(verdict, tmp_path):
    attempts = attempts_module()
    attempts.SECONDS = 0.3 if verdict == "hang" else 60
    attempts.BYTES = 100_000_000 if verdict == "memory" else 10**9
    outcome = attempts.attempt(DOORS[verdict], tmp_path / "log")
    attempts.judge(outcome, Path("/x/y"), [{"x": "1"}], sealed=False, checked="all", named=True)
    assert outcome.verdict == verdict, outcome


def test_garbage_from_before_does_not_hide_what_a_case_takes(tmp_path):
    """A case is forked, and its first garbage collection would give back what the process before it left."""
    garbage: list[Any] = [b"y" * 700_000_000]
    garbage.append(garbage)
    del garbage

    def takes_as_much():
        gc.collect()
        return DOORS["memory"]()

    gc.disable()
    try:
        assert verdict_of_memory(takes_as_much, tmp_path) == "memory"
    finally:
        gc.enable()


def test_freed_memory_of_before_does_not_hide_what_a_case_takes(tmp_path):
    """The heap of the process that is forked is full of freed arrays, kept for the next ones."""
    thread_pool.get_pool()  # from now on
    before = b"y" * 700_000_000
    del before
    try:
        assert verdict_of_memory(DOORS["memory"], tmp_path) == "memory"
    finally:
        thread_pool.give_memory_back()


def test_what_a_thread_has_started_counts(tmp_path):
    program = "import time; x = b'x' * 600_000_000; time.sleep(1)"

    def takes_it_elsewhere():
        thread = threading.Thread(target=subprocess.run, args=([sys.executable, "-c", program],))
        thread.start()
        thread.join()
        return {"x": "1"}

    attempts = attempts_module()
    seen = []
    attempts.held = lambda pid, held=attempts.held: seen.append(pid) or held(pid)
    attempts.BYTES = 100_000_000
    assert attempts.attempt(takes_it_elsewhere, tmp_path / "log").verdict == "memory"
    assert len(set(seen)) > 2  # this process, the case, and what its thread has started


def test_what_a_case_shares_with_its_own_children_counts_once(tmp_path):
    """A child that is no program of its own yet is a copy of all that the case has."""
    before = b"y" * 700_000_000

    def starts_slowly():
        subprocess.run(["true"], preexec_fn=lambda: time.sleep(0.5), check=True)
        return {"x": str(len(before))}

    assert verdict_of_memory(starts_slowly, tmp_path) == "ok"


def verdict_of_memory(act, tmp_path):
    attempts = attempts_module()
    attempts.BYTES = 100_000_000
    return attempts.attempt(act, tmp_path / "log").verdict


@pytest.mark.parametrize(
    ("message", "verdict"), [("cannot read weights.pth: cut short", "refused"), ("cannot read it", "unnamed")]
)
def test_a_refusal_names_the_file(message, verdict):
    attempts = attempts_module()
    outcome = attempts.Outcome("refused", message)
    attempts.judge(outcome, Path("/a/weights.pth"), [], sealed=False, checked="", named=True)
    assert outcome.verdict == verdict
