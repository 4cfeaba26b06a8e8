"""The tape: what was done to make a tensor, and the walk back over it.

A :class:`Node` is one operation that was done: the nodes of its inputs, and a function ``backward(dy)`` that
turns the gradient of the result into one gradient for each input. A node is numbered when it is made, and an
operation can only use what was made before it, so walking by falling numbers is a reverse topological order:
no recursion, however deep the network.

The tape keeps no result alive by itself: each ``backward`` holds just the arrays that its formula needs,
those that the operation declares as saved. They must stay as they were. So that a change in place does not
make a gradient wrong in silence, the tape remembers a few numbers of each, and compares them before it uses
them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from minires import backend
from minires.array_making import as_it_is, is_array
from minires.backend import Array
from minires.errors import MiniresError, ShapeError

Backward = Callable[[Array], Sequence["Array | None"]]
Hook = Callable[[Array], "Array | None"]
NOTHING: Mapping[str, Any] = MappingProxyType({})
_MAPPINGS = (dict, Mapping)  # dict first: to ask the other takes ten times as long
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_numbers = itertools.count()
# Names that no own operation may have: those of what stands on a tape beside operations, or in a recording,
# and those of the operations that come with minires, which add themselves.
RESERVED = {"leaf", "input", "round", "recompute", "plan"}


class Node:
    """One entry of the tape: an operation that was done, or a leaf (a tensor the user made).

    ``op`` is the operation's name, ``path`` the module it ran in, ``parents`` one node (or None: no gradient
    needed) per input, ``names`` what the inputs are called, ``options`` what the operation was called with,
    ``saved`` the arrays that its backward needs, ``output`` a weak reference to the tensor of the result,
    ``shape`` and ``dtype`` those of it.
    """

    __slots__ = (
        "op", "path", "parents", "backward", "names", "options", "saved", "number", "shape", "dtype",
        "output", "hooks", "retain", "samples",
    )  # fmt: skip

    def __init__(
        self,
        op: str,
        output: Any,
        parents: tuple[Node | None, ...],
        backward: Backward | None,
        *,
        path: str = "",
        names: tuple[str, ...] = (),
        options: Mapping[str, Any] = NOTHING,
        saved: Mapping[str, Array] = NOTHING,
    ) -> None:
        self.op = op
        self.path = path
        self.parents = parents
        self.backward = backward
        self.names, self.options, self.saved = names, options, saved
        self.number = next(_numbers)
        self.shape = output.data.shape
        self.dtype = output.data.dtype
        self.output: weakref.ref[Any] = weakref.ref(output)
        self.samples = {name: _sample(array) for name, array in saved.items()}
        self.hooks: list[Hook] = []
        self.retain = op == "leaf"

    @property
    def freed(self) -> bool:
        return self.backward is None and self.op != "leaf"

    def free(self) -> None:
        self.backward, self.parents, self.saved, self.options, self.samples = None, (), NOTHING, NOTHING, {}

    def check_unchanged(self) -> None:
        """Raises: MiniresError if an array that the backward needs was changed since the forward pass."""
        for name, before in self.samples.items():
            array = self.saved[name]
            if before != _sample(array):
                whose = f"its input {name}" if name in self.names else f"what it saved as {name}"
                raise _refused(
                    self,
                    f"{whose} {array.shape} was changed in place after the forward pass, and gradients are "
                    "computed from it. Change it after backward(), or give the operation a copy; after a "
                    "step of the optimiser run the forward pass again",
                )

    def __repr__(self) -> str:
        return f"<{self.op} {self.path or '(no module)'} {tuple(self.shape)}>"


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a backward pass: the node, the gradient of its result, and one gradient per parent."""

    node: Node
    incoming: Array
    outgoing: tuple[Array | None, ...]

    def __repr__(self) -> str:
        given = ", ".join("none" if one is None else f"{one.shape}" for one in self.outgoing)
        return f"<backward of {self.node!r}: {self.incoming.shape} -> {given}>"


_PLACES, _RUN = 8, 32  # of a larger array so many numbers are compared, side by side at so many places


def _sample(array: Array) -> bytes:
    """Some numbers of an array, spread evenly; all of a small one, none of one on a GPU, which would wait.

    Neighbours lie in one or two lines of the processor's cache, and cost a small part of numbers far apart.
    Each place has the channels that follow those at the place before, so that up to 256 are all seen.
    """
    if not isinstance(array, np.ndarray):
        return b""
    if array.size <= _PLACES * _RUN:
        return array.tobytes()
    apart, channels = array.size // _PLACES, array.shape[-1]
    if channels <= apart - _RUN:
        apart = (apart - _RUN) // channels * channels + _RUN
    if array.flags.c_contiguous:
        return array.reshape(-1)[: _PLACES * apart].reshape(_PLACES, apart)[:, :_RUN].tobytes()
    return b"".join(array.flat[at : at + _RUN].tobytes() for at in range(0, _PLACES * apart, apart))


