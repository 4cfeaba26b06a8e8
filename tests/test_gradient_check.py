"""The numeric gradient check: what it reports, and that it is not fooled."""

import re

import numpy as np
import pytest

import minires
from minires import Tensor, no_grad
from minires.errors import ConfigError
from minires.gradient_check import Element, GradcheckError, gradcheck
from minires.nn.layers import BatchNorm2d, Conv2d, Linear
from minires.nn.module import Module
from minires.ops.avg_pool2d import global_avg_pool2d
from minires.ops.relu import relu
from minires.tensor import record


def _wrong(factor):
    """y = x ** 2 with a gradient that is off by a factor at one place."""

    def operation(x):
        def backward(dy):
            dx = 2 * x.data * dy
            dx[1, 2] *= factor
            return (dx,)

        return record("wrong", x.data**2, inputs={"x": x}, backward=backward)

    return operation


X = np.random.default_rng(0).uniform(1, 2, (2, 3))


def test_it_is_the_function_of_the_package():
    assert minires.gradcheck is gradcheck
    assert issubclass(GradcheckError, minires.MiniresError)


def test_a_right_gradient_passes_and_every_element_is_reported():
    report = gradcheck(lambda a, b: a * b.exp(), {"a": X, "b": X.T.copy().T})
    assert report.ok and str(report).startswith("gradcheck passed")
    for part, name in zip(report.inputs, "ab", strict=True):
        assert part.name == name and part.shape == (2, 3) and part.failed == 0 and not part.blind
        assert [element.index for element in part.elements] == list(np.ndindex(2, 3))
    assert report.worst.error < 1e-7


def test_the_worst_place_is_named():
    with pytest.raises(GradcheckError) as caught:
        gradcheck(_wrong(1.01), {"x": X})
    report = caught.value.report
    assert not report.ok and report.inputs[0].failed == 1
    worst = report.worst
    assert (worst.input, worst.index) == ("x", (1, 2))
    assert worst.analytic == pytest.approx(1.01 * worst.numeric)
    assert worst.error == pytest.approx(0.01, rel=0.02)
    text = str(caught.value)
    assert "gradcheck FAILED" in text and "x (2, 3): 1 of 6 checked elements are wrong" in text
    assert f"worst x[1, 2]: analytic {worst.analytic:.9g}, numeric {worst.numeric:.9g}" in text


@pytest.mark.parametrize(("factor", "ok"), [(1 + 1e-7, True), (1 + 1e-4, False), (0.0, False), (-1.0, False)])
def test_the_tolerance(factor, ok):
    assert gradcheck(_wrong(factor), [X], raise_on_fail=False).ok is ok


def test_tiny_gradients_are_measured_against_themselves():
    def scaled(factor):
        return lambda x: _wrong(factor)(x) * 1e-9

    assert gradcheck(scaled(1.0), [X]).ok
    assert not gradcheck(scaled(1.001), [X], raise_on_fail=False).ok
    assert not gradcheck(scaled(0.0), [X], raise_on_fail=False).ok


def test_a_gradient_that_is_nan_or_infinite_is_wrong():
    for factor in (np.nan, np.inf):
        report = gradcheck(_wrong(factor), [X], raise_on_fail=False)
        assert not report.ok and report.worst.index == (1, 2)


def test_the_upstream_gradient_is_random():
    seen = []

    def spy(x):
        def backward(dy):
            seen.append(dy.copy())
            return (2 * dy,)

        return record("spy", 2 * x.data, inputs={"x": x}, backward=backward)

    for seed in (0, 1):
        gradcheck(spy, [np.ones((5, 5))], seed=seed)
    first, other = seen[0], seen[-1]
    assert len(np.unique(np.abs(first))) == first.size and not np.array_equal(first, other)
    assert (first > 0).any() and (first < 0).any() and np.abs(first).min() >= 0.5
    assert np.abs(first).max() <= 1.5


def test_a_gradient_that_never_arrives_is_wrong():
    def forgets(x):
        return record("forgets", 2 * x.data, inputs={"x": x}, backward=lambda dy: (None,))

    report = gradcheck(forgets, {"x": X}, raise_on_fail=False)
    assert report.inputs[0].failed == 6 and report.worst.analytic == 0


