"""The pool of threads, the switch between kernels and plain code, and the BLAS threads beneath."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minires import Tensor, backend, specification
from minires.errors import ConfigError
from minires.ops.relu import relu


@pytest.fixture(autouse=True)
def three_threads():
    before = backend.threads()
    backend.set_threads(3)
    yield
    backend.set_threads(before)


def test_every_index_is_done_once():
    for n in (0, 1, 2, 3, 10, 1000):
        done = np.zeros(n, int)
        backend.parallel_for(lambda start, stop, done=done: np.add.at(done, range(start, stop), 1), n)
        assert (done == 1).all()


def test_shards():
    assert backend.shards(10) == [(0, 3), (3, 6), (6, 10)]
    assert backend.shards(2) == [(0, 1), (1, 2)]
    assert backend.shards(10, grain=5) == [(0, 5), (5, 10)]
    assert backend.shards(10, grain=11) == [(0, 10)]
    assert backend.shards(0) == [(0, 0)]


def test_shards_run_at_once_on_threads_of_their_own():
    barrier, names = threading.Barrier(3, timeout=30), set()

    def task(start, stop):
        barrier.wait()  # passes only when all three are here
        names.add(threading.current_thread().name)

    backend.parallel_for(task, 3)
    assert threading.current_thread().name in names and len(names) <= 3


@pytest.mark.parametrize("awake", [True, False], ids=["awake for a moment", "asleep at once"])
def test_who_waits_misses_nothing(monkeypatch, awake):
    """Thousands of short calls in a row, from two threads at once, and after a pause."""
    backend.fast(np.ones(1)) and relu(Tensor(np.ones(10, np.float32)))  # Numba is in use
    if not awake:
        monkeypatch.setattr(backend, "_sched_yield", None)
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
def test_patience_has_an_end():
    relu(Tensor(np.ones(10, np.float32)))  # Numba is in use
    bell = backend._Bell()
    bell.stay_awake(1)  # nobody rings
    bell.ring()
    bell.stay_awake(1)
    assert bell.rung[0] == 1


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_an_error_in_any_shard_is_raised_once_all_are_done(shard):
    done = []

    def task(start, stop):
        if start == shard:
            raise KeyError(f"shard {start}")
        done.append(start)

    with pytest.raises(KeyError, match=f"shard {shard}"):
        backend.parallel_for(task, 3)
    assert sorted(done) == [i for i in range(3) if i != shard]
    done.clear()
    backend.parallel_for(lambda start, stop: done.append(start), 3)
    assert sorted(done) == [0, 1, 2], "the pool works on after an error"


def test_a_parallel_loop_inside_a_shard_runs_in_place():
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
    assert sorted(after) == [0, 1, 2], "and afterwards there are shards again"


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


def _blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_matrix_products_in_shards_use_one_thread_each():
    inside = []

    def task(start, stop):
        inside.append(_blas_threads())

    def fails(start, stop):
        raise RuntimeError

    with threadpool_limits(2, user_api="blas"):
        before = _blas_threads()
        assert before and set(before) == {2}, "NumPy comes with a BLAS that can be asked"
        backend.parallel_for(task, 3)
        assert inside == [[1] * len(before)] * 3
        assert _blas_threads() == before
        with pytest.raises(RuntimeError):
            backend.parallel_for(fails, 3)
        assert _blas_threads() == before, "also after an error"


def test_the_number_of_threads():
    backend.set_threads(2)
    assert backend.threads() == 2 and len(backend.shards(10)) == 2
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


def test_the_switch_to_plain_code():
    x = np.ones(3)
    assert backend.fast(x) == backend.HAS_NUMBA
    with specification():
        assert not backend.fast(x)
        with specification():
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
    assert len(told) == 1 and "at each start, as no folder for them can be written to" in told[0]


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
        "compiling the kernels, once on this machine; it takes about ten seconds\n"
    )
    assert run("first", "told") == ""
    assert run("second") == "", "a library prints nothing by itself"


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


@pytest.mark.parametrize(
    ("m", "k", "n"), [(2, 3, 4), (500, 40, 30), (40, 500, 30), (30, 40, 500), (1, 1, 1), (0, 3, 2), (3, 0, 2)]
)
def test_matmul(m, k, n):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    for left, right in ((a, b), (a.T.copy().T, b.T.copy().T)):
        assert np.allclose(backend.matmul(left, right), a @ b, rtol=1e-12, atol=1e-12)
    single = backend.matmul(a.astype(np.float32), b.astype(np.float32))
    assert single.dtype == np.float32 and single.base is None


def test_devices():
    x = np.ones(3)
    assert backend.array_module(x) is np and backend.device_of(x) == "cpu"
    assert backend.to_device(x, "cpu") is x


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


def test_auto_is_the_gpu_if_there_is_one(monkeypatch):
    def none():
        raise ConfigError("this machine has none")

    monkeypatch.setattr(backend, "cupy", none)
    assert backend.choose_device("auto") == "cpu"
    monkeypatch.setattr(backend, "cupy", lambda: "the cupy module")
    assert backend.choose_device("auto") == "cuda"
    assert backend.choose_device("cpu") == "cpu" and backend.choose_device("cuda:1") == "cuda:1"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    runtime = SimpleNamespace(getDeviceCount=lambda: 2)
    monkeypatch.setattr(backend, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with pytest.raises(ConfigError, match="there is no cuda:2: this machine's GPUs are cuda:0 to cuda:1"):
        backend.to_device(np.zeros(1), "cuda:2")


def test_matrix_products_use_one_thread_each_when_a_second_thread_asks():
    """The limit of threadpoolctl belongs to the first thread that sets one, as long as that lives."""
    inside = []
    with threadpool_limits(2, user_api="blas"):
        before = _blas_threads()
        asking = threading.Thread(
            target=lambda: backend.parallel_for(lambda start, stop: inside.append(_blas_threads()), 3)
        )
        asking.start()
        asking.join()
        assert inside == [[1] * len(before)] * len(inside) and inside
        assert _blas_threads() == before
