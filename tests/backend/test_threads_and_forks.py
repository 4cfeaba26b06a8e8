"""Work from several threads, a pool that changes meanwhile, and processes that are forked in the middle.

Each runs in a process of its own: one that hangs is ended, and the test fails.
"""

import os
import subprocess
import sys

import pytest

from minires import backend
from minires.errors import ConfigError

_BEGIN = """
import os, signal, sys, threading, time
import numpy as np
from minires import Tensor, backend, nn, ops

def whole(*shape):  # whole numbers, so that all sums are exact in any order
    return np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)

x, image = Tensor(whole(1024, 1024)), Tensor(whole(8, 32, 32, 16))
w, b = Tensor(whole(3, 3, 16, 16)), Tensor(whole(16))

def results():
    return [ops.relu(x).data, ops.conv2d(image, w, b, padding=1).data, backend.matmul(x.data, x.data)]

def in_child(check):
    child = os.fork()
    if child:
        return child
    signal.alarm(60)  # a child that hangs is killed
    try:
        check()
        os._exit(0)
    finally:
        os._exit(1)

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

backend.set_threads(3)
right = results()

def compare():
    for now, expected in zip(results(), right, strict=True):
        np.testing.assert_array_equal(now, expected)

def check():
    backend.set_threads(3)
    compare()
"""


