"""Properties: operations on shapes, options and indices of all kinds, against plain code in float64.

Each operation is written once more in a few lines of NumPy. Its gradient is checked in a random direction h:
the derivative of the plain code along h is its imaginary part at x + i e h, over e (Squire and Trapp 1998),
right to the last digits, and sum(dy * derivative) must be sum(dx * h).

The examples are the same in every run. ``MINIRES_PROPERTIES=1000 pytest tests/ops/test_properties.py`` tries
a thousand new ones of each.
"""

import contextlib
import itertools
import math
import os

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires import Tensor, backend, ops
from minires.errors import ShapeError

pytest.importorskip("hypothesis")
from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as of_numpy  # noqa: E402

EXAMPLES = int(os.environ.get("MINIRES_PROPERTIES", "0"))
settings.register_profile(
    "minires", max_examples=EXAMPLES or 30, derandomize=not EXAMPLES, database=None, deadline=None
)
settings.load_profile("minires")

WAYS = ["fast", "reference", pytest.param("kernels", marks=pytest.mark.emulated)]
in_all_ways = pytest.mark.parametrize("way", WAYS)
SEEDS = st.integers(0, 2**32 - 1)


@contextlib.contextmanager
def implementation(way):
    """The kernels for the CPU, the reference implementation, or the kernels for a GPU on the CPU."""
    with pytest.MonkeyPatch.context() as patch, backend.reference(way == "reference"):
        if way == "kernels":
            if cuda_emulator.compiler() is None:
                pytest.skip("there is no g++ here")
            cuda_emulator.emulate(patch)
        yield


def check(way, op, plain, *arrays, seed=0, close=1e-9):
    """``op`` of tensors is ``plain`` of arrays, forward and back."""
    rng, small = np.random.default_rng(seed), 1e-30
    expected = np.asarray(plain(*arrays))
    with implementation(way):
        leaves = [Tensor(array, requires_grad=True) for array in arrays]
        y = op(*leaves)
        assert y.shape == expected.shape and y.dtype == np.float64
        opcheck.assert_close(y.data, expected, close, "y")
        dy = rng.standard_normal(y.shape)
        y.backward(dy)
    for i, leaf in enumerate(leaves):
        assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == np.float64
        h = rng.standard_normal(leaf.shape)
        moved = [array + small * 1j * h if i == j else array for j, array in enumerate(arrays)]
        terms = dy * np.imag(plain(*moved)) / small
        scale = np.abs(terms).sum() + np.abs(leaf.grad * h).sum() + 1
        assert abs(terms.sum() - (leaf.grad * h).sum()) < close * scale, f"gradient of input {i}"


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# --------------------------------------------------------------------------- convolutions and their windows

PADDINGS = st.one_of(
    st.integers(0, 3),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    st.sampled_from(["same", "same_lower", "ceil"]),
)


def pairs(least, most):
    return st.one_of(st.integers(least, most), st.tuples(*[st.integers(least, most)] * 2))


