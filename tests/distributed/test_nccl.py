"""Sums over GPUs, by a stand-in for NCCL whose ranks are threads; with a GPU, by NCCL itself on one rank."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import fake_cupy
import fake_nccl
import numpy as np
import pytest

from minires import backend
from minires.backend import arrays
from minires.distributed import Solo, nccl, run
from minires.errors import ConfigError, ShapeError

DTYPES = ("float32", "float64", "bfloat16")


@pytest.fixture
def two_gpus(monkeypatch):
    fake_cupy.pretend(monkeypatch, gpus=2)
    return backend.nccl()


def _numbers(rank, dtype, size=999):
    numbers = np.random.default_rng(rank).standard_normal(size)
    return numbers.astype(backend.dtype_of(dtype))


def _with_nccl(work, ranks=2):
    """``work(comm, nccl)`` on each of the ranks, which have a GPU each."""

    def one(comm):
        backend.make_current(f"cuda:{comm.rank}")
        return work(comm, nccl.Nccl(comm, f"cuda:{comm.rank}"))

    return run(ranks, one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_has_the_bits_of_one_over_the_host_on_every_rank(two_gpus, dtype):
    def work(comm, sums):
        own = _numbers(comm.rank, dtype)
        array = backend.to_device(own.copy(), f"cuda:{comm.rank}")
        sums.sum(array)
        return backend.to_device(array, "cpu"), comm.allreduce(own, "test")

    for summed, over_host in _with_nccl(work):
        assert summed.dtype == over_host.dtype and summed.tobytes() == over_host.tobytes()
    assert not np.array_equal(over_host, _numbers(0, dtype))


def test_several_arrays_go_as_one_group(two_gpus, monkeypatch):
    groups = []
    end = fake_nccl.FakeNccl.groupEnd

    def counted(module):
        groups.append(len(module.group.sums))
        end(module)

    def work(comm, sums):
        groups.clear()
        comm.barrier("test")
        given = [backend.to_device(_numbers(comm.rank, one, 7), f"cuda:{comm.rank}") for one in DTYPES]
        sums.sum(*given)
        return [backend.to_device(array, "cpu").astype(np.float64) for array in given]

    monkeypatch.setattr(fake_nccl.FakeNccl, "groupEnd", counted)
    for found in _with_nccl(work):
        for array, dtype in zip(found, DTYPES, strict=True):
            right = _numbers(0, dtype, 7) + _numbers(1, dtype, 7)
            assert np.array_equal(array, right.astype(np.float64))
    assert groups == [3, 3]


def test_a_sum_goes_on_the_stream_that_is_current_or_another(two_gpus, monkeypatch):
    streams = []
    monkeypatch.setattr(
        fake_nccl.Communicator, "allReduce", lambda self, *arguments: streams.append(arguments[-1])
    )
    monkeypatch.setattr(nccl.Nccl, "_try", lambda self: None)
    sums, cupy = nccl.Nccl(Solo()), backend.cupy()
    current, other = cupy.cuda.Stream(), cupy.cuda.Stream()
    with current:
        sums.sum(cupy.ones(3))
        sums.sum(cupy.ones(3), stream=other)
    sums.sum(cupy.ones(3))
    assert streams == [current.ptr, other.ptr, cupy.cuda.get_current_stream().ptr]


def test_what_cannot_be_summed_is_refused_before_anything_is_launched(two_gpus):
    sums, cupy = nccl.Nccl(Solo(), "cuda"), backend.cupy()
    fine = cupy.ones(3)
    before = two_gpus.communicators[0].sums
    with cupy.cuda.Device(1):
        elsewhere = cupy.ones(3)
    for wrong, why in (
        (np.ones(3), "NCCL sums what lies on cuda:0, not on cpu"),
        (elsewhere, "NCCL sums what lies on cuda:0, not on cuda:1"),
        (cupy.ones(3, np.int64), "NCCL sums arrays of float32, float64, bfloat16 here, not of int64"),
        (cupy.ones((3, 4))[:, 1], r"NCCL sums arrays without gaps, and this one of shape \(3,\) has some"),
    ):
        with pytest.raises(ShapeError, match=why):
            sums.sum(fine, wrong)
    assert two_gpus.communicators[0].sums == before and fine.tolist() == [1, 1, 1]


def test_the_name_of_rank_0_is_that_of_all(two_gpus):
    _with_nccl(lambda comm, sums: None)
    assert two_gpus.made == 1 and len(two_gpus.rooms) == 1
    assert all(one.sums == 2 for one in two_gpus.communicators), "the connections are made with first sums"


def test_what_one_rank_lacks_none_uses(two_gpus, monkeypatch):
    def missing():
        if fake_cupy.here.device == 1:
            raise ConfigError("NCCL is not installed")
        return two_gpus

    monkeypatch.setattr(backend, "nccl", missing)
    found = run(2, lambda comm: nccl.found(comm, f"cuda:{comm.rank}"))
    assert all(why.startswith("rank 1 (") and why.endswith("): NCCL is not installed") for why in found)
    assert not two_gpus.made


def test_ranks_that_share_a_gpu_are_named(two_gpus):
    why = run(2, lambda comm: nccl.found(comm, "cuda:1"))
    assert why[0] == why[1] and why[0].startswith("rank 0 and rank 1 use one GPU of ")
    assert not two_gpus.made


def test_where_nccl_fails_on_one_rank_the_run_goes_on_without(two_gpus, monkeypatch):
    make = two_gpus.NcclCommunicator

    def fails(size, name, rank):
        if rank == 1:
            raise RuntimeError("NCCL_ERROR_SYSTEM_ERROR: unhandled system error")
        return make(size, name, rank)

    monkeypatch.setattr(fake_nccl, "PATIENCE", 0.2)
    monkeypatch.setattr(two_gpus, "NcclCommunicator", fails)
    first, second = run(2, lambda comm: nccl.found(comm, f"cuda:{comm.rank}"))
    assert "waits for ever" in first and second == "NCCL_ERROR_SYSTEM_ERROR: unhandled system error"


def test_wrong_sums_are_noticed_at_once(two_gpus, monkeypatch):
    monkeypatch.setattr(fake_nccl.Communicator, "allReduce", lambda *arguments: None)
    found = run(2, lambda comm: nccl.found(comm, f"cuda:{comm.rank}"))
    assert found[0] == "NCCL says that the sum of 2 times 1 is [[1.0, 1.0], [1.0, 1.0]]"


def test_it_is_made_once_for_the_devices_of_the_ranks(two_gpus):
    def work(comm):
        first = nccl.found(comm, f"cuda:{comm.rank}")
        again = nccl.found(comm, f"cuda:{comm.rank}")
        # One rank has it already, the other does not: both make it, or one would wait.
        moved = nccl.found(comm, f"cuda:{1 - comm.rank}" if comm.rank else "cuda:0")
        return first is again, moved

    (same, moved), (also, _) = run(2, work)
    assert same and also and moved.startswith("rank 0 and rank 1 use one GPU")
    assert two_gpus.made == 1


def test_sums_of_old_versions_are_not_captured(two_gpus):
    for number, version, captures in ((22809, "2.28.9", True), (20905, "2.9.5", False)):
        two_gpus.version = number
        sums = nccl.Nccl(Solo(), "cuda")
        assert (sums.version, sums.can_capture) == (version, captures)


def test_that_it_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(arrays, "cupy", lambda: None)
    for module, why in ((None, "this CuPy knows no NCCL"), (SimpleNamespace(available=False), "pip install")):
        monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", module)
        with pytest.raises(ConfigError, match=why):
            backend.nccl()


@pytest.fixture(params=fake_cupy.WAYS)
def gpu(request, monkeypatch):
    fake_cupy.take(request.param, monkeypatch)
    if request.param == "cuda":
        try:
            backend.nccl()
        except ConfigError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rank_alone_keeps_its_numbers(gpu, dtype):
    sums, own = nccl.Nccl(Solo(), "cuda"), _numbers(0, dtype)
    array = backend.to_device(own.copy(), "cuda")
    sums.sum(array)
    assert backend.to_device(array, "cpu").tobytes() == own.tobytes()
