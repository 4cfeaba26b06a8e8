"""One forward and one backward pass, written down: every operation with its values and its gradients.

``record_passes(model, x, y)`` watches the operations while a batch passes through a model (see
:func:`minires.tensor.watching`) and takes the gradients from the steps of the backward pass. Fused operations
run as the separate steps they stand for, and recomputed blocks as plain calls, so that there is something to
see.

The model is left as it was: modes, running statistics, random generators, gradients. All values are NumPy
arrays, also of a model on a GPU.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.inspect.graph import chains
from minires.inspect.summary import Shape, handed_on, left_as_it_is
from minires.nn.intervene import Words as Changed
from minires.nn.intervene import changes_of, intervene
from minires.nn.module import Module
from minires.ops.cross_entropy import cross_entropy
from minires.ops.forms import Formula, Values
from minires.ops.registry import Description, Words, declare, describe
from minires.tape import Node, reachable
from minires.tensor import Call, Tensor, as_array, settings, watching, with_settings

# A loss of scores below this is about 0: its gradient, probabilities less label, is what rounding has left.
ABOUT_ZERO = 1e-5

INPUT = declare(  # the operation that stands for what the model is given
    Description(
        name="input",
        math="x, the numbers that enter the model",
        backward="dx: how much the loss changes with each of them",
        result="x",
        english=Words(
            "Input",
            "The numbers that enter the network: one for each pixel and colour.",
            "How much the loss would change with each number of the picture.",
        ),
        chinese=Words(
            "输入",
            "进入网络的数：每个像素的每种颜色一个。",
            "图片中每个数变化时，损失会变化多少。",
        ),
        unchecked="it computes nothing",
    )
).name


@dataclass(frozen=True, eq=False)
class Source:
    """Where an input of an operation came from.

    ``kind`` is "operation" or "input" (``number`` is its place among the operations), "parameter" (``name``
    is its path) or "constant" (numbers to which no gradient flows). ``value`` is None where a tape has not
    kept it.
    """

    kind: str
    number: int | None
    name: str | None
    value: Array

    def __repr__(self) -> str:
        shown = f" {self.name}" if self.name else "" if self.number is None else f" {self.number}"
        return f"<{self.kind}{shown} {np.shape(self.value) if self.value is not None else '(not kept)'}>"


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the forward pass; the model's input is one too, named "input".

    ``names`` are what the formula calls its inputs: x, w, b.
    ``output`` is what it made; None where a tape has not kept it.
    ``options`` are what it was called with, plain values and arrays (running statistics as they are after the
    operation), and of a window all sides: ``kernel`` (KH, KW), ``stride`` (SH, SW), ``padding`` ((top,
    bottom), (left, right)). ``incoming`` is the gradient of the loss with respect to ``output``, ``outgoing``
    that for each input, ``contributions`` who sent what part of ``incoming``: at a fork more than one. They
    are None or empty where no gradient flows. ``saved`` are those saved arrays that its arithmetic asks for.

    ``within`` are the paths of the modules around it and of its own, outermost first. ``stage`` counts the
    parts of the model that hand on one picture size, from 1; see :class:`Recording`.

    Units: seconds. The forward time is that since the operation before, the program's own work between them
    and, on a GPU, the copy of the result to the CPU included; so is the first use of a kernel its compiling.
    """

    number: int
    op: str
    path: str
    names: tuple[str, ...]
    inputs: tuple[Source, ...]
    output: Array
    options: Mapping[str, Any]
    seconds: float = 0.0
    backward_seconds: float = 0.0
    incoming: Array | None = None
    outgoing: tuple[Array | None, ...] = ()
    contributions: tuple[tuple[int, Array], ...] = ()
    within: tuple[str, ...] = ()
    stage: int = 0
    shape: Shape = ()
    saved: Mapping[str, Array] = field(default_factory=dict)

    def values(self) -> Values:
        """Its arrays as its arithmetic wants them: see :mod:`minires.ops.forms`."""
        inputs = {name: source.value for name, source in zip(self.names, self.inputs, strict=True)}
        return Values(
            inputs, self.options, self.shape, self.saved, self.output, self.incoming, describe(self.op).result
        )

    @property
    def block(self) -> str:
        """The part directly inside the model to which it belongs: res2a; "" outside of all."""
        return self.within[0] if self.within else ""

    def __repr__(self) -> str:
        return f"<{self.number} {self.op} {self.path or '(no module)'} {self.shape}>"