@st.composite
def windows(draw, words=True):
    """Options of a window, and the size of a picture that it fits on: (options, (H, W), sides, (OH, OW))."""
    kernel, stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 4)), draw(pairs(1, 3))
    picture = draw(st.tuples(st.integers(1, 9), st.integers(1, 12)))
    padding = draw(PADDINGS if words else PADDINGS.filter(lambda padding: not isinstance(padding, str)))
    sides = opcheck.four_sides(picture, kernel, stride, padding, dilation)
    of_axis = zip(picture, sides, *map(opcheck.pair, (kernel, stride, dilation)), strict=True)
    out = [(size + sum(side) - (k - 1) * apart - 1) // step + 1 for size, side, k, step, apart in of_axis]
    assume(min(out) > 0)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return opcheck.pair(kernel), options, picture, sides, out


def under(x, kernel, options, sides, out):
    """For each pixel of the window (kh, kw) what lies under it at all places, (N, OH, OW, C): views."""
    (sh, sw), (dh, dw) = opcheck.pair(options["stride"]), opcheck.pair(options["dilation"])
    for i, j in itertools.product(*map(range, kernel)):
        yield (i, j), x[:, i * dh :, j * dw :][:, : (out[0] - 1) * sh + 1 : sh, : (out[1] - 1) * sw + 1 : sw]


def bordered(x, sides, value=0.0):
    return np.pad(x, [(0, 0), *sides, (0, 0)], constant_values=value)


@in_all_ways
@given(windows(), st.integers(0, 3), st.integers(1, 3), *[st.sampled_from([1, 2, 3, 8, 16])] * 2, SEEDS)
def test_convolution(way, window, n, groups, depth, outputs, seed):
    kernel, options, picture, sides, out = window
    joined = [slice(g * depth, (g + 1) * depth) for g in range(groups)]
    made = [slice(g * outputs, (g + 1) * outputs) for g in range(groups)]

    def plain(x, w, b):
        y = np.zeros((n, *out, groups * outputs), np.result_type(x, w, b)) + b
        for (i, j), pixel in under(bordered(x, sides), kernel, options, sides, out):
            for of_x, of_y in zip(joined, made, strict=True):
                y[..., of_y] += pixel[..., of_x] @ w[i, j, :, of_y]
        return y

    arrays = (
        normal(seed, n, *picture, groups * depth), normal(seed + 1, *kernel, depth, groups * outputs),
        normal(seed + 2, groups * outputs),
    )  # fmt: skip
    check(way, lambda x, w, b: ops.conv2d(x, w, b, groups=groups, **options), plain, *arrays, seed=seed)


@in_all_ways
@given(
    windows(words=False),
    st.integers(0, 2),
    st.integers(1, 3),
    *[st.sampled_from([1, 3, 8])] * 2,
    SEEDS,
    st.data(),
)
def test_transposed_convolution(way, window, n, groups, depth, outputs, seed, data):
    kernel, options, picture, _, _ = window
    strides, apart = opcheck.pair(options["stride"]), opcheck.pair(options["dilation"])
    more = tuple(data.draw(st.integers(0, stride - 1)) for stride in strides)
    sides = opcheck.four_sides(picture, kernel, options["stride"], options["padding"])
    parts = zip(picture, strides, kernel, apart, more, strict=True)
    whole = [(size - 1) * stride + (k - 1) * gap + 1 + extra for size, stride, k, gap, extra in parts]
    size = [side - sum(removed) for side, removed in zip(whole, sides, strict=True)]
    assume(min(size) > 0)

    def plain(x, w, b):
        y = np.zeros((n, *whole, groups * outputs), np.result_type(x, w, b))
        for (i, j), place in under(y, kernel, options, sides, picture):
            for g in range(groups):
                of_x = slice(g * depth, (g + 1) * depth)
                place[..., g * outputs : (g + 1) * outputs] += x[..., of_x] @ w[i, j, :, of_x].T
        (top, _), (left, _) = sides
        return y[:, top : top + size[0], left : left + size[1]] + b

    arrays = (
        normal(seed, n, *picture, groups * depth), normal(seed + 1, *kernel, outputs, groups * depth),
        normal(seed + 2, groups * outputs),
    )  # fmt: skip
    check(
        way, lambda x, w, b: ops.conv_transpose2d(x, w, b, groups=groups, output_padding=more, **options),
        plain, *arrays, seed=seed,
    )  # fmt: skip


def sees_nothing(window):
    """Whether some window lies in the border alone, which pools refuse."""
    kernel, options, picture, sides, out = window
    ones = bordered(np.ones((1, *picture, 1)), sides)
    return (sum(pixel for _, pixel in under(ones, kernel, options, sides, out)) == 0).any()


@in_all_ways
@given(windows(), st.integers(0, 2), st.integers(1, 5), st.booleans(), SEEDS)
def test_average_pool(way, window, n, channels, counted, seed):
    kernel, options, picture, sides, out = window
    options["count_padding"] = counted
    x = normal(seed, n, *picture, channels)
    if sees_nothing(window):
        with implementation(way), pytest.raises(ShapeError, match="avg_pool2d: "):
            ops.avg_pool2d(Tensor(x), kernel, **options)
        return

    def summed(x):
        return sum(pixel for _, pixel in under(bordered(x, sides), kernel, options, sides, out))

    count = (
        math.prod(kernel) if counted and options["padding"] != "ceil" else summed(np.ones((1, *picture, 1)))
    )
    check(way, lambda x: ops.avg_pool2d(x, kernel, **options), lambda x: summed(x) / count, x, seed=seed)
    check(way, ops.global_avg_pool2d, lambda x: x.mean(axis=(1, 2)), x, seed=seed)


def chosen(pixels, best):
    """Of arrays the elements where ``best`` (np.argmax or np.argmin) finds the real part."""
    pixels = np.stack(pixels)
    return np.take_along_axis(pixels, best(pixels.real, axis=0)[None], axis=0)[0]


@in_all_ways
@given(windows(), st.integers(0, 2), st.integers(1, 5), SEEDS)
def test_max_pool(way, window, n, channels, seed):
    kernel, options, picture, sides, out = window
    x = normal(seed, n, *picture, channels) - 3
    if sees_nothing(window):
        with implementation(way), pytest.raises(ShapeError, match="max_pool2d: "):
            ops.max_pool2d(Tensor(x), kernel, **options)
        return

    def plain(x):
        pixels = under(bordered(x, sides, -np.inf), kernel, options, sides, out)
        return chosen([pixel for _, pixel in pixels], np.argmax)

    check(way, lambda x: ops.max_pool2d(x, kernel, **options), plain, x, seed=seed)


@in_all_ways
@given(of_numpy.array_shapes(min_dims=2, max_dims=4, max_side=6), *[st.booleans()] * 3, SEEDS)
def test_batch_norm(way, shape, training, relu, added, seed):
    assume(not training or math.prod(shape[:-1]) > 2)  # of two values xhat is 1 and -1, whatever they are
    c, batch = shape[-1], tuple(range(len(shape) - 1))
    mean, var = normal(seed + 4, c), normal(seed + 5, c) ** 2 + 0.1

    def plain(x, gamma, beta, add):
        m = x.mean(axis=batch) if training else mean
        v = ((x - m) ** 2).mean(axis=batch) if training else var
        y = gamma * (x - m) / np.sqrt(v + 1e-2) + beta + (add if added else 0 * add)
        return np.where(y.real > 0, y, 0) if relu else y

    def op(x, gamma, beta, add):
        running = {"running_mean": mean.copy(), "running_var": var.copy()}
        y = ops.batch_norm(
            x, gamma, beta, training=training, eps=1e-2, momentum=0.75, relu=relu, add=add if added else None,
            **running,
        )  # fmt: skip
        share = 0.25 if training else 0
        for now, before, new in zip(
            running.values(), (mean, var), (x.data.mean(axis=batch), x.data.var(axis=batch)), strict=True
        ):
            np.testing.assert_allclose(now, before + share * (new - before), rtol=1e-10, atol=1e-12)
        return y if added else ops.add(y, ops.mul(add, 0.0))

    arrays = normal(seed, *shape) + 5, normal(seed + 1, c), normal(seed + 2, c), normal(seed + 3, *shape)
    check(way, op, plain, *arrays, seed=seed, close=1e-8)


# ------------------------------------------------------------------------------------- sums and elements

SHAPES = of_numpy.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=5)
SOME = of_numpy.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
AND_EMPTY = of_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def extreme(best):
    """np.max or np.min, of numbers with a derivative."""

    def plain(x, axis, keepdims):
        axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
        axes = sorted(one % x.ndim for one in axes)
        kept = [one for one in range(x.ndim) if one not in axes]
        y = chosen(list(x.transpose([*axes, *kept]).reshape(-1, *[x.shape[one] for one in kept])), best)
        return y.reshape([1 if i in axes else size for i, size in enumerate(x.shape)]) if keepdims else y

    return plain


