"""The tensor and the tape: how a gradient finds its way back.

Every operation computes its result as an array and then calls :func:`record`, which notes on the tape where
the result came from: a :class:`Node` with the nodes of its inputs and a closure ``backward(dy)`` that turns
the gradient of the result into one gradient for each input. ``loss.backward()`` walks the tape from the loss
to the parameters. A node is numbered when it is made, and an operation can only use what was made before it,
so walking by falling numbers is a reverse topological order: no recursion, however deep the network.

An operation declares itself when it calls ``record``: what its inputs are called, the options it was called
with, the arrays that it saved for its backward. Whoever wants to know more of a pass than its gradients (the
debugger, a summary, an export) reads these, and nothing else.

The tape keeps no result alive by itself: each closure holds just the arrays that its formula needs, those
that the operation declares as saved.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import MiniresError, ShapeError

Backward = Callable[[Array], Sequence["Array | None"]]
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_numbers = itertools.count()
_SHOWN, _LINES = 100, 12  # a tensor of more numbers, or more lines, is shown by its shape


class _State(threading.local):
    recording = True
    fused = True
    path = ""  # the path of the module whose forward is running, for the names of nodes
    tree: Any = None  # the paths inside the outermost module that is running: see minires.nn.paths
    watcher: Callable[[Call], None] | None = None


_state = _State()


def settings() -> dict[str, Any]:
    """What no_grad(), unfused(), scope() and watching() have set for this thread."""
    return {name: getattr(_state, name) for name in ("recording", "fused", "path", "tree", "watcher")}


@contextmanager
def with_settings(**changes: Any) -> Iterator[None]:
    """Change some of the :func:`settings` inside this block."""
    before = settings()
    vars(_state).update(changes)
    try:
        yield
    finally:
        vars(_state).update(before)


def no_grad() -> AbstractContextManager[None]:
    """Record nothing on the tape inside this block: for evaluation and for updates of parameters."""
    return with_settings(recording=False)


def is_recording() -> bool:
    """Whether operations are recorded on the tape now."""
    return _state.recording


def unfused() -> AbstractContextManager[None]:
    """Run fused operations as the separate steps they stand for, each a node of its own on the tape."""
    return with_settings(fused=False)


def is_fused() -> bool:
    """Whether fused operations run as one node now."""
    return _state.fused


def scope(path: str) -> AbstractContextManager[None]:
    """Name the nodes recorded inside this block after the module at ``path``."""
    return with_settings(path=path)


def running() -> tuple[Any, str]:
    """The tree of the outermost module that is running in this thread, None for none, and the path now."""
    return _state.tree, _state.path


def enter(tree: Any, path: str) -> tuple[Any, str]:
    """Say that a module runs from now on. Returns what was before, to be given to ``enter`` afterwards."""
    before = _state.tree, _state.path
    _state.tree, _state.path = tree, path
    return before


@dataclass(frozen=True)
class Call:
    """One call of an operation, as it was declared: see :func:`record`.

    ``inputs`` are the tensors that were given, by the names that the formula has for them.
    """

    op: str
    y: Tensor
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any]
    saved: Mapping[str, Array]


def watching(watcher: Callable[[Call], None]) -> AbstractContextManager[None]:
    """Call ``watcher`` after every operation inside this block, whether or not it is recorded on the tape."""
    return with_settings(watcher=watcher)


def is_watched() -> bool:
    """Whether somebody watches the operations now."""
    return _state.watcher is not None


@contextmanager
def set_apart(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Inside this block ``leaves`` stand on another tape: their gradients and hooks of before are set aside.

    So the gradients of a part of a graph can be found alone. Afterwards all is as before.
    """
    before = [(leaf, leaf._node, leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf._node, leaf.grad = Node("leaf", leaf, (), None), None
    try:
        yield
    finally:
        for leaf, node, grad in before:
            leaf._node, leaf.grad = node, grad


class Node:
    """One entry of the tape: an operation that was done, or a leaf (a tensor the user made).

    ``op`` is the operation's name, ``path`` the module it ran in, ``parents`` one node (or None: no gradient
    needed) per input, ``names`` what the inputs are called, ``options`` what the operation was called with,
    ``saved`` the arrays that its backward needs, ``shape`` and ``dtype`` those of the result.
    """

    __slots__ = (
        "op", "path", "parents", "backward", "names", "options", "saved", "number", "shape", "dtype",
        "output", "hooks", "retain",
    )  # fmt: skip

    def __init__(
        self,
        op: str,
        output: Tensor,
        parents: tuple[Node | None, ...],
        backward: Backward | None,
        *,
        names: tuple[str, ...] = (),
        options: Mapping[str, Any] = _NOTHING,
        saved: Mapping[str, Array] = _NOTHING,
    ) -> None:
        self.op = op
        self.path = _state.path
        self.parents = parents
        self.backward = backward
        self.names, self.options, self.saved = names, options, saved
        self.number = next(_numbers)
        self.shape = output.data.shape
        self.dtype = output.data.dtype
        self.output = weakref.ref(output)
        self.hooks: list[Callable[[Array], Array | None]] = []
        self.retain = op == "leaf"

    @property
    def freed(self) -> bool:
        return self.backward is None and self.op != "leaf"

    def free(self) -> None:
        self.backward, self.parents, self.saved = None, (), _NOTHING

    def __repr__(self) -> str:
        return f"<{self.op} {self.path or '(no module)'} {tuple(self.shape)}>"


@dataclass(frozen=True)
class Step:
    """One step of a backward pass: the node, the gradient of its result, and one gradient per parent."""

    node: Node
    incoming: Array
    outgoing: tuple[Array | None, ...]

    def __repr__(self) -> str:
        given = ", ".join("none" if one is None else f"{one.shape}" for one in self.outgoing)
        return f"<backward of {self.node!r}: {self.incoming.shape} -> {given}>"


class Tensor:
    """An array that remembers how it was made.

    Python numbers and lists become float32; arrays keep their dtype, and only float32, float64 and bfloat16
    can need a gradient.

    Raises: ShapeError if ``requires_grad`` is asked for integers; ConfigError for an unknown device.
    """

    __slots__ = ("data", "grad", "name", "_node", "__weakref__")
    __array_priority__ = 100  # numpy_array * tensor asks the tensor, not the array

    def __init__(
        self, data: Any, *, requires_grad: bool = False, device: str | None = None, name: str | None = None
    ) -> None:
        if isinstance(data, Tensor):
            data = data.data
        if not hasattr(data, "dtype"):
            data = np.asarray(data, dtype=np.float32)
        elif isinstance(data, np.generic):
            data = np.asarray(data)
        self.data: Array = data if device is None else backend.to_device(data, device)
        self.grad: Array | None = None
        self.name = name
        self._node: Node | None = None
        if requires_grad:
            if not backend.is_float(self.data.dtype):
                raise ShapeError(f"only floating-point tensors have gradients, not {self.data.dtype}")
            self._node = Node("leaf", self, (), None)

    # ------------------------------------------------------------------------------------- what it is

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None and self._node.op != "leaf":
            raise MiniresError("requires_grad can be set on leaf tensors only; use detach() to cut the tape")
        if value != self.requires_grad:
            self._node = Node("leaf", self, (), None) if value else None

    @property
    def node(self) -> Node | None:
        """Its entry on the tape, or None if no gradient flows to it."""
        return self._node

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        return backend.device_of(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        by = f", op={self._node.op!r}" if self._node is not None and self._node.op != "leaf" else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({self._values()}, dtype={self.dtype}{grad}{by}{name})"

    def _values(self) -> str:
        """The numbers of a small tensor; of a larger one its shape and how large they are."""
        text = str(self.data) if self.size <= _SHOWN else ""
        if self.size <= _SHOWN and text.count("\n") < _LINES:
            return text
        numbers = self.numpy()
        numbers = numbers.astype(np.float64) if backend.is_float(numbers.dtype) else numbers
        return (
            f"shape {self.shape}, from {numbers.min():.4g} to {numbers.max():.4g}, mean {numbers.mean():.4g}"
        )

    # --------------------------------------------------------------------------------- getting it out

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array (shared with the tensor on the CPU, a copy from a GPU)."""
        return backend.to_device(self.data, "cpu")

    def item(self) -> float:
        """The one value as a Python number. Raises: ShapeError if there is not exactly one."""
        if self.data.size != 1:
            raise ShapeError(f"item() needs a tensor of one value, not of shape {self.shape}")
        return self.data.item()

    def detach(self) -> Tensor:
        """The same values, off the tape."""
        return Tensor(self.data, name=self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A tensor of its own with the same values; its gradient and hooks stay behind."""
        if self._node is not None and self._node.op != "leaf":
            raise MiniresError("only leaf tensors can be copied; use detach() to cut the tape")
        return _made_again(type(self), self.data.copy(), self.requires_grad, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """What copy.copy and a pickle hold: the values. The gradient and hooks stay behind."""
        if self._node is not None and self._node.op != "leaf":
            raise MiniresError("only leaf tensors can be pickled; use detach() to cut the tape")
        return _made_again, (type(self), self.data, self.requires_grad, self.name)

    def replace_data(self, data: Array) -> None:
        """Hold another array of the same shape from now on, on another device or of another dtype, perhaps.

        A leaf stays the same tensor: hooks stay, and whoever holds it has the new array. Its gradient, which
        was that of the old array, is forgotten.
        """
        if data is not self.data:
            self.data, self.grad = data, None
            if self._node is not None:
                self._node.dtype = data.dtype

    # ------------------------------------------------------------------------------------ the backward

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this tensor in ``.grad`` although it is not a leaf. Returns the tensor."""
        self._on_tape("retain_grad").retain = True
        return self

    def register_hook(self, hook: Callable[[Array], Array | None]) -> Callable[[], None]:
        """Call ``hook(gradient)`` once this tensor's gradient is complete; what it returns replaces it.

        Returns a function that removes the hook.
        """
        hooks = self._on_tape("register_hook").hooks
        hooks.append(hook)
        return lambda: hooks.remove(hook)

    def _on_tape(self, action: str) -> Node:
        if self._node is None:
            raise MiniresError(f"{action}: this tensor has no gradient (requires_grad is False)")
        return self._node

    def backward(self, grad: Array | None = None, *, retain_graph: bool = False) -> None:
        """Add to ``.grad`` of every leaf the gradient of this tensor, weighted with ``grad``.

        ``grad`` has this tensor's shape; it may be left out for a single value (then it is 1). The tape is
        freed on the way unless ``retain_graph`` is set.

        Raises: MiniresError if no gradient flows here or the tape was freed; ShapeError if ``grad`` does
        not fit.
        """
        for _ in self.backward_steps(grad, retain_graph=retain_graph):
            pass

    def backward_steps(self, grad: Array | None = None, *, retain_graph: bool = False) -> Iterator[Step]:
        """The backward pass one operation at a time, last operation first. See :meth:`backward`."""
        root = self._on_tape("backward")
        if root.freed:
            raise MiniresError(_FREED)
        return _backward_steps(root, self._initial_gradient(grad), retain_graph)

    def _initial_gradient(self, grad: Array | None) -> Array:
        xp = backend.array_module(self.data)
        if grad is None:
            if self.data.size != 1:
                raise ShapeError(
                    f"backward() starts from a single value; this tensor has shape {self.shape}. "
                    "Reduce it with sum() or mean(), or give the upstream gradient: backward(grad)"
                )
            return xp.ones(self.shape, self.dtype)
        grad = xp.asarray(grad.data if isinstance(grad, Tensor) else grad, dtype=self.dtype)
        if grad.shape != self.shape:
            raise ShapeError(f"backward: the gradient has shape {grad.shape}, the tensor {self.shape}")
        return grad

    if TYPE_CHECKING:  # bound in minires/ops/__init__.py, where each of these operations is a file

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, exponent: float) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def sum(self, axis: Any = None, *, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: Any = None, *, keepdims: bool = False) -> Tensor: ...
        def max(self, axis: Any = None, *, keepdims: bool = False) -> Tensor: ...
        def astype(self, dtype: Any) -> Tensor: ...
        def to(self, device: str) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def sqrt(self) -> Tensor: ...


def _made_again(kind: type[Tensor], data: Array, requires_grad: bool, name: str | None) -> Tensor:
    """A leaf of a class that may take other arguments."""
    other = kind.__new__(kind)
    Tensor.__init__(other, data, requires_grad=requires_grad, name=name)
    return other


def record(
    op: str,
    data: Array,
    *,
    inputs: Mapping[str, Tensor | None],
    backward: Backward,
    options: Mapping[str, Any] = _NOTHING,
    saved: Mapping[str, Array | None] = _NOTHING,
) -> Tensor:
    """Make the tensor of an operation's result and note on the tape how to go back.

    inputs: what the result was computed from, by the names that the formula has for them; None for one that
        was not given.
    backward: ``backward(dy)`` gets the gradient of the result and returns one gradient per input, in their
        order, None where none is needed. It must not change ``dy``; it may return ``dy`` itself or a view of
        it, but no other array that is used elsewhere.
    options: what the operation was called with (stride, eps, ...), as plain values or arrays.
    saved: the arrays that ``backward`` keeps alive. One that has the name of an input holds the values of
        that input, and "y" those of the result, in any shape of as many numbers.

    An own operation is a function that ends in ``record``:

    >>> def cube(x):
    ...     return record(
    ...         "cube", x.data**3, inputs={"x": x}, saved={"x": x.data},
    ...         backward=lambda dy: (3 * dy * x.data**2,),
    ...     )
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> cube(x).backward(np.ones(2))
    >>> x.grad.tolist()
    [3.0, 12.0]
    """
    output = Tensor(data)
    recording, watcher = _state.recording, _state.watcher
    if not recording and watcher is None:
        return output
    given = {name: x for name, x in inputs.items() if x is not None}
    kept = {name: array for name, array in saved.items() if array is not None}
    if recording:
        nodes = tuple(x.node for x in given.values())
        if any(node is not None for node in nodes):
            if len(given) < len(inputs):
                backward = _of_those_given(backward, [x is not None for x in inputs.values()])
            output._node = Node(op, output, nodes, backward, names=tuple(given), options=options, saved=kept)
    if watcher is not None:
        watcher(Call(op, output, given, options, kept))
    return output


def _of_those_given(backward: Backward, given: Sequence[bool]) -> Backward:
    """The gradients of the inputs that were given, without the places of the others."""
    return lambda dy: [gradient for gradient, there in zip(backward(dy), given, strict=True) if there]


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


def _backward_steps(root: Node, grad: Array, retain_graph: bool) -> Iterator[Step]:
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
            # NumPy makes a scalar of every result without axes; a gradient is an array.
            gradients_out = node.backward(incoming)
            outgoing = tuple(np.asarray(g) if isinstance(g, np.generic) else g for g in gradients_out)
            assert len(outgoing) == len(node.parents), f"{node}: {len(outgoing)} gradients"
        for parent, gradient in zip(node.parents, outgoing, strict=True):
            if parent is None:
                continue
            if gradient is not None:
                assert gradient.shape == parent.shape, f"{node}: gradient {gradient.shape} for {parent}"
                fresh = gradient is not incoming and gradient.base is None
                _accumulate(parent, gradient, fresh, gradients, ours)
            uses[parent] -= 1
            if uses[parent] == 0:
                _complete(parent, gradients, ours)
        if not retain_graph:
            node.free()
        if incoming is not None:
            yield Step(node, incoming, outgoing)


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


def cut(loss: Tensor, model: Any) -> list[str]:
    """The names of the parameters of ``model`` that no path on the tape connects to ``loss``.

    An empty list says that every parameter will get a gradient. ``model`` has ``named_parameters()``.

    Raises: MiniresError if the tape of ``loss`` was freed by an earlier backward().
    """
    parameters: Iterable[tuple[str, Tensor]] = model.named_parameters()
    reached = {} if loss.node is None else reachable(loss.node)
    return [name for name, parameter in parameters if parameter.node not in reached]
