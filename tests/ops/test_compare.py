"""Comparisons, argmax, argmin, any, all: arrays as NumPy's, and what cannot be asked."""

import operator
import re

import numpy as np
import pytest

from minires import Tensor, backend, ops
from minires.errors import ShapeError

COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
VALUES = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], np.float32)


@pytest.mark.parametrize("compare", COMPARISONS, ids=lambda compare: compare.__name__)
@pytest.mark.parametrize(
    "other",
    [2, 2.0, np.float64(2), np.int64(2), VALUES.T.copy().T, VALUES[0], VALUES.astype(np.float64), [3, 2, 1]],
    ids=repr,
)
def test_comparisons_are_those_of_numpy(compare, other):
    x, right = Tensor(VALUES, requires_grad=True), compare(VALUES, np.asarray(other))
    flipped = compare(np.asarray(other), VALUES)
    for answer, expected in [
        (compare(x, other), right),
        (compare(x, Tensor(other)), right),
        (compare(np.asarray(other), x), flipped),
    ]:
        assert isinstance(answer, np.ndarray) and answer.dtype == bool
        assert np.array_equal(answer, expected)


def test_numbers_on_the_left():
    x = Tensor(VALUES)
    assert np.array_equal(2 < x, 2 < VALUES) and np.array_equal(2.0 == x, 2 == VALUES)


def test_whole_numbers_and_bfloat16_are_compared_by_value():
    assert (Tensor(np.arange(3)) == Tensor([0.0, 1.0, 5.0])).tolist() == [True, True, False]
    x = Tensor(VALUES).astype("bfloat16")
    assert backend.is_bfloat16(x.dtype) and np.array_equal(x > 1.5, VALUES > 1.5)
    assert ops.argmax(x, 1).tolist() == [2, 0]


def test_a_single_value_is_compared_to_an_array_without_axes():
    answer = Tensor(1.0) < 2
    assert isinstance(answer, np.ndarray) and answer.shape == () and answer


def test_what_has_no_numbers_is_equal_to_no_tensor():
    x = Tensor(VALUES)
    for other in (None, "x", object(), {}, [None], ["x"]):
        assert (x == other) is False and (x != other) is True and (other == x) is False
        with pytest.raises(TypeError, match="'<' not supported between instances of 'Tensor' and"):
            _ = x < other


def test_shapes_that_cannot_be_broadcast():
    with pytest.raises(ShapeError, match=re.escape("less: shapes (2, 3) and (2,) cannot be broadcast")):
        _ = Tensor(VALUES) < Tensor([1.0, 2.0])
    with pytest.raises(ShapeError, match=re.escape("equal: shapes (2, 3) and (2,) cannot be broadcast")):
        _ = Tensor(VALUES) == [1, 2]


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_places_are_those_of_numpy(name):
    for axis in (None, 0, 1, -1, np.int64(1)):
        for keepdims in (False, True):
            answer = getattr(Tensor(VALUES), name)(axis, keepdims=keepdims)
            assert isinstance(answer, np.ndarray) and answer.dtype.kind == "i"
            assert np.array_equal(answer, getattr(np, name)(VALUES, axis, keepdims=keepdims))
            assert np.array_equal(answer, getattr(ops, name)(VALUES, axis, keepdims=keepdims))
    assert getattr(ops, name)(VALUES, 1).shape == (2,) and getattr(ops, name)(VALUES).shape == ()
    for axis in (2, (0, 1), 0.5, True):
        with pytest.raises(ShapeError, match=f"{name}: axis"):
            getattr(Tensor(VALUES), name)(axis)
    with pytest.raises(
        ShapeError, match=re.escape(f"{name}: there is nothing to choose from in shape (0, 3)")
    ):
        getattr(Tensor(np.ones((0, 3))), name)(0)


@pytest.mark.parametrize("name", ["any", "all"])
def test_any_and_all_are_those_of_numpy(name):
    values = np.array([[0.0, 2.0, np.nan], [0.0, 0.0, 1.0]])
    for axis in (None, 0, 1, (0, 1), ()):
        for keepdims in (False, True):
            answer = getattr(Tensor(values), name)(axis, keepdims=keepdims)
            assert isinstance(answer, np.ndarray) and answer.dtype == bool
            assert np.array_equal(answer, getattr(np, name)(values, axis, keepdims=keepdims))
    assert getattr(ops, name)(values, 1).shape == (2,) and getattr(ops, name)(values).shape == ()
    with pytest.raises(ShapeError, match=f"{name}: axis=2 does not fit a tensor of 2 axes"):
        getattr(Tensor(values), name)(2)


def test_answers_choose_and_index():
    x = Tensor(VALUES, requires_grad=True)
    x[x > 2].sum().backward()
    assert x.grad.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert x[np.arange(2), x.argmax(1)].tolist() == [3, 3]
