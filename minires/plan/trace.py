"""What a model does with a batch, as a list of steps.

The model runs once while we watch every operation (``minires.tensor.watching``), and each call becomes a
step: an operation, the values that it reads, the one that it writes, and its constants. A value is an array
that does not exist yet. Reshaping is no step: the same value has another shape. Then steps that a kernel does
in one go are joined: a convolution, the addition of a shortcut and the ReLU behind it.
"""

from __future__ import annotations

import inspect
import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minires.backend import Array, simd
from minires.errors import ConfigError, ShapeError
from minires.modes import settings
from minires.nn.layers import Dropout
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.ops.registry import describe
from minires.ops.window import Window, window
from minires.tensor import Call, Tensor, no_grad, watching

Shape = tuple[int, ...]


def given(x: Any, shape: Shape, dtype: Any, *, fewer: bool) -> Array:
    """The pictures that a plan was called with. Raises: ShapeError if it was not made for such."""
    x = x.data if isinstance(x, Tensor) else np.asarray(x)
    if x.dtype != dtype:
        raise ShapeError(
            f"this plan computes with {dtype}, not with {x.dtype}: give it x.astype({str(dtype)!r}), scaled "
            "as the model wants its pictures"
        )
    if x.shape[1:] != shape[1:] or len(x) > shape[0] or (len(x) < shape[0] and not fewer):
        raise ShapeError(
            f"this plan was made for pictures {shape}{', or fewer of them' if fewer else ''}, not for "
            f"{x.shape}; minires.compile makes one for these"
        )
    return x


def row_of(shape: Shape) -> int:
    """The numbers of a row, those along the last axis."""
    return shape[-1] if shape else 1


@dataclass(eq=False)
class Value:
    """An array of a plan."""

    shape: Shape


@dataclass(frozen=True)
class Read:
    """A value as a step reads it: in a shape of its own, of its first channels only, perhaps."""

    value: Value
    shape: Shape

    @property
    def is_whole(self) -> bool:
        """Whether all numbers of the value are read, so that they lie side by side."""
        return math.prod(self.shape) == math.prod(self.value.shape)

    @property
    def row(self) -> int:
        """From one pixel to the next: more numbers than there are channels in the first part of a history."""
        return row_of(self.shape if self.is_whole else self.value.shape)


@dataclass(frozen=True, eq=False)
class Step:
    """An operation: the values it reads by name, the value it writes, from which channel of it on, in which
    shape, its constants and its options. ``known`` says whether plans have a kernel for it; ``function`` is
    the operation itself, if a call of it can be made anew from all that it declares."""

    op: str
    reads: dict[str, Read]
    writes: Value
    at: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    known: bool = True
    function: Callable[..., Tensor] | None = None

    @property
    def constants(self) -> dict[str, Array]:
        """The numbers of its constants."""
        return {name: tensor.data for name, tensor in self.tensors.items()}

    @property
    def values(self) -> list[Value]:
        """All that it reads and writes, each once."""
        return list(dict.fromkeys([*(read.value for read in self.reads.values()), self.writes]))