_FREED = (
    "backward: this graph was freed by an earlier backward(). "
    "Run the forward pass again, or call the first backward with retain_graph=True"
)


def reachable(root: Node) -> dict[Node, int]:
    """Every node from which a gradient of ``root`` can be asked, with the number of its uses."""
    uses = {root: 0}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.freed:
            raise MiniresError(_FREED)
        for parent in node.parents:
            if parent is None:
                continue
            if parent not in uses:
                uses[parent] = 0
                waiting.append(parent)
            uses[parent] += 1
    return uses


def backward_steps(root: Node, grad: Array, *, retain_graph: bool) -> Iterator[Step]:
    """The backward pass from ``root`` with its gradient, an operation at a time, the last one first.

    Raises: MiniresError if the tape was freed by an earlier backward().
    """
    if root.freed:
        raise MiniresError(_FREED)
    return _walk(root, grad, retain_graph)


def _walk(root: Node, grad: Array, retain_graph: bool) -> Iterator[Step]:
    uses = reachable(root)
    gradients: dict[Node, Array] = {root: grad}
    ours: set[Node] = set()  # nodes whose gradient is an array that nobody else holds
    if uses[root] == 0:
        _complete(root, gradients, ours)
    # A leaf was perhaps numbered after a node that does not use it, so leaves are done when their uses are.
    for node in sorted((node for node in uses if node.op != "leaf"), key=lambda node: -node.number):
        incoming = gradients.pop(node, None)
        outgoing: tuple[Array | None, ...] = (None,) * len(node.parents)
        if incoming is not None:
            if node.backward is None:
                raise MiniresError(_FREED)
            outgoing = _gradients(node, node.backward, incoming)
        for parent, gradient in zip(node.parents, outgoing, strict=True):
            if parent is None:
                continue
            if gradient is not None:
                fresh = gradient is not incoming and gradient.base is None
                _accumulate(parent, gradient, fresh, gradients, ours)
            uses[parent] -= 1
            if uses[parent] == 0:
                _complete(parent, gradients, ours)
        if not retain_graph:
            node.free()
        if incoming is not None:
            yield Step(node, incoming, outgoing)


def _gradients(node: Node, backward: Backward, incoming: Array) -> tuple[Array | None, ...]:
    """What the operation's backward gives, one gradient for each input, or None.

    What it raises itself gets a note of the operation. Raises: MiniresError, with the operation, if it gives
    something else than gradients; ShapeError for a shape.
    """
    node.check_unchanged()
    try:
        given = backward(incoming)
    except MiniresError as error:
        error.where = error.where or node.path or None
        raise
    except Exception as error:
        place = f"{node.path}: {node.op}" if node.path else node.op
        error.add_note(f"{place}: its backward failed for dy {incoming.shape}")
        raise
    if not isinstance(given, tuple | list) or len(given) != len(node.parents):
        many = isinstance(given, tuple | list)
        what = f"{len(given)} gradients" if many else f"{type(given).__name__} {getattr(given, 'shape', '')}"
        wanted = ", ".join(f"d{name}" for name in node.names)
        raise _refused(
            node,
            f"its backward must return a tuple with one gradient for each input, ({wanted},), and None where "
            f"none is needed, not {what.rstrip()}",
        )
    # NumPy makes a scalar of every result without axes; a gradient is an array.
    outgoing = tuple([np.asarray(g) if isinstance(g, np.generic) else g for g in given])
    for number, (gradient, parent) in enumerate(zip(outgoing, node.parents, strict=True)):
        if gradient is None or parent is None:
            continue
        # The gradient of what was rounded to bfloat16 stays float32: see minires.ops.mixed_precision.
        same_dtype = _is_array(gradient) and (
            gradient.dtype == parent.dtype or backend.is_bfloat16(parent.dtype)
        )
        if not same_dtype or gradient.shape != parent.shape:
            raise _misfit(node, number, gradient, parent)
    return outgoing


def _misfit(node: Node, number: int, gradient: Any, parent: Node) -> MiniresError:
    """What is wrong with the gradient that a backward gives for the input with this number."""
    name = node.names[number] if number < len(node.names) else number
    if not _is_array(gradient):
        what = (
            f"a {type(gradient).__name__}, no array, but {name} has the shape {parent.shape}; compute with "
            "arrays, such as x.data, not with tensors"
        )
    elif gradient.shape != parent.shape:
        what = (
            f"a gradient that is of shape {gradient.shape}, but {name} has the shape {parent.shape}; sum it "
            f"over the axes along which {name} was broadcast, or check the order of the gradients"
        )
    else:
        what = (
            f"a gradient of {gradient.dtype}, but {name} is {parent.dtype}; what NumPy makes is float64: "
            f"convert it, .astype({name}.dtype)"
        )
    return _refused(node, f"its backward gives for the input {name} {what}", ShapeError)


