"""Loops, additions and copies on all threads."""

import threading

import numpy as np
import pytest

from minires import backend

pytestmark = pytest.mark.usefixtures("three_threads")


def test_every_index_is_done_once():
    for n in (0, 1, 2, 3, 10, 1000):
        done = np.zeros(n, int)
        backend.parallel_for(lambda start, stop, done=done: np.add.at(done, range(start, stop), 1), n)
        assert (done == 1).all()


def test_chunks():
    assert backend.chunks(10) == [(0, 3), (3, 6), (6, 10)]
    assert backend.chunks(2) == [(0, 1), (1, 2)]
    assert backend.chunks(10, grain=5) == [(0, 5), (5, 10)]
    assert backend.chunks(10, grain=11) == [(0, 10)]
    assert backend.chunks(0) == [(0, 0)]


def test_chunks_run_at_once_on_threads_of_their_own():
    barrier, names = threading.Barrier(3, timeout=30), set()

    def task(start, stop):
        barrier.wait()  # passes only when all three are here
        names.add(threading.current_thread().name)

    backend.parallel_for(task, 3)
    assert threading.current_thread().name in names and len(names) <= 3


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_an_error_in_any_chunk_is_raised_once_all_are_done(chunk):
    done = []

    def task(start, stop):
        if start == chunk:
            raise KeyError(f"chunk {start}")
        done.append(start)

    with pytest.raises(KeyError, match=f"chunk {chunk}"):
        backend.parallel_for(task, 3)
    assert sorted(done) == [i for i in range(3) if i != chunk]
    done.clear()
    backend.parallel_for(lambda start, stop: done.append(start), 3)
    assert sorted(done) == [0, 1, 2], "the pool works on after an error"


def test_a_parallel_loop_inside_a_chunk_runs_in_place():
    seen, lock = [], threading.Lock()

    def outer(start, stop):
        me = threading.get_ident()

        def inner(a, b):
            assert threading.get_ident() == me
            with lock:
                seen.append((start, a, b))

        backend.parallel_for(inner, 5)

    backend.parallel_for(outer, 3)
    assert sorted(seen) == [(0, 0, 5), (1, 0, 5), (2, 0, 5)]
    after = []
    backend.parallel_for(lambda a, b: after.append(a), 3)
    assert sorted(after) == [0, 1, 2], "and afterwards there are chunks again"


def test_loops_of_several_threads_do_not_mix():
    results = {}

    def count(key):
        total = np.zeros(300)

        def task(start, stop):
            total[start:stop] += key

        for _ in range(20):
            backend.parallel_for(task, 300)
        results[key] = total

    threads = [threading.Thread(target=count, args=(key,)) for key in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((results[key] == 20 * key).all() for key in (1, 2, 3))


@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (300, 400)])
def test_add(shape):
    rng = np.random.default_rng(0)
    a, b = (np.asarray(rng.standard_normal(shape)) for _ in range(2))
    assert np.array_equal(backend.add(a, b), a + b) and isinstance(backend.add(a, b), np.ndarray)
    assert np.array_equal(backend.add(a.T, b.T), a.T + b.T)
    out = np.empty(shape)
    assert backend.add(a, b, out=out) is out and np.array_equal(out, a + b)


def test_add_and_copy_of_large_views():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 50, 400)), rng.standard_normal((6, 50, 300))
    assert np.array_equal(backend.add(a[..., 50:350], b), a[..., 50:350] + b)
    room = np.zeros((6, 50, 1000))
    backend.copy(b, room[..., 100:400])
    assert np.array_equal(room[..., 100:400], b) and not room[..., :100].any() and not room[..., 400:].any()
    small = np.zeros((2, 5))
    backend.copy(np.ones((2, 3)), small[:, 1:4])
    assert small.sum() == 6 and not small[:, 0].any()
