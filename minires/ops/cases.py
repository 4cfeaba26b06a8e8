"""The cases on which every operation is checked: strides, paddings, groups, odd sizes, batches of one.

``python -m minires gradcheck`` checks the gradients of these, and the tests hold the same cases against other
implementations. An operation is never checked alone: a layer stands before it and one after it, so that its
gradient must fit into a network (see :func:`surrounded`).
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires import backend
from minires.errors import ConfigError
from minires.gradient_check import Report, gradcheck
from minires.ops import arithmetic, reduce
from minires.ops.avg_pool2d import avg_pool2d, global_avg_pool2d
from minires.ops.batch_norm import batch_norm
from minires.ops.concat import concat
from minires.ops.conv2d import conv2d
from minires.ops.cross_entropy import cross_entropy
from minires.ops.dense_buffer import DenseBuffer
from minires.ops.dropout import dropout
from minires.ops.linear import linear
from minires.ops.local_response_norm import local_response_norm
from minires.ops.matmul import matmul
from minires.ops.max_pool2d import max_pool2d
from minires.ops.pad import pad
from minires.ops.pad_channels import pad_channels
from minires.ops.relu import relu
from minires.ops.reshape import flatten, getitem, reshape, transpose
from minires.ops.sigmoid import sigmoid
from minires.ops.softmax import log_softmax, softmax
from minires.tensor import Tensor

Make = Callable[[np.random.Generator], Any]
Shape = tuple[int, ...]


def _normal(shape: Shape) -> Make:
    return lambda rng: rng.standard_normal(shape)


def _positive(shape: Shape) -> Make:
    """Numbers far from zero, where log, sqrt and division have their poles."""
    return lambda rng: rng.uniform(0.5, 2.0, shape)


def _apart(shape: Shape) -> Make:
    """Numbers of which no two are near each other, and none near zero: no kink of a maximum is near."""
    size = int(np.prod(shape))
    return lambda rng: ((rng.permutation(size) - size / 2 + 0.25) * (4 / size)).reshape(shape)


@dataclass(frozen=True)
class Case:
    """One call of an operation: its tensors by name (a shape, or a function that draws them), its options."""

    op: str
    name: str
    fn: Callable[..., Tensor]
    inputs: Mapping[str, Shape | Make]
    options: Mapping[str, Any] = field(default_factory=dict)

    def arrays(self, dtype: str = "float64", seed: int = 0) -> dict[str, Any]:
        """Random inputs, the same for every dtype up to rounding."""
        rng = np.random.default_rng(seed)
        makers = {n: make if callable(make) else _normal(make) for n, make in self.inputs.items()}
        return {name: np.asarray(make(rng)).astype(dtype) for name, make in makers.items()}

    def __call__(self, *tensors: Tensor) -> Tensor:
        return self.fn(*tensors, **self.options)

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"


# ------------------------------------------------------------------------------------------ the tables


def _conv2d() -> Iterator[Case]:
    table: list[tuple[str, Shape, Shape, dict[str, Any]]] = [
        ("1x1", (2, 4, 3, 3), (1, 1, 3, 4), {}),
        ("1x1, stride 2, odd picture", (2, 5, 3, 3), (1, 1, 3, 2), {"stride": 2}),
        ("1x1, groups", (2, 3, 3, 6), (1, 1, 2, 3), {"groups": 3}),
        ("1x1 with a border", (1, 2, 3, 2), (1, 1, 2, 3), {"padding": 1}),
        ("3x3", (2, 5, 4, 2), (3, 3, 2, 3), {}),
        ("3x3, same", (2, 4, 5, 2), (3, 3, 2, 3), {"padding": "same"}),
        ("3x3, many channels, odd picture", (2, 5, 7, 16), (3, 3, 16, 17), {"padding": 1}),
        ("3x3, many channels, four sides", (1, 6, 6, 16), (3, 3, 16, 16), {"padding": ((2, 0), (1, 2))}),
        ("3x3, few channels out", (2, 6, 5, 8), (3, 3, 8, 2), {"padding": 1}),
        ("3x2, few channels out, four sides", (2, 5, 6, 6), (3, 2, 6, 3), {"padding": ((2, 0), (0, 1))}),
        ("3x3, few channels out, 2 groups", (2, 6, 5, 8), (3, 3, 4, 4), {"padding": (0, 2), "groups": 2}),
        ("3x3, same, stride 2, even picture", (1, 6, 4, 2), (3, 3, 2, 3), {"padding": "same", "stride": 2}),
        ("3x3, stride 2, padding 1", (2, 5, 6, 2), (3, 3, 2, 2), {"padding": 1, "stride": 2}),
        ("7x7, stride 2, padding 3", (1, 8, 7, 1), (7, 7, 1, 2), {"padding": 3, "stride": 2}),
        ("3x2, pairs", (2, 6, 7, 2), (3, 2, 2, 2), {"stride": (2, 3), "padding": (1, 0)}),
        ("2x3, four sides", (1, 4, 5, 2), (2, 3, 2, 2), {"padding": ((0, 2), (1, 0))}),
        ("stride larger than kernel", (1, 7, 8, 2), (2, 2, 2, 2), {"stride": 3}),
        ("kernel as large as the picture", (2, 3, 4, 2), (3, 4, 2, 3), {}),
        ("groups", (2, 4, 4, 4), (3, 3, 2, 6), {"padding": 1, "groups": 2}),
        ("3x3, 4 groups that make 2", (1, 4, 3, 32), (3, 3, 8, 24), {"padding": 1, "groups": 4}),
        ("depthwise", (2, 4, 5, 3), (3, 3, 1, 6), {"padding": 1, "groups": 3}),
        ("one picture, one channel", (1, 4, 4, 1), (3, 3, 1, 1), {"padding": 1}),
        ("many places, few channels", (3, 7, 7, 1), (2, 2, 1, 2), {}),
        ("3x3, 3 channels to 16, wide picture", (2, 4, 9, 3), (3, 3, 3, 16), {"padding": 1}),
        ("5x3, wide picture, 2 groups of 16", (2, 7, 17, 4), (5, 3, 2, 32), {"stride": (3, 2), "groups": 2}),
        ("3x3, 16 channels, wide picture", (2, 3, 10, 16), (3, 3, 16, 16), {"padding": ((2, 0), (1, 0))}),
    ]
    for i, (name, x, w, options) in enumerate(table):
        bias = {"b": w[-1:]} if i % 2 == 0 else {}
        yield Case("conv2d", name + (", bias" if bias else ""), conv2d, {"x": x, "w": w, **bias}, options)
        if name.startswith("3x3, ") and "channels" in name:  # each of the ways a forward pass may take
            inputs = {"x": x, "w": w, **bias}
            yield Case("conv2d", name + ", ReLU", conv2d, inputs, {**options, "relu": True})


def running_statistics(like: Tensor) -> dict[str, Any]:
    """Some running statistics for inference on ``like``, of its dtype (or float32) and on its device."""
    xp, channels = backend.array_module(like.data), like.shape[-1]
    mean = xp.linspace(-0.5, 0.5, channels).astype(backend.accumulator(like.dtype))
    return {"running_mean": mean, "running_var": (mean + 1.5).astype(mean.dtype)}


def _batch_norm_case(x: Tensor, gamma: Tensor, beta: Tensor, add: Any = None, **options: Any) -> Tensor:
    statistics = {} if options["training"] else running_statistics(x)
    return batch_norm(x, gamma, beta, add=add, **statistics, **options)


def _batch_norm() -> Iterator[Case]:
    for training in (True, False):
        mode = "training" if training else "inference"
        table: list[tuple[str, Shape, dict[str, Any]]] = [
            ("rows", (5, 3), {}),
            ("pictures", (2, 3, 2, 3), {}),
            ("one picture", (1, 3, 3, 2), {"convention": "torch"}),
            ("one channel", (4, 2, 1, 1), {"eps": 0.1}),
            ("relu", (2, 3, 2, 3), {"relu": True}),
            ("add", (2, 3, 2, 3), {"add": True}),
            ("add and relu", (3, 2, 2, 2), {"add": True, "relu": True}),
        ]
        for name, x, extra in table:
            options: dict[str, Any] = {**extra, "training": training}
            inputs: dict[str, Shape | Make] = {"x": x, "gamma": x[-1:], "beta": x[-1:]}
            if options.pop("add", False):
                inputs["add"] = x
            yield Case("batch_norm", f"{mode}, {name}", _batch_norm_case, inputs, options)


_WINDOWS: list[tuple[str, Shape, dict[str, Any]]] = [
    ("2x2", (2, 4, 6, 3), {"kernel": 2}),
    ("2x2, odd picture", (1, 5, 3, 2), {"kernel": 2}),
    ("3x3, stride 2", (2, 5, 7, 2), {"kernel": 3, "stride": 2}),
    ("3x3, stride 2, padding 1", (2, 6, 5, 2), {"kernel": 3, "stride": 2, "padding": 1}),
    ("3x3, stride 1, same", (1, 4, 4, 2), {"kernel": 3, "stride": 1, "padding": "same"}),
    ("3x3, stride 2, ceil, even and odd", (2, 6, 5, 2), {"kernel": 3, "stride": 2, "padding": "ceil"}),
    ("3x2, pairs", (1, 6, 7, 1), {"kernel": (3, 2), "stride": (1, 3), "padding": (1, 0)}),
    ("four sides", (1, 4, 4, 2), {"kernel": 2, "padding": ((0, 1), (1, 0))}),
    ("stride larger than kernel", (1, 7, 7, 1), {"kernel": 2, "stride": 3}),
    ("1x1", (2, 2, 2, 1), {"kernel": 1}),
    ("whole picture", (2, 3, 4, 2), {"kernel": (3, 4)}),
]


def _pools() -> Iterator[Case]:
    for name, x, options in _WINDOWS:
        yield Case("max_pool2d", name, max_pool2d, {"x": _apart(x)}, options)
    for name, x, options in _WINDOWS:
        yield Case("avg_pool2d", name, avg_pool2d, {"x": x}, options)
    name, x, options = _WINDOWS[3]
    yield Case("avg_pool2d", f"{name}, counted", avg_pool2d, {"x": x}, {**options, "count_padding": True})
    for name, x in [("pictures", (2, 3, 4, 3)), ("one picture, one channel", (1, 2, 5, 1))]:
        yield Case("global_avg_pool2d", name, global_avg_pool2d, {"x": x})


def _arithmetic() -> Iterator[Case]:
    shapes: list[tuple[str, Shape, Shape]] = [
        ("equal shapes", (2, 3), (2, 3)),
        ("row on matrix", (3, 2), (2,)),
        ("column and row", (3, 1), (1, 4)),
        ("inner axis", (2, 1, 3), (2, 4, 3)),
        ("single value", (), (2, 2)),
    ]
    for fn in (arithmetic.add, arithmetic.sub, arithmetic.mul, arithmetic.div):
        for name, a, b in shapes:
            yield Case(fn.__name__, name, fn, {"a": _positive(a), "b": _positive(b)})
    for op, number in [(arithmetic.add, 2), (arithmetic.sub, 0.5), (arithmetic.mul, -3), (arithmetic.div, 4)]:
        inputs, options = {"x": _positive((2, 3))}, {"op": op, "number": number}
        yield Case(op.__name__, "tensor and number", _with_number, inputs, options)
        yield Case(op.__name__, "number and tensor", _with_number, inputs, {**options, "first": True})
    for p in (2, 3.0, 0.5, -1, 1, 0):
        yield Case("pow", f"p = {p}", arithmetic.pow, {"x": _positive((2, 3))}, {"exponent": p})
    yield Case("pow", "cube of negative numbers", arithmetic.pow, {"x": _apart((2, 3))}, {"exponent": 3})
    for unary, make in [
        (arithmetic.neg, _normal), (arithmetic.exp, _normal), (arithmetic.log, _positive),
        (arithmetic.sqrt, _positive), (relu, _apart), (sigmoid, _normal),
    ]:  # fmt: skip
        for shape in [(), (3,), (2, 1, 3)]:
            yield Case(unary.__name__, f"shape {shape}", unary, {"x": make(shape)})
    for shape in [(), (2, 1, 3)]:  # a sum of two numbers of _apart is never near zero
        inputs = {"x": _apart(shape), "add": _apart(shape)}
        yield Case("relu", f"shape {shape}, add", lambda x, add: relu(x, add=add), inputs)


def _with_number(x: Tensor, *, op: Callable[..., Tensor], number: float, first: bool = False) -> Tensor:
    return op(number, x) if first else op(x, number)


def _reductions() -> Iterator[Case]:
    for fn, make in [(reduce.sum, _normal), (reduce.mean, _normal), (reduce.max, _apart)]:
        for axis in (None, 0, -1, (0, 2), (1,), ()):
            for keepdims in (False, True):
                name = f"axis={axis}{', keepdims' if keepdims else ''}"
                options = {"axis": axis, "keepdims": keepdims}
                yield Case(fn.__name__, name, fn, {"x": make((2, 3, 2))}, options)
        yield Case(fn.__name__, "single value", fn, {"x": make(())})


def _products() -> Iterator[Case]:
    stacks: list[tuple[str, Shape, Shape]] = [
        ("matrices", (3, 4), (4, 2)),
        ("one row, one column", (1, 3), (3, 1)),
        ("stacks", (2, 3, 4), (2, 4, 2)),
        ("one matrix for a stack", (2, 3, 2), (2, 3)),
        ("stack for one matrix", (3, 2), (2, 2, 3)),
        ("stretched stacks", (2, 1, 2, 3), (3, 3, 2)),
    ]
    for name, a, b in stacks:
        yield Case("matmul", name, matmul, {"a": a, "b": b})
    yield Case("linear", "bias", linear, {"x": (3, 4), "w": (4, 2), "b": (2,)})
    yield Case("linear", "no bias", linear, {"x": (3, 4), "w": (4, 2)})
    yield Case("linear", "one row, one output", linear, {"x": (1, 3), "w": (3, 1), "b": (1,)})


def _shapes() -> Iterator[Case]:
    picture = (2, 3, 4, 2)
    for padding in (1, 0, (2, 1), ((0, 1), (2, 3))):
        yield Case("pad", f"padding={padding}", pad, {"x": picture}, {"padding": padding})
    for stride in (1, 2, 3):
        for both in (False, True):
            name = f"stride {stride}, {'both sides' if both else 'after'}"
            options = {"channels": 5, "stride": stride, "both": both}
            yield Case("pad_channels", name, pad_channels, {"x": picture}, options)
    yield Case("pad_channels", "no channel more", pad_channels, {"x": picture}, {"channels": 2, "stride": 2})

    def join(*tensors: Tensor, axis: int = -1) -> Tensor:
        return concat(tensors, axis=axis)

    yield Case("concat", "channels", join, {"a": picture, "b": (2, 3, 4, 1), "c": (2, 3, 4, 3)})
    yield Case("concat", "pictures", join, {"a": (2, 3), "b": (1, 3)}, {"axis": 0})
    yield Case("concat", "one tensor", join, {"a": (2, 3)}, {"axis": 1})

    def grow(first: Tensor, *others: Tensor, room: int) -> Tensor:
        history = DenseBuffer(first, room)
        for new in others:
            history.append(new)
        return history.latest

    grown: dict[str, Shape | Make] = {"a": picture, "b": (2, 3, 4, 1), "c": (2, 3, 4, 3)}
    yield Case("dense_buffer", "full", grow, grown, {"room": 6})
    yield Case("dense_buffer", "room is left", grow, grown, {"room": 9})
    yield Case("dense_buffer", "no append", grow, {"a": picture}, {"room": 2})
    for shape in [(4, 6), (-1,), (2, 1, -1, 2)]:
        yield Case("reshape", f"{shape}", reshape, {"x": (2, 3, 4)}, {"shape": shape})
    yield Case("reshape", "single value", reshape, {"x": ()}, {"shape": (1, 1)})
    yield Case("flatten", "pictures", flatten, {"x": picture})
    yield Case("flatten", "rows of one", flatten, {"x": (3,)})
    for axes in [None, (0, 2, 1), (-1, 0, 1)]:
        yield Case("transpose", f"axes={axes}", transpose, {"x": (2, 3, 4)}, {"axes": axes})
    indices: list[tuple[str, Any]] = [
        ("number", 1), ("slices", (slice(None), slice(2, None, -2))), ("dots and new axis", (..., None, 0)),
        ("list, an element twice", [1, 0, 1]), ("pairs of lists", ([0, 1, 1, 1], [2, 0, 0, 1])),
        ("booleans", np.array([True, False])), ("list and slice", (slice(1, None), [2, 2, 0])),
    ]  # fmt: skip
    for name, index in indices:
        yield Case("getitem", name, getitem, {"x": (2, 3, 2)}, {"index": index})


def _local_response_norms() -> Iterator[Case]:
    strong = {"k": 0.5, "alpha": 0.3, "beta": 0.75}  # the usual numbers hardly change x
    table: list[tuple[str, Shape, dict[str, Any]]] = [
        ("as published", (2, 2, 3, 7), {}),
        ("strong", (2, 2, 3, 7), strong),
        ("three neighbours, beta 1", (1, 2, 2, 4), {**strong, "size": 3, "beta": 1.0}),
        ("itself alone", (3, 4), {**strong, "size": 1}),
        ("more neighbours than channels", (2, 3, 3), {**strong, "size": 9}),
        ("one channel", (2, 1, 1, 1), strong),
    ]
    for name, x, options in table:
        yield Case("local_response_norm", name, local_response_norm, {"x": x}, options)


def _losses() -> Iterator[Case]:
    for fn in (softmax, log_softmax):
        for shape in [(3, 4), (5,), (2, 2, 3), (2, 1)]:
            yield Case(fn.__name__, f"shape {shape}", fn, {"x": shape})
    soft = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    for smoothing in (0.0, 0.1):
        smooth = f", smoothing {smoothing}" if smoothing else ""
        for name, x, labels in [
            ("labels", (4, 3), np.array([0, 2, 1, 2])),
            ("one picture", (1, 5), np.array([3])),
            ("probabilities", (2, 3), soft),
            ("one-hot integers", (2, 3), np.eye(3, dtype=np.int64)[[2, 0]]),
        ]:
            options = {"labels": labels, "label_smoothing": smoothing}
            yield Case("cross_entropy", name + smooth, cross_entropy, {"logits": x}, options)


def _dropout_case(x: Tensor, *, seed: int, **options: Any) -> Tensor:
    """With a fresh generator in each call, so that each call has the same mask."""
    return dropout(x, rng=np.random.default_rng(seed), **options)


def _dropouts() -> Iterator[Case]:
    for rate in (0.0, 0.3, 0.9):
        yield Case("dropout", f"rate {rate}", _dropout_case, {"x": (3, 4)}, {"rate": rate, "seed": 1})
    options = {"rate": 0.5, "seed": 1, "training": False}
    yield Case("dropout", "inference", _dropout_case, {"x": (3, 4)}, options)


def _collect() -> dict[str, list[Case]]:
    cases: dict[str, list[Case]] = {}
    tables = (
        _arithmetic, _reductions, _products, _conv2d, _batch_norm, _pools, _shapes, _dropouts,
        _local_response_norms, _losses,
    )  # fmt: skip
    for table in tables:
        for case in table():
            cases.setdefault(case.op, []).append(case)
    return cases


CASES: dict[str, list[Case]] = _collect()


# -------------------------------------------------------------------------------------------- the check


@dataclass(frozen=True)
class Row:
    """The result for one case: its worst relative error over all implementations, and the report on it."""

    op: str
    case: str
    error: float
    ok: bool
    seconds: float
    report: Report


def surrounded(case: Case, arrays: Mapping[str, Any]) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The operation inside a small network, and that network's inputs.

    Before it stands a scaling of each input, so that its gradients must travel on. Each scaled input is used
    a second time, so that its gradient is a sum: an operation that gives away an array which it still needs
    is caught. After it stand a transposition and a product, so that the gradient that comes in is random and
    its memory not in order.
    """
    rng = np.random.default_rng(1)
    xp = backend.array_module(*arrays.values())
    # Powers of two, so that the operation gets exactly the inputs of the case.
    scales = {n: xp.asarray(rng.choice([-2.0, -0.5, 0.5, 2.0], a.shape)) for n, a in arrays.items()}

    def network(*inputs: Tensor) -> Tensor:
        xs = [arithmetic.mul(u, scale) for u, scale in zip(inputs, scales.values(), strict=True)]
        y = transpose(case(*xs))
        weights = xp.asarray(np.random.default_rng(2).uniform(0.5, 1.5, y.shape))
        parts = [arithmetic.mul(y, weights), *(arithmetic.mul(x, x) for x in xs)]
        return concat([reshape(part, (-1,)) for part in parts])

    return network, {name: array / scales[name] for name, array in arrays.items()}


