"""CUDA kernels without a GPU: every source compiles for GPUs, and run on the CPU it is the specification."""

from __future__ import annotations

import shutil
import subprocess

import cuda_emulator
import opcheck
import pytest

from minires.backend import cuda
from minires.ops import cases

SOURCES = cuda_emulator.sources()
# The operations whose kernels are held to the specification, and the kernels that must have run for each.
KERNELS = {
    "relu": {"relu", "relu_gradient"},
    "batch_norm": {
        "batch_norm_sums",
        "batch_norm_statistics",
        "batch_norm_constants",
        "batch_norm_normalize",
        "batch_norm_gradient_sums",
        "batch_norm_gradient_totals",
        "batch_norm_gradient",
    },  # fmt: skip
    "conv2d": {"im2col", "col2im", "bias_relu", "relu_gradient"},
    "softmax": {"softmax", "softmax_gradient"},
    "log_softmax": {"log_softmax", "log_softmax_gradient"},
    "cross_entropy": {"cross_entropy", "cross_entropy_sum", "cross_entropy_gradient"},
    "max_pool2d": {"max_pool", "max_pool_gradient"},
    "avg_pool2d": {"avg_pool", "avg_pool_gradient"},
    "global_avg_pool2d": {"global_avg_pool_gradient"},
    "concat": {"concat", "concat_gradient"},
    "pad_channels": {"pad_channels", "pad_channels_gradient"},
}

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
@opcheck.of(*KERNELS)
def test_emulated_kernels_are_the_specification(case, emulator):
    opcheck.check_implementations(case)
    opcheck.check_layouts(case)
    opcheck.check_upstream_layouts(case)
    opcheck.check_memory(case)
    opcheck.check_single_gradients(case)
    assert emulator.launches, f"{case}: no kernel ran"


@emulated
@needs_compiler
@pytest.mark.parametrize("op", KERNELS)
def test_every_kernel_ran(op, emulator):
    for case in cases.all_cases()[op]:
        opcheck.run(case, case.arrays())
    assert set(emulator.launches) == KERNELS[op]
