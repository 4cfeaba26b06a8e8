"""Waiting for other ranks by other means than collectives, such as a GPU that waits for them."""

from minires.distributed import Solo, run


def test_it_is_counted_and_watched_over_as_a_collective():
    def work(comm):
        inside = []
        within = comm._within

        def seen(kind, size):
            inside.append((kind, size))
            return within(kind, size)

        comm._within = seen
        with comm.waiting("steps of the GPU", 12):
            pass
        return inside, comm.accounts["steps of the GPU"]

    for inside, account in run(2, work):
        assert inside == [("steps of the GPU", 12)]
        assert (account.messages, account.bytes) == (1, 12) and account.seconds >= 0


def test_alone_there_is_nothing_to_wait_for():
    comm = Solo()
    with comm.waiting("steps of the GPU"):
        pass
    assert not comm.accounts
