"""ONNX's operators, written with operations of minires: the table OPERATORS.

Each is called with the inputs of a node, floats as tensors and the rest as arrays of NumPy, and with its
attributes as keywords. It gives a tensor, or a tuple of at least as many as the node has outputs.

Pictures are turned from channels first to channels last at the border, and back.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires import Tensor, ops

Result = Any


def clip(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    x = x if low is None else ops.maximum(x, low)
    return x if high is None else ops.minimum(x, high)


def softplus(x: Tensor) -> Tensor:
    return ops.maximum(x, 0) + ops.log(1 + ops.exp(-abs(x)))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return ops.where(x > 0, x, alpha * (ops.exp(x) - 1))


def in_float32(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator of several steps whose result alone is rounded to bfloat16."""

    def whole(x: Tensor, **options: Any) -> Tensor:
        wide = ops.astype(x, "float64" if x.dtype == np.float64 else "float32")
        return ops.astype(operator(wide, **options), x.dtype.name)

    return whole


def selu(x: Tensor, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875):
    return gamma * elu(x, alpha)


def hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return ops.clip(alpha * x + beta, 0, 1)


def prelu(x: Tensor, slope: Any) -> Tensor:
    return ops.where(x > 0, x, slope * x)


def lacking(name: str) -> Callable[..., Tensor]:
    """An operation that minires has not. Its tests fail until it has one of this name."""
    return lambda *xs, **options: getattr(ops, name)(*xs, **options)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        return x * (1 + lacking("erf")(x * 0.5**0.5)) / 2
    return x * (1 + ops.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def shrink(x: Tensor, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    return ops.where(x < -lambd, x + bias, ops.where(x > lambd, x - bias, 0))


def is_inf(x: Tensor, detect_positive: int = 1, detect_negative: int = 1) -> Result:
    return ((x == np.inf) & bool(detect_positive)) | ((x == -np.inf) & bool(detect_negative))


def power(x: Tensor, y: Any) -> Tensor:
    return x ** (y if isinstance(y, Tensor) else y.astype(x.dtype))


# Reductions


def reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A reduction over the axes that an input names; none named means all, or, if so asked, none."""

    def operator(x: Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        every = not noop_with_empty_axes and (axes is None or len(axes) == 0)
        return reduce(x, None if every else tuple(axes.tolist()), keepdims=bool(keepdims))

    return operator


def prod(x: Tensor, axis: Any, *, keepdims: bool) -> Tensor:
    reduced = range(x.ndim) if axis is None else [a % x.ndim for a in axis]
    kept = [a for a in range(x.ndim) if a not in reduced]
    rows = ops.transpose(x, (*reduced, *kept)).reshape(
        math.prod(x.shape[a] for a in reduced), *[x.shape[a] for a in kept]
    )
    y = functools.reduce(ops.mul, rows, Tensor(np.ones(rows.shape[1:], x.dtype)))
    return y.reshape([1 if a in reduced else x.shape[a] for a in range(x.ndim)]) if keepdims else y


def flip(x: Tensor, axis: int) -> Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (slice(None, None, -1),)]


def argmax(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Result:
    at = ops.argmax(flip(x, axis) if select_last_index else x, axis, keepdims=bool(keepdims))
    return x.shape[axis] - 1 - at if select_last_index else at


def cumulative(combine: Callable[..., Tensor], first: float) -> Callable[..., Tensor]:
    """Sums or products of the numbers up to each place."""

    def operator(x: Tensor, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
        parts = ops.split(flip(x, int(axis)) if reverse else x, x.shape[axis], axis=int(axis))
        totals = list(itertools.accumulate([0 * parts[0] + first, *parts], combine))
        y = ops.concat(totals[:-1] if exclusive else totals[1:], axis=int(axis))
        return flip(y, int(axis)) if reverse else y

    return operator


# Shapes and places


def slices(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    parts = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        parts[i if axes is None else axes[i]] = slice(start, end, None if steps is None else int(steps[i]))
    return x[tuple(parts)]


def split(x: Tensor, sizes: Any = None, *, axis: int = 0, num_outputs: int = 0, outputs: int) -> Result:
    size = x.shape[axis]
    if sizes is None:  # equal ones, of which the last may be smaller
        sizes = [-(-size // outputs)] * outputs
    return tuple(ops.split(x, [min(edge, size) for edge in itertools.accumulate(sizes[:-1])], axis=axis))


def reshape(x: Tensor, shape: Any, allowzero: int = 0) -> Tensor:
    kept = [size if size or allowzero else x.shape[i] for i, size in enumerate(shape.tolist())]
    return x.reshape(kept)


def flatten(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[: axis % x.ndim if axis < 0 else axis]), -1)


def squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return ops.squeeze(x, None if axes is None else tuple(axes.tolist()))


def pad(x: Tensor, pads: Any, value: Tensor | None = None, axes: Any = None, *, mode: str = "constant"):
    """Numbers around ``x``, in front of and behind each of some axes; so many less where negative."""
    axes = range(x.ndim) if axes is None else [int(axis) for axis in axes]
    number = 0.0 if value is None else float(value.data)
    for axis, before, after in zip(axes, *np.split(np.asarray(pads), 2), strict=True):
        sides = [max(0, int(n)) for n in (before, after)]
        shapes = [(*x.shape[: axis % x.ndim], n, *x.shape[axis % x.ndim + 1 :]) for n in sides]
        first, last = (Tensor(np.full(shape, number, x.dtype)) for shape in shapes)
        cut = slice(max(0, -int(before)), x.shape[axis] - max(0, -int(after)))
        x = ops.concat([first, x[(slice(None),) * (axis % x.ndim) + (cut,)], last], axis=axis)
    return x


def center_crop_pad(x: Tensor, shape: Any, axes: Any = None) -> Tensor:
    axes = list(range(x.ndim)) if axes is None else axes
    missing = [int(size) - x.shape[axis] for size, axis in zip(shape, axes, strict=True)]
    before = [m // 2 if m > 0 else -(-m // 2) for m in missing]
    return pad(x, [*before, *(m - b for m, b in zip(missing, before, strict=True))], axes=axes)


def gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    return x[(slice(None),) * axis + (indices,)]


def gather_elements(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    return x[tuple(indices if i == axis else grid for i, grid in enumerate(np.indices(indices.shape)))]


def scatter_nd(x: Tensor, indices: Any, updates: Tensor, *, reduction: str = "none") -> Tensor:
    combine = {
        "none": lambda old, new: new, "add": ops.add, "mul": ops.mul, "max": ops.maximum, "min": ops.minimum
    }  # fmt: skip
    for place in np.ndindex(indices.shape[:-1]):
        chosen = np.zeros(x.shape, bool)
        chosen[tuple(indices[place])] = True
        x = ops.where(chosen, combine[reduction](x, updates[place]), x)
    return x


def scatter_elements(x: Tensor, indices: Any, updates: Tensor, *, axis: int = 0, reduction: str = "none"):
    places = [indices if i == axis else grid for i, grid in enumerate(np.indices(indices.shape))]
    return scatter_nd(x, np.stack(places, -1), updates, reduction=reduction)


def compress(x: Tensor, condition: Any, *, axis: int | None = None) -> Tensor:
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis % x.ndim)
    return x[(slice(None),) * axis + (np.flatnonzero(condition),)]


def depth_to_space(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    parts = (n, b, b, c // b**2, h, w) if mode == "DCR" else (n, c // b**2, b, b, h, w)
    order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    return x.reshape(parts).transpose(order).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).transpose(order).reshape(n, c * b**2, h // b, w // b)


# Products


def gemm(a: Tensor, b: Tensor, c: Any = None, *, alpha=1.0, beta=1.0, transA=0, transB=0) -> Tensor:
    y = alpha * ((a.transpose() if transA else a) @ (b.transpose() if transB else b))
    return y if c is None else y + beta * c


def einsum(*xs: Tensor, equation: str) -> Tensor:
    """All letters as axes of one product, which is summed over those that the result has not."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "->" not in equation:
        right = "".join(sorted(letter for letter in left if left.count(letter) == 1 and letter != ","))
    terms, right = [term.replace("...", "*") for term in terms], right.replace("...", "*")
    letters = sorted(set("".join(terms)))
    spread = []
    for x, term in zip(xs, terms, strict=True):
        for letter in sorted(set(term)):
            while term.count(letter) > 1:  # the diagonal of two axes
                first, second = [i for i, other in enumerate(term) if other == letter][:2]
                x = x.transpose([first, second, *(i for i in range(x.ndim) if i not in (first, second))])
                x = x[np.arange(len(x)), np.arange(len(x))]
                term = letter + "".join(o for i, o in enumerate(term) if i not in (first, second))
        order = sorted(range(len(term)), key=lambda i, term=term: term[i])
        sizes = {letter: x.shape[i] for i, letter in enumerate(term)}
        spread.append(x.transpose(order).reshape([sizes.get(letter, 1) for letter in letters]))
    product = functools.reduce(ops.mul, spread)
    y = ops.sum(product, tuple(i for i, letter in enumerate(letters) if letter not in right))
    kept = [letter for letter in letters if letter in right]
    return y.transpose([kept.index(letter) for letter in right])


# Pictures: (N, C, ...) there, (N, ..., C) here


def channels_last(x: Tensor) -> Tensor:
    return x.transpose([0, *range(2, x.ndim), 1])


def channels_first(x: Tensor) -> Tensor:
    return x.transpose([0, x.ndim - 1, *range(1, x.ndim - 1)])


class Windows:
    """The window of a pool or a convolution, axis by axis."""

    def __init__(
        self, sizes: Sequence[int], kernel: Sequence[int], *, strides: Any = None, pads: Any = None,
        dilations: Any = None, auto_pad: str = "NOTSET", ceil_mode: int = 0,
    ) -> None:  # fmt: skip
        count = len(sizes)
        self.kernel, self.stride = list(kernel), strides or [1] * count
        self.dilation, pads = dilations or [1] * count, pads or [0] * 2 * count
        self.before, self.after = pads[:count], pads[count:]
        self.word = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}.get(auto_pad)
        if ceil_mode and not any(pads):
            self.word = "ceil"
        elif ceil_mode:
            self.after = [after + self._overhang(i, sizes[i]) for i, after in enumerate(self.after)]

    def _overhang(self, i: int, size: int) -> int:
        """How far the last window of axis ``i`` reaches out, if it starts on the picture or before it."""
        places, left = self.places(i, size)
        if not left or places * self.stride[i] >= size + self.before[i]:
            return 0
        return self.stride[i] - left

    def places(self, i: int, size: int) -> tuple[int, int]:
        """At how many places of axis ``i`` a window stands, and how many pixels are left behind the last."""
        extent = (self.kernel[i] - 1) * self.dilation[i] + 1
        steps, left = divmod(size + self.before[i] + self.after[i] - extent, self.stride[i])
        return steps + 1, left

    @staticmethod
    def pick(values: Sequence[int], none: int, axes: Sequence[int | None]) -> tuple[int, ...]:
        return tuple(none if i is None else values[i] for i in axes)

    def options(self, *axes: int | None) -> dict[str, Any]:
        """What an operation of minires is given, for two axes; None is one along which nothing is done."""
        sides = zip(self.pick(self.before, 0, axes), self.pick(self.after, 0, axes), strict=True)
        options = {"stride": self.pick(self.stride, 1, axes), "padding": self.word or tuple(sides)}
        dilation = self.pick(self.dilation, 1, axes)
        return {**options, "dilation": dilation} if dilation != (1, 1) else options


def pool(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A pool over one, two or three axes. Over three it is one over the last two and one over the first of
    what that gives: the maximum of maxima, the mean of means of equally many numbers."""

    def operator(
        x: Tensor, *, kernel_shape: Any, strides: Any = None, pads: Any = None, dilations: Any = None,
        auto_pad: str = "NOTSET", ceil_mode: int = 0, storage_order: int = 0, **options: Any,
    ) -> Tensor:  # fmt: skip
        x = channels_last(x)
        n, *sizes, c = x.shape
        windows = Windows(
            sizes, kernel_shape, strides=strides, pads=pads, dilations=dilations, auto_pad=auto_pad,
            ceil_mode=ceil_mode,
        )  # fmt: skip

        def apply(picture: Tensor, *axes: int | None) -> Tensor:
            kernel = tuple(1 if i is None else kernel_shape[i] for i in axes)
            return operation(picture, kernel, **windows.options(*axes), **options)

        if len(sizes) == 1:
            x = apply(x.reshape(n, *sizes, 1, c), 0, None)
            x = x.reshape(n, x.shape[1], c)
        elif len(sizes) == 2:
            x = apply(x, 0, 1)
        else:
            depth = sizes[0]
            x = apply(x.reshape(n * depth, *sizes[1:], c), 1, 2)
            _, h, w, _ = x.shape
            x = apply(x.reshape(n, depth, h * w, c), 0, None)
            x = x.reshape(n, x.shape[1], h, w, c)
        return channels_first(x)

    return operator


def average_pool(x: Tensor, count_include_pad: int = 0, **attributes: Any) -> Tensor:
    return pool(ops.avg_pool2d)(x, count_padding=bool(count_include_pad), **attributes)


def lp_pool(x: Tensor, p: int = 2, *, kernel_shape: Any, **attributes: Any) -> Tensor:
    mean = average_pool(abs(x) ** p, 1, kernel_shape=kernel_shape, **attributes)
    return (mean * math.prod(kernel_shape)) ** (1 / p)


def global_pool(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: reduce(x, tuple(range(2, x.ndim)), keepdims=True)


def max_unpool(x: Tensor, indices: Any, shape: Any = None, *, kernel_shape: Any, strides: Any) -> Tensor:
    """Each maximum back at its place; ``indices`` count in the smallest picture that gives ``x``."""
    sizes = zip(x.shape[2:], strides, kernel_shape, strict=True)
    smallest = (*x.shape[:2], *((n - 1) * s + k for n, s, k in sizes))
    whole = Tensor(np.zeros(smallest if shape is None else shape, x.dtype))
    places = np.stack(np.unravel_index(indices, smallest), -1)
    return scatter_nd(whole, places, x)


def conv(x: Tensor, w: Tensor, b: Any = None, *, kernel_shape: Any = None, group: int = 1, **window: Any):
    options = Windows(x.shape[2:], w.shape[2:], **window).options(0, 1)
    return channels_first(ops.conv2d(channels_last(x), w.transpose(2, 3, 1, 0), b, groups=group, **options))


def conv_transpose(
    x: Tensor, w: Tensor, b: Any = None, *, kernel_shape: Any = None, strides: Any = None, pads: Any = None,
    dilations: Any = None, output_padding: Any = None, output_shape: Any = None, auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:  # fmt: skip
    """Pictures with one axis get a height of one."""
    n, c, *sizes = x.shape
    kernel, count = w.shape[2:], len(sizes)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    pads, more = pads or [0] * 2 * count, list(output_padding or [0] * count)
    if output_shape is not None:
        for i, size in enumerate(sizes):
            whole = (size - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + more[i]
            less = max(0, whole - output_shape[i])
            pads[i], pads[count + i] = less // 2, -(-less // 2)
            more[i] += max(0, output_shape[i] - whole)
    windows = Windows(sizes, kernel, strides=strides, pads=pads, dilations=dilations, auto_pad=auto_pad)
    axes = (None, 0) if count == 1 else (0, 1)
    x = x.reshape(n, c, *[1] * (2 - count), *sizes)
    w = w.reshape(*w.shape[:2], *[1] * (2 - count), *kernel)
    options = {**windows.options(*axes), "output_padding": windows.pick(more, 0, axes), "groups": group}
    y = channels_first(ops.conv_transpose2d(channels_last(x), w.transpose(2, 3, 1, 0), b, **options))
    return y if count == 2 else y.reshape(*y.shape[:2], y.shape[3])


def col2im(x: Tensor, image: Any, block: Any, **window: Any) -> Tensor:
    """What was under each window, added where it came from: channel by channel a transposed convolution whose
    kernels hold a single one."""
    n, size, windows = x.shape[0], math.prod(block), Windows(image, block, **window)
    places, left = zip(*(windows.places(i, int(n)) for i, n in enumerate(image)), strict=True)
    w = Tensor(np.eye(size, dtype=x.dtype).reshape(size, 1, *block))
    parts = x.reshape(-1, size, *places)  # (N, C*KH*KW, OH*OW) -> (N*C, KH*KW, OH, OW)
    return conv_transpose(parts, w, output_padding=left, **window).reshape(n, -1, *image)


# Normalisation


def standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` with mean 0 and variance 1 over these axes, the mean, and 1 / the standard deviation."""
    mean = ops.mean(x, axes, keepdims=True)
    inverse = (ops.var(x, axes, keepdims=True) + eps) ** -0.5
    return (x - mean) * inverse, mean, inverse


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Result:
    y, mean, inverse = standardised(x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    return y * scale + bias, mean, inverse


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5) -> Tensor:
    mean = ops.mean(x * x, tuple(range(axis % x.ndim, x.ndim)), keepdims=True)
    return x * (mean + epsilon) ** -0.5 * scale


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    groups = x.reshape(x.shape[0], num_groups, -1)
    y = standardised(groups, (2,), epsilon)[0].reshape(x.shape)
    return channels_first(channels_last(y) * scale + bias)


def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return group_norm(x, scale, bias, num_groups=x.shape[1], epsilon=epsilon)


def batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *,
    epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0,
) -> Result:  # fmt: skip
    mean, var = mean.numpy().copy(), var.numpy().copy()
    y = ops.batch_norm(
        channels_last(x), scale, bias, running_mean=mean, running_var=var, training=bool(training_mode),
        eps=epsilon, momentum=momentum,
    )  # fmt: skip
    return channels_first(y), mean, var


def local_response_norm(x: Tensor, *, size: int, alpha=1e-4, beta=0.75, bias=1.0) -> Tensor:
    y = ops.local_response_norm(channels_last(x), size, k=bias, alpha=alpha / size, beta=beta)
    return channels_first(y)


def lp_normalization(x: Tensor, axis: int = -1, p: int = 2) -> Tensor:
    return x / ops.maximum(ops.sum(abs(x) ** p, axis, keepdims=True) ** (1 / p), 1e-12)


# Scores and losses


def along(operation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An operation over the last axis, over any axis."""

    def operator(x: Tensor, axis: int = -1) -> Tensor:
        order = [i for i in range(x.ndim) if i != axis % x.ndim] + [axis % x.ndim]
        return operation(x.transpose(order)).transpose([order.index(i) for i in range(x.ndim)])

    return operator


def hardmax(x: Tensor) -> Tensor:
    return Tensor(np.eye(x.shape[-1], dtype=x.dtype)[ops.argmax(x, -1)])


def nll_loss(x: Tensor, labels: Any, weight: Tensor | None = None, **options: Any) -> Tensor:
    return ops.nll_loss(channels_last(x), labels, weight=weight, **options)


def softmax_cross_entropy(x: Tensor, labels: Any, weight: Tensor | None = None, **options: Any) -> Result:
    scores = channels_last(x)
    log_p = channels_first(ops.log_softmax(scores))
    return ops.cross_entropy(scores, labels, weight=weight, **options), log_p


def dropout(x: Tensor, ratio: Any = 0.5, training: Any = False, *, seed: int = 0) -> Result:
    options = {"rng": np.random.default_rng(seed), "training": bool(training)}
    rate = float(getattr(ratio, "data", ratio))
    return ops.dropout(x, rate, **options), ops.dropout(Tensor(np.ones(x.shape)), rate, **options) > 0


OPERATORS: dict[str, Callable[..., Result]] = {
    # element by element
    "Abs": ops.abs,
    "Add": ops.add,
    "Celu": in_float32(lambda x, alpha=1.0: alpha * elu(x / alpha)),
    "Clip": clip,
    "Cosh": lambda x: (ops.exp(x) + ops.exp(-x)) / 2,
    "Acosh": lambda x: ops.log(x + ops.sqrt(x * x - 1)),
    "Asinh": lambda x: ops.log(x + ops.sqrt(x * x + 1)),
    "Atanh": lambda x: ops.log((1 + x) / (1 - x)) / 2,
    "Div": ops.div,
    "Elu": elu,
    "Exp": ops.exp,
    "Gelu": gelu,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda x: x * hard_sigmoid(x, 1 / 6, 0.5),
    "Identity": lambda x: x,
    "IsInf": is_inf,
    "IsNaN": lambda x: x != x,
    "LeakyRelu": lambda x, alpha=0.01: ops.leaky_relu(x, slope=alpha),
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Log": ops.log,
    "Max": lambda *xs: functools.reduce(ops.maximum, xs),
    "Mean": lambda *xs: functools.reduce(ops.add, xs) / len(xs),
    "Min": lambda *xs: functools.reduce(ops.minimum, xs),
    "Mish": lambda x: x * ops.tanh(softplus(x)),
    "Mul": ops.mul,
    "Neg": ops.neg,
    "Pow": power,
    "PRelu": prelu,
    "Reciprocal": lambda x: 1 / x,
    "Relu": ops.relu,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": ops.sigmoid,
    "Sign": lambda x: ops.where(x > 0, 1, ops.where(x < 0, -1, x)),
    "Sinh": lambda x: (ops.exp(x) - ops.exp(-x)) / 2,
    "Softplus": softplus,
    "Softsign": lambda x: x / (1 + abs(x)),
    "Sqrt": ops.sqrt,
    "Sub": ops.sub,
    "Sum": lambda *xs: functools.reduce(ops.add, xs),
    "SwiGLU": lambda a, b, alpha=1.0: a * ops.sigmoid(alpha * a) * b,
    "Swish": lambda x, alpha=1.0: x * ops.sigmoid(alpha * x),
    "Tanh": ops.tanh,
    "ThresholdedRelu": lambda x, alpha=1.0: ops.where(x > alpha, x, 0),
    "Where": ops.where,
    **{name: lacking(name.lower()) for name in ("Acos", "Asin", "Atan", "Cos", "Sin", "Tan")},
    **{name: lacking(name.lower()) for name in ("Ceil", "Erf", "Floor", "Mod", "Round")},
    # reductions
    "ArgMax": argmax,
    "ArgMin": lambda x, **options: argmax(-x, **options),
    "CumProd": cumulative(ops.mul, 1),
    "CumSum": cumulative(ops.add, 0),
    "ReduceL1": reduction(lambda x, axis, **keep: ops.sum(abs(x), axis, **keep)),
    "ReduceL2": reduction(lambda x, axis, **keep: ops.sqrt(ops.sum(x * x, axis, **keep))),
    "ReduceLogSum": reduction(lambda x, axis, **keep: ops.log(ops.sum(x, axis, **keep))),
    "ReduceLogSumExp": reduction(lambda x, axis, **keep: ops.log(ops.sum(ops.exp(x), axis, **keep))),
    "ReduceMax": reduction(ops.max),
    "ReduceMean": reduction(ops.mean),
    "ReduceMin": reduction(ops.min),
    "ReduceProd": reduction(prod),
    "ReduceSum": reduction(ops.sum),
    "ReduceSumSquare": reduction(lambda x, axis, **keep: ops.sum(x * x, axis, **keep)),
    # shapes and places
    "CenterCropPad": center_crop_pad,
    "Compress": compress,
    "Concat": lambda *xs, axis: ops.concat(xs, axis=axis),
    "DepthToSpace": depth_to_space,
    "Expand": lambda x, shape: ops.broadcast_to(x, np.broadcast_shapes(x.shape, shape)),
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": lambda x, indices: x[tuple(np.moveaxis(indices, -1, 0))],
    "Pad": pad,
    "Reshape": reshape,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slices,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": lambda x, repeats: ops.tile(x, repeats.tolist()),
    "Transpose": lambda x, perm=None: ops.transpose(x, perm),
    "Unsqueeze": lambda x, axes: ops.expand_dims(x, tuple(axes.tolist())),
    # products
    "Col2Im": col2im,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": ops.matmul,
    # pools
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool(ops.mean),
    "GlobalMaxPool": global_pool(ops.max),
    "LpPool": lp_pool,
    "MaxPool": pool(ops.max_pool2d),
    "MaxUnpool": max_unpool,
    # normalisation
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LpNormalization": lp_normalization,
    "LRN": local_response_norm,
    "MeanVarianceNormalization": lambda x, axes=(0, 2, 3): standardised(x, tuple(axes), 1e-9)[0],
    "RMSNormalization": rms_norm,
    # scores and losses
    "Dropout": dropout,
    "Hardmax": along(hardmax),
    "LogSoftmax": along(ops.log_softmax),
    "NegativeLogLikelihoodLoss": nll_loss,
    "Softmax": along(ops.softmax),
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
