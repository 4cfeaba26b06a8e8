"""CUDA kernels without a GPU: every source compiles, and on the CPU it gives what the reference gives."""

from __future__ import annotations

import re
import shutil
import subprocess

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires.backend import cuda
from minires.errors import MiniresError
from minires.ops import cases
from minires.optim import adam, sgd
from minires.optim.cuda_kernels import Sweep, Table
from minires.train import ema

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


COUNT = cuda.Source(r"""
extern "C" __global__ void count(
    const T* x /* rows * max(1, columns) */, const A* scale /* columns */, int* found /* blocks */,
    int rows, int columns, A most, double bound
) {}
""")
F = np.float32


def arguments():
    return {
        "x": np.ones((3, 2), F), "scale": np.ones(2, F), "found": np.zeros(4, np.int32),
        "rows": 3, "columns": 2, "most": 0.5, "bound": 2.0,
    }  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """What is handed to a launch."""
    found = []
    monkeypatch.setattr(cuda, "_launch", lambda *given: found.append(given[-1]))
    return found


@pytest.mark.parametrize(
    "change",
    [
        {}, {"scale": None}, {"x": np.ones(100, F)}, {"columns": np.int64(2)}, {"columns": True}, {"rows": 0},
        {"most": 1}, {"most": F(1)}, {"bound": np.float64(3)}, {"columns": 0, "scale": np.ones(0, F)},
    ],
)  # fmt: skip
def test_what_fits_is_handed_over_in_the_types_that_the_kernel_reads(launched, change):
    given = arguments() | change
    COUNT("count", (4, 256), *given.values())
    for name, value in zip(given, launched[0], strict=True):
        if given[name] is None or isinstance(given[name], np.ndarray):
            assert value is given[name] or (value == 0 and value.dtype == np.uint64)
        else:
            kind = {"most": np.float32, "bound": np.float64}.get(name, np.int32)
            assert type(value) is kind and value == given[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((2, 2), F)}, "x has 4 numbers, but must have at least 6 and fewer than"),
        ({"x": np.ones((6, 4), F)[:, ::2]}, "x has gaps, but kernels know nothing of strides"),
        ({"scale": np.ones(2)}, "scale must be an array of float32, not float64"),
        ({"scale": [1.0, 2.0]}, "scale must be an array of float32, not list"),
        ({"scale": 3.0}, "scale must be an array of float32, not float"),
        ({"found": np.zeros(3, np.int32)}, "found has 3 numbers, but must have at least 4"),
        ({"found": np.zeros(4, np.int64)}, "found must be an array of int32, not int64"),
        ({"rows": 2.0}, "rows must be of int32, not 2.0"),
        ({"rows": None}, "rows must be of int32, not None"),
        ({"rows": 2**31, "x": None}, "rows is 2147483648, but must fit into 32 bits"),
        ({"most": "1"}, "most must be of float32, not '1'"),
        ({"bound": np.ones(1)}, "bound must be of float64, not array"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(launched, change, message):
    given = arguments() | change
    with pytest.raises(MiniresError, match=f"^kernel count: {re.escape(message)}"):
        COUNT("count", (4, 256), *given.values())
    assert not launched


def test_the_number_of_arguments_is_checked(launched):
    with pytest.raises(MiniresError, match="kernel count takes 7 arguments, but got 6"):
        COUNT("count", (4, 256), *list(arguments().values())[:-1])


@pytest.mark.parametrize(
    ("source", "kernel", "more", "addresses", "numbers"),
    [
        (sgd._CUDA, "sgd", (None, 0.0), 3, 7),
        (adam._CUDA, "adam", (None, 0.0), 4, 9),
        (ema._CUDA, "moving_average", (), 2, 1),
    ],
)
def test_tables_of_too_few_numbers_are_refused(launched, source, kernel, more, addresses, numbers):
    arrays = [np.ones(4, F), np.ones(5, F)]

    def launch(addresses, numbers):
        sweep = Sweep(arrays)
        sweep.set({i: ([array] * addresses, [0.0] * numbers) for i, array in enumerate(arrays)})
        sweep.launch(source, kernel, *more)

    launch(addresses, numbers)
    assert len(launched) == 1
    with pytest.raises(MiniresError, match=f"kernel {kernel}: addresses has {2 * addresses - 2} numbers"):
        launch(addresses - 1, numbers)
    with pytest.raises(MiniresError, match=f"kernel {kernel}: numbers has {2 * numbers - 2} numbers"):
        launch(addresses, numbers - 1)


def test_a_table_of_the_norm_of_too_few_numbers_is_refused(launched):
    sweep = Sweep([np.ones(4, F), np.ones(5, F)])
    sweep.launch_norm()
    assert len(launched) == 2
    sweep.gradients = Table(np, (1, 2), "uint64")
    with pytest.raises(MiniresError, match="of_chunks: addresses has 2 numbers, but must have at least 4"):
        sweep.launch_norm()


def test_an_array_of_more_numbers_than_a_kernel_can_count_is_refused(launched, monkeypatch):
    monkeypatch.setattr(cuda, "_MOST_NUMBERS", 7)
    cuda._checker.cache_clear()
    with pytest.raises(MiniresError, match="x has 100 numbers, but must have at least 6 and fewer than 7"):
        COUNT("count", (4, 256), *(arguments() | {"x": np.ones(100, F)}).values())
    cuda._checker.cache_clear()
