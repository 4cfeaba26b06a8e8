"""Blocks that set something for a thread: they take back what they set, in any order, and nothing else."""

from __future__ import annotations

import queue
import sys
import threading

import numpy as np
import pytest

import minires
from minires import backend
from minires.backend import cublas
from minires.errors import MiniresError
from minires.nn import init
from minires.settings import Settings
from minires.tensor import is_fused, is_recording, is_watched, settings, watching, with_settings

SEED = np.random.default_rng(3)
BLOCKS = {
    "no_grad": (minires.no_grad, is_recording, False, True),
    "unfused": (minires.unfused, is_fused, False, True),
    "watching": (lambda: watching(print), is_watched, True, False),
    "reference": (minires.reference, backend.is_reference, True, False),
    "precision": (lambda: backend.precision("tf32"), cublas.chosen_precision, "tf32", "fp32"),
    "drawing_from": (lambda: init.drawing_from(SEED), lambda: init.generator(None) is SEED, True, False),
}
every_block = pytest.mark.parametrize(("block", "read", "inside", "outside"), BLOCKS.values(), ids=BLOCKS)


def test_the_settings_of_a_thread_can_be_set_again():
    with minires.no_grad(), minires.unfused(), watching(print):
        kept = settings()
    assert is_recording() and is_fused() and not is_watched()
    with with_settings(**kept):
        assert not is_recording() and not is_fused() and is_watched() and settings() == kept
    assert settings() == {**kept, "recording": True, "fused": True, "watcher": None}


@every_block
def test_a_block_holds_until_its_end_and_may_be_used_again_even_inside_itself(block, read, inside, outside):
    again = block()
    for _ in range(2):
        with again:
            assert read() == inside
            with again:
                assert read() == inside
            assert read() == inside
        assert read() == outside


@every_block
def test_a_block_ends_with_an_error_too(block, read, inside, outside):
    with pytest.raises(KeyError), block():
        raise KeyError
    assert read() == outside


@every_block
def test_a_generator_that_is_suspended_inside_a_block_takes_back_only_what_it_set(
    block, read, inside, outside
):
    def suspended():
        with block():
            yield

    generator = suspended()
    for other, (make, read_other, inside_other, outside_other) in BLOCKS.items():
        if read_other is read:
            continue
        with make():
            next(generator, None)  # begins the block in the first round, ends it in the second
            assert read_other() == inside_other, other
        assert read_other() == outside_other, other
    assert read() == outside


@every_block
def test_blocks_of_one_setting_end_in_any_order(block, read, inside, outside):
    def suspended():
        with block():
            yield

    first, second = suspended(), suspended()
    next(first), next(second)
    first.close()
    assert read() == inside
    second.close()
    assert read() == outside


@every_block
def test_a_block_above_a_function_holds_while_it_runs(block, read, inside, outside):
    @block()
    def function(first, *, second):
        """What it says."""
        return first, second, read()

    assert function(1, second=2) == (1, 2, inside)
    assert function.__doc__ == "What it says." and read() == outside


@every_block
def test_a_block_above_a_generator_function_holds_for_its_code_and_not_for_who_takes_from_it(
    block, read, inside, outside
):
    seen = []

    @block()
    def generator():
        try:
            seen.append(read())
            given = yield 1
            seen.append((given, read()))
            yield 2
        except KeyError:
            seen.append(("caught", read()))
            yield 3
        finally:
            seen.append(("end", read()))
        return 4

    running = generator()
    assert next(running) == 1 and read() == outside
    assert running.send("x") == 2 and read() == outside
    assert running.throw(KeyError()) == 3 and read() == outside
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == 4 and read() == outside
    assert seen == [inside, ("x", inside), ("caught", inside), ("end", inside)]
    running = generator()
    next(running)
    running.close()
    assert seen[4:] == [inside, ("end", inside)] and read() == outside


@pytest.mark.parametrize("name", ["no_grad", "unfused", "reference"])
def test_above_a_function_the_parentheses_may_be_left_out(name):
    _, read, inside, outside = BLOCKS[name]
    block = getattr(minires, name)

    @block
    def function():
        return read()

    @block
    def generator():
        yield read()

    assert function() is inside and list(generator()) == [inside] and read() is outside


async def coroutine():
    pass


async def stream():
    yield


@pytest.mark.parametrize("odd", [coroutine, stream, minires.Tensor, 3, "name"])
def test_a_block_above_something_else_is_refused(odd):
    with pytest.raises(MiniresError, match="can stand above a function, not above"):
        minires.no_grad()(odd)
    with pytest.raises(MiniresError, match="can stand above a function, not above"):
        minires.no_grad(odd)


def test_a_block_that_ends_in_another_thread_ends_for_the_one_that_began_it():
    class Mode(Settings):
        loud = False

    mode, seen = Mode(), []

    def suspended():
        with mode.within(loud=True):
            yield

    generator = suspended()
    next(generator)
    assert mode.loud

    def elsewhere():
        seen.append(mode.loud)
        generator.close()
        seen.append(mode.loud)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False, False] and not mode.loud


def test_two_threads_may_be_inside_one_block_at_once():
    class Mode(Settings):
        loud = False

    mode = Mode()
    block, both, seen = mode.within(loud=True), threading.Barrier(2), []

    def work(leaves_first):
        with block:
            both.wait()
            seen.append(mode.loud)
            both.wait()
            if not leaves_first:
                both.wait()
        seen.append(mode.loud)
        if leaves_first:
            both.wait()

    threads = [threading.Thread(target=work, args=(first,)) for first in (True, False)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert seen == [True, True, False, False]


def test_what_a_function_decorated_with_no_grad_computes_needs_no_gradient():
    x = minires.Tensor([1.0], requires_grad=True)

    @minires.no_grad
    def batches():
        for factor in (2, 3):
            yield factor * x

    results = [(y.requires_grad, (x * 1).requires_grad) for y in batches()]
    assert results == [(False, True), (False, True)]


def test_threads_may_share_one_block():
    shared, wrong = minires.no_grad(), []

    def work():
        for _ in range(2000):
            with shared:
                if is_recording():
                    wrong.append("on inside")
            if not is_recording():
                wrong.append("off after it")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_a_block_that_is_entered_twice_ends_its_newest_entry_first():
    outer, inner = backend.precision("tf32"), backend.precision("fp32")
    with outer, inner:
        with outer:
            assert cublas.chosen_precision() == "tf32"
        assert cublas.chosen_precision() == "fp32"
    assert cublas.chosen_precision() == "fp32"


def test_blocks_that_are_opened_here_and_end_in_another_thread_leave_nothing_behind():
    waiting, before = queue.SimpleQueue(), sys.getswitchinterval()

    def suspended():
        with minires.no_grad():
            yield

    def end():
        while (generator := waiting.get()) is not None:
            generator.close()

    sys.setswitchinterval(1e-5)
    try:
        thread = threading.Thread(target=end)
        thread.start()
        for _ in range(5000):
            generator = suspended()
            next(generator)
            waiting.put(generator)
        waiting.put(None)
        thread.join()
    finally:
        sys.setswitchinterval(before)
    assert is_recording()