@dataclass(frozen=True, eq=False)
class Recording:
    """What happened in one forward and one backward pass.

    ``order_back`` has the numbers of operations in the order in which the backward pass met them; the input
    comes last. ``gradients`` are those of the parameters, by path, all uses summed. ``stages`` are the
    picture sizes by which the parts of the model are grouped; stage 1 is the first of them.

    ``guessed`` says that there were no labels, and the model's own guess was taken. ``training`` is the mode
    of the model, None where there is no model.

    ``changes`` say what was changed of the model while it ran (``minires.intervene``), a line each; their
    attribute ``chinese`` says it in Chinese.

    ``modules`` has every name of every module inside the model, and the path that its operations carry: of
    a module that is held under several names, the first.
    """

    model: Module | None
    operations: tuple[Operation, ...]
    order_back: tuple[int, ...]
    x: Array | None
    labels: Array | None
    loss: float
    logits: Array | None
    guessed: bool = False
    training: bool | None = None
    gradients: Mapping[str, Array] = field(default_factory=dict)
    stages: tuple[Shape, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Changed, ...] = ()

    @property
    def noise(self) -> bool:
        """Whether the loss is a cross entropy of about 0, so that the gradients say nothing."""
        form = describe(self.operations[-1].op).arithmetic
        of_scores = isinstance(form, Formula) and "k" in form.also
        return of_scores and 0 <= self.loss < ABOUT_ZERO

    def __repr__(self) -> str:
        of = type(self.model).__name__ if self.model is not None else "a function or tape"
        changed = f", changed: {'; '.join(self.changes)}" if self.changes else ""
        return f"<recording of {of}: {len(self.operations)} operations, loss {self.loss:.6g}{changed}>"


def record_passes(
    model: Module | Callable[[Tensor], Tensor], x: Any, y: Any = None, *,
    changes: Mapping[str, Any] | None = None,
) -> Recording:  # fmt: skip
    """Run a model on a batch, forward and backward, and write down every operation.

    The loss is the cross entropy of the model's scores and the labels ``y``; without labels they are the
    model's own guess, which may leave no gradient: see :attr:`Recording.noise`. A model that returns a single
    value gives the loss itself, and takes no labels. The mode of the model, training or inference, is its
    own. Any function of a tensor will do for a model. ``changes`` of a module are made meanwhile: see
    ``minires.intervene``.

    Shapes: x (N, H, W, C) or what the model takes; y (N,) class numbers or (N, K) probabilities.
    Raises: ShapeError if the batch does not fit the model, or the scores the loss; DataError for a label out
    of range; ConfigError for labels that nothing asks for, or changes of a function; MiniresError if no
    gradient flows.
    """
    module = model if isinstance(model, Module) else None
    if changes and module is None:
        raise ConfigError("changes are of the modules of a model, and this is a function")
    y = y.data if isinstance(y, Tensor) else y
    device = next((parameter.device for parameter in module.parameters()), None) if module else None
    picture = Tensor(Tensor(x).data.copy(), requires_grad=True, device=device)
    notes = _Notes(module, picture)
    with (
        left_as_it_is(module) if module else nullcontext(),
        intervene(module, changes or {}) if module else nullcontext(),
    ):
        with with_settings(recording=True, fused=False), watching(notes.note):
            result = handed_on(model(picture), model)
            loss, labels = _loss(result, y)
        changed = changes_of(module) if module else ()
    if loss.node is None:
        raise MiniresError("nothing leads from the input or a parameter to the loss, so there is no gradient")
    back = walk_back(loss, notes.seen)
    return put_together(
        module, notes.seen, back, x=picture.numpy(), labels=labels, loss=float(loss.item()),
        logits=None if result is loss else result.numpy(), guessed=y is None and result is not loss,
        gradients=notes.gradients(back), changes=changed,
    )  # fmt: skip


