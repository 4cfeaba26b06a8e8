"""The fuzzer finds what it is for; and a few thousand of its cases find nothing in the engine."""

from __future__ import annotations

import fuzz
import numpy as np
import pytest
from dangerous_cases import dies, sleeps

from minires import Tensor, ops
from minires.errors import ShapeError
from minires.ops import relu


def faults(start, stop):
    found = []
    counts = fuzz.fuzz(start, stop, lambda *case: case[1] in fuzz.FINE or found.append(case))
    return counts, found


def test_random_arrays_and_options_give_a_right_result_or_an_error_in_words():
    """Other cases than those of the committed result."""
    counts, found = faults(1_000_000, 1_002_500)
    assert not found, "\n".join(f"{number}: {kind}: {what}" for number, kind, what in found)
    assert counts["right"] > 1000 and counts["refused"] > 800


def outcome_of(call):
    """What a case is counted as whose call is this one."""
    return fuzz.judged("the case", call)


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: [np.ones(3)], "right"),
        (lambda: raises(ShapeError("no")), "refused"),
        (lambda: raises(ValueError("operands could not be broadcast")), "unclear"),
        (lambda: raises(AttributeError("x")), "unclear"),
        (lambda: raises(IndexError("x")), "unclear"),
        (lambda: [np.full(3, float(fuzz.backend.is_reference()))], "different"),
        (lambda: [np.ones(3 + fuzz.backend.is_reference())], "different"),
        (lambda: [np.ones(3, "f4" if fuzz.backend.is_reference() else "f8")], "different"),
        (lambda: [1] if fuzz.backend.is_reference() else raises(ShapeError("no")), "different"),
    ],
)
def test_each_outcome_is_told_from_the_others(call, kind):
    assert outcome_of(call)[0] == kind


def test_where_rounding_crosses_a_kink_gradients_are_not_asked_for():
    """Two orders of a sum give 0 and a number next to it: ReLU is 0 for one of them, and its gradient 0."""
    y, gradient = np.float32([1, 2, 0]), np.float32([1, 1, 0])
    other, passed = np.float32([1, 2, 1e-7]), np.float32([1, 1, 1])

    def outcome(description, second):
        kernels = lambda: second if fuzz.backend.is_reference() else [y, gradient]  # noqa: E731
        return fuzz.judged(description, kernels)

    assert outcome("conv2d(relu=True)", [other, passed])[0] == "right"
    kind, what = outcome("conv2d()", [other, passed])
    assert kind == "different" and "array 1" in what, "there is no kink"
    kind, what = outcome("conv2d(relu=True)", [y, passed])
    assert kind == "different" and "array 1" in what, "no kink was crossed"
    kind, what = outcome("conv2d(relu=True)", [np.float32([1, 2, 0.1]), passed])
    assert kind == "different" and "array 0" in what, "that is no rounding"


def test_a_kernel_that_is_wrong_is_found(monkeypatch):
    x = Tensor(np.linspace(-1, 1, 1000, dtype=np.float32))
    call = lambda: [ops.relu(x).data]  # noqa: E731
    assert outcome_of(call)[0] == "right"
    monkeypatch.setattr(relu, "_forward_numba", lambda x, add: x.copy())
    kind, what = outcome_of(call)
    assert kind == "different" and "array 0: off by" in what


def test_a_case_that_kills_the_process_is_counted_and_the_others_go_on():
    seen = []
    counts = fuzz.fuzz(0, 6, lambda *case: seen.append(case), run=dies)
    assert counts == {"right": 5, "crash": 1}
    assert [(number, kind) for number, kind, _ in seen if kind != "right"] == [(3, "crash")]


def test_a_case_that_hangs_is_ended_and_the_others_go_on():
    seen = []
    counts = fuzz.fuzz(0, 5, lambda *case: seen.append(case), run=sleeps, patience=3)
    assert counts == {"refused": 4, "hang": 1}
    assert [(number, kind) for number, kind, _ in seen if kind != "refused"] == [(2, "hang")]


def test_a_number_gives_the_same_case_each_time():
    for number in range(20):
        assert fuzz.run(number) == fuzz.run(number)
