"""sum, mean, max, min: gradients over every choice of axes, ties, and what cannot be reduced."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError


@opcheck.on_devices
@opcheck.of("sum", "mean", "max", "min")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("sum", "mean", "max", "min")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, axis=None, keepdims=False):
        axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
        if not axes:  # torch reads no axes as all of them
            return x * 1
        return getattr(torch, {"max": "amax", "min": "amin"}.get(case.op, case.op))(x, axes, keepdim=keepdims)

    opcheck.check_against_torch(case, reference)


def test_ties_share_the_gradient_of_the_maximum():
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    x.max(1).backward([1.0, 3.0])
    assert x.grad.tolist() == [[0, 0.5, 0.5], [1, 1, 1]]


def test_ties_as_in_torch():
    torch = pytest.importorskip("torch")
    values = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 1.0]])
    x, theirs = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    (x.max() + x.min() * 10).backward()
    (theirs.amax() + theirs.amin() * 10).backward()
    assert x.grad.tolist() == theirs.grad.tolist()


def test_the_mean_divides_by_what_was_averaged():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    y = x.mean(0)
    assert y.numpy().tolist() == [1.5, 2.5, 3.5]
    y.sum().backward()
    assert x.grad.tolist() == [[0.5] * 3] * 2


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
def test_axes_that_do_not_exist(op):
    x = Tensor(np.ones((2, 3)))
    for axis in (2, -3, (0, 0), (1, -1), 0.5, True):
        with pytest.raises(ShapeError, match=re.escape(f"{op}: axis={axis} does not fit a tensor of 2 axes")):
            getattr(x, op)(axis)


def test_nothing_to_reduce():
    empty = Tensor(np.ones((0, 3)))
    assert empty.sum().item() == 0
    for op in ("mean", "max", "min"):
        with pytest.raises(ShapeError, match=re.escape(f"{op}: there is nothing to reduce in shape (0, 3)")):
            getattr(empty, op)(0)


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="sum: x is uint8"):
        Tensor(np.ones(3, np.uint8)).sum()