REDUCTIONS = {
    "sum": np.sum, "mean": np.mean, "max": extreme(np.argmax), "min": extreme(np.argmin),
    "var": lambda x, axis, keepdims: ((x - x.mean(axis, keepdims=True)) ** 2).mean(axis, keepdims=keepdims),
}  # fmt: skip


@in_all_ways
@given(st.sampled_from(sorted(REDUCTIONS)), SHAPES, st.booleans(), SEEDS, st.data())
def test_reductions(way, name, shape, keepdims, seed, data):
    several = st.sets(st.integers(0, len(shape) - 1)).map(tuple) if shape else st.just(())
    one = st.integers(-len(shape), len(shape) - 1) if shape else st.none()
    axis, plain = data.draw(st.one_of(st.none(), one, several)), REDUCTIONS[name]
    order = data.draw(st.permutations(range(len(shape))))  # any layout of memory
    x = normal(seed, *shape).transpose(order)
    options = {"axis": axis, "keepdims": keepdims}
    check(way, lambda x: getattr(ops, name)(x, **options), lambda x: plain(x, **options), x, seed=seed)


@in_all_ways
@given(of_numpy.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=4), SEEDS)
def test_arithmetic_of_all_pairs_of_shapes(way, shapes, seed):
    a, b = (normal(seed + i, *shape) for i, shape in enumerate(shapes.input_shapes))
    b = b + np.where(b < 0, -1, 1)  # far from 0, as a divisor
    for op, plain in [
        (ops.add, lambda a, b: a + b),
        (ops.sub, lambda a, b: a - b),
        (ops.mul, lambda a, b: a * b),
        (ops.div, lambda a, b: a / b),
        (ops.maximum, lambda a, b: np.where(np.real(a) > np.real(b), a, b)),
        (ops.minimum, lambda a, b: np.where(np.real(a) < np.real(b), a, b)),
        (lambda a, b: ops.where(a.data > 0, a, b), lambda a, b: np.where(np.real(a) > 0, a, b)),
        (lambda a, b: ops.pow(ops.exp(a), b), lambda a, b: np.exp(a) ** b),
    ]:
        check(way, op, plain, a, b, seed=seed, close=1e-8)


