"""What a model does with a batch, as a list of steps.

The model runs once while we watch every operation (``minires.tensor.watching``), and each call becomes a
step. Reshaping is no step: the same value has another shape. Then steps that a kernel does in one go are
joined: a convolution, the addition of a shortcut and the ReLU behind it.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from minires.backend import Array
from minires.errors import ConfigError, ShapeError
from minires.modes import settings
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.ops.registry import describe
from minires.plan.steps import RESULT, Read, Step, Traced, Value, leading
from minires.tensor import Call, Tensor, no_grad, watching


class Fails(ConfigError):
    """The model fails by itself."""


@contextmanager
def failing_as(kind: type[ConfigError], when: str) -> Iterator[None]:
    """What the model raises of its own inside this block is told as an error of this kind."""
    try:
        yield
    except (ConfigError, ShapeError):
        raise
    except Exception as error:
        raise kind(f"compile: the model fails {when}, with {type(error).__name__}: {error}") from error


def once(model: Module, x: Array, training: bool) -> Traced:
    """One pass through a model.

    Raises: ConfigError for what no plan knows; Fails if it is the model that fails.
    """
    tracer = _Tracer(Tensor(x), training)
    with (
        modes(model, training=training), nullcontext() if training else no_grad(), watching(tracer.see),
        np.errstate(all="ignore"),
        failing_as(Fails, f"for noise of {x.shape}{'' if training else ', its batch norms folded'}"),
    ):  # fmt: skip
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
        if self.training and not call.y.requires_grad and any(x.requires_grad for x in call.inputs.values()):
            raise ConfigError(
                f"no plan of training knows {call.op!r} as {settings()['path'] or 'the model'} calls it, "
                "under no_grad(); train the model itself"
            )
        known = call.op in _KNOWN and _KNOWN[call.op](reads, constants, call)
        known = known or (self.training and call.op == "dropout")
        function, lacks = function_of(call)
        known = known and call.options.get("training", self.training) == self.training
        if call.y.dtype != self.x.dtype or not (known or function):
            raise ConfigError(
                f"no plan knows {call.op!r} as {settings()['path'] or 'the model'} calls it, with "
                f"{', '.join(f'{name} {x.shape}' for name, x in call.inputs.items())}; use the model itself"
                f"{'' if self.training else ', or minires.fuse(model)'}. A plan calls what its kernels do "
                f"not know, but {lacks or f'only what computes with {self.x.dtype}'}"
            )
        for name, read in reads.items():  # a batch norm alone reads a history as it lies
            if not read.is_whole and (call.op, name) != ("batch_norm", "x"):
                reads[name] = Read(self.copied(read), read.shape)
        value = Value(call.y.shape)
        path, options = settings()["path"], call.options
        if not known and options.get("shape") == call.y.shape:
            options = {**options, "shape": RESULT}
        self.steps.append(Step(call.op, reads, value, 0, constants, options, path, known, function))
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


def function_of(call: Call) -> tuple[Callable[..., Tensor] | None, str]:
    """The function of an operation, if inputs and options are all that it needs to do the same once more; and
    else why not."""
    described = describe(call.op)
    if described.function is None:
        return None, f"nothing describes {call.op!r}: see @operation in minires.ops.registry"
    if described.moves and call.options.get("training", True):
        return None, f"{call.op!r} changes {', '.join(described.moves)}"
    signature = inspect.signature(described.function)
    try:
        given = signature.bind(**call.inputs, **call.options).arguments
    except TypeError as error:
        return None, f"what {call.op!r} records is not what it is called with ({error})"
    is_ours = described.function.__module__.startswith("minires.")  # a test holds that nothing is lost
    for name, parameter in signature.parameters.items():
        if name not in given and parameter.default is not None and not is_ours:
            return None, f"{call.op!r} does not record its {name}"
    return described.function, ""


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