def _loss(result: Tensor, y: Any) -> tuple[Tensor, Array | None]:
    """The loss of what the model returned, and the labels that it is for."""
    if result.ndim == 0:
        if y is not None:
            raise ConfigError(
                "the model returns a single value, which is the loss itself; leave the labels out"
            )
        return result, None
    if result.ndim != 2:
        raise ShapeError(
            f"the model returns {result.shape}; to step through it, it must return scores (N, K) or one value"
        )
    labels = result.numpy().argmax(axis=1) if y is None else np.array(backend.to_device(as_array(y), "cpu"))
    return cross_entropy(result, labels), labels


# ------------------------------------------------------------------------------------------- the way there


@dataclass
class Seen:
    """What the forward pass tells of an operation."""

    op: str
    path: str
    node: Node | None
    names: tuple[str, ...]
    inputs: tuple[Source, ...]
    output: Array | None
    shape: Shape
    options: Mapping[str, Any] = field(default_factory=dict)
    saved: Mapping[str, Array] = field(default_factory=dict)
    seconds: float = 0.0


class _Notes:
    """What is written down while the model runs, beginning with the input."""

    def __init__(self, module: Module | None, picture: Tensor) -> None:
        self.seen = [Seen(INPUT, "", picture.node, (), (), picture.numpy(), picture.shape)]
        self._parameters = dict(module.named_parameters()) if module else {}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._numbers = {id(picture): 0}
        self._copies: dict[int, Source] = {}  # parameters may be used, and so copied, more than once
        self._tensors = [picture]  # kept, so that no id is given out twice
        self._clock = time.perf_counter()

    def note(self, call: Call) -> None:
        """Write down one operation; to be called when it is done."""
        output = backend.to_device(call.y.data, "cpu")
        seconds = time.perf_counter() - self._clock
        path = settings()["path"]
        inputs = tuple(map(self._source, call.inputs.values()))
        self._numbers[id(call.y)] = len(self.seen)
        self._tensors += [call.y, *call.inputs.values()]
        self.seen.append(
            Seen(
                call.op, path, call.y.node, tuple(call.inputs), inputs, output, output.shape,
                plain_options(call.options), wanted(call.op, call.saved), seconds,
            )
        )  # fmt: skip
        self._clock = time.perf_counter()

    def _source(self, tensor: Tensor) -> Source:
        number = self._numbers.get(id(tensor))
        if number is not None:
            return Source("operation" if number else INPUT, number, None, self.seen[number].output)
        if id(tensor) not in self._copies:
            name = self._names.get(id(tensor), tensor.name)
            kind = "parameter" if id(tensor) in self._names or tensor.node is not None else "constant"
            # What an optimiser changes in place later must not change what is written here.
            self._copies[id(tensor)] = Source(kind, None, name, np.array(tensor.numpy()))
        return self._copies[id(tensor)]

    def gradients(self, back: Back) -> dict[str, Array]:
        """The gradient of each parameter to which one flows, by path."""
        sums = {name: back.total(parameter.node) for name, parameter in self._parameters.items()}
        return {name: gradient for name, gradient in sums.items() if gradient is not None}


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copies, on the CPU, of those options that are plain values or arrays."""
    return {name: _copied(value) for name, value in options.items() if _is_array(value) or _is_plain(value)}


def _copied(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value))
    return np.array(backend.to_device(value, "cpu")) if _is_array(value) else value


def wanted(op: str, saved: Mapping[str, Array]) -> dict[str, Array]:
    """Those of the arrays that an operation has saved that its arithmetic asks for, on the CPU."""
    form = describe(op).arithmetic
    names = form.saved if isinstance(form, Formula) else ()
    return {name: backend.to_device(saved[name], "cpu") for name in names if name in saved}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value).__module__.startswith("cupy")


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_array(part) or _is_plain(part) or part is None or part is ... for part in value)
    return isinstance(value, bool | int | float | str | slice | np.generic)


# ---------------------------------------------------------------------------------------------- the way back


@dataclass
class Back:
    """What the backward pass tells, by number of the operation or, for contributions, by node."""

    order: list[int] = field(default_factory=list)
    seconds: dict[int, float] = field(default_factory=dict)
    incoming: dict[int, Array] = field(default_factory=dict)
    outgoing: dict[int, tuple[Array | None, ...]] = field(default_factory=dict)
    contributions: dict[Node, list[tuple[int, Array]]] = field(default_factory=dict)

    def total(self, node: Node | None) -> Array | None:
        """The sum of the contributions to a leaf, in the order in which they came."""
        parts = self.contributions.get(node, []) if node else []
        return functools.reduce(np.add, [part for _, part in parts]) if parts else None


def walk_back(loss: Tensor, seen: Sequence[Seen]) -> Back:
    """Take the backward pass from ``loss``; the tape, all ``.grad`` and the leaves' hooks are let alone."""
    numbers = {one.node: number for number, one in enumerate(seen)}
    back = Back()
    with _untouched(reachable(loss.on_tape("step"))):
        clock = time.perf_counter()
        for step in loss.backward_steps(retain_graph=True):
            seconds = time.perf_counter() - clock
            number = numbers.get(step.node)
            if number is None:  # what was computed before we looked on
                clock = time.perf_counter()
                continue
            outgoing = tuple(None if g is None else backend.to_device(g, "cpu") for g in step.outgoing)
            back.order.append(number)
            back.seconds[number] = seconds
            back.incoming[number] = backend.to_device(step.incoming, "cpu")
            back.outgoing[number] = outgoing
            for parent, gradient in zip(step.node.parents, outgoing, strict=True):
                if parent is not None and gradient is not None:
                    back.contributions.setdefault(parent, []).append((number, gradient))
            clock = time.perf_counter()
    for number, one in enumerate(seen):
        total = back.total(one.node) if one.op == INPUT else None
        if total is not None:
            back.order.append(number)
            back.incoming[number] = total
    return back


