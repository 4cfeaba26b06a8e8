"""What ranks say to each other, alone and as threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from minires.distributed import Communicator, Solo, bounds, each, run, shares, threads, watchdog
from minires.distributed.launcher import launched
from minires.distributed.threads import Broken
from minires.distributed.watchdog import Watchdog, limit
from minires.errors import ConfigError, DataError, MiniresError


def test_all_get_the_same_sum_and_their_arrays_are_changed_in_place():
    def work(comm):
        array = np.full((2, 3), 0.1 + comm.rank)
        assert comm.allreduce(array, "numbers") is array
        return array

    found = run(3, work)
    assert all((one == found[0]).all() for one in found)
    np.testing.assert_allclose(found[0], 3.3)


def test_what_ranks_say_comes_in_their_order():
    assert run(3, lambda comm: comm.exchange({"rank": comm.rank, "nan": float("inf")}, "names"))[2] == [
        {"rank": rank, "nan": float("inf")} for rank in range(3)
    ]
    assert Solo().exchange([1], "names") == [[1]]


def test_arrays_of_the_first_rank_are_spread_whatever_their_layout():
    def work(comm):
        own = {"a": np.arange(6.0).reshape(2, 3).T * (comm.rank + 1), "b": np.full(2, comm.rank, np.int64)}
        comm.spread(own, "arrays")
        copies = comm.copies({"x": np.arange(3, dtype=np.uint8)} if comm.is_first else None, "arrays")
        return own, copies

    for own, copies in run(3, work):
        assert (own["a"] == np.arange(6.0).reshape(2, 3).T).all() and own["b"].tolist() == [0, 0]
        assert copies["x"].tolist() == [0, 1, 2] and copies["x"].dtype == np.uint8


def test_rows_of_all_stand_on_the_first_rank():
    found = run(3, lambda comm: comm.rows(np.full((comm.rank, 2), comm.rank), "rows"))
    assert found[0].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert [len(one) for one in found[1:]] == [1, 2]


def test_who_has_no_rows_need_not_know_how_wide_they_are():
    found = run(3, lambda comm: comm.rows(np.ones((2, 5)) if comm.rank == 1 else np.zeros((0, 3)), "rows"))
    assert found[0].tolist() == np.ones((2, 5)).tolist()


def test_what_one_raises_together_all_raise():
    def work(comm):
        with pytest.raises(DataError) as error, comm.together("pictures"):
            if comm.rank == 1:
                raise DataError("a.jpg is broken")
        return str(error.value)

    first, own, _ = run(3, work)
    assert own == "a.jpg is broken"
    assert first.startswith("rank 1 (") and first.endswith("): a.jpg is broken")


def test_of_several_errors_each_rank_raises_its_own_and_the_others_that_of_the_first():
    def work(comm):
        with pytest.raises(Exception) as error, comm.together("pictures"):
            if comm.rank:
                raise [ConfigError("one"), ZeroDivisionError("two")][comm.rank - 1]
        return type(error.value), str(error.value)

    found = run(3, work)
    assert found[0][0] is ConfigError and "rank 1" in found[0][1]
    assert found[2] == (ZeroDivisionError, "two")


def test_an_error_that_is_not_ours_is_told_with_its_kind():
    def work(comm):
        with pytest.raises(MiniresError if comm.rank else OSError) as error:
            comm.first(lambda: open("/nowhere/at/all"), "files")
        return str(error.value)

    assert "FileNotFoundError: " in run(2, work)[1]


def test_the_first_rank_works_for_all():
    seen = []
    assert run(3, lambda comm: comm.first(lambda: seen.append(1) or {"a": [1]}, "work")) == [{"a": [1]}] * 3
    assert seen == [1]


def test_who_says_something_else_is_named():
    assert run(3, lambda comm: comm.all_equal([comm.rank // 2], "values")) == [2, 2, 2]
    assert run(3, lambda comm: comm.all_equal("same", "values")) == [None] * 3


def test_items_are_spread_over_ranks_and_come_back_in_their_order():
    done = []

    def work(item):
        done.append(item)
        return item * item

    assert run(3, lambda comm: each(work, range(7), comm)) == [[0, 1, 4, 9, 16, 25, 36]] * 3
    assert sorted(done) == list(range(7))

    def fails(item):
        if item == 4:
            raise ValueError("no")
        return item

    def told(comm):
        with pytest.raises((ValueError, MiniresError), match="no"):
            each(fails, range(7), comm)

    run(3, told)


def test_what_a_rank_alone_does_changes_nothing():
    alone, array = Communicator(), np.ones(2)
    assert alone.allreduce(array, "numbers") is array and array.tolist() == [1, 1]
    alone.spread({"a": array}, "arrays")
    alone.barrier("end")
    with pytest.raises(ZeroDivisionError), alone.together("nothing"):
        raise ZeroDivisionError
    assert alone.accounts == {}


def test_what_collectives_cost_is_counted_by_their_kind():
    def work(comm):
        comm.allreduce(np.zeros(10), "gradients")
        comm.allreduce(np.zeros(5, np.float32), "gradients")
        comm.spent("data", 0.5)
        return comm.accounts

    for accounts in run(2, work):
        assert (accounts["gradients"].messages, accounts["gradients"].bytes) == (2, 100)
        assert accounts["gradients"].seconds > 0 and accounts["data"].seconds == 0.5


def test_communicators_that_are_apart_do_not_wait_for_each_other():
    import threading

    def work(comm):
        other = comm.apart()
        total = []
        thread = threading.Thread(target=lambda: total.append(other.allreduce(np.ones(1), "x")[0]))
        if comm.rank:
            thread.start()
        comm.barrier("between")  # while the others wait in the thread
        if not comm.rank:
            thread.start()
        thread.join()
        return total[0]

    assert run(3, work) == [3, 3, 3]


def test_a_rank_that_fails_lets_the_others_go():
    def work(comm):
        if comm.rank == 1:
            raise KeyError("gone")
        comm.barrier("end")

    with pytest.raises(KeyError, match="gone"):
        run(3, work)

    def swallowed(comm):
        if comm.rank == 1:
            raise KeyError
        with pytest.raises(Broken):
            comm.barrier("end")

    with pytest.raises(KeyError):
        run(3, swallowed)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 3), (2, 5), (0, 2)])
def test_shares_are_even_and_leave_nothing_out(count, size):
    cuts = [bounds(count, rank, size) for rank in range(size)]
    assert [n for start, stop in cuts for n in range(start, stop)] == list(range(count))
    lengths = [stop - start for start, stop in cuts]
    assert max(lengths) - min(lengths) <= 1


def test_shares_of_parts_stand_side_by_side_in_their_part():
    for rank in range(3):
        first, second = shares([7, 5], rank, 3)
        assert (first.start, first.stop) == bounds(7, rank, 3)
        assert (second.start - 7, second.stop - 7) == bounds(5, rank, 3)


def test_what_each_gives_is_the_same_on_any_number_of_ranks_or_refused():
    for size in (1, 2):
        found = run(size, lambda comm: each(lambda n: (n, {n: "a"}), [1, 2, 3], comm))
        assert found == [[[1, {"1": "a"}], [2, {"2": "a"}], [3, {"3": "a"}]]] * size
        with pytest.raises(ConfigError, match="result of item 1 .* float32 is not JSON.*give numbers"):
            run(size, lambda comm: each(lambda n: np.float32(n) if n == 2 else n, [1, 2, 3], comm))


def test_who_begins_to_speak_apart_when_another_has_ended_is_let_go():
    ended = threading.Event()

    def work(comm):
        if comm.rank:
            raise ValueError("one is enough")
        assert ended.wait(10)
        comm.apart().barrier("apart")

    leave = threads._Meeting.leave

    def leaves(meeting):
        leave(meeting)
        ended.set()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="one is enough"):
        patch.setattr(threads._Meeting, "leave", leaves)
        run(2, work)


# --------------------------------------------------------------------------------- launcher, watchdog


@pytest.mark.parametrize(("environment", "found"), [
    ({}, None), ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}, (2, 3)),
    ({"PMI_SIZE": "2", "PMI_RANK": "1"}, (1, 2)),
    ({"PMIX_RANK": "5", "SLURM_NTASKS": "8"}, (5, 8)),
    ({"PMIX_RANK": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None), ({"PMIX_RANK": "0", "SLURM_NTASKS": "1"}, None),
    ({"PMI_SIZE": "many"}, None),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "8"}, (1, 2)),
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),
    ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, None),
])  # fmt: skip
def test_a_launcher_is_known_by_what_it_says(environment, found):
    launch = launched(environment)
    assert (None if launch is None else (launch.rank, launch.size)) == found


class Others(watchdog.Others):
    """Other ranks, of which ``left()`` gives those that have left; ``said`` is what all were ended with."""

    def __init__(self, left=list, *, ending=False):
        self.left, self.ending, self.said, self.told = left, ending, [], []
        self.end, self.tell_wait = self.said.append, self.told.append

    def is_ending(self):
        return self.ending

    def missing(self, what):
        return f"rank 7 has not come to {what}"


@pytest.fixture
def watched(monkeypatch):
    """Make a watchdog with a limit of so many seconds, and the list of what it ends the job with."""
    dogs = []

    def make(seconds, left=list):
        monkeypatch.setenv("MINIRES_WAIT", str(seconds))
        others = Others(left)
        dogs.append(Watchdog("rank 0 (here)", 0, others))
        return dogs[-1], others.said

    yield make
    for dog in dogs:
        dog.close()


def soon(said):
    """Wait until something is said, for a test must not hang."""
    until = time.monotonic() + 20
    while not said and time.monotonic() < until:
        time.sleep(0.05)
    return said[0] if said else ""


def test_who_waits_too_long_says_for_what(watched):
    dog, said = watched(0.3)
    with dog.waiting("gradients, step 3"):
        words = "rank 0 (here) has waited 0 s for the others in 'gradients, step 3'; rank 7 has not come to "
        assert soon(said) == words + "gradients, step 3 (MINIRES_WAIT says how long)"


def test_others_hear_of_a_long_wait_once_and_before_its_end(monkeypatch):
    monkeypatch.setenv("MINIRES_WAIT", "0.8")
    others = Others()
    dog = Watchdog("rank 0 (here)", 0, others)
    try:
        with dog.waiting("gradients, step 3"):
            soon(others.told)
            assert not others.said
            soon(others.said)
        assert others.told == ["gradients, step 3"]
    finally:
        dog.close()


def test_while_another_rank_ends_all_this_one_is_silent_for_a_time(monkeypatch):
    monkeypatch.setattr(watchdog, "LATEST", 1.5)
    began, others = time.monotonic(), Others(lambda: ["rank 1 has ended"], ending=True)
    dog = Watchdog("rank 0 (here)", 0, others)
    try:
        with dog.waiting("stop"):
            assert soon(others.said) == "rank 1 has ended, and rank 0 (here) waits in 'stop'"
        assert time.monotonic() - began >= 1.5
    finally:
        dog.close()


def test_who_waits_patiently_may_wait_longer(watched):
    dog, said = watched(0.3)
    with dog.waiting("evaluation", 1000):
        time.sleep(1)
    assert not said


def test_who_waits_for_one_that_has_left_says_so(watched):
    dog, said = watched(100, lambda: ["rank 2 has ended"])
    with dog.waiting("gradients"):
        assert soon(said) == "rank 2 has ended, and rank 0 (here) waits in 'gradients'"


def test_who_comes_to_no_collective_says_where_it_is(watched):
    dog, said = watched(0.5)
    dog.watch(True)
    text = soon(said)
    assert text.startswith("rank 0 (here) has come to no other rank for 0 s: it is at ")
    assert "test_communicator.py, line" in text


def test_between_steps_nobody_is_watched(watched):
    dog, said = watched(0.3)
    dog.watch(True)
    dog.watch(False)
    time.sleep(1)
    assert not said


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("MINIRES_WAIT", text)
    with pytest.raises(ConfigError, match="MINIRES_WAIT must be a number of seconds above 0"):
        limit()
