"""What every operation asks of its inputs: what passes, at its limits, and what is said of the rest."""

import re

import numpy as np
import pytest

from minires import Tensor
from minires.errors import MOST, ConfigError, ShapeError
from minires.ops import checks

X32, X64 = Tensor([1.0, 2.0]), Tensor(np.ones(2))


def test_a_tensor_stays_itself_and_an_array_becomes_one_without_a_gradient():
    assert checks.as_tensor(X32) is X32
    made = checks.as_tensor([1.0, 2.0])
    assert made.tolist() == [1, 2] and not made.requires_grad


def test_floats_of_one_kind_pass_and_what_is_not_given_is_no_odd_one():
    checks.same_floats("op", x=X32, b=None, w=X32)
    checks.same_floats("op", x=X64, w=X64, b=None)
    checks.same_floats("op", b=None, x=X32)


@pytest.mark.parametrize(
    "first, second, said",
    [
        (X32, X64, r'op: x is float32 but w is float64.*for example w.astype\("float32"\)'),
        (X64, X32, r'op: x is float64 but w is float32.*for example x.astype\("float32"\)'),
        (X32, Tensor(np.array([1, 2])), "op: w is int64, but float32 or float64 is needed"),
        (Tensor(np.array([True])), X32, "op: x is bool, but float32 or float64 is needed"),
    ],
)
def test_the_odd_one_is_named(first, second, said):
    for parameters in ((), ("w",)):
        with pytest.raises(ShapeError, match=said):
            checks.same_floats("op", x=first, b=None, w=second, parameters=parameters)


def test_beside_bfloat16_parameters_are_float32_and_nothing_else_is():
    narrow = X32.astype("bfloat16")
    checks.same_floats("op", x=narrow, y=narrow)
    checks.same_floats("op", x=narrow, y=narrow, w=X32, parameters=("w",))
    for wrong in (narrow, X64):
        with pytest.raises(ShapeError, match=f"op: w is {wrong.dtype}, but it must be float32.*here x"):
            checks.same_floats("op", x=narrow, w=wrong, parameters=("w",))
    with pytest.raises(ShapeError, match="x is bfloat16 but y is float32"):
        checks.same_floats("op", x=narrow, y=X32, parameters=("w",))


def test_axes_are_counted_by_their_letters():
    checks.rank("op", "x", Tensor(np.ones((1, 2, 3, 4))), "(N, H, W, C)")
    with pytest.raises(ShapeError, match=r"x must be \(N, C\), 2 axes, but its shape is \(1, 2, 3\)"):
        checks.rank("op", "x", Tensor(np.ones((1, 2, 3))), "(N, C)")


def test_whole_numbers_pass_from_the_least_to_the_most():
    for good in (2, np.int8(3), MOST):
        assert checks.whole("op", "stride", good, least=2) == good
        assert type(checks.whole("op", "stride", good, least=2)) is int
    for wrong in (1, 2.5, "3", None, True):
        with pytest.raises(ShapeError, match="stride must be a whole number of at least 2, not"):
            checks.whole("op", "stride", wrong, least=2)
    with pytest.raises(ShapeError, match=f"stride is {MOST + 1}, but no array is as large"):
        checks.whole("op", "stride", MOST + 1, least=2)


def test_a_result_may_have_seventy_million_million_numbers():
    checks.size("op", (2**23, 2**23))
    with pytest.raises(ShapeError, match="larger than any memory"):
        checks.size("op", (2**23, 2**23 + 1))


def test_a_pair_is_one_number_twice_or_two():
    assert checks.pair("op", "kernel", 3) == (3, 3)
    assert checks.pair("op", "kernel", (1, MOST)) == checks.pair("op", "kernel", [1, MOST]) == (1, MOST)
    assert checks.pair("op", "padding", 0, least=0) == (0, 0)
    for wrong in (0, (1, 0), (0, 1), (1, 2, 3), (1,), 1.5, (1, None), (None, 1), None, "12"):
        with pytest.raises(ShapeError, match="kernel must be a whole number of at least 1, or a pair"):
            checks.pair("op", "kernel", wrong)
    for large in (MOST + 1, (1, MOST + 1), (MOST + 1, 1)):
        with pytest.raises(ShapeError, match="no array is as large"):
            checks.pair("op", "kernel", large)


def test_numbers_and_truths_of_python_and_of_numpy():
    assert checks.number("op", "slope", np.float32(0.5)) == 0.5 and checks.number("op", "slope", 0) == 0
    for wrong in ("a", None, np.nan, np.float32(np.nan)):
        with pytest.raises(ConfigError, match=re.escape(f"op: slope must be a number, not {wrong!r}")):
            checks.number("op", "slope", wrong)
    assert np.isnan(checks.number("op", "slope", np.nan, nan=True))
    assert checks.number("op", "slope", np.inf) == checks.number("op", "slope", np.inf, nan=True) == np.inf
    assert checks.truth("op", "relu", np.True_) is True and checks.truth("op", "relu", False) is False
    with pytest.raises(ConfigError, match="op: relu"):
        checks.truth("op", "relu", "no")


def test_axes_are_counted_from_the_front_and_in_order():
    assert checks.axes("op", None, 3) == (0, 1, 2) and checks.axes("op", None, 0) == ()
    assert checks.axes("op", 2, 3) == checks.axes("op", -1, 3) == (2,)
    assert checks.axes("op", (2, -3), 3) == checks.axes("op", [-1, 0], 3) == (0, 2)
    assert checks.axes("op", (), 3) == ()
    assert checks.one_axis("op", -1, 3) == 2 and checks.one_axis("op", 0, 3) == 0
    for wrong in (3, -4, (0, 0), (0, -3), 1.0, "a", (None,)):
        with pytest.raises(ShapeError, match=r"does not fit a tensor of 3 axes.*from -3 to 2, named once"):
            checks.axes("op", wrong, 3)
    for wrong in (None, (1,), 1.0):
        with pytest.raises(ShapeError, match="axis must be one whole number, not"):
            checks.one_axis("op", wrong, 3)