@in_all_ways
@given(SHAPES.map(lambda shape: shape[:2]), *[st.integers(0, 5)] * 3, st.data(), SEEDS)
def test_matrix_products_of_stacks(way, stack, rows, inner, columns, data, seed):
    shapes = data.draw(of_numpy.mutually_broadcastable_shapes(num_shapes=2, base_shape=stack, max_dims=2))
    first, second = shapes.input_shapes
    a, b = normal(seed, *first, rows, inner), normal(seed + 1, *second, inner, columns)
    check(way, ops.matmul, lambda a, b: a @ b, a, b, seed=seed)


@in_all_ways
@given(SOME, st.data(), SEEDS)
def test_softmax_along_any_axis(way, shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = 5 * normal(seed, *shape)

    def plain(x):
        e = np.exp(x)
        return e / e.sum(axis=axis, keepdims=True)

    check(way, lambda x: ops.softmax(x, axis), plain, x, seed=seed)
    check(way, lambda x: ops.log_softmax(x, axis), lambda x: np.log(plain(x)), x, seed=seed)


@in_all_ways
@given(
    SHAPES.filter(len),
    st.integers(1, 5),
    st.floats(0, 0.9),
    *[st.booleans()] * 2,
    st.sampled_from(["mean", "sum", "none"]),
    SEEDS,
)
def test_cross_entropy(way, rows, classes, smoothing, weighted, ignoring, reduction, seed):
    rng = np.random.default_rng(seed)
    labels, x = rng.integers(0, classes, rows), 5 * normal(seed, *rows, classes)
    weight = rng.uniform(0.5, 2, classes) if weighted else np.ones(classes)
    kept = labels != 0 if ignoring else np.ones(rows, bool)
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes

    def plain(x):
        log_p = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
        losses = -(weight * target * log_p).sum(axis=-1) * kept
        count = (weight[labels] * kept).sum() or 1
        return losses if reduction == "none" else losses.sum() / (count if reduction == "mean" else 1)

    options = {"label_smoothing": smoothing, "reduction": reduction}
    options |= {"weight": weight} if weighted else {}
    options |= {"ignore_index": 0} if ignoring else {}
    check(way, lambda x: ops.cross_entropy(x, labels, **options), plain, x, seed=seed)


# ------------------------------------------------------------------------------------ numbers that only move


@st.composite
def keys(draw, shape):
    """A key for NumPy's indexing: what is basic, arrays of places, masks, and mixtures of them."""
    kind = draw(st.sampled_from(["basic", "places", "mask", "mixture"]))
    if kind == "basic":
        return draw(of_numpy.basic_indices(shape, allow_newaxis=True, max_dims=6))
    if kind == "places" and shape and min(shape) > 0:
        result = of_numpy.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4)
        return draw(of_numpy.integer_array_indices(shape, result_shape=result))
    if kind == "mask":
        axes = draw(st.integers(0, len(shape)))
        return draw(of_numpy.arrays(bool, shape[:axes]))
    parts = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        part = [st.slices(size)]
        if size:
            part += [
                st.integers(-size, size - 1),
                st.lists(st.integers(-size, size - 1), min_size=2, max_size=2),
            ]
        parts.append(draw(st.one_of(*part)))
        if draw(st.integers(0, 5)) == 0:
            parts.append(None)
    if draw(st.booleans()):
        parts.append(...)
    return tuple(parts)


