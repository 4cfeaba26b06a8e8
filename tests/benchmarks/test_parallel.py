"""parallel.py: slow networks, what a step waited for and sent, ratios, and rounds in turn."""

import doctest
import json
import time

import numpy as np
import parallel
import parallel_tables
import pytest

from minires import nn
from minires.distributed import Solo, run
from minires.tensor import Tensor
from minires.train.gradients import Gradients

ELEMENTS = 250_000  # float32: a million bytes


@pytest.fixture
def slept(monkeypatch):
    """The seconds that are asked of sleep, which does nothing."""
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def delayed(comm, *, hosts=1, network=parallel.SLOW):
    return parallel.Delayed(comm, network, hosts=hosts)


def test_the_examples_of_the_functions():
    failed, tried = doctest.testmod(parallel, optionflags=doctest.ELLIPSIS)
    assert tried >= 4 and not failed


def test_a_sum_of_two_waits_50_us_and_a_second_for_each_20_megabytes(slept):
    def work(comm):
        return delayed(comm).allreduce(np.full(ELEMENTS, comm.rank + 1.0, np.float32), "gradients")

    sums = run(2, work)
    assert all((one == 3).all() for one in sums)
    assert slept == pytest.approx([50e-6 + 1e6 / 20e6] * 2)


def test_without_a_network_and_with_one_rank_nothing_waits(slept):
    run(2, lambda comm: delayed(comm, network=None).allreduce(np.ones(3), "gradients"))
    assert delayed(Solo()).allreduce(np.ones(3), "gradients").tolist() == [1, 1, 1]
    assert not slept


def test_ranks_that_are_apart_wait_too(slept):
    run(2, lambda comm: delayed(comm, hosts=2).apart().allreduce(np.ones(3), "gradients"))
    assert len(slept) == 2


def test_a_delayed_sum_is_one_message_and_its_seconds_have_the_delay():
    slow = parallel.Network(0.01, 1e9)

    def work(comm):
        ranks = delayed(comm, network=slow)
        ranks.allreduce(np.ones(2), "gradients")
        return ranks.accounts["gradients"], comm.accounts["gradients"]

    for own, inner in run(2, work):
        assert (own.messages, own.bytes) == (1, 16) and own.seconds >= 0.02
        assert own is inner


def test_what_ranks_say_and_copy_is_as_without_a_delay(slept):
    def work(comm):
        ranks = delayed(comm)
        arrays = {"w": np.full(2, float(comm.rank))}
        ranks.spread(arrays, "model")
        with ranks.patiently():
            said = ranks.exchange(comm.rank, "names")
        return said, arrays["w"].tolist(), ranks.first(lambda: "a", "folder")

    assert run(2, work) == [([0, 1], [0.0, 0.0], "a")] * 2 and not slept


def test_the_place_of_a_run_is_told_to_the_ranks_that_wait(slept):
    def work(comm):
        ranks = delayed(comm)
        ranks.place = "step 3"
        ranks.allreduce(np.ones(1), "gradients")
        return comm.place

    assert run(2, work) == ["step 3"] * 2


def test_hosts_choose_one_call_or_buckets_and_the_gradients_are_the_same(slept):
    def work(comm, hosts):
        ranks = delayed(comm, hosts=hosts)
        rng = np.random.default_rng(0)
        model = nn.Sequential(a=nn.Linear(128, 256, rng=rng), b=nn.Linear(256, 128, rng=rng))
        gradients = Gradients(list(model.parameters()), {}, ranks, figures=1)
        gradients.begin()
        gradients.arm()
        (model(Tensor(np.full((4, 128), comm.rank + 1, np.float32))) ** 2).mean().backward()
        figures = gradients.finish(np.ones(1))
        gradients.close()
        account = ranks.accounts["gradients"]
        return account.messages, account.bytes, figures[0], [p.grad.copy() for p in model.parameters()]

    flat, buckets = (run(2, lambda comm, hosts=hosts: work(comm, hosts)) for hosts in (1, 2))
    assert flat[0][0] == 1 and buckets[0][0] > 1
    assert flat[0][1] == buckets[0][1] and flat[0][2] == buckets[0][2] == 2
    for one, other in zip(flat[0][3], buckets[0][3], strict=True):
        assert np.array_equal(one, other)
    assert sum(slept[:2]) < sum(slept[2:]), "each bucket has a latency of its own"


def test_a_step_is_what_is_between_two_batches():
    def work(comm):
        ranks = parallel.Timed(comm, None, hosts=1)
        ranks.spent("data", 0.5)
        ranks.allreduce(np.ones(2), "gradients")
        ranks.spent("data", 0.25)
        ranks.allreduce(np.ones(4), "gradients")
        ranks.allreduce(np.ones(1), "batch norm")
        ranks.spent("data", 0.125)
        return ranks.steps()

    for first, second in run(2, work):
        assert (first["messages"], first["bytes"], first["data"]) == (1, 16, 0.25)
        assert (second["messages"], second["bytes"], second["data"]) == (2, 40, 0.125)
        assert first["batch norm"] == 0 < second["batch norm"] < second["seconds"]


def made(**milliseconds):
    """Two rounds of each variant, of which the second takes longer."""
    base = {"messages": 1.0, "bytes": 1e6, "gradients": 0.001, "batch norm": 0.0, "data": 0.0, "steps": 4,
            "others": 0.01}  # fmt: skip
    times = dict.fromkeys(parallel.VARIANTS, 100) | milliseconds
    return {
        name: [base | {"seconds": 0.001 * (middle + more)} for more in (-1, 1)]
        for name, middle in times.items()
    }