def test_an_input_without_influence_is_said_to_be_so():
    report = gradcheck(lambda a, b: a * 2 + b * 0, {"a": X, "b": X})
    assert [part.blind for part in report.inputs] == [False, True]
    assert "b (2, 3): 0 of 6 checked elements are wrong; it has no influence on the output" in str(report)


def test_a_gradient_out_of_nothing_is_wrong():
    def invents(x):
        return record("invents", np.ones(3), inputs={"x": x}, backward=lambda dy: (np.full(x.shape, 1e-3),))

    assert not gradcheck(invents, [X], raise_on_fail=False).ok


def test_a_kink_at_an_input_is_named():
    report = gradcheck(lambda x: relu(x), {"x": np.array([1.0, 0.0, -1.0])}, raise_on_fail=False)
    assert report.worst.index == (1,) and report.worst.kink
    assert "the function has a kink here, move the input away from it" in str(report)


def test_a_kink_near_an_input_is_passed_by_with_a_smaller_step():
    report = gradcheck(lambda x: relu(x), {"x": np.array([1.0, 3e-7, -3e-7])})
    assert not any(element.kink for element in report.inputs[0].elements)


@pytest.mark.parametrize(("place", "kink"), [(2.5e-8, True), (4e-8, False)])
def test_the_smaller_step_is_a_thirtieth(place, kink):
    (part,) = gradcheck(lambda x: relu(x), [np.array([1.0, place])], raise_on_fail=False).inputs
    assert (part.elements[1].kink, part.failed) == (kink, int(kink))


def test_a_wrong_gradient_is_not_taken_for_a_kink():
    report = gradcheck(_wrong(2.0), [X], raise_on_fail=False)
    assert not report.worst.kink


def test_views_of_the_input_are_no_trap():
    """The output of a reshape is the memory of its input: two evaluations must not be one array."""
    assert gradcheck(lambda x: x.reshape(3, 2).transpose()[0], [X]).inputs[0].failed == 0

    def view(x):
        return record("view", x.data[:], inputs={"x": x}, backward=lambda dy: (-dy,))

    report = gradcheck(view, [X], raise_on_fail=False)
    assert report.inputs[0].failed == 6


def _problem(fn, inputs, **options):
    report = gradcheck(fn, inputs, raise_on_fail=False, **options)
    assert not report.ok
    return "\n".join(report.problems)


def test_functions_that_cannot_be_checked():
    rng = np.random.default_rng(0)
    assert "must return a Tensor, not ndarray" in _problem(lambda x: x.data, [X])
    assert "no path leads from the output back" in _problem(lambda x: Tensor(x.data), [X])
    narrowed = lambda x: record("cast", np.float32(x.data), inputs={"x": x}, backward=lambda dy: (dy,))  # noqa: E731
    assert "returned float32" in _problem(narrowed, [X])
    assert "two results for the same inputs" in _problem(lambda x: x * rng.random(), [X])
    with np.errstate(divide="ignore"):
        assert "the output is not finite" in _problem(lambda x: (x - x).log(), [X])
    with no_grad():
        assert "no_grad" in _problem(lambda x: x * 2, [X])


def test_what_is_changed_in_place_is_named():
    def changes_input(x):
        x.data[0, 0] += 1
        return x * 1

    def changes_upstream(x):
        def backward(dy):
            dy *= 2
            return (dy,)

        return record("changes", 2 * x.data, inputs={"x": x}, backward=backward)

    assert "x was changed in place" in _problem(changes_input, {"x": X})
    assert "changed the upstream gradient in place" in _problem(changes_upstream, [X])


def test_a_backward_that_differs_from_call_to_call():
    calls = []

    def fn(x):
        def backward(dy):
            calls.append(1)
            return (2 * dy if len(calls) == 1 else 3 * dy,)

        return record("moody", 2 * x.data, inputs={"x": x}, backward=backward)

    assert "two backward passes gave two gradients of x" in _problem(fn, {"x": X})


@pytest.mark.parametrize(("apart", "ok"), [(0.6e-10, True), (1.5e-10, False)])
def test_two_backward_passes_may_differ_by_rounding(apart, ok):
    calls = []

    def fn(x):
        def backward(dy):
            calls.append(1)
            return (2 * dy * (1 + apart * len(calls)),)

        return record("moody", 2 * x.data, inputs={"x": x}, backward=backward)

    assert gradcheck(fn, [X], raise_on_fail=False).ok is ok