@contextmanager
def _untouched(nodes: Iterable[Node]) -> Iterator[None]:
    """Inside this block no tensor's ``.grad`` is set, and no hook of a leaf is called."""
    before = [(node, node.retain, node.hooks) for node in nodes]
    for node, _, hooks in before:
        node.retain, node.hooks = False, [] if node.op == "leaf" else hooks
    try:
        yield
    finally:
        for node, retain, hooks in before:
            node.retain, node.hooks = retain, hooks


# ------------------------------------------------------------------------------------------------ together


def put_together(module: Module | None, seen: Sequence[Seen], back: Back, **others: Any) -> Recording:
    """The recording of both ways."""
    around = dict(chains(module)) if module else {}
    within = [around.get(one.path, ()) for one in seen]
    numbers, sizes = _stages(seen, within)
    operations = tuple(
        Operation(
            number, one.op, one.path, one.names, one.inputs, one.output, one.options, one.seconds,
            back.seconds.get(number, 0.0), back.incoming.get(number), back.outgoing.get(number, ()),
            tuple(back.contributions.get(one.node, ())) if one.node else (),
            within[number], numbers[number], tuple(one.shape), one.saved,
        )
        for number, one in enumerate(seen)
    )  # fmt: skip
    training = module.training if module else None
    return Recording(
        module, operations, tuple(back.order),
        training=training, stages=sizes, modules=_names(module), **others
    )


def _names(module: Module | None) -> dict[str, str]:
    """Every name of every module inside, and the first one of the same module."""
    if module is None:
        return {}
    names = {path: path for path, _ in module.named_modules()}
    for first, others in module.shared_names().items():
        inside = [path for path in names if path == first or path.startswith(f"{first}.")]
        names |= {other + path.removeprefix(first): names[path] for other in others for path in inside}
    return names


def _stages(seen: Sequence[Seen], within: Sequence[tuple[str, ...]]) -> tuple[list[int], tuple[Shape, ...]]:
    """The stage of each operation, and the picture size of each stage.

    A part of the model belongs to the size that it hands on; its first operations may still see the larger
    one. What is outside of all parts belongs to the stage before it.
    """
    hands_on = {chain[0]: tuple(one.shape[1:-1]) for one, chain in zip(seen, within, strict=True) if chain}
    runs = [list(group) for _, group in itertools.groupby(hands_on, key=lambda part: hands_on[part])]
    stage_of = {part: number for number, run in enumerate(runs, 1) for part in run}
    numbers = [0]
    for chain in within:
        numbers.append(stage_of[chain[0]] if chain else numbers[-1])
    return numbers[1:], tuple(hands_on[run[0]] for run in runs)
