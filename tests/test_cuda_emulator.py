"""What stands in for a GPU: threads of a block that wait for each other, and what is kept."""

from __future__ import annotations

import ctypes
import os

import cuda_emulator
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here")

# Every second thread ends, the last of these when all others wait, which must then go on.
MEETS = """
extern "C" __global__ void meets(int* out, int count) {
    __shared__ int held[1024];
    int t = threadIdx.x;
    held[t] = t;
    __syncthreads();
    if (t % 2 == 0) return;
    out[blockIdx.x * blockDim.x + t] = held[blockDim.x - 1 - t];
    __syncthreads();
    held[t] = 10 * t;
    __syncthreads();
    out[blockIdx.x * blockDim.x + t - 1] = held[(t + 2) % count];
}
"""
SUMS = """
extern "C" __global__ void sums(float* out) {
    float value = threadIdx.x;
    for (int by = 16; by; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
    value = __shfl_down_sync(0xffffffffu, (float)threadIdx.x, 1);
    out[(gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = value;
}
"""


def launched(code, name, blocks, threads, *arguments):
    """Launch a kernel on arrays and whole numbers."""
    kept = [
        ctypes.c_void_p(one.ctypes.data) if isinstance(one, np.ndarray) else ctypes.c_int(one)
        for one in arguments
    ]
    given = (ctypes.c_void_p * len(kept))(*map(ctypes.addressof, kept))
    found = getattr(cuda_emulator.library(code), f"launch_{name}")(blocks, threads, 1, given, len(kept))
    assert found == -1


@pytest.mark.parametrize("threads", [64, 34, 256])
def test_threads_wait_for_all_that_have_not_ended(threads):
    for _ in range(2):  # the second time on the stacks of the first
        out = np.zeros((3, threads), np.int32)
        launched(MEETS, "meets", 3, threads, out, threads)
        odd = np.arange(1, threads, 2)
        assert (out[:, odd] == threads - 1 - odd).all()
        assert (out[:, odd - 1] == 10 * ((odd + 2) % threads)).all()


def test_a_warp_adds_up_and_one_that_is_not_full_has_what_it_has():
    out = np.zeros((2, 2, 64 + 5), np.float32)
    launched(SUMS, "sums", 2, 64 + 5, out)
    sums, next_ones = out
    assert (sums[:, :32] == sum(range(32))).all() and (sums[:, 32:64] == sum(range(32, 64))).all()
    t = np.arange(69)
    last = (t % 32 == 31) | (t == 68)  # of its warp: it keeps its own
    assert (next_ones == np.where(last, t, t + 1)).all()


def test_what_is_compiled_is_kept_by_all_that_goes_into_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_emulator, "_folder", tmp_path)
    one, other = (cuda_emulator.library.__wrapped__(code) for code in (SUMS, SUMS + "// another\n"))
    assert one._name != other._name
    assert cuda_emulator.library.__wrapped__(SUMS)._name == one._name
    monkeypatch.setattr(cuda_emulator, "kernels", lambda code: [])
    assert cuda_emulator.library.__wrapped__(SUMS)._name != one._name


def test_what_nobody_has_asked_for_in_days_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_emulator, "_folder", tmp_path)
    for name in ("old.so", "new.so"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "old.so", (0, 0))
    cuda_emulator.keep_in(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new.so"]


def test_a_compiler_that_checks_jumps_is_told_not_to(tmp_path, monkeypatch):
    """As that of Ubuntu does. The block runs in a process of its own, which such a check would end."""
    checks = tmp_path / "g++"
    checks.write_text(f'#!/bin/sh\nexec {cuda_emulator.compiler()} -D_FORTIFY_SOURCE=2 "$@"\n')
    checks.chmod(0o755)
    monkeypatch.setattr(cuda_emulator, "_GXX", [str(checks), *cuda_emulator._GXX[1:]])
    monkeypatch.setattr(cuda_emulator, "_folder", tmp_path)
    monkeypatch.setattr(cuda_emulator, "_header", lambda: cuda_emulator.HEADER)
    library = cuda_emulator.library.__wrapped__(SUMS)
    if (child := os.fork()) == 0:
        out = np.zeros((2, 1, 40), np.float32)
        place = ctypes.c_void_p(out.ctypes.data)
        given = (ctypes.c_void_p * 1)(ctypes.addressof(place))
        os._exit(0 if library.launch_sums(1, 40, 1, given, 1) == -1 else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