def _refused(node: Node, message: str, kind: type[MiniresError] = MiniresError) -> MiniresError:
    error = kind(f"{node.op}: {message}")
    error.where = node.path or None
    return error


def _is_array(value: Any) -> bool:
    """Whether this is an array: a tensor has a shape, too, but is no view of memory."""
    return hasattr(value, "shape") and hasattr(value, "base")


def _check_replaced(node: Node, gradient: Array, replaced: Any) -> None:
    """Raises: MiniresError, ShapeError if a hook returned something else than such a gradient."""
    if not _is_array(replaced):
        raise _refused(node, f"a hook returned a {type(replaced).__name__}; it must return an array, or None")
    if replaced.shape != gradient.shape or replaced.dtype != gradient.dtype:
        raise _refused(
            node,
            f"a hook returned a gradient {replaced.dtype} {replaced.shape} in the place of one "
            f"{gradient.dtype} {gradient.shape}",
            ShapeError,
        )


def _accumulate(
    node: Node, gradient: Array, fresh: bool, gradients: dict[Node, Array], ours: set[Node]
) -> None:
    before = gradients.get(node)
    if before is None:
        gradients[node] = gradient
        if fresh:
            ours.add(node)
    else:
        gradients[node] = backend.add(before, gradient)
        ours.add(node)


def _complete(node: Node, gradients: dict[Node, Array], ours: set[Node]) -> None:
    """All uses of ``node`` have given their gradient: call its hooks and keep it where asked."""
    gradient = gradients.get(node)
    if gradient is None:
        return
    for hook in list(node.hooks):
        replaced = hook(gradient)
        if replaced is not None:
            _check_replaced(node, gradient, replaced)
            gradient = gradients[node] = replaced
            ours.discard(node)
    tensor = node.output()
    if node.retain and tensor is not None:
        if tensor.grad is not None:
            tensor.grad = tensor.grad + gradient
        else:
            tensor.grad = gradient if node in ours and node.op == "leaf" else gradient.copy()
    if node.op == "leaf":
        del gradients[node]


def of_those_given(backward: Backward, given: Sequence[bool]) -> Backward:
    """The gradients of the inputs that were given, without the places of the others."""

    def backward_of_those(dy: Array) -> Sequence[Array | None]:
        gradients = backward(dy)
        if not isinstance(gradients, tuple | list) or len(gradients) != len(given):
            raise MiniresError(
                f"a backward must return a tuple of {len(given)} gradients, one for each input, those that "
                "were not given included"
            )
        return [gradient for gradient, there in zip(gradients, given, strict=True) if there]

    return backward_of_those


def unused_parameters(loss: Any, model: Any) -> list[str]:
    """The names of the parameters of ``model`` that no path on the tape connects to ``loss``.

    An empty list says that every parameter will get a gradient. ``model`` has ``named_parameters()``.

    Raises: MiniresError if the tape of ``loss`` was freed by an earlier backward().
    """
    parameters: Iterable[tuple[str, Any]] = model.named_parameters()
    reached = {} if loss.node is None else reachable(loss.node)
    return [name for name, parameter in parameters if parameter.node not in reached]


def check_declared(op: Any, output: Any, options: Any, saved: Any, backward: Backward) -> None:
    """Raises: MiniresError, ShapeError for what the tape, or who reads it, could not use."""
    if type(op) is not str:
        raise MiniresError(f"record takes the name of the operation first, as text, not {op!r}")
    if op in RESERVED and not str(getattr(backward, "__module__", "")).startswith("minires."):
        raise MiniresError(
            f"{op}: this name belongs to an operation of minires, whose formulas and words would be shown "
            f'for yours; give another name, such as record("own_{op}", ...)'
        )
    if not isinstance(options, _MAPPINGS) or not isinstance(saved, _MAPPINGS):
        raise MiniresError(f'{op}: record takes options and saved by name, such as saved={{"x": x.data}}')
    for name, array in saved.items():
        if type(array) is not np.ndarray and array is not None and not is_array(as_it_is(array)):
            kind = type(array).__name__
            raise MiniresError(f"{op}: record saves arrays, such as x.data; {name} is a {kind}")
    dtype = output.dtype
    if dtype not in _FLOATS and not backend.is_bfloat16(dtype):
        raise ShapeError(
            f"{op}: its result is {dtype}, but a gradient can flow to float32, float64 and bfloat16 only; "
            "detach() the input, or convert the result"
        )