def _own(forward, backward):
    """An own operation with this backward(dy, x)."""

    def own(x):
        a = x.data
        return record("own", forward(a), inputs={"x": x}, backward=lambda dy: (backward(dy, a),))

    return own


MASK = np.array([0.0, 0.0, -1e9, 0.0])
# What is checked, on which input, and how many of its elements are wrong: gradients beside much larger ones,
# and beside outputs whose rounding is much larger than what a small step does.
HIDDEN = {
    "exp": (_own(np.exp, lambda dy, x: dy * np.exp(x) * (x > 1)), np.linspace(-3, 20, 24), 5),
    "exp, further": (_own(np.exp, lambda dy, x: dy * np.exp(x) * (x > 6)), np.linspace(-3, 30, 34), 10),
    "square": (_own(np.square, lambda dy, x: 2 * dy * x * np.sign(x - 2)), np.array([1.0, 1e3, 1e5]), 1),
    "mask": (_own(lambda x: x + MASK, lambda dy, x: 0 * dy), np.ones((2, 4)), 8),
    "an offset of all": (_own(lambda x: x + 1e7, lambda dy, x: 0 * dy), np.ones(3), 3),
    "an offset that hides it": (_own(lambda x: x + 1e10, lambda dy, x: 0 * dy), np.ones(3), 3),
    "a large offset": (_own(lambda x: x + 1e5, lambda dy, x: 1.01 * dy), np.ones(3), 3),
    "large inputs": (_own(lambda x: x + 0, lambda dy, x: 0 * dy), np.full(3, 1e9), 3),
    "larger inputs": (_own(lambda x: x + 0, lambda dy, x: 1.001 * dy), np.full(3, 1e12), 3),
    "a sum beside it": (_own(lambda x: np.append(x, 1e8 * x.sum()), lambda dy, x: 0 * x), np.ones(3), 3),
}  # fmt: skip
RIGHT = {
    "exp": lambda x: x.exp(), "exp, further": lambda x: x.exp(), "square": lambda x: x * x,
    "mask": lambda x: x + MASK, "large inputs": lambda x: x * 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_gradient_beside_much_larger_numbers_is_checked_for_itself(name):
    function, x, wrong = HIDDEN[name]
    (part,) = gradcheck(function, {"x": x}, raise_on_fail=False).inputs
    assert (part.failed, part.undecided) == (wrong, 0)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_gradient_beside_much_larger_numbers_passes(name):
    (part,) = gradcheck(RIGHT[name], {"x": HIDDEN[name][1]}).inputs
    assert part.failed == part.undecided == 0 and not part.blind


def test_an_input_beside_a_large_one_is_checked_for_itself():
    def add(factor):
        def own(a, b):
            return record("own", a.data + b.data, inputs={"a": a, "b": b},
                          backward=lambda dy: (factor * dy, dy))  # fmt: skip
        return own

    inputs = {"a": np.ones(3), "b": np.full(3, 1e7)}
    assert gradcheck(add(1.0), inputs).ok
    report = gradcheck(add(0.0), inputs, raise_on_fail=False)
    assert [part.failed for part in report.inputs] == [3, 0]


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_what_rounding_hides_at_every_step_is_undecided(factor):
    """1 beside 1e30 is nothing: no step shows it."""
    mask = np.array([0.0, 1e16])
    own = _own(lambda x: x + mask, lambda dy, x: dy * np.array([1.0, factor]))
    with pytest.raises(GradcheckError, match="1 cannot be decided, as the output is too large") as caught:
        gradcheck(own, {"x": np.ones(2)})
    report = caught.value.report
    assert [one.undecided for one in report.inputs[0].elements] == [False, True]
    assert report.worst.index == (1,) and "of which rounding makes up to" in str(report)
    assert report.inputs[0].failed == 0


def test_gradients_of_large_numbers_have_an_influence():
    (part,) = gradcheck(lambda x: relu(x), [np.array([1e10, -1e10, 3e10])]).inputs
    assert not part.blind and part.undecided == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": [Tensor([1.0])]}, "parameters as .name, tensor. pairs"),
        ({"elements": "all"}, "elements must be a whole number"),
        ({"elements": 0}, "elements must be a whole number of at least 1"),
        ({"step": 0}, "step is 0; it must be above 0|step must be"),
        ({"tolerance": None}, "tolerance"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        gradcheck(lambda x: x * x, [X], **options)


def test_two_backward_passes_are_compared_beside_what_is_infinite():
    calls = []

    def fn(x):
        def backward(dy):
            calls.append(1)
            return (np.array([-np.inf, 1e-11 * len(calls)]),)

        return record("moody", 2 * x.data, inputs={"x": x}, backward=backward)

    assert "two backward passes gave two gradients of x" in _problem(fn, {"x": np.ones(2)})


def test_the_step_is_a_millionth_and_the_noise_is_that_of_the_step():
    usual, same, larger = (gradcheck(lambda x: x * x, [X], **options).inputs[0].elements[0].noise
                           for options in ({}, {"step": 1e-6}, {"step": 4e-6}))  # fmt: skip
    assert usual == same == pytest.approx(4 * larger, rel=1e-12)


def test_an_element_has_no_kink_unless_it_is_said():
    element = Element("x", (0, 1), 1.0, 1.0, 0.0)
    assert not element.kink and str(element) == "x[0, 1]: analytic 1, numeric 1, relative error 0.0e+00"


def test_inputs_are_copied_to_float64_and_left_alone():
    x = X.astype(np.float32)
    before = x.copy()
    gradcheck(lambda a, b, c: a * b + c, [x, Tensor(x), 2.0])
    assert np.array_equal(x, before)


def test_fewer_elements():
    chosen = []
    for seed in (3, 4):
        report = gradcheck(lambda x: x.exp(), [np.ones((9, 9))], elements=2, seed=seed)
        chosen.append({element.index for element in report.inputs[0].elements})
    assert len(chosen[0]) == len(chosen[1]) == 2 and chosen[0] != chosen[1]


def test_an_input_that_is_checked_whole_leaves_the_choice_in_others_alone():
    chosen = set()
    for size in (1, 4):
        inputs = {"a": np.ones(size), "b": np.ones((9, 9))}
        report = gradcheck(lambda a, b: a.sum() * b, inputs, elements=4)
        whole, some = (tuple(element.index for element in part.elements) for part in report.inputs)
        assert whole == tuple(np.ndindex(size)) and len(set(some)) == 4
        chosen.add(some)
    assert len(chosen) == 1


# ---------------------------------------------------------------------------------- a whole small network


class _Net(Module):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.conv = Conv2d(2, 3, 3, padding="same", rng=rng)
        self.bn = BatchNorm2d(3, relu=True)
        self.fc = Linear(3, 2, rng=rng)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.fc(global_avg_pool2d(y))


PICTURES = np.random.default_rng(1).standard_normal((3, 4, 4, 2))


@pytest.mark.parametrize("training", [True, False])
def test_a_network_with_its_parameters(training):
    net = _Net().astype("float64").train(training)
    before = net.state_dict()
    report = gradcheck(net, {"x": PICTURES}, parameters=net.named_parameters(), elements=20)
    names = [part.name for part in report.inputs]
    assert names == ["x", *(name for name, _ in net.named_parameters())]
    blind = [part.name for part in report.inputs if part.blind]
    assert blind == (["conv.bias"] if training else []), "batch norm takes a bias away in training"
    for name, parameter in net.named_parameters():
        assert np.array_equal(parameter.data, before[name]) and parameter.grad is None


def test_a_network_with_a_wrong_layer_is_caught(monkeypatch):
    from minires.ops import linear

    net = _Net().astype("float64")
    monkeypatch.setattr(linear, "_backward_w", lambda xp, dy, x: 0.999 * (x.T @ dy))
    with pytest.raises(GradcheckError, match=re.escape("worst fc.weight[")):
        gradcheck(net, {"x": PICTURES}, parameters=net.named_parameters(), elements=5)


def test_float32_parameters_are_refused():
    net = _Net()
    text = _problem(net, {"x": PICTURES}, parameters=net.named_parameters())
    assert "only float64 can be checked, but conv.weight is float32" in text


def test_one_array_is_no_list_of_inputs():
    for one in (np.ones(3), Tensor([1.0, 2.0])):
        with pytest.raises(minires.ShapeError, match=r"takes a list of inputs, not one array; give \[x\]"):
            gradcheck(lambda x: x * x, one)
