"""The harness is checked too: backwards that are wrong, as backwards are, must each be caught.

Each mutant replaces one function of a real operation, or is a small operation of its own, and names the check
that must see it. ``gradient`` is the check against finite differences alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import opcheck
import pytest

from minires import backend
from minires.gradient_check import GradcheckError
from minires.ops import (
    arithmetic,
    avg_pool2d,
    batch_norm,
    cases,
    concat,
    conv2d,
    cross_entropy,
    linear,
    matmul,
    max_pool2d,
    pad,
    pad_channels,
    piecewise,
    reduce,
    relu,
    reshape,
    sigmoid,
    softmax,
    stack,
    tanh,
)
from minires.ops.registry import Case, positive
from minires.tensor import Tensor, record

# ------------------------------------------------------------- real operations, one function replaced


def _bn(change: Callable[..., Any]) -> Callable[..., Any]:
    """A batch norm backward of the parts of the formula: g, xhat, gamma * inv, M."""

    def backward(dy, x, y, gamma, mean, inv, relu, training):
        g = dy * (y > 0) if relu else dy
        xhat = (x - mean) * inv
        dgamma, dbeta = (g * xhat).sum(0), g.sum(0)
        return change(g, xhat, gamma * inv, len(x), dgamma, dbeta), dgamma, dbeta, g

    return backward


def _with_window(original: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """The function with another window than the forward had."""

    def backward(*args):
        return original(*(change(arg) if isinstance(arg, conv2d.Window) else arg for arg in args))

    return backward


def _shifted(win: Any) -> Any:
    return replace(win, top=win.top - 1, bottom=win.bottom + 1) if win.top else win


def _dense(win: Any) -> Any:
    return replace(win, stride=(1, 1))


def _overwriting_max_pool(xp, dy, winner, shape, win):
    n, h, w, c = shape
    padded = xp.zeros((n, h + win.top + win.bottom, w + win.left + win.right, c), dy.dtype)
    for i in range(win.size[0]):
        for j in range(win.size[1]):
            here = winner == i * win.size[1] + j
            win.at(padded, i, j)[here] = dy[here]
    return win.crop(padded).copy()


def _first_row(dy, shape):
    """Broadcasting undone by taking one of the places instead of the sum over them."""
    if dy.shape == tuple(shape):
        return dy
    dy = dy[(0,) * (dy.ndim - len(shape))]
    return dy[tuple(slice(0, size) for size in shape)].copy().reshape(shape)


def _late_channels(xp, dy, shape, stride, before):
    dx = xp.zeros(shape, dy.dtype)
    dx[:, ::stride, ::stride, :] = dy[..., -shape[-1] :]
    return dx


SQUARE = Case("square", {"a": (3, 3), "b": (3, 3)}, op="matmul", fn=matmul.matmul)
bn_kept, spread, getitem_kept = batch_norm._backward, reduce.spread, reshape._backward_getitem
conv_x, conv_w = conv2d._backward_x, conv2d._backward_w
max_pool_kept, pad_kept, loss_kept = max_pool2d._backward, pad._backward, cross_entropy._backward

MUTANTS: list[tuple[str, str, Any, str, Any]] = [
    ("batch norm returns a zero gradient", "batch_norm", batch_norm, "_backward",
     _bn(lambda g, xhat, scale, m, dgamma, dbeta: 0 * g)),
    ("batch norm forgets the sum over the batch", "batch_norm", batch_norm, "_backward",
     _bn(lambda g, xhat, scale, m, dgamma, dbeta: scale * (g - xhat * dgamma / m))),
    ("batch norm drops the term of the variance", "batch_norm", batch_norm, "_backward",
     _bn(lambda g, xhat, scale, m, dgamma, dbeta: scale * (g - dbeta / m))),
    ("batch norm forgets 1/M", "batch_norm", batch_norm, "_backward",
     _bn(lambda g, xhat, scale, m, dgamma, dbeta: scale * (g - dbeta - xhat * dgamma))),
    ("batch norm takes the statistics for constants", "batch_norm", batch_norm, "_backward",
     lambda *args: bn_kept(*args[:-1], False)),
    ("batch norm masks what was added with nothing", "batch_norm", batch_norm, "_backward",
     lambda dy, *args: (*bn_kept(dy, *args)[:3], dy * 1)),
    ("matmul forgets a transpose", "matmul: square", matmul, "_backward_a", lambda xp, dy, b, _: dy @ b),
    ("matmul transposes the wrong one", "matmul: square", matmul, "_backward_b",
     lambda xp, dy, a, _: a @ dy.T),
    ("broadcasting is not summed", "add", arithmetic, "unbroadcast", _first_row),
    ("relu looks at the sign of the gradient", "relu", relu, "_backward", lambda dy, y: dy * (dy > 0)),
    ("relu masks nothing, for y is never negative", "relu", relu, "_backward",
     lambda dy, y: dy * (y >= 0)),
    ("conv2d flips the kernel on the way back", "conv2d", conv2d, "_backward_x",
     lambda xp, dy, w, *rest: conv_x(xp, dy, w[::-1, ::-1].copy(), *rest)),
    ("conv2d ignores the stride in dx", "conv2d", conv2d, "_backward_x", _with_window(conv_x, _dense)),
    ("conv2d ignores the stride in dw", "conv2d", conv2d, "_backward_w", _with_window(conv_w, _dense)),
    ("conv2d reads one line too low", "conv2d", conv2d, "_backward_w", _with_window(conv_w, _shifted)),
    ("conv2d forgets to sum the bias", "conv2d", conv2d, "backward_b", lambda dy: dy[0, 0, 0].copy()),
    ("linear forgets to sum the bias", "linear", linear, "_backward_b", lambda dy: dy[0].copy()),
    ("linear averages over the batch", "linear", linear, "_backward_w",
     lambda xp, dy, x: x.T @ dy / len(x)),
    ("max pool gives all to the first pixel", "max_pool2d", max_pool2d, "_backward",
     lambda xp, dy, winner, *rest: max_pool_kept(xp, dy, 0 * winner, *rest)),
    ("max pool overwrites where windows overlap", "max_pool2d", max_pool2d, "_backward",
     _overwriting_max_pool),
    ("average pool is one line off", "avg_pool2d", avg_pool2d, "_backward",
     _with_window(avg_pool2d._backward, _shifted)),
    ("softmax drops the cross terms", "softmax", softmax, "_backward", lambda xp, dy, y: dy * y * (1 - y)),
    ("log softmax drops the sum", "log_softmax", softmax, "_backward_log", lambda xp, dy, y: dy - np.exp(y)),
    ("cross entropy forgets 1/N", "cross_entropy", cross_entropy, "_backward",
     lambda xp, dloss, log_p, u, by, reduction: loss_kept(xp, dloss, log_p, u, 1.0, reduction)),
    ("cross entropy ignores the smoothing", "cross_entropy", cross_entropy, "_backward",
     lambda xp, dloss, log_p, u, *rest: loss_kept(xp, dloss, log_p, (u > 0.5) * 1.0, *rest)),
    ("cross entropy ignores what comes from above", "cross_entropy", cross_entropy, "_backward",
     lambda xp, dloss, *rest: loss_kept(xp, np.ones_like(dloss), *rest)),
    ("sigmoid forgets one factor", "sigmoid", sigmoid, "_backward", lambda xp, dy, y: dy * y),
    ("a reduction spreads in the wrong order", "sum", reduce, "spread",
     lambda xp, dy, shape, axes: xp.flip(spread(xp, dy, shape, axes))),
    ("indexing keeps the last of two gradients", "getitem", reshape, "_backward_getitem",
     lambda xp, dy, shape, index, plain: getitem_kept(xp, dy, shape, index, True)),
    ("concat gives the parts to the wrong tensors", "concat", concat, "_backward",
     lambda xp, dy, sizes, axis: xp.split(xp.flip(dy, axis), np.cumsum(sizes)[:-1], axis=axis)),
    ("pad gives back the border", "pad", pad, "_backward",
     lambda dy, border, mode: pad_kept(dy, tuple(pair[::-1] for pair in border), mode)),
    ("both of two numbers get the gradient of the larger", "maximum", piecewise, "_share",
     lambda larger, smaller: np.ones(np.broadcast_shapes(larger.shape, smaller.shape))),
    ("tanh forgets the square", "tanh", tanh, "_backward", lambda xp, dy, y: dy * (1 - y)),
    ("stack deals out in the wrong order", "stack", stack, "_backward",
     lambda xp, dy, axis: list(np.moveaxis(dy, axis, 0))[::-1]),
    ("pad_channels reads the channels added", "pad_channels", pad_channels, "_backward", _late_channels),
]  # fmt: skip


def _cases(name: str) -> list[Case]:
    return [SQUARE] if name == str(SQUARE) else cases.all_cases()[name]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant[0])
def test_a_wrong_gradient_is_caught(monkeypatch, mutant):
    _, name, module, attribute, broken = mutant
    assert any(cases.check(case).ok for case in _cases(name)), "the operation must pass while it is whole"
    monkeypatch.setattr(module, attribute, broken)
    reports = (cases.check(case) for case in _cases(name))
    # The gradient is wrong by far; no limit is narrowly missed.
    assert any(not report.ok and report.worst.error > 1e-3 for report in reports)


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="there are no fast kernels without Numba")
def test_a_fast_kernel_that_is_wrong_is_caught(monkeypatch):
    whole = conv2d.choose.backward_w

    def forgets_the_last_picture(dy, x, *rest):
        return whole(dy[:-1], x[:-1], *rest) if len(x) > 1 else whole(dy, x, *rest)

    case = cases.all_cases()["conv2d"][4]
    opcheck.check_implementations(case)
    monkeypatch.setattr(conv2d.choose, "backward_w", forgets_the_last_picture)
    with pytest.raises(AssertionError, match="fast against reference, gradient of w"):
        opcheck.check_implementations(case)
    assert not cases.check(case).ok


# ---------------------------------------------------------- small operations, wrong in ways of their own


@dataclass(frozen=True)
class Wrong:
    fn: Callable[..., Tensor]
    check: Callable[..., Any]
    text: str


def _op(backward: Callable[..., Any], forward: Callable[..., Any] = lambda x: 2 * x) -> Callable[..., Tensor]:
    """y = 2 x with a backward (dy, x, y) of its own."""

    def operation(x: Tensor) -> Tensor:
        y = forward(x.data)
        return record(
            "wrong",
            y,
            inputs={"x": x},
            saved={"x": x.data, "y": y},
            backward=lambda dy: (backward(dy, x.data, y),),
        )

    return operation


def _right(dy, x, y):
    return 2 * dy


def _changes_dy(dy, x, y):
    dy *= 2
    return dy


def _changes_y(dy, x, y):
    np.multiply(dy, 2, out=y)
    return y.copy()


def _changes_x(dy, x, y):
    x += 1e-3
    return 2 * dy


def _reads_memory_in_its_order(dy, x, y):
    return (2 * dy.ravel("K")).reshape(dy.shape)


def _assumes_ordered_inputs(dy, x, y):
    return 2 * dy + (0.0 if x.flags.c_contiguous else 0.5)


def _drops_dropout_scale(x: Tensor) -> Tensor:
    mask = np.random.default_rng(0).random(x.shape) > 0.5
    return record("wrong", x.data * (mask / 0.5), inputs={"x": x}, backward=lambda dy: (dy * mask,))


def _another_mask_each_time() -> Callable[[Tensor], Tensor]:
    rng = np.random.default_rng(0)
    return lambda x: _op(_right)(x * rng.random(x.shape))


def _forgets_its_state(x: Tensor) -> Tensor:
    state = [2.0]

    def backward(dy: Any) -> Any:
        return (dy * (state.pop() if state else 1.0),)

    return record("wrong", 2 * x.data, inputs={"x": x}, backward=backward)


def _promotes(x: Tensor) -> Tensor:
    """Only the result: a gradient of another dtype the tape itself refuses."""
    y = x.data * np.full(x.shape, 2.0)
    return record("wrong", y, inputs={"x": x}, backward=lambda dy: ((2 * dy).astype(x.dtype),))


def _swaps(a: Tensor, b: Tensor) -> Tensor:
    def backward(dy: Any) -> Any:
        return -dy * a.data / b.data**2, dy / b.data

    return record("wrong", a.data / b.data, inputs={"a": a, "b": b}, backward=backward)


def _forgets_one(a: Tensor, b: Tensor) -> Tensor:
    return record("wrong", a.data * b.data, inputs={"a": a, "b": b}, backward=lambda dy: (dy * b.data, None))


def _sign(a: Tensor, b: Tensor) -> Tensor:
    return record("wrong", a.data - b.data, inputs={"a": a, "b": b}, backward=lambda dy: (dy, dy))


def _shares(a: Tensor, b: Tensor) -> Tensor:
    """Gives the same array away twice, though it is neither dy nor a view of it."""

    def backward(dy):
        gradient = 2 * dy
        return gradient, gradient

    return record("wrong", 2 * (a.data + b.data), inputs={"a": a, "b": b}, backward=backward)


def _gives_its_buffer_away(x: Tensor) -> Tensor:
    """The array it returns is the one that it needs again the next time."""
    two = np.full(x.shape, 2.0)

    def backward(dy):
        two[...] = 2 * dy
        return (two,)

    return record("wrong", 2 * x.data, inputs={"x": x}, backward=backward)


def _saves(*names: str) -> Callable[[Tensor], Tensor]:
    """y = x^2, whose backward needs x; it says that it saved ``names``."""

    def square(x: Tensor) -> Tensor:
        data = x.data
        known = {"x": data, "y": data * data, "copy": data.copy()}
        saved = {name: known[name] for name in names}
        return record("wrong", known["y"], inputs={"x": x}, saved=saved, backward=lambda dy: (2 * dy * data,))

    return square


WRONG: dict[str, Wrong] = {
    "more is declared as saved": Wrong(_saves("x", "copy"), opcheck.check_saved, "not what it holds"),
    "less is declared as saved": Wrong(_saves(), opcheck.check_saved, "not what it holds"),
    "wrong sign": Wrong(_sign, cases.check, "b"),
    "swapped operands": Wrong(_swaps, cases.check, "a"),
    "a gradient is forgotten": Wrong(_forgets_one, cases.check, "b"),
    "dropout mask without its scale": Wrong(_drops_dropout_scale, cases.check, "checked elements are wrong"),
    "a new mask in each call": Wrong(_another_mask_each_time(), cases.check, "two results for the same"),
    "the upstream gradient is changed": Wrong(_op(_changes_dy), opcheck.check_memory, "upstream gradient"),
    "the output is changed": Wrong(_op(_changes_y), opcheck.check_memory, "output was changed"),
    "the input is changed": Wrong(_op(_changes_x), opcheck.check_memory, "the input x was changed"),
    "one array for two gradients": Wrong(_shares, opcheck.check_memory, "shares its memory with"),
    "a buffer is given away": Wrong(_gives_its_buffer_away, opcheck.check_memory, "was changed by a later"),
    "a second backward differs": Wrong(_forgets_its_state, opcheck.check_memory, "second backward"),
    "float32 becomes float64": Wrong(_promotes, opcheck.check_implementations, "y became float64"),
    "upstream read in the order of memory": Wrong(
        _op(_reads_memory_in_its_order), opcheck.check_upstream_layouts, "upstream columns first"
    ),
    "inputs must be in order": Wrong(_op(_assumes_ordered_inputs), opcheck.check_layouts, "every second"),
}


def _case(fn: Callable[..., Tensor]) -> Case:
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    return Case(fn.__name__, {name: positive((3, 4)) for name in names}, op="wrong", fn=fn)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_operation_is_caught(name):
    wrong = WRONG[name]
    options = {"raise_on_fail": True} if wrong.check is cases.check else {}
    with pytest.raises((AssertionError, GradcheckError), match=wrong.text):
        wrong.check(_case(wrong.fn), **options)


def test_the_same_operation_without_a_mistake_passes():
    opcheck.check(_case(_op(_right)))


def test_all_ones_would_have_passed_the_zero_gradient(monkeypatch):
    """Why the upstream gradient is random: with ones, a batch norm that returns zeros looks right."""
    zero = _bn(lambda g, xhat, scale, m, dgamma, dbeta: 0 * g)
    monkeypatch.setattr(batch_norm, "_backward", zero)
    case = cases.all_cases()["batch_norm"][0]
    with backend.reference():
        ones = opcheck.run(case, case.arrays(), lambda y: np.ones(y.shape))
        assert abs(ones["x"]).max() < 1e-14
    assert not cases.check(case).ok
