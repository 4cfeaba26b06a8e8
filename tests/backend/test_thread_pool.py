"""The pool of threads, their number, and who waits."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minires import Tensor, backend
from minires.backend import thread_pool
from minires.errors import ConfigError
from minires.ops.relu import relu

pytestmark = pytest.mark.usefixtures("three_threads")


@pytest.mark.parametrize("awake", [True, False], ids=["awake for a moment", "asleep at once"])
def test_who_waits_misses_nothing(monkeypatch, awake):
    """Thousands of short calls in a row, from two threads at once, and after a pause."""
    backend.fast(np.ones(1)) and relu(Tensor(np.ones(10, np.float32)))  # Numba is in use
    if not awake:
        monkeypatch.setattr(thread_pool, "sched_yield", None)
    sums = np.zeros((2, 3), int)

    def caller(number):
        def count(start, stop):
            sums[number, start] += 1

        for call in range(1500):
            if call % 500 == 250:
                time.sleep(0.01)  # longer than their patience
            backend.parallel_for(count, 3)

    other = threading.Thread(target=caller, args=(1,))
    other.start()
    caller(0)
    other.join(timeout=60)
    assert (sums == 1500).all()


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="who waits goes to sleep at once without Numba")
def test_patience_has_an_end(monkeypatch):
    relu(Tensor(np.ones(10, np.float32)))  # Numba is in use
    monkeypatch.setattr(thread_pool.Bell, "compiled", False)
    bell = thread_pool.Bell()
    bell.stay_awake(1)  # nobody rings
    bell.ring()
    bell.stay_awake(1)
    assert bell.rung[0] == 1
    assert thread_pool.Bell.compiled == hasattr(os, "sched_yield"), "it waited awake"


def test_the_number_of_threads():
    backend.set_threads(2)
    assert backend.threads() == 2 and len(backend.chunks(10)) == 2
    for count in (0, -1):
        with pytest.raises(ConfigError, match=f"the number of threads must be at least 1, not {count}"):
            backend.set_threads(count)


def _threads_of_a_new_process(setting):
    code = "from minires import backend\ntry: print(backend.threads())\nexcept ValueError as e: print(e)"
    environment = {**os.environ, "MINIRES_THREADS": setting}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_environment_sets_the_number_of_threads():
    assert _threads_of_a_new_process("5") == "5"
    text = "MINIRES_THREADS must be a whole number of threads, not 'two'"
    assert _threads_of_a_new_process("two") == text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_a_pool_of_its_own():
    code = """
import os, sys
from minires import backend
backend.set_threads(3)
backend.parallel_for(lambda a, b: None, 3)
child = os.fork()
if child == 0:
    done = []
    backend.parallel_for(lambda a, b: done.append(a), 3)
    os._exit(0 if sum(done) >= 0 and done else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0


_ASKS_AGAIN_AND_AGAIN = """
import platform, resource, sys
import numpy as np
from minires import backend
backend.set_threads(2)
backend.parallel_for(lambda start, stop: None, 2)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        backend.add(np.ones(5_000_000), np.ones(5_000_000))  # three times 40 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(platform.libc_ver()[0], faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is told how to work on Linux only")
@pytest.mark.parametrize("told", [False, True], ids=["by default", "where the user chose"])
def test_freed_memory_is_kept_for_the_next_arrays(told):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"} if told else {}
    run = [sys.executable, "-c", _ASKS_AGAIN_AND_AGAIN]
    libc, faults = subprocess.check_output(run, env=environment, text=True).split()
    if libc != "glibc":
        pytest.skip(f"the C library is {libc}")
    assert (int(faults) > 500) == told, f"{faults} page faults"
