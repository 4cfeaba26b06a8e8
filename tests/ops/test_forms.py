"""What an operation says of its arithmetic is what it does: every number, forward and backward."""

from __future__ import annotations

import dataclasses
import math
import re
from contextlib import suppress

import numpy as np
import pytest

from minires.errors import ConfigError
from minires.ops.cases import all_cases
from minires.ops.forms import AllBut, Formula, Near, NotKept, Products, Values
from minires.ops.forms.expressions import parse, written
from minires.ops.forms.windows import Windows
from minires.ops.registry import describe, described
from minires.tensor import Tensor, watching

WITHOUT = {"input", "recompute", "plan"}  # nothing is computed there, or a whole block, or a model
EVERY_CASE = [
    pytest.param(case, id=str(case))
    for name, table in all_cases().items()
    for case in table
    if name not in WITHOUT
]


def calls(case):
    """The calls of the operation in a case, each with the gradients of its inputs that the tape gave."""
    seen = []
    with watching(seen.append):
        y = case(*(Tensor(array, requires_grad=True) for array in case.arrays().values()))
    dy = np.random.default_rng(7).standard_normal(y.shape)
    steps = {step.node: step for step in y.backward_steps(dy, retain_graph=True)} if y.node else {}
    for call in seen:
        if call.op == case.op:
            step = steps[call.y.node]
            yield call, step.incoming, dict(zip(call.inputs, step.outgoing, strict=True))


def values_of(call, dy):
    inputs = {name: x.data for name, x in call.inputs.items()}
    y = call.y.data
    return Values(inputs, call.options, y.shape, call.saved, y, dy, describe(call.op).result)


def test_every_operation_says_its_arithmetic():
    for known in described():
        assert known.name in WITHOUT or known.arithmetic is not None, known.name


def near(got, expected):
    return math.isclose(got, expected, rel_tol=1e-10, abs_tol=1e-10)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_the_declared_arithmetic_gives_every_number(case):
    form = describe(case.op).arithmetic
    for call, dy, gradients in calls(case):
        values = values_of(call, dy)
        for index in np.ndindex(values.shape):
            assert near(form.number(values, index).result, values.y[index]), index
        if hasattr(form, "whole"):
            assert form.whole(values) == pytest.approx(values.y, rel=1e-10, abs=1e-10)
        for name, expected in ((name, dx) for name, dx in gradients.items() if dx is not None):
            for index in np.ndindex(expected.shape):
                assert near(form.gradient(values, name, index), expected[index]), (name, index)


@pytest.mark.parametrize("case", EVERY_CASE)
def test_without_one_of_its_inputs_a_number_is_right_or_said_to_be_missing(case):
    form = describe(case.op).arithmetic
    for call, dy, gradients in calls(case):
        every = values_of(call, dy)
        for left_out in call.inputs:
            values = dataclasses.replace(every, inputs={**every.inputs, left_out: None})
            for index in list(np.ndindex(every.shape))[-1:]:
                with suppress(NotKept):
                    assert form.number(values, index).result == pytest.approx(every.y[index], rel=1e-10)
            for name, expected in gradients.items():
                for index in list(np.ndindex(every.inputs[name].shape))[-1:] if expected is not None else ():
                    with suppress(NotKept):
                        got = form.gradient(values, name, index)
                        assert got == pytest.approx(expected[index], rel=1e-10, abs=1e-10)


def test_a_negative_number_behind_a_minus_is_in_parentheses():
    tree = Formula("y = 1 / (1 + exp(-x))\ndx = dy").trees["y"]
    assert written(tree) == "1 / (1 + exp(-x))"
    assert written(tree, {"x": "-2"}.__getitem__) == "1 / (1 + exp(-(-2)))"


