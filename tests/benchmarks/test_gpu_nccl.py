"""The part of the GPU's benchmark that tries NCCL on one rank, with stand-ins for CuPy and NCCL."""

from __future__ import annotations

import json
import subprocess
import sys

import cuda_emulator
import fake_cupy
import gpu
import gpu_nccl
import pytest
from workloads import Job

from minires import backend
from minires.errors import ConfigError


def _lines(text):
    found = {}
    for line in text.splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.emulated
@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here")
def test_every_part_has_its_figure(monkeypatch, capsys):
    fake_cupy.pretend(monkeypatch)
    monkeypatch.setattr(gpu_nccl, "STEPS", 1)
    monkeypatch.setattr(gpu_nccl, "BLOCKS", 2)
    gpu_nccl.main(Job("resnet20_cifar", 2, 8), sizes=(1024,))
    found = _lines(capsys.readouterr().out)
    assert found["version"] == "2.28.9"
    assert found["bits that a sum over one rank changes"] == {"float32": 0, "float64": 0, "bfloat16": 0}
    assert found["a captured sum replays between its neighbours"] is True
    host, ms = found["us of the host, and ms in all, for a sum of 1024 bytes"]
    assert host > 0 and ms > 0
    step = found["captured step without and with NCCL"]
    assert step["weights apart, relative"] == 0 and step["ms with"] > 0


def test_a_part_that_fails_says_why_and_the_next_goes_on(monkeypatch, capsys):
    def missing():
        raise ConfigError("NCCL is not installed")

    fake_cupy.pretend(monkeypatch)
    monkeypatch.setattr(backend, "nccl", missing)
    gpu_nccl.main(sizes=())
    found = _lines(capsys.readouterr().out)
    assert len(found) == 4
    assert found["version"] == {"error": "ConfigError: NCCL is not installed"}


def test_what_was_found_before_it_took_too_long_is_kept(monkeypatch):
    run = subprocess.run

    def slow(command, **options):
        code = "import time; print('{\"version\": 1}', flush=True); print('a warning'); time.sleep(60)"
        return run([sys.executable, "-u", "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", slow)
    assert gpu.nccl(3) == {"error": "not done after 3 s", "version": 1}