def run(code, timeout=240):
    """Run the code in a process of its own. Raises: TimeoutExpired if it hangs."""
    process = [sys.executable, "-W", "ignore", "-c", _BEGIN + code]
    done = subprocess.run(process, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_threads_work_on_while_another_changes_the_number_of_threads():
    out = run("""
wrong, stop = [], threading.Event()

def work():
    try:
        for _ in range(60):
            compare()
    except BaseException as error:
        wrong.append(error)

def switch():
    count = 0
    while not stop.is_set():
        count += 1
        backend.set_threads(1 + count % 4)
        try:
            backend.set_threads(0)
        except ValueError:
            pass

workers = [threading.Thread(target=work) for _ in range(4)]
switcher = threading.Thread(target=switch)
switcher.start()
[worker.start() for worker in workers]
[worker.join() for worker in workers]
stop.set()
switcher.join()
assert not wrong, wrong
check()
print("right")
""")
    assert out == "right\n"


def test_work_that_was_begun_ends_when_its_pool_is_closed():
    out = run("""
done = []

def task(start, stop):
    if not done:
        backend.set_threads(2)
    done.extend(range(start, stop))

for _ in range(50):
    done.clear()
    backend.set_threads(4)
    backend.parallel_for(task, 4)
    assert sorted(done) == [0, 1, 2, 3], done
print("right")
""")
    assert out == "right\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_was_forked_while_other_threads_compute_can_compute():
    out = run("""
stop = threading.Event()

def work():
    while not stop.is_set():
        results()
        nn.Linear(64, 64)  # draws from the generator that all share

workers = [threading.Thread(target=work) for _ in range(3)]
[worker.start() for worker in workers]

def child():
    check()
    nn.Linear(64, 64), nn.Dropout(0.5)

states = [ended(in_child(child)) for _ in range(40)]
stop.set()
[worker.join() for worker in workers]
assert states == [0] * 40, states
check()
print("right")
""")
    assert out == "right\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_was_forked_inside_a_chunk_has_threads_again():
    out = run("""
children = []

def in_threads():
    check()
    names = set()
    backend.parallel_for(lambda start, stop: (barrier.wait(), names.add(threading.get_ident())), 3)
    assert len(names) == 3, names

def task(start, stop):
    if start == 0:
        children.append(in_child(in_threads))

barrier = threading.Barrier(3, timeout=30)
backend.parallel_for(task, 3)
assert ended(children[0]) == 0
print("right")
""")
    assert out == "right\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_was_forked_inside_a_chunk_and_comes_out_of_it_is_told_or_goes_on():
    out = run("""
from minires.errors import MiniresError
parent, states = os.getpid(), []

def fork(then):
    child = os.fork()
    if child:
        then()
        states.append(ended(child))
    else:
        signal.alarm(60)

def of_two(start, stop):  # the other chunk is in the hands of another thread, which the child has not
    if start == 0:
        begun.wait()
        fork(go_on.set)
    else:
        begun.set()
        go_on.wait()

def end():
    check()
    os._exit(7)

begun, go_on = threading.Event(), threading.Event()
try:
    backend.set_threads(2)
    backend.parallel_for(of_two, 2)
except MiniresError as error:
    assert os.getpid() != parent and "forked inside one of 2 chunks" in str(error), error
    end()
backend.parallel_for(lambda start, stop: fork(int), 1)
if os.getpid() != parent:
    end()
assert states == [7, 7], states
check()
print("right")
""")
    assert out == "right\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_was_forked_in_a_thread_of_the_pool_ends_when_its_chunk_does():
    out = run("""
backend.set_threads(2)
caller, children = threading.get_ident(), []

def task(start, stop):
    time.sleep(0.2)  # so that each thread gets one
    if threading.get_ident() != caller:
        child = os.fork()
        if child:
            children.append(child)
        else:
            signal.alarm(60)

backend.parallel_for(task, 2)
assert [ended(child) for child in children] == [1]
check()
print("right")
""")
    assert out == "right\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(not backend.HAS_NUMBA, reason="without Numba nothing is compiled")
def test_a_child_that_was_forked_while_a_kernel_is_compiled_can_compile():
    out = run("""
@backend.kernel
def first(x):
    for i in range(x.size):
        x[i] += 1

@backend.kernel
def second(x):
    for i in range(x.size):
        x[i] *= 2

compiling = threading.Thread(target=lambda: first(np.ones(3)))
compiling.start()
time.sleep(0.05)

def child():
    x = np.ones(3)
    first(x), second(x)
    assert x.tolist() == [4, 4, 4]

assert ended(in_child(child)) == 0
compiling.join()
print("right")
""")
    assert out == "right\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(not backend.HAS_NUMBA, reason="without Numba nothing is compiled")
def test_several_threads_may_fork_at_once_while_kernels_are_compiled():
    out = run("""
states, stop = [], threading.Event()

def compile():
    @backend.kernel
    def double(x):
        for i in range(x.size):
            x[i] *= 2
    double(np.ones(3))

def compiles():
    while not stop.is_set():
        compile()

def forks():
    for _ in range(20):
        states.append(ended(in_child(int)))
    states.append(ended(in_child(compile)))

threads = [threading.Thread(target=forks) for _ in range(3)]
compiler = threading.Thread(target=compiles)
compiler.start()
[thread.start() for thread in threads]
[thread.join() for thread in threads]
stop.set()
compiler.join()
assert states == [0] * 63, states
print("right")
""")
    assert out == "right\n"


@pytest.mark.parametrize("count", ["2", None, 2.5, True, [2], 10**6, 10**30])
def test_a_number_of_threads_that_makes_no_sense_leaves_the_pool_as_it_was(three_threads, count):
    with pytest.raises(ConfigError, match="the number of threads must be"):
        backend.set_threads(count)
    assert backend.threads() == 3
    done = []
    backend.parallel_for(lambda start, stop: done.append(start), 3)
    assert sorted(done) == [0, 1, 2]


def test_a_machine_that_gives_no_more_threads_leaves_the_pool_as_it_was(three_threads, monkeypatch):
    import threading

    start, started = threading.Thread.start, []

    def refuses(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuses)
    with pytest.raises(ConfigError, match="this machine gives no 7 threads .can't start new thread."):
        backend.set_threads(7)
    monkeypatch.undo()
    assert backend.threads() == 3
    for thread in started:
        thread.join(timeout=20)
        assert not thread.is_alive(), "those that were started end again"
