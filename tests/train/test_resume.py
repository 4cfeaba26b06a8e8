"""A run that is killed or stopped and continued ends in the same bits as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minires.train import checkpoint

PROGRAM = str(Path(__file__).with_name("small_run.py"))
STEPS = 36


def start(out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MINIRES_THREADS": "1", **environment}
    command = [sys.executable, PROGRAM, str(out), *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_step(process: subprocess.Popen[str], step: int) -> int:
    """Read up to the line of a step; the step that was reached (the run may end before)."""
    reached = 0
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            reached = int(line.split()[1])
        if reached >= step:
            break
    return reached


def final_state(out: Path) -> dict[str, np.ndarray]:
    """Everything the run ends with: the weights kept, and all of the last checkpoint."""
    weights, _ = checkpoint.read(out / "model.safetensors")
    arrays, info = checkpoint.read(checkpoint.Checkpoints(out).paths()[-1])
    losses = [
        [row[key] for key in ("train_loss", "train_accuracy", "val_loss", "lr", "gradient_norm")]
        for row in info["history"]
    ]
    return weights | arrays | {"losses": np.array(losses)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("whole") / "run"
    code, _, err = finish(start(out))
    assert code == 0, err
    state = final_state(out)
    assert state["losses"].shape == (3, 5)
    parts = {"fc.bias", "model/bn1.running_var", "optimizer/average:conv1.weight", "ema/fc.bias"}
    assert parts <= state.keys()
    return state


def assert_same_bits(out: Path, expected: dict[str, np.ndarray]) -> None:
    state = final_state(out)
    assert state.keys() == expected.keys()
    for name, array in state.items():
        assert array.dtype == expected[name].dtype and np.array_equal(array, expected[name]), name


def test_killed_ten_times_and_resumed_gives_the_same_bits(uninterrupted, tmp_path):
    out, moments, kills = tmp_path / "run", random.Random(7), 0
    steps = sorted(moments.sample(range(1, STEPS), 9))
    for index, step in enumerate(steps):
        process = start(out, *(["--resume"] if (out / "config.json").exists() else []))
        reached = wait_for_step(process, step)
        time.sleep(moments.uniform(0, 0.03))  # anywhere within a step, a save or a validation
        process.kill()
        code, _, err = finish(process)
        assert code == -signal.SIGKILL and reached >= step, err
        kills += 1
        if index == 4:  # and once inside a checkpoint's write
            code, _, err = finish(start(out, "--resume", DIE_IN_WRITE="1"))
            assert code == -signal.SIGKILL, err
            leftover = list(out.glob(".checkpoint-*.tmp"))
            assert len(leftover) == 1 and leftover[0].stat().st_size > 0
            kills += 1
    assert kills == 10 and not (out / "model.safetensors").exists()
    code, said, err = finish(start(out, "--resume"))
    assert code == 0 and "continuing after step" in said, err
    assert not list(out.glob("*.tmp")) and not list(out.glob(".*.tmp"))
    assert_same_bits(out, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_where(number, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(out)
    assert wait_for_step(process, 17) == 17
    process.send_signal(number)
    code, said, err = finish(process)
    assert code != 0 and "Interrupted: stopped after step" in err
    path = checkpoint.Checkpoints(out).paths()[-1]
    assert f"saved in {path}" in err
    step = checkpoint.read(path)[1]["progress"]["step"]
    assert 17 <= step <= 19 and len((out / "metrics.csv").read_text().splitlines()) == 2
    code, said, err = finish(start(out, "--resume"))
    assert code == 0 and f"continuing after step {step}, in epoch 2" in said, err
    assert_same_bits(out, uninterrupted)


def test_the_best_epoch_is_the_same_however_often_the_run_is_killed(tmp_path):
    """It stops by itself, keeps the weights of an epoch before the last, and removes its checkpoints."""
    whole, out, moments = tmp_path / "whole", tmp_path / "run", random.Random(3)
    code, said, err = finish(start(whole, "--best"))
    assert code == 0 and "validation has not got better for 2 epochs" in said, err
    summary = json.loads((whole / "summary.json").read_text())
    last = summary["epochs_done"]
    assert summary["kept_epoch"] == summary["best_epoch"] == last - 2 and 3 <= last < 20
    for step in sorted(moments.sample(range(1, 12 * last), 6)) + [12 * last]:  # and once at its end
        process = start(out, "--best", *(["--resume"] if (out / "config.json").exists() else []))
        reached = wait_for_step(process, step)
        time.sleep(moments.uniform(0, 0.03))
        process.kill()
        code, _, err = finish(process)
        assert code == -signal.SIGKILL and reached >= step, err
    code, _, err = finish(start(out, "--best", "--resume"))
    assert code == 0, err
    again = json.loads((out / "summary.json").read_text())
    same = ("epochs_done", "best_epoch", "kept_epoch", "stopped_early", "steps", "test_loss", "val_loss")
    assert [again[name] for name in same] == [summary[name] for name in same]
    weights, expected = (checkpoint.read(folder / "model.safetensors")[0] for folder in (out, whole))
    assert all(np.array_equal(array, expected[name]) for name, array in weights.items())
    assert not checkpoint.Checkpoints(out).paths()