def check(case: Case, *, raise_on_fail: bool = False, device: str = "cpu") -> Report:
    """Check the gradients of one case, with every implementation there is; the worst report."""
    arrays = {name: backend.to_device(array, device) for name, array in case.arrays().items()}
    network, inputs = surrounded(case, arrays)
    reports = []
    for implementation in (nullcontext, backend.specification):
        with implementation():
            reports.append(gradcheck(network, inputs, raise_on_fail=raise_on_fail))
    return max(reports, key=lambda report: (not report.ok, report.worst.error if report.worst else 0.0))


def check_all(names: Iterable[str] | None = None) -> Iterator[Row]:
    """Check the gradients of the operations in ``names``, or of all, a row per case.

    Raises: ConfigError for an unknown operation, with the nearest name.
    """
    wanted = list(CASES) if names is None else list(names)
    for name in wanted:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(CASES))}"
            raise ConfigError(f"gradcheck: there is no operation {name!r}; {hint}")
    return _rows(wanted)


def _rows(names: Iterable[str]) -> Iterator[Row]:
    for case in (case for name in names for case in CASES[name]):
        start = time.perf_counter()
        report = check(case)
        error = report.worst.error if report.worst else float("inf")
        yield Row(case.op, case.name, error, report.ok, time.perf_counter() - start, report)
