"""What an operation says of its arithmetic is what it does: every number, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from minires.ops.cases import all_cases
from minires.ops.forms import Formula, Values
from minires.ops.forms.expressions import written
from minires.ops.registry import describe, described
from minires.tensor import Tensor, watching

WITHOUT = {"input", "recompute"}  # nothing is computed there, or a whole block
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


@pytest.mark.parametrize("case", EVERY_CASE)
def test_the_declared_arithmetic_gives_every_number(case):
    form = describe(case.op).arithmetic
    for call, dy, gradients in calls(case):
        values = values_of(call, dy)
        for index in np.ndindex(values.shape):
            result = form.number(values, index).result
            assert result == pytest.approx(values.y[index], rel=1e-10, abs=1e-10), index
        for name, expected in ((name, dx) for name, dx in gradients.items() if dx is not None):
            for index in np.ndindex(expected.shape):
                got = form.gradient(values, name, index)
                assert got == pytest.approx(expected[index], rel=1e-10, abs=1e-10), (name, index)


def test_a_negative_number_behind_a_minus_is_in_parentheses():
    tree = Formula("y = 1 / (1 + exp(-x))\ndx = dy").trees["y"]
    assert written(tree) == "1 / (1 + exp(-x))"
    assert written(tree, {"x": "-2"}.__getitem__) == "1 / (1 + exp(-(-2)))"