SIGNS = ["<", "<=", ">", ">=", "==", "!="]
WRITTEN = [
    *(f"a if x {sign} y + z else b" for sign in SIGNS), *(f"(a {sign} b) * c" for sign in SIGNS),
    *(f"(a {sign} b) {sign} c" for sign in SIGNS), *(f"a {sign} (b {sign} c)" for sign in SIGNS),
    "a < b and b < c", "a or b and c", "(a or b) and c", "not a == b", "(not a) == b", "not (a and b)",
    "a - b - c", "a - (b - c)", "a / (b * c)", "a * b / c", "2 * (a + 1)", "(a if b else c) + d",
    "a if b else c if d else e", "(a if b else c) if d else e", "a if (b if c else d) else e",
    "-(a + b)", "-a ** b", "(-a) ** b", "a ** -b", "(a ** b) ** c", "a ** b ** c", "-(-a)",
    "exp(a + b)", "max(a, b, 0)", "count(row) * 2", "sum(a * b, row) / 2", "mode == 'edge'",
]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
def test_a_formula_is_written_with_the_parentheses_that_it_needs_and_no_others(text):
    assert written(parse(f"y = {text}", ["row"])["y"]) == text


@pytest.mark.parametrize(
    "part",
    ["exp()", "sine(x)", "sum(x)", "sum(x, column)", "count(x)", "exp(x=1)", "x.y", "x[0]", "x @ x", "~x"],
)
def test_what_the_language_does_not_have_is_refused(part):
    with pytest.raises(ConfigError, match=r"formula: .* cannot be read. There are numbers, names.* here row"):
        Formula(f"y = x + {part}", axes={"row": -1})


def formula_values(**inputs):
    arrays = {name: np.asarray(value, np.float64) for name, value in inputs.items()}
    return Values(arrays, {}, np.broadcast_shapes(*(array.shape for array in arrays.values())))


@pytest.mark.parametrize("b", [[[2.0], [5.0]], [1.0, 2.0, 4.0], 3.0], ids=["column", "row", "number"])
@pytest.mark.parametrize("axes", [{"row": -1}, {"row": (1,)}, {"row": AllBut(0)}], ids=str)
def test_a_sum_is_over_places_along_which_an_input_was_stretched_too(axes, b):
    values = formula_values(x=np.arange(6.0).reshape(2, 3), b=b)
    form = Formula("y = x * sum(b, row)", axes=axes)
    x, wide = (np.broadcast_to(array, (2, 3)) for array in values.inputs.values())
    expected = x * wide.sum(1, keepdims=True)
    assert np.array_equal(form.whole(values), expected)
    for index in np.ndindex(2, 3):
        assert form.number(values, index).result == expected[index]


@pytest.mark.parametrize(
    ("axes", "channelwise"),
    [
        (-1, False), (-2, True), (0, True), ((1, -1), False), ((0, 1), True), ("axis", False),
        (AllBut(-1), True), (AllBut(0), False), (Near(-1, "size"), True),
    ],
)  # fmt: skip
def test_a_formula_is_channelwise_unless_it_sums_over_the_last_axis(axes, channelwise):
    assert Formula("y = x", axes={"some": axes}).channelwise is channelwise


@pytest.mark.parametrize(
    ("axis", "shape", "summed"),
    [("row", (2, 3), False), ("row", (3,), True), ("row", (2, 1), True), ("row", (), True)],
)
def test_the_gradient_of_what_was_stretched_is_said_to_be_summed(axis, shape, summed):
    form = Formula("y = x + b\ndx = dy\ndb = dy")
    _, backward = form.texts("y", formula_values(x=np.ones((2, 3)), b=np.ones(shape)))
    more = ", summed over all places that read b" if summed else ""
    assert backward == f"dx = dy\ndb = dy{more}"


def test_a_sum_in_the_formula_is_not_said_twice():
    form = Formula("y = x * b\ndx = dy * b\ndb = sum(dy * x, rows)", axes={"rows": 0})
    _, backward = form.texts("y", formula_values(x=np.ones((2, 3)), b=np.ones(3)))
    assert backward == "dx = dy * b\ndb = sum(dy * x, rows)"


@pytest.mark.parametrize(
    ("given", "math", "backward"),
    [
        (["low", "high"], "y = min(max(x, low), high)", "dx = dy if low <= x and x <= high else 0"),
        (["low"], "y = max(x, low)", "dx = dy if low <= x else 0"),
        (["high"], "y = min(x, high)", "dx = dy if x <= high else 0"),
    ],
)
def test_a_comparison_with_what_is_absent_falls_out(given, math, backward):
    text = "y = min(max(x, low), high)\ndx = dy if low <= x and x <= high else 0"
    call = formula_values(x=1.0, **dict.fromkeys(given, 2.0))
    assert Formula(text, optional=["low", "high"]).texts("y", call) == (math, backward)