def rows(monkeypatch, **milliseconds):
    monkeypatch.setattr(parallel, "CORES", 2)
    return parallel.rows_of(made(**milliseconds))


def test_ratios_are_those_of_medians_to_one_process_that_goes_the_same_way(monkeypatch):
    times = {"one process": 120, "one process, one thread": 200, "2 ranks": 90, "one process, planned": 80,
             "2 ranks, planned": 60}  # fmt: skip
    found = rows(monkeypatch, **times)
    assert found["2 ranks"]["seconds"] == pytest.approx(0.09)
    assert found["2 ranks"]["over_one_process"] == pytest.approx(0.75)
    assert found["2 ranks"]["speed_up"] == pytest.approx(4 / 3)
    assert found["2 ranks"]["over_one_process_planned"] == pytest.approx(90 / 80)
    assert found["2 ranks, planned"]["over_one_process"] == pytest.approx(60 / 80)
    assert found["2 ranks"]["efficiency"] == pytest.approx(200 / 90 / 2)
    assert found["one process, one thread"]["efficiency"] == pytest.approx(1)
    assert "speed_up" not in found[parallel.HALF], "it has another batch"


def test_more_processes_than_cores_are_named(monkeypatch):
    found = rows(monkeypatch)
    assert found["4 ranks"]["oversubscribed"] and not found["2 ranks"]["oversubscribed"]
    assert found["4 ranks"]["efficiency"] == pytest.approx(0.5), "four on two cores have two"


def test_the_hidden_share_is_of_the_delay_and_of_the_wait(monkeypatch):
    given = made(**{"2 ranks": 100, "2 ranks, delayed": 150, "2 ranks, delayed, overlap": 110})
    for name, wait in (("2 ranks", 0.001), ("2 ranks, delayed", 0.051), ("2 ranks, delayed, overlap", 0.006)):
        given[name] = [one | {"gradients": wait} for one in given[name]]
    found = parallel.overlap_of(parallel.rows_of(given))
    assert found["hidden"] == pytest.approx(0.8)
    assert found["hidden_of_wait"] == pytest.approx(0.9)
    assert found["delay_seconds"] == pytest.approx(50e-6 + 1e6 / 20e6)
    assert found["flat_seconds_predicted"] == pytest.approx(0.1 + found["delay_seconds"])
    assert (found["hidden_predicted"], found["overlap_seconds_predicted"]) == pytest.approx((1, 0.1))


def test_a_run_that_was_not_alone_is_made_again(monkeypatch):
    worked = iter([0.0, 5.0, 10.0, 10.0])  # before and after each run
    monkeypatch.setattr(parallel, "busy", lambda: next(worked))
    asked = []

    def start(ranks, threads, job, variant, steps, folder):
        asked.append((ranks, threads, job, steps))
        return {"seconds": len(asked)}

    monkeypatch.setattr(parallel, "start", start)
    found = parallel.quietest(parallel.VARIANTS["2 ranks, planned"], 40, "", tries=3)
    assert found == {"seconds": 2, "others": 0.0}
    assert asked == [(2, parallel.EACH, "speed", 200)] * 2, "a plan is made for 200 steps or more"


def test_of_runs_that_were_never_alone_the_quietest_counts(monkeypatch):
    worked = iter([0.0, 9e9, 9e9, 1e10, 2e10, 5e10])
    monkeypatch.setattr(parallel, "busy", lambda: next(worked))
    times = iter([1, 2, 3])
    monkeypatch.setattr(parallel, "start", lambda *_: {"seconds": next(times)})
    monkeypatch.setattr(time, "perf_counter", iter(range(6)).__next__)
    assert parallel.quietest(parallel.VARIANTS["2 ranks"], 40, "", tries=3)["seconds"] == 2


def test_the_tables_show_what_was_measured(monkeypatch):
    found = rows(monkeypatch, **{"2 ranks": 90})
    pinged = {"bytes": [4, 10**6], "seconds": [1e-5, 1e-3], "library": "Some MPI 1.0"}
    report = {
        "others": 0.01, "rounds": 2, "batch": parallel.BATCH, "model": "resnet20_cifar",
        "dtype": "float32", "variants": found, "overlap": dict.fromkeys(_names_of_overlap(), 0.5),
        "memory": parallel.memory_of(pinged, found), "equality": {"steps": 5, "rows": [
            {"ranks": 2, "dtype": "float64", "batch_norm": "sync", "largest": 3e-14, "distance": 1e-15},
        ]},
    }  # fmt: skip
    text = parallel_tables.measured(json.loads(json.dumps(report)))
    assert "| 2 ranks, 1 thread each | 90 ms | **0.90** |" in text
    assert "4 ranks, 1 thread each (oversubscribed)" in text
    assert "2 ranks, float64, batch norm over all | 3e-14 | 1e-15 |" in text
    assert "half of the batch |" not in text, "its steps are of another batch"
    assert "Others" not in text
    assert "Others took up to 40% of the cores" in parallel_tables.measured(report | {"others": 0.4})


def _names_of_overlap():
    return ("delay_seconds", "hidden", "hidden_of_wait", "hidden_predicted", "flat_seconds_predicted",
            "overlap_seconds_predicted")  # fmt: skip
