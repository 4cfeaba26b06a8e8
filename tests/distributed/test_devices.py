"""Which GPU a rank takes."""

from __future__ import annotations

import threading

import pytest

from minires import backend
from minires.distributed import Solo, devices, run
from minires.errors import ConfigError

seen = threading.local()


def _chosen(monkeypatch, device, *of_ranks):
    """What ranks choose that see these GPUs, each a list, on machines by the letter before the number."""

    def gpus():
        if not seen.gpus:
            raise ConfigError("this machine has none")
        return [one.partition(".")[2] for one in seen.gpus]

    def work(comm):
        seen.gpus = of_ranks[comm.rank]
        if seen.gpus:
            comm.host = seen.gpus[0].partition(".")[0]
        return devices.chosen(comm, device)

    monkeypatch.setattr(backend, "gpus", gpus)
    return run(len(of_ranks), work)


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_the_ranks_of_a_machine_take_its_gpus_in_turn(monkeypatch, device):
    a, b = ["a.1", "a.2", "a.3"], ["b.1", "b.2"]
    assert _chosen(monkeypatch, device, a, a, b, b) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_ranks_that_are_shown_gpus_of_their_own_take_these(monkeypatch):
    """As Slurm does with --gpus-per-task."""
    assert _chosen(monkeypatch, "cuda", ["a.1"], ["a.2"], ["a.3"]) == ["cuda:0"] * 3
    pairs = [["a.1", "a.2"], ["a.1", "a.2"], ["a.3", "a.4"], ["a.3", "a.4"]]
    assert _chosen(monkeypatch, "cuda", *pairs) == ["cuda:0", "cuda:1"] * 2


def test_more_ranks_than_gpus_are_refused_with_both_numbers(monkeypatch):
    with pytest.raises(ConfigError) as told:
        _chosen(monkeypatch, "auto", *[["a.1", "a.2"]] * 3)
    assert str(told.value) == (
        "3 processes on a have 2 GPUs, and each needs one of its own; start 2 on a machine (mpirun -n 2), "
        "or use device='cpu'"
    )


def test_auto_is_the_cpu_where_no_rank_has_a_gpu(monkeypatch):
    assert _chosen(monkeypatch, "auto", [], []) == ["cpu", "cpu"]
    with pytest.raises(ConfigError, match=r"rank 1 \(.*\): this machine has none"):
        _chosen(monkeypatch, "auto", ["a.1"], [])
    with pytest.raises(ConfigError, match=r"rank 0 \(.*\): this machine has none"):
        _chosen(monkeypatch, "cuda", [], [])


def test_what_is_said_in_full_is_taken_as_it_is(monkeypatch):
    assert _chosen(monkeypatch, "cuda:1", ["a.1"], ["a.1"]) == ["cuda:1", "cuda:1"]
    assert _chosen(monkeypatch, "cpu", ["a.1"], ["a.1"]) == ["cpu", "cpu"]


def test_one_process_alone_chooses_as_before():
    assert devices.chosen(Solo(), "cuda") == "cuda" and devices.chosen(Solo(), "cuda:3") == "cuda:3"