def test_a_convolution_without_groups_has_one():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 3, 3, 2)), rng.standard_normal((2, 2, 2, 3))
    options = {"kernel": (2, 2), "padding": ((0, 0), (0, 0))}
    values = Values({"x": x, "w": w}, options, (1, 2, 2, 3))
    for n, i, j, o in np.ndindex(1, 2, 2, 3):
        expected = (x[n, i : i + 2, j : j + 2] * w[..., o]).sum()
        assert Products().number(values, (n, i, j, o)).result == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x + 1", "'x + 1' gives no name; write y = ..."), ("y = z = x", "gives no name"),
        ("y: float = x", "gives no name"), ("y.a = x", "gives no name"), ("y += x", "gives no name"),
        ("y = 1\ny = 2", "y is given twice"), ("y = (x", "line 1"),
    ],
)  # fmt: skip
def test_a_line_gives_one_new_name(text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Formula(text)


@pytest.mark.parametrize(
    ("text", "given", "left"),
    [
        ("a - b", "a", "a"), ("a - b", "b", "-b"), ("a + b", "b", "b"), ("a * b", "a", "a"),
        ("a / b", "a", "a"), ("max(a, b, 0)", "b", "max(b, 0)"), ("c + exp(a)", "b", "c"),
        ("c * sum(a, row)", "b", "c"),
    ],
)  # fmt: skip
def test_what_is_absent_falls_out(text, given, left):
    form = Formula(f"y = {text}", axes={"row": -1}, optional=["a", "b"])
    math, _ = form.texts("y", formula_values(c=1.0, **{given: 2.0}))
    assert math == f"y = {left}"


def test_a_gradient_that_another_line_sums_is_not_said_to_be_summed():
    form = Formula("y = x * b\ndx = dy * b\ndtotal = sum(dy * x, rows)\ndb = dtotal", axes={"rows": 0})
    _, backward = form.texts("y", formula_values(x=np.ones((2, 3)), b=np.ones(3)))
    assert backward == "dx = dy * b\ndtotal = sum(dy * x, rows)\ndb = dtotal"


def test_a_row_says_what_share_of_a_sum_each_place_has():
    values = formula_values(x=[[1.0, -3.0, 4.0], [0.0, 0.0, 0.0]])
    form = Formula("y = sum(x, row)", axes={"row": -1})
    values = dataclasses.replace(values, shape=(2, 1))
    (row,), (zeros,) = (form.number(values, (i, 0)).rows for i in range(2))
    assert row.axis == "row" and row.columns["x"].tolist() == [1, -3, 4]
    assert row.shares.tolist() == [0.125, 0.375, 0.5] and not zeros.shares.any()


@pytest.mark.parametrize(
    ("op", "inputs", "options", "shape", "macs"),
    [
        ("conv2d", {"x": (2, 5, 5, 4), "w": (3, 3, 2, 6)}, {}, (2, 3, 3, 6), 2 * 3 * 3 * 6 * 3 * 3 * 2),
        ("conv_transpose2d", {"x": (2, 3, 3, 6), "w": (3, 3, 4, 6)}, {}, (2, 5, 5, 4), 2 * 9 * 6 * 9 * 4),
        ("linear", {"x": (5, 4), "w": (4, 3)}, {}, (5, 3), 60),
        ("matmul", {"a": (2, 3), "b": (3, 4)}, {}, (2, 4), 24),
        ("reshape", {"x": (2, 3)}, {"shape": (6,)}, (6,), 0), ("relu", {"x": (2, 3)}, {}, (2, 3), 0),
        ("max_pool2d", {"x": (1, 4, 4, 1)}, {}, (1, 2, 2, 1), 0),
    ],
)  # fmt: skip
def test_products_are_counted(op, inputs, options, shape, macs):
    assert describe(op).arithmetic.macs(inputs, options, shape) == macs


def test_a_dense_layer_sees_one_place():
    one = {"size": (1, 1), "stride": (1, 1), "dilation": (1, 1), "first": (0, 0)}
    assert Windows.of({}).plain() == one
    assert Windows.of({"kernel": (1, 1), "padding": ((0, 0), (0, 0))}).plain() == one