@in_all_ways
@given(AND_EMPTY, st.data(), SEEDS)
def test_indexing_with_all_kinds_of_keys(way, shape, data, seed):
    key, x = data.draw(keys(shape)), normal(seed, *shape)
    check(way, lambda x: x[key], lambda x: x[key], x, seed=seed)


@in_all_ways
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), AND_EMPTY.filter(len), st.data(), SEEDS)
def test_joining_along_any_axis(way, sizes, shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for i, size in enumerate(sizes):
        whole = list(shape)
        whole[axis] = size
        parts.append(normal(seed + i, *whole))
    check(
        way,
        lambda *xs: ops.concat(list(xs), axis=axis),
        lambda *xs: np.concatenate(xs, axis),
        *parts,
        seed=seed,
    )
    same = [normal(seed + i, *shape) for i in range(len(sizes))]
    check(way, lambda *xs: ops.stack(list(xs), axis=axis), lambda *xs: np.stack(xs, axis), *same, seed=seed)


@in_all_ways
@given(
    st.tuples(*[st.integers(0, 4)] * 4), PADDINGS.filter(lambda padding: not isinstance(padding, str)),
    st.sampled_from(["constant", "edge", "reflect", "wrap"]), st.floats(-2, 2), SEEDS,
)  # fmt: skip
def test_borders(way, shape, padding, mode, value, seed):
    sides = opcheck.four_sides(shape[1:3], 1, 1, padding)
    options = {"value": value} if mode == "constant" else {}
    x = normal(seed, *shape)
    most = {
        "constant": 9,
        "edge": 9 * min(shape[1:3]),
        "reflect": min(shape[1:3]) - 1,
        "wrap": min(shape[1:3]),
    }
    assume(max(max(side) for side in sides) <= most[mode])
    of_numpys = {"constant_values": value} if mode == "constant" else {}
    check(
        way, lambda x: ops.pad(x, padding, mode=mode, **options),
        lambda x: np.pad(x, [(0, 0), *sides, (0, 0)], mode, **of_numpys), x, seed=seed,
    )  # fmt: skip


@in_all_ways
@given(AND_EMPTY, st.data(), SEEDS)
def test_reshaping_and_stretching(way, shape, data, seed):
    x, axes = normal(seed, *shape), len(shape)
    order = data.draw(st.permutations(range(axes)))
    check(way, lambda x: ops.transpose(x, order), lambda x: x.transpose(order), x, seed=seed)
    sizes = data.draw(st.permutations([*shape, 1]))
    for target in (sizes, [*sizes[:-1], -1] if 0 not in sizes[:-1] else sizes, [x.size]):
        check(way, lambda x, t=target: ops.reshape(x, t), lambda x, t=target: x.reshape(t), x, seed=seed)
    wider = data.draw(of_numpy.broadcastable_shapes(shape, min_dims=axes, max_dims=axes + 2, min_side=0))
    assume(len(wider) >= axes and np.broadcast_shapes(shape, wider) == wider)
    check(way, lambda x: ops.broadcast_to(x, wider), lambda x: np.broadcast_to(x, wider), x, seed=seed)


@in_all_ways
@given(AND_EMPTY.filter(len), st.lists(st.integers(1, 3), min_size=1, max_size=5), st.data(), SEEDS)
def test_copies(way, shape, counts, data, seed):
    axis, x = data.draw(st.integers(-len(shape), len(shape) - 1)), normal(seed, *shape)
    count = counts[0]
    check(way, lambda x: ops.repeat(x, count, axis), lambda x: np.repeat(x, count, axis), x, seed=seed)
    check(way, lambda x: ops.tile(x, counts), lambda x: np.tile(x, counts), x, seed=seed)
    check(way, lambda x: ops.expand_dims(x, axis), lambda x: np.expand_dims(x, axis), x, seed=seed)
    check(way, ops.squeeze, np.squeeze, x, seed=seed)


@in_all_ways
@given(st.tuples(*[st.integers(0, 5)] * 4), st.integers(0, 5), st.integers(1, 3), st.booleans(), SEEDS)
def test_channels_of_zeros(way, shape, more, stride, both, seed):
    assume(shape[-1] + more > 0)
    x, before = normal(seed, *shape), more // 2 if both else 0
    check(
        way, lambda x: ops.pad_channels(x, shape[-1] + more, stride=stride, both=both),
        lambda x: np.pad(x[:, ::stride, ::stride], [(0, 0)] * 3 + [(before, more - before)]), x, seed=seed,
    )  # fmt: skip
