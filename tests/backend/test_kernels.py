"""Kernels: the switch between them and plain code, the compiler, and who is told that it works."""

import os
import subprocess
import sys

import numpy as np
import pytest

from minires import backend, reference


def test_the_switch_to_plain_code():
    x = np.ones(3)
    assert backend.fast(x) == backend.HAS_NUMBA
    with reference():
        assert not backend.fast(x)
        with reference():
            pass
        assert not backend.fast(x)
    assert backend.fast(x) == backend.HAS_NUMBA


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="there are no kernels without Numba")
def test_a_kernel_is_the_function_compiled():
    def double(x, y):
        for i in range(x.size):
            y[i] = 2 * x[i]

    x, y = np.arange(4.0), np.zeros(4)
    compiled = backend.kernel(double)
    compiled(x, y)
    assert y.tolist() == [0, 2, 4, 6] and compiled.__name__ == "double"


def test_a_kernel_compiles_where_no_cache_can_be_written(monkeypatch):
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def triple(x, y):
        for i in range(x.size):
            y[i] = 3 * x[i]

    x, y, told = np.arange(4.0), np.zeros(4), []
    with backend.before_compiling(told.append):
        backend.kernel(triple)(x, y)
    assert y.tolist() == [0, 3, 6, 9]
    assert len(told) == 1 and "and not kept, as no folder can be written to" in told[0]


PROGRAM = """
import contextlib, sys
from minires import backend

@backend.kernel
def one_more(x):
    return x + 1

@backend.kernel
def one_less(x):
    return x - 1

with backend.before_compiling(print) if sys.argv[1:] == ["told"] else contextlib.nullcontext():
    assert one_more(one_less(3)) == 3 and one_more(one_less(3.5)) == 3.5
"""


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="there are no kernels without Numba")
def test_the_first_process_tells_once_that_it_compiles_and_the_second_nothing(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(cache, *arguments):
        command = [sys.executable, str(tmp_path / "program.py"), *arguments]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return done.stdout

    assert run("first", "told") == (
        "compiling the kernels that are new here (they are kept for the next time); "
        "ten seconds to a minute\n"
    )
    assert run("first", "told") == ""
    assert run("second") == "", "a library prints nothing by itself"


def test_of_two_blocks_around_the_compiler_the_outer_one_is_told(tmp_path, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    def third(x):
        return x / 3

    outer, inner = [], []
    with backend.before_compiling(outer.append):
        with backend.before_compiling(inner.append):
            assert backend.kernel(third)(3) == 1
        with backend.before_compiling(inner.append):
            assert backend.kernel(third)(3.0) == 1
    assert len(outer) == 1 and not inner
    with backend.before_compiling(inner.append):
        assert backend.kernel(third)(True) == 1 / 3
    assert len(outer) == 1 and len(inner) == 1


def test_the_wait_for_the_compiler_is_told_before_it_begins(tmp_path, monkeypatch):
    event = pytest.importorskip("numba.core.event")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    def half(x):
        return x / 2

    told, compiler = [], event.RecordingListener()
    with backend.before_compiling(told.append):
        pass
    assert backend.kernel(half)(3) == 1.5 and told == [], "only who is inside the block is told"
    with (
        event.install_listener("numba:run_pass", compiler),
        backend.before_compiling(lambda line: told.append(len(compiler.buffer))),
    ):
        assert backend.kernel(half)(3) == 1.5 and not compiler.buffer, "this one is in the cache"
        assert backend.kernel(half)(3.0) == 1.5 and compiler.buffer
    assert told == [0]
