"""Every operation and a small residual network against JAX: outputs and gradients, in float64 on the CPU.

What JAX does stands in the table THEIRS, an operation a row, written with ``jax.numpy`` and ``jax.lax``. Each
row is held to all cases that the operation declares, and each gradient to that of ``jax.vjp``. An operation
that has cases and no row is a failure.
"""

from __future__ import annotations

import functools

import numpy as np
import opcheck
import pytest

from minires import nn
from minires.nn import convolutional_block, identity_block
from minires.ops import cases
from minires.ops.batch_norm import CONVENTIONS
from minires.ops.batch_norm.cases import running_statistics
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor

jax = pytest.importorskip("jax")
jnp, lax = jax.numpy, jax.lax

RELATIVE = 1e-12  # to the largest number of an array
PICTURES = ("NHWC", "HWIO", "NHWC")


jax.config.update("jax_disable_most_optimizations", True)  # compiling would take longer than it saves


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


# ------------------------------------------------------------------------------------------------ windows


def conv2d(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, relu=False):
    sides = opcheck.four_sides(x.shape[1:3], w.shape[:2], stride, padding, dilation)
    y = lax.conv_general_dilated(
        x, w, opcheck.pair(stride), sides, rhs_dilation=opcheck.pair(dilation), feature_group_count=groups,
        dimension_numbers=PICTURES,
    )  # fmt: skip
    y = y if b is None else y + b
    return jax.nn.relu(y) if relu else y


