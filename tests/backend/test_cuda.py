"""CUDA kernels without a GPU: every source compiles, and on the CPU it gives what the reference gives."""

from __future__ import annotations

import shutil
import subprocess

import cuda_emulator
import opcheck
import pytest

from minires.backend import cuda
from minires.ops import cases

SOURCES = cuda_emulator.sources()
OF_OPERATIONS = cuda_emulator.of_operations()
# Dropout's kernel draws masks of its own, which no reference can foresee: see test_scores_cuda.py.
WITH_KERNELS = [op for ops in OF_OPERATIONS.values() for op in ops if op != "dropout"]

emulated = pytest.mark.emulated
needs_compiler = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here")


@pytest.fixture
def emulator(monkeypatch):
    return cuda_emulator.emulate(monkeypatch)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
@pytest.mark.parametrize("dtype", cuda.C_TYPES)
@pytest.mark.parametrize("place", SOURCES)
def test_compiles_for_gpus(place, dtype, tmp_path):
    file = tmp_path / "kernels.cu"
    file.write_text(SOURCES[place].text(dtype))
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    strict = ["--Werror=all-warnings", "-std=c++17"]
    command = ["nvcc", "-fatbin", *targets, *strict, str(file), "-o", str(tmp_path / "kernels")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@emulated
@needs_compiler
@opcheck.of(*WITH_KERNELS)
def test_emulated_kernels_are_the_reference(case, emulator):
    opcheck.check_implementations(case)
    opcheck.check_layouts(case)
    opcheck.check_upstream_layouts(case)
    opcheck.check_memory(case)
    opcheck.check_single_gradients(case)
    assert emulator.launches, f"{case}: no kernel ran"


@emulated
@needs_compiler
@pytest.mark.parametrize("place", OF_OPERATIONS)
def test_every_kernel_ran(place, emulator):
    for op in OF_OPERATIONS[place]:
        for case in cases.all_cases()[op]:
            opcheck.run(case, case.arrays())
    wanted = set(cuda_emulator.kernels(SOURCES[place].code))
    assert wanted and wanted <= set(emulator.launches)


def test_the_operations_with_kernels_are_found():
    assert {"relu", "leaky_relu", "batch_norm", "conv2d", "global_avg_pool2d", "concat"} <= set(WITH_KERNELS)
    assert not {"add", "reshape"} & set(WITH_KERNELS)