@dataclass(frozen=True)
class Traced:
    """The steps from ``input`` to ``output``."""

    steps: list[Step]
    input: Value
    output: Read

    def of(self, pictures: int) -> Traced:
        """The same steps for another number of pictures.

        Raises: ConfigError where a value has not a row for each picture.
        """
        before = self.input.shape[0]
        values = dict.fromkeys([self.input, *(value for step in self.steps for value in step.values)])
        if any(value.shape[:1] != (before,) for value in values):
            raise ConfigError("a plan is for a model all of whose values have a row for each picture")
        found = {value: Value((pictures, *value.shape[1:])) for value in values}

        def moved(read: Read) -> Read:
            return Read(found[read.value], (read.shape[0] * pictures // before, *read.shape[1:]))

        steps = []
        for step in self.steps:
            reads = {name: moved(read) for name, read in step.reads.items()}
            steps.append(replace(step, reads=reads, writes=found[step.writes]))
        return Traced(steps, found[self.input], moved(self.output))


def watch(model: Module, x: Array, *, training: bool = False) -> Traced:
    """The steps of a model for pictures x: in inference mode, or as they are when it trains.

    The model runs again with few other pictures: it must do the same with them, and throw no dice of its own.

    Raises: ConfigError for an operation that no plan knows, with the layer that it is in, and for steps that
    hang on more than the shape of a picture.
    """
    before = _dice(model)
    traced = _once(model, x, training)
    for name, state in _dice(model).items():
        if before.get(name) != state:
            raise ConfigError(
                f"compile: the model draws from {name} when it is called, and a plan would do each time what "
                "it did once; use minires.nn.Dropout, or the model itself"
            )
    few = x[: 2 if training else 1]  # batch norm of one picture says little
    for other in few, -few, 100 * few:
        _compare(traced, _once(model, other, training), training)
    return traced


def parts(model: Module) -> list[tuple[str, Module]]:
    """The model itself, and every module inside, with its path."""
    return [("", model), *model.named_modules()]


_STATES: dict[type, Callable[[Any], Any]] = {
    np.random.Generator: lambda dice: dice.bit_generator.state,
    np.random.RandomState: lambda dice: dice.get_state(),
    random.Random: lambda dice: dice.getstate(),
}


def _dice(model: Module) -> dict[str, str]:
    """Where the generators of random numbers stand that a model may draw from, by name; not those of its
    dropouts, which a plan calls."""
    found = {"numpy.random": str(np.random.get_state()), "random": str(random.getstate())}
    for path, module in parts(model):
        for name, value in vars(module).items() if not isinstance(module, Dropout) else ():
            for kind, state in _STATES.items():
                if isinstance(value, kind):
                    found[f"{path}.{name}".strip(".")] = str(state(value))
    return found


def _compare(one: Traced, other: Traced, training: bool) -> None:
    """Raises: ConfigError if the steps are not the same but for the number of pictures."""
    told = (
        "compile: the model computes something else for other pictures, or for fewer. What it computes hangs "
        "on more than its operations say: on an if, or on numbers taken out of a tensor (x.data, len(x))"
    )
    if len(one.steps) != len(other.steps):
        raise ConfigError(f"{told}: {len(one.steps)} steps once, and {len(other.steps)} then")
    same = {one.input: other.input}  # the values of one, and what they are in the other
    for a, b in zip(one.steps, other.steps, strict=True):
        place, there = (f"{step.op} in {step.path or 'the model'}" for step in (a, b))
        if place != there or a.at != b.at or a.tensors.keys() != b.tensors.keys():
            raise ConfigError(f"{told}: {place} once, and {there} then")
        if not all(_equal(option, b.options.get(name)) for name, option in a.options.items()):
            raise ConfigError(f"{told}: {place} with other options")
        read = {name: same.get(read.value) for name, read in a.reads.items()}
        if read != {name: read.value for name, read in b.reads.items()}:
            raise ConfigError(f"{told}: {place} of other values")
        same[a.writes] = b.writes
        for name, tensor in a.tensors.items():
            if training and not tensor.requires_grad and not _is_same(tensor, b.tensors[name]):
                raise ConfigError(
                    f"compile: {name} of {place} is a new tensor in each call, and a plan of training would "
                    "keep the numbers of the first; train the model itself"
                )


def _equal(a: Any, b: Any) -> bool:
    """Of numbers, words, indices, and tuples of them; an array of other numbers equals itself alone."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a is b or (a.dtype == b.dtype and a.dtype.kind in "biu" and np.array_equal(a, b))
    return a is b or (not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and bool(a == b))


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether a constant is the same tensor in both passes, or the same single number, as in ``x * 0.5``."""
    return a is b or (a.ndim == b.ndim == 0 and a.dtype == b.dtype and bool(a.data == b.data))


def _once(model: Module, x: Array, training: bool) -> Traced:
    tracer = _Tracer(Tensor(x), training)
    with modes(model, training=training), nullcontext() if training else no_grad(), watching(tracer.see):
        y = model(tracer.x)
    if not isinstance(y, Tensor):
        raise ConfigError(f"a plan is for a model that returns one tensor, not a {type(y).__name__}")
    output = tracer.read(y)
    if output is None:
        raise ConfigError("the model's result does not depend on its input: there is nothing to plan")
    if y.shape[:1] != x.shape[:1]:
        raise ConfigError(
            f"a plan is for a model that gives a row for each picture; for {len(x)} this gives {y.shape}"
        )
    if not output.is_whole:  # the first channels of a history
        output = Read(tracer.copied(output), output.shape)
    moves = [step for step in tracer.steps if training and _moves(step)]
    needed = leading(tracer.steps, output, moves)
    steps = [step for step in tracer.steps if step in needed]
    return Traced(steps if training else _joined(steps, output), tracer.input, output)


def window_of(options: Mapping[str, Any], x: Shape) -> Window:
    """The window of a call on pictures of shape x."""
    asked = (options[name] for name in ("kernel", "stride", "padding", "dilation"))
    return window("a plan", (x[1], x[2]), *asked)


_CACHE = 1 << 22  # numbers that the caches of a processor hold, about


def at_a_time(traced: Traced) -> Traced:
    """The steps for some of the pictures only, where the values of all would not stay in the caches from one
    step to the next, and the weights, which each time are read anew, are few."""
    n = traced.input.shape[0]
    values = [sum(math.prod(value.shape) for value in step.values) for step in traced.steps]
    weights = sum(array.size for step in traced.steps for array in step.constants.values())
    written = sum(math.prod(step.writes.shape) for step in traced.steps)
    least = max(1, _CACHE * n // max([*values, 1]), -(-4 * weights * n // max(1, written)))
    # As few pictures as possible are computed for nothing.
    few = min([*range(least, min(2 * least, n)), n], key=lambda some: -(-n // some) * some)
    try:
        return traced if few >= n else traced.of(few)
    except ConfigError:  # pictures meet
        return traced


def zeros_of(traced: Traced) -> int:
    """The numbers of the longest row that lies outside a picture, or line of one by Winograd's way."""
    rows = [simd.width(simd.shapes()[0], np.float32)]
    for step in traced.steps:
        rows += [row_of(read.shape) for read in step.reads.values()]
        if step.op == "conv2d":
            rows += [math.prod(shape[2:]) for shape in (step.reads["x"].shape, step.writes.shape)]
    return max(rows)


class _Tracer:
    """Writes a step for each call."""

    def __init__(self, x: Tensor, training: bool) -> None:
        self.x, self.input, self.training = x, Value(x.shape), training
        self.steps: list[Step] = []
        self.known: dict[int, tuple[weakref.ref[Tensor], Read]] = {}
        self._set(x, Read(self.input, x.shape))

    def _set(self, tensor: Tensor, read: Read) -> None:
        self.known[id(tensor)] = (weakref.ref(tensor), read)

    def read(self, tensor: Tensor) -> Read | None:
        """The value that a tensor stands for; None of one that is a constant."""
        reference, read = self.known.get(id(tensor), (None, None))
        return read if reference is not None and reference() is tensor else None

    def see(self, call: Call) -> None:
        reads = {name: read for name, x in call.inputs.items() if (read := self.read(x)) is not None}
        constants = {name: x for name, x in call.inputs.items() if name not in reads}
        if not reads:  # of constants alone: a constant
            return
        if call.op in ("reshape", "flatten", "squeeze", "expand_dims"):
            read = reads["x"]
            if not read.is_whole:
                read = Read(self.copied(read), read.shape)
            self._set(call.y, Read(read.value, call.y.shape))
            return
        if call.op == "dense_buffer":
            self._append(call, reads)
            return
        if call.op == "concat" and not constants and call.options["axis"] % call.y.ndim == call.y.ndim - 1:
            self._concatenate(call, reads)
            return
        known = call.op in _KNOWN and _KNOWN[call.op](reads, constants, call)
        function = _function(call)
        is_dropout = self.training and call.op == "dropout"
        is_other = call.op == "batch_norm" and call.options["training"] != self.training
        if is_other or call.y.dtype != self.x.dtype or not (known or function or is_dropout):
            raise ConfigError(
                f"no plan knows {call.op!r} as {settings()['path'] or 'the model'} calls it, with "
                f"{', '.join(f'{name} {x.shape}' for name, x in call.inputs.items())}; use the model itself"
                f"{'' if self.training else ', or minires.fuse(model)'}. A plan knows the layers of minires, "
                f"and calls each operation of x.dtype that is described with minires.operation and gives "
                f"record() all its arguments, by their names"
            )
        for name, read in reads.items():  # a batch norm alone reads a history as it lies
            if not read.is_whole and (call.op, name) != ("batch_norm", "x"):
                reads[name] = Read(self.copied(read), read.shape)
        value = Value(call.y.shape)
        path = settings()["path"]
        self.steps.append(Step(call.op, reads, value, 0, constants, call.options, path, known, function))
        self._set(call.y, Read(value, call.y.shape))

    def copied(self, read: Read) -> Value:
        value = Value(read.shape)
        self.steps.append(Step("copy", {"x": read}, value))
        return value

    def _append(self, call: Call, reads: dict[str, Read]) -> None:
        """A dense block's history: new channels are written behind those before."""
        new = reads.get("new", reads.get("x"))
        assert new is not None
        if "latest" in reads:
            value, at = reads["latest"].value, reads["latest"].shape[-1]
        else:
            room = call.y.data.strides[-2] // call.y.data.itemsize
            value, at = Value((*call.y.shape[:-1], room)), 0
        self.steps.append(Step("copy", {"x": new}, value, at))
        self._set(call.y, Read(value, call.y.shape))

    def _concatenate(self, call: Call, reads: dict[str, Read]) -> None:
        value, at = Value(call.y.shape), call.y.shape[-1]
        for read in reversed(reads.values()):  # on the way back from the first on, as on the tape
            at -= read.shape[-1]
            self.steps.append(Step("copy", {"x": read}, value, at))
        self._set(call.y, Read(value, call.y.shape))


def _function(call: Call) -> Callable[..., Tensor] | None:
    """The function of an operation, if inputs and options are all that it needs to do the same once more."""
    described = describe(call.op)
    if described.function is None or described.moves:
        return None
    try:
        inspect.signature(described.function).bind(**call.inputs, **call.options)
    except TypeError:
        return None
    return described.function


def _is_gate(reads: dict[str, Read], constants: dict[str, Tensor], call: Call) -> bool:
    """A product of (N, H, W, C) with (N, 1, 1, C), in either order."""
    shapes = sorted((read.shape for read in reads.values()), key=lambda shape: shape[1:3], reverse=True)
    if len(shapes) < 2 or len(shapes[0]) != 4:
        return False
    (n, _, _, c), small = shapes
    return small == (n, 1, 1, c)


def _only(*names: str) -> Any:
    """A test that these inputs are values, and all others constants."""
    return lambda reads, constants, call: set(reads) == set(names)


def _same(reads: dict[str, Read], constants: dict[str, Tensor], call: Call) -> bool:
    return not constants and len({read.shape for read in reads.values()}) == 1


def _normalizes(reads: dict[str, Read], constants: dict[str, Tensor], call: Call) -> bool:
    return set(reads) <= {"x", "add"} and "x" in reads and "add" not in constants


_KNOWN: dict[str, Any] = {
    "conv2d": _only("x"), "linear": _only("x"), "max_pool2d": _only("x"), "avg_pool2d": _only("x"),
    "global_avg_pool2d": _only("x"), "pad_channels": _only("x"), "sigmoid": _only("x"), "relu": _same,
    "add": _same, "mul": _is_gate, "batch_norm": _normalizes,
}  # fmt: skip


def leading(steps: list[Step], output: Read, others: Sequence[Step] = ()) -> set[Step]:
    """The steps whose results lead to the output, or to one of the ``others``, and these themselves."""
    found = set(others)
    channels = {output.value: row_of(output.value.shape)}  # that are read; a history may have more behind
    for step in reversed(steps):
        if step in found or step.at < channels.get(step.writes, 0):
            found.add(step)
            for read in step.reads.values():
                row = row_of(read.value.shape if read.is_whole else read.shape)
                channels[read.value] = max(row, channels.get(read.value, 0))
    return found


def _moves(step: Step) -> bool:
    """Whether a step of training changes more than its result: running statistics, or a generator."""
    moved = (step.options.get(name) is not None for name in ("running_mean", "running_var"))
    return step.op == "dropout" or (step.op == "batch_norm" and any(moved))


def _joined(steps: list[Step], output: Read) -> list[Step]:
    """Convolutions, gates and dense layers with the addition and the ReLU behind them, where nobody else
    reads what lies between. The sums come where the addition stood, as what is added is there then."""
    uses = Counter(id(read.value) for step in steps for read in step.reads.values())
    uses[id(output.value)] += 1
    joined: dict[int, Step] = {}  # by the value that is written; a history has several writers
    for number, step in enumerate(steps):
        for name, read in reversed(step.reads.items()) if step.known and step.op in ("relu", "add") else ():
            maker = joined.get(id(read.value))
            added = [step.reads[other] for other in step.reads if other != name]
            others = {"add": added[0]} if added else {}
            if maker and uses[id(read.value)] == 1 and _takes(maker, others):
                del joined[id(read.value)]
                options = {**maker.options, "relu": step.op == "relu"}
                step = replace(maker, reads={**maker.reads, **others}, writes=step.writes, options=options)
                break
        joined[number if step.op == "copy" else id(step.writes)] = step
    return list(joined.values())


def _takes(step: Step, others: dict[str, Read]) -> bool:
    """Whether an addition of ``others`` and a ReLU can be done by a step."""
    if not step.known or step.options.get("relu") or (others and "add" in step.reads):
        return False
    return step.op in ("conv2d", "mul") or (step.op == "linear" and not others)
