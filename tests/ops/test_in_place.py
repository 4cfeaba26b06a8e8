"""``x += y`` and its like, and ``x[i] = y``."""

import re

import numpy as np
import pytest

from minires import Tensor, no_grad
from minires.errors import MiniresError, ShapeError
from minires.nn import Parameter


def _with(x, sign, y):
    """``x sign= y``, and what x is then."""
    names = {"x": x, "y": y}
    exec(f"x {sign}= y", names)
    return names["x"]


SIGNS = {"+": [3, 4], "-": [1, 2], "*": [2, 3], "/": [2, 3], "**": [2, 3], "@": 5}


@pytest.mark.parametrize(("sign", "right"), SIGNS.items())
def test_a_result_becomes_a_new_tensor_on_the_tape(sign, right):
    leaf = Tensor([2.0, 3.0], requires_grad=True)
    before = leaf * 1
    after = _with(before, sign, [1.0, 1.0])
    assert after is not before and after.tolist() == right and before.tolist() == [2, 3]
    after.sum().backward()
    assert leaf.grad is not None
    constant = Tensor([2.0, 3.0])
    assert _with(constant, sign, [1.0, 1.0]).tolist() == right and constant.tolist() == [2, 3]


@pytest.mark.parametrize("sign", SIGNS)
def test_a_parameter_is_not_left_behind(sign):
    w = Parameter(np.array([2.0, 3.0]))
    with pytest.raises(MiniresError, match=re.escape(f"x {sign}= ... would leave this parameter behind")):
        _with(w, sign, 1.0)
    assert w.tolist() == [2, 3]


@pytest.mark.parametrize(("sign", "right"), [one for one in SIGNS.items() if one[0] != "@"])
def test_without_a_tape_a_parameter_is_changed_in_place(sign, right):
    w = Parameter(np.array([2.0, 3.0]))
    data = w.data
    with no_grad():
        assert _with(w, sign, [1.0, 1.0]) is w
    assert w.data is data and data.tolist() == right and w.requires_grad
    (w * w).sum().backward()
    assert w.grad.tolist() == (2 * data).tolist()


def test_a_step_of_gradient_descent_by_hand():
    w = Tensor([1.0, -2.0], requires_grad=True)
    for _ in range(3):
        (w * w).sum().backward()
        with no_grad():
            w -= 0.25 * w.grad
        w.grad = None
    assert w.tolist() == [0.125, -0.25]


def test_a_result_that_does_not_fit_into_the_parameter():
    w = Tensor([1.0, 2.0], requires_grad=True)
    with no_grad():
        with pytest.raises(ShapeError, match=re.escape("the result has shape (2, 2), but x has (2,)")):
            w += np.ones((2, 2), np.float32)
        with pytest.raises(ShapeError, match=re.escape("the result has shape (), but x has (2,)")):
            w @= [1.0, 1.0]
    assert w.tolist() == [1, 2]


def test_elements_are_not_set():
    x = Tensor([1.0, 2.0])
    with pytest.raises(MiniresError, match="elements of a tensor cannot be set.*where.*x.data"):
        x[0] = 5.0
