"""The history of a dense block in one array."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.concat import concat
from minires.ops.dense_buffer import DenseBuffer


@opcheck.on_devices
@opcheck.of("dense_buffer")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("dense_buffer")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, lambda *tensors, room: torch.cat(tensors, -1))


def _pieces(*channels, dtype="float32", requires_grad=True):
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 2, c) for c in channels]
    return [Tensor(rng.standard_normal(s).astype(dtype), requires_grad=requires_grad) for s in shapes]


def test_every_history_is_the_concatenation_and_they_share_one_array():
    pieces = _pieces(2, 3, 1)
    buffer = DenseBuffer(pieces[0], 6)
    histories = [buffer.latest, *(buffer.append(piece) for piece in pieces[1:])]
    assert buffer.latest is histories[-1]
    for i, history in enumerate(histories):
        assert np.array_equal(history.numpy(), concat(pieces[: i + 1]).numpy())
        assert np.shares_memory(history.numpy(), buffer.latest.numpy())
        assert not np.shares_memory(history.numpy(), pieces[i].numpy())
    strides = {history.numpy().strides for history in histories}
    assert strides == {(3 * 2 * 6 * 4, 2 * 6 * 4, 6 * 4, 4)}


def test_a_history_that_is_read_at_every_length():
    """As in a dense block, each history is used before it grows; the gradients are those of concat."""
    found = {}
    for shared in (True, False):
        pieces = _pieces(2, 3, 1, dtype="float64")
        weights = [np.random.default_rng(1).standard_normal(c) for c in (2, 5, 6)]
        buffer, history = DenseBuffer(pieces[0], 6), pieces[0]
        total = (history * weights[0]).sum()
        for piece, weight in zip(pieces[1:], weights[1:], strict=True):
            history = buffer.append(piece) if shared else concat([history, piece])
            total = total + (history * history * weight).sum()
        total.backward()
        found[shared] = [total.numpy(), *(piece.grad for piece in pieces)]
    for shared, plain in zip(found[True], found[False], strict=True):
        assert np.array_equal(shared, plain)


def test_the_input_is_copied_and_not_changed():
    (x, new) = _pieces(2, 2)
    before = x.numpy().copy()
    buffer = DenseBuffer(x, 4)
    buffer.append(new)
    x.data[...] = 0
    assert np.array_equal(buffer.latest.numpy()[..., :2], before)


def test_without_a_gradient_nothing_is_recorded():
    x, new = _pieces(2, 2, requires_grad=False)
    assert not DenseBuffer(x, 4).append(new).requires_grad


def test_the_tape_names_both_parents():
    x, new = _pieces(2, 2)
    buffer = DenseBuffer(x, 4)
    first = buffer.latest
    node = buffer.append(new).node
    assert node.op == "dense_buffer" and node.parents == (first.node, new.node)
    assert first.node.parents == (x.node,)


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((2, 3, 2, 3), "float32", "3 of 5 channels are used, there is no room for the 3 of new (2, 3, 2, 3)"),
        ((2, 2, 2, 1), "float32", "the history is (2, 3, 2, 3) but new is (2, 2, 2, 1); they may differ in"),
        ((1, 3, 2, 1), "float32", "the history is (2, 3, 2, 3) but new is (1, 3, 2, 1)"),
        ((2, 1), "float32", "the history is (2, 3, 2, 3) but new is (2, 1)"),
        ((2, 3, 2, 1), "float64", "history is float32 but new is float64"),
    ],
)
def test_what_cannot_be_appended(shape, dtype, text):
    buffer = DenseBuffer(_pieces(3)[0], 5)
    before = buffer.latest
    copy = before.numpy().copy()
    with pytest.raises(ShapeError, match=re.escape(f"dense_buffer: {text}")):
        buffer.append(Tensor(np.ones(shape, dtype)))
    assert buffer.latest is before and np.array_equal(before.numpy(), copy)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.ones((2, 3, 2, 3), np.float32), "x (2, 3, 2, 3) has 3 channels, but room is 2"),
        (np.ones((2, 1), np.float32), "x must be (N, H, W, C), 4 axes, but its shape is (2, 1)"),
        (np.ones((2, 3, 2, 1), np.int64), "x is int64, but float32 or float64 is needed"),
    ],
)
def test_what_cannot_begin(x, text):
    with pytest.raises(ShapeError, match=re.escape(f"dense_buffer: {text}")):
        DenseBuffer(Tensor(x), 2)