def conv_transpose2d(x, w, b=None, *, stride=1, padding=0, dilation=1, output_padding=0, groups=1):
    """A convolution of the pixels of x with gaps between them, and of the kernel turned round."""
    steps, apart = opcheck.pair(stride), opcheck.pair(dilation)
    large = [size * step for size, step in zip(x.shape[1:3], steps, strict=True)]
    sides = opcheck.four_sides(large, w.shape[:2], steps, padding, apart)
    reach = [(size - 1) * gap for size, gap in zip(w.shape[:2], apart, strict=True)]
    more = opcheck.pair(output_padding)
    if padding == "same":
        more = [max(0, step - size) for step, size in zip(steps, w.shape[:2], strict=True)]
    kh, kw, out, channels = w.shape  # out is that of one group
    turned = w[::-1, ::-1].reshape(kh, kw, out, groups, channels // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(kh, kw, channels // groups, groups * out)
    y = lax.conv_general_dilated(
        x, turned, (1, 1), [(size, size + extra) for size, extra in zip(reach, more, strict=True)],
        lhs_dilation=steps, rhs_dilation=apart, feature_group_count=groups, dimension_numbers=PICTURES,
    )  # fmt: skip
    (top, bottom), (left, right) = sides
    y = y[:, top : y.shape[1] - bottom, left : y.shape[2] - right]
    return y if b is None else y + b


def reduced(x, start, reduce, kernel, stride, sides, dilation):
    size, steps, apart = ((1, *opcheck.pair(one), 1) for one in (kernel, stride, dilation))
    around = [(0, 0), *sides, (0, 0)]
    return lax.reduce_window(x, start, reduce, size, steps, around, window_dilation=apart)


def max_pool2d(x, kernel, *, stride=None, padding=0, dilation=1):
    stride = kernel if stride is None else stride
    (kh, kw), (dh, dw), (sh, sw) = map(opcheck.pair, (kernel, dilation, stride))
    sides = opcheck.four_sides(x.shape[1:3], kernel, stride, padding, dilation)
    if (dh, dw) == (1, 1):
        return reduced(x, -jnp.inf, lax.max, kernel, stride, sides, 1)
    # JAX has no gradient of that with gaps.
    x = jnp.pad(x, [(0, 0), *sides, (0, 0)], constant_values=-jnp.inf)
    ends = x.shape[1] - (kh - 1) * dh, x.shape[2] - (kw - 1) * dw
    parts = [
        x[:, i * dh : i * dh + ends[0] : sh, j * dw : j * dw + ends[1] : sw]
        for i in range(kh) for j in range(kw)
    ]  # fmt: skip
    return jnp.max(jnp.stack(parts), axis=0)


def avg_pool2d(x, kernel, *, stride=None, padding=0, dilation=1, count_padding=False):
    stride = kernel if stride is None else stride
    sides = opcheck.four_sides(x.shape[1:3], kernel, stride, padding, dilation)
    sums = reduced(x, 0.0, lax.add, kernel, stride, sides, dilation)
    counted = jnp.ones_like(x)
    if count_padding and padding != "ceil":  # what "ceil" adds is no border
        counted, sides = jnp.pad(counted, [(0, 0), *sides, (0, 0)], constant_values=1.0), [(0, 0), (0, 0)]
    return sums / reduced(counted, 0.0, lax.add, kernel, stride, sides, dilation)


def pad(x, padding, *, mode="constant", value=0.0):
    options = {"constant_values": value} if mode == "constant" else {}
    sides = [opcheck.pair(side) for side in opcheck.pair(padding)]
    return jnp.pad(x, [(0, 0), *sides, (0, 0)], mode, **options)


def pad_channels(x, channels, *, stride=1, both=False):
    more = channels - x.shape[-1]
    before = more // 2 if both else 0
    return jnp.pad(x[:, ::stride, ::stride], [(0, 0)] * 3 + [(before, more - before)])


# --------------------------------------------------------------------------------- norms, losses and others


def batch_norm(
    x, gamma, beta, *, training, running_mean=None, running_var=None, eps=None, convention="keras", add=None,
    relu=False,
):  # fmt: skip
    axes = tuple(range(x.ndim - 1))
    eps = CONVENTIONS[convention]["eps"] if eps is None else eps
    mean, var = (jnp.mean(x, axes), jnp.var(x, axes)) if training else (running_mean, running_var)
    y = gamma * (x - mean) / jnp.sqrt(var + eps) + beta
    y = y if add is None else y + add
    return jax.nn.relu(y) if relu else y


def local_response_norm(x, size=5, *, k=2.0, alpha=1e-4, beta=0.75):
    half = size // 2
    squares = jnp.pad(x * x, [(0, 0)] * (x.ndim - 1) + [(half, half)])
    sums = sum(squares[..., i : i + x.shape[-1]] for i in range(size))
    return x / (k + alpha * sums) ** beta


def nll_loss(log_p, labels, *, weight=None, ignore_index=None, label_smoothing=0.0, reduction="mean"):
    labels, classes = np.asarray(labels), log_p.shape[-1]
    weight = np.ones(classes) if weight is None else np.asarray(weight, float)
    if labels.ndim == log_p.ndim:
        counts, target = np.ones(labels.shape[:-1]), labels.astype(float)
    else:
        counted = np.full(labels.shape, True) if ignore_index is None else labels != ignore_index
        labels = np.where(counted, labels, 0)
        target = np.eye(classes)[labels] * counted[..., None]
        counts = weight[labels] * counted
    rows = target.sum(-1, keepdims=True)  # 0 where the row is ignored
    target = (1 - label_smoothing) * target + label_smoothing * rows / classes
    loss = -(weight * target * log_p).sum(-1)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / (counts.sum() or 1.0)


def cross_entropy_of(logits, labels, **options):
    return nll_loss(jax.nn.log_softmax(logits), labels, **options)


def dropout(x, rate, *, rng, training=True):
    if not training or rate == 0:
        return x
    return x * ((rng.random(x.shape, dtype=np.float32) >= rate) / (1 - rate))


class Buffer:
    def __init__(self, first, room):
        self.latest = first

    def append(self, new):
        self.latest = jnp.concatenate([self.latest, new], -1)


def moment(function):
    return lambda x, axis=None, *, keepdims=False, correction=0: function(
        x, axis, ddof=correction, keepdims=keepdims
    )


def reduction(function):
    return lambda x, axis=None, *, keepdims=False: function(x, axis, keepdims=keepdims)


def indexed(x, index):
    parts = index if isinstance(index, tuple) else (index,)
    return x[tuple(np.asarray(part) if isinstance(part, list) else part for part in parts)]


def relu(x, *, add=None):
    return jax.nn.relu(x if add is None else x + add)


THEIRS = {
    "add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide, "neg": jnp.negative,
    "power": jnp.power, "pow": lambda x, exponent: x**exponent, "abs": jnp.abs, "exp": jnp.exp,
    "log": jnp.log, "sqrt": jnp.sqrt, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "maximum": jnp.maximum,
    "minimum": jnp.minimum, "clip": lambda x, low, high: jnp.clip(x, low, high),
    "where": lambda condition, a, b: jnp.where(np.asarray(condition), a, b),
    "relu": relu, "leaky_relu": lambda x, *, slope=0.01: jax.nn.leaky_relu(x, slope),
    "sum": reduction(jnp.sum), "mean": reduction(jnp.mean), "max": reduction(jnp.max),
    "min": reduction(jnp.min), "var": moment(jnp.var), "std": moment(jnp.std),
    "reshape": jnp.reshape, "flatten": lambda x: x.reshape(len(x), -1), "squeeze": jnp.squeeze,
    "expand_dims": jnp.expand_dims, "transpose": jnp.transpose, "broadcast_to": jnp.broadcast_to,
    "getitem": indexed, "stack": jnp.stack, "concat": lambda parts, axis=-1: jnp.concatenate(parts, axis),
    "dense_buffer": Buffer, "pad": pad, "pad_channels": pad_channels, "matmul": jnp.matmul,
    "linear": lambda x, w, b=None: x @ w if b is None else x @ w + b,
    "conv2d": conv2d, "conv_transpose2d": conv_transpose2d, "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "global_avg_pool2d": lambda x: jnp.mean(x, (1, 2)), "batch_norm": batch_norm,
    "local_response_norm": local_response_norm, "softmax": lambda x, axis=-1: jax.nn.softmax(x, axis),
    "log_softmax": lambda x, axis=-1: jax.nn.log_softmax(x, axis), "nll_loss": nll_loss,
    "cross_entropy": cross_entropy_of, "dropout": dropout,
    "recompute": lambda block, a, b: a * b,
}  # fmt: skip
CASES = cases.all_cases()


def call_of(case, arrays):
    """The call of a case, of JAX's function."""
    theirs = THEIRS[case.op]
    if case.op == "batch_norm":
        statistics = {} if case.options["training"] else running_statistics(Tensor(arrays["x"]))
        return lambda x, gamma, beta, add=None: theirs(x, gamma, beta, add=add, **statistics, **case.options)
    if case.call is None:
        return lambda *xs: theirs(*xs, **case.options)
    return lambda *xs: case.call(theirs, *xs, **case.options)


def test_every_operation_that_has_cases_has_a_row():
    assert THEIRS.keys() >= CASES.keys()
    assert len(CASES) >= 45 and sum(map(len, CASES.values())) >= 400


@pytest.mark.parametrize("op", CASES)
def test_outputs_and_gradients_equal_those_of_jax(op):
    arrays = [opcheck.arrays_of(case) for case in CASES[op]]
    ours = [opcheck.run(case, given) for case, given in zip(CASES[op], arrays, strict=True)]
    calls = [call_of(case, given) for case, given in zip(CASES[op], arrays, strict=True)]

    @jax.jit  # all cases at once: most of the time goes into compiling
    def theirs(inputs, upstreams):
        results = []
        for call, xs, dy in zip(calls, inputs, upstreams, strict=True):
            y, back = jax.vjp(call, *xs)
            results.append((y, *back(dy)))
        return results

    upstreams = [opcheck.upstream(Tensor(one["y"])) for one in ours]
    found = theirs([tuple(given.values()) for given in arrays], upstreams)
    for case, mine, (y, *gradients) in zip(CASES[op], ours, found, strict=True):
        assert y.dtype == np.float64
        named = {"y": np.asarray(y), **dict(zip(case.inputs, map(np.asarray, gradients), strict=True))}
        opcheck.assert_all_close(mine, named, RELATIVE, f"{case}, JAX")


# ------------------------------------------------------------------------------- a small residual network

FILTERS = (4, 4, 16)
MOMENTUM = 0.9


def network():
    """The blocks of ResNet-50, narrow, with the stem of the exercise."""
    rng, options = np.random.default_rng(0), {"norm": {"momentum": MOMENTUM, "eps": 1e-3}}
    return nn.Sequential(
        conv1=nn.Conv2d(3, 8, 7, stride=2, padding=3, rng=rng),
        bn_conv1=nn.BatchNorm2d(8, relu=True, momentum=MOMENTUM),
        pool1=nn.MaxPool2d(3, stride=2),
        res2a=convolutional_block(8, FILTERS, stage=2, block="a", stride=1, rng=rng, **options),
        res2b=identity_block(16, FILTERS, stage=2, block="b", rng=rng, **options),
        res3a=convolutional_block(16, FILTERS, stage=3, block="a", stride=2, rng=rng, **options),
        res3b=identity_block(16, FILTERS, stage=3, block="b", rng=rng, **options),
        avg_pool=nn.GlobalAvgPool2d(), fc=nn.Linear(16, 5, rng=rng),
    ).astype("float64")  # fmt: skip


def loss_of(parameters, x, labels):
    """The same network and its loss in JAX, and the statistics of its batches by the name of the norm."""
    seen = {}

    def layer(name):
        return parameters[f"{name}.weight"], parameters[f"{name}.bias"]

    def norm(name, x, relu=True, add=None):
        axes = (0, 1, 2)
        seen[name] = jnp.mean(x, axes), jnp.var(x, axes)
        gamma, beta = parameters[f"{name}.gamma"], parameters[f"{name}.beta"]
        return batch_norm(x, gamma, beta, training=True, eps=1e-3, relu=relu, add=add)

    def block(name, x, stride=None):
        branch, bn = f"{name}_branch", f"bn{name[3:]}_branch"
        y = norm(f"{bn}2a", conv2d(x, *layer(f"{branch}2a"), stride=stride or 1))
        y = norm(f"{bn}2b", conv2d(y, *layer(f"{branch}2b"), padding=1))
        y = conv2d(y, *layer(f"{branch}2c"))
        if stride:
            short = conv2d(x, *layer(f"{branch}1"), stride=stride)
            x = norm(f"{bn}1", short, relu=False)
        return norm(f"{bn}2c", y, add=x)

    x = norm("bn_conv1", conv2d(x, *layer("conv1"), stride=2, padding=3))
    x = max_pool2d(x, 3, stride=2)
    x = block("res2b", block("res2a", x, 1))
    x = block("res3b", block("res3a", x, 2))
    w, b = layer("fc")
    return cross_entropy_of(jnp.mean(x, (1, 2)) @ w + b, labels, label_smoothing=0.1), seen


def test_a_residual_network_has_the_loss_gradients_and_statistics_of_jax():
    model, rng = network(), np.random.default_rng(1)
    x, labels = rng.standard_normal((3, 33, 33, 3)), np.array([0, 4, 2])
    before = model.state_dict()
    parameters = {name: jnp.asarray(p.data) for name, p in model.named_parameters()}
    slope = jax.value_and_grad(functools.partial(loss_of, labels=labels), argnums=(0, 1), has_aux=True)
    (loss, seen), (gradients, dx) = jax.jit(slope)(parameters, jnp.asarray(x))
    pictures = Tensor(x, requires_grad=True)
    ours = cross_entropy(model(pictures), labels, label_smoothing=0.1)
    ours.backward()
    np.testing.assert_allclose(ours.item(), float(loss), rtol=1e-13)
    found = {"dx": pictures.grad, **{name: p.grad for name, p in model.named_parameters()}}
    largest = max(float(jnp.abs(one).max()) for one in gradients.values())
    for name, one in {"dx": dx, **gradients}.items():
        assert found[name].shape == one.shape
        # A bias in front of a batch norm has a gradient of 0, of which only rounding is left.
        scale = max(float(jnp.abs(one).max()), 1e-3 * largest)
        np.testing.assert_allclose(found[name], one, rtol=0, atol=1e-11 * scale, err_msg=name)
    assert len(seen) == 15
    state = model.state_dict()
    for name, statistics in seen.items():
        for part, new in zip(("running_mean", "running_var"), statistics, strict=True):
            path = f"{name}.{part}"
            expected = MOMENTUM * before[path] + (1 - MOMENTUM) * np.asarray(new)
            np.testing.assert_allclose(state[path], expected, rtol=1e-12, atol=1e-14, err_msg=path)
