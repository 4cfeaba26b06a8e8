"""The tensor: an array that remembers how it was made, so that a gradient finds its way back.

Every operation computes its result as an array and then calls :func:`record`, which notes on the tape where
the result came from: see :mod:`minires.tape`. ``loss.backward()`` walks the tape from the loss to the
parameters.

An operation declares itself when it calls ``record``: what its inputs are called, the options it was called
with, the arrays that it saved for its backward. Whoever wants to know more of a pass than its gradients (the
debugger, a summary, an export) reads these, and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never, Self, TypeAlias

import numpy as np

from minires import backend
from minires.array_making import as_it_is, is_array, made_of
from minires.backend import Array
from minires.errors import MiniresError, ShapeError, truth
from minires.modes import (
    enter,
    is_fused,
    is_recording,
    is_watched,
    mode,
    no_grad,
    running,
    settings,
    unfused,
    watching,
    with_settings,
)
from minires.tape import (
    NOTHING,
    Backward,
    Hook,
    Node,
    Step,
    backward_steps,
    check_declared,
    of_those_given,
    unused_parameters,
)

__all__ = [
    "Axis", "Call", "Operand", "Shape", "Tensor", "array_of", "as_array", "enter", "is_fused", "is_recording",
    "is_watched", "no_grad", "record", "running", "set_apart", "settings", "unfused", "unused_parameters",
    "watching", "with_settings",
]  # fmt: skip

Axis = int | tuple[int, ...] | None
Operand: TypeAlias = (
    "Tensor | np.ndarray[Any, Any] | np.generic | float | list[Any] | tuple[Any, ...]"  # of numbers
)
Shape = int | Sequence[int]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_SHOWN, _LINES = 100, 12  # a tensor of more numbers, or more lines, is shown by its shape


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation, as it was declared: see :func:`record`.

    ``inputs`` are the tensors that were given, by the names that the formula has for them.
    """

    op: str
    y: Tensor
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any]
    saved: Mapping[str, Array]


@contextmanager
def set_apart(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Inside this block ``leaves`` stand on another tape: their gradients and hooks of before are set aside.

    So the gradients of a part of a graph can be found alone. Afterwards all is as before.
    """
    before = [(leaf, leaf._node, leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf._node, leaf._grad = Node("leaf", leaf, (), None, path=mode.path), None
    try:
        yield
    finally:
        for leaf, node, grad in before:
            leaf._node, leaf._grad = node, grad


class Tensor:
    """An array that remembers how it was made.

    Python numbers and lists become float32; arrays keep their dtype, and only float32, float64 and bfloat16
    can need a gradient.

    Two tensors are one key of a dict, or one element of a set, if they are the same object. ``==`` compares
    their numbers, and so does ``in`` with a list of tensors: to find a tensor there, compare with ``is``.

    Raises: ShapeError if ``data`` holds no numbers or ``requires_grad`` is asked for integers; ConfigError
    for an unknown device.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> loss = (x * x).sum()
    >>> loss.backward()
    >>> x.grad.tolist(), f"{loss:.1f}", (x > 1.5).tolist()
    ([2.0, 4.0], '5.0', [False, True])
    """

    __slots__ = ("_data", "_grad", "name", "_node", "__weakref__")
    __hash__ = object.__hash__  # though == is not identity

    def __init__(
        self, data: Any, *, requires_grad: bool = False, device: str | None = None, name: str | None = None
    ) -> None:
        if type(data) is not np.ndarray:
            data = np.asarray(data) if isinstance(data, np.generic) else array_of(data)
        if data.dtype.kind in "OSUMm":
            raise ShapeError(f"a tensor holds numbers, but the array is of dtype {data.dtype}")
        self._data: Array = data if device is None else backend.to_device(data, device)
        self._grad: Array | None = None
        self.name = name
        self._node: Node | None = None
        if requires_grad is not False:
            self.requires_grad = requires_grad

    # ------------------------------------------------------------------------------------- what it is

    @property
    def data(self) -> Array:
        """Its numbers, as an array of NumPy or CuPy.

        They may be changed in place, ``x.data[...] = 0``, or replaced by another array, of the same shape if
        a gradient flows to the tensor. Between the forward pass and the backward they must stay as they are,
        since gradients are computed from them: a backward that finds them changed raises MiniresError. On the
        CPU it looks at 256 numbers of each array, spread evenly, so a change of a few numbers in a large
        array may be missed; on a GPU it does not look.

        Raises: ShapeError for what is no array of numbers, or of another shape where a gradient flows.
        """
        return self._data

    @data.setter
    def data(self, data: Array) -> None:
        data = as_it_is(data)
        if not is_array(data) or data.dtype.kind in "OSUMm":
            what = f"an array of {data.dtype}" if is_array(data) else f"a {type(data).__name__}"
            raise ShapeError(f"x.data must be an array of numbers, not {what}; np.asarray may make one")
        if self._node is not None:
            if data.shape != self._node.shape:
                raise ShapeError(
                    f"x.data: a gradient flows to this tensor of shape {self._node.shape}, so no array of "
                    f"shape {data.shape} can take the place of its numbers; make a new tensor"
                )
            self._check_differentiable(data.dtype)
            self._node.dtype = data.dtype
        self._data, grad = data, self._grad
        if grad is not None:  # it stays where it still fits, and follows to another precision
            fits = grad.shape == data.shape and backend.device_of(grad) == self.device
            self.grad = grad if fits else None

    @property
    def grad(self) -> Array | None:
        """Its gradient after a backward, an array of its shape, dtype and device, or None.

        Raises: ShapeError if it is set to something else; floats of another dtype are converted.
        """
        return self._grad

    @grad.setter
    def grad(self, grad: Array | None) -> None:
        self._grad = None if grad is None else self._fitting(as_it_is(grad))

    def _fitting(self, grad: Array) -> Array:
        name = f"the gradient of {self.name}" if self.name else "a gradient"
        if not is_array(grad) or not backend.is_float(grad.dtype):
            what = f"an array of {grad.dtype}" if is_array(grad) else f"a {type(grad).__name__}"
            raise ShapeError(f"{name} must be an array of floats of shape {self.shape}, or None, not {what}")
        if grad.shape != self._data.shape:
            raise ShapeError(f"{name} is of shape {grad.shape}, but the tensor is of shape {self.shape}")
        if backend.device_of(grad) != self.device:
            raise ShapeError(f"{name} is on {backend.device_of(grad)}, but the tensor is on {self.device}")
        # The gradient of what was rounded to bfloat16 stays float32: see minires.ops.mixed_precision.
        keeps = grad.dtype == self._data.dtype or backend.is_bfloat16(self._data.dtype)
        return grad if keeps else grad.astype(self._data.dtype)

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        value = truth("requires_grad", value)
        if self._node is not None and self._node.op != "leaf":
            raise MiniresError("requires_grad can be set on leaf tensors only; use detach() to cut the tape")
        if value:
            self._check_differentiable(self.dtype)
        if value != self.requires_grad:
            self._node = Node("leaf", self, (), None, path=mode.path) if value else None

    @staticmethod
    def _check_differentiable(dtype: np.dtype[Any]) -> None:
        if not (dtype in _FLOATS or backend.is_bfloat16(dtype)):
            raise ShapeError(f"only float32, float64 and bfloat16 tensors have gradients, not {dtype}")

    @property
    def node(self) -> Node | None:
        """Its entry on the tape, or None if no gradient flows to it."""
        return self._node

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def ndim(self) -> int:
        ndim: int = self.data.ndim
        return ndim

    @property
    def size(self) -> int:
        size: int = self.data.size
        return size

    @property
    def device(self) -> str:
        return backend.device_of(self.data)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("a tensor of a single value, shape (), has no length")
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return bool(np.any(self == value))

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
        array: np.ndarray[Any, Any] = backend.to_device(self.data, "cpu")
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """What ``np.asarray(tensor)`` gives, and every library that asks for an array: :meth:`numpy`."""
        if copy is False and self.device != "cpu":
            raise ValueError(f"a tensor on {self.device} cannot become a NumPy array without a copy")
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def item(self) -> float:
        """The one value as a Python number. Raises: ShapeError if there is not exactly one."""
        value: float = self._one("item()")
        return value

    def tolist(self) -> Any:
        """The values as Python numbers, in a list for each axis."""
        return self.numpy().tolist()

    def _one(self, asked: str) -> Any:
        """The value, for what is possible with a single one only."""
        if self.size != 1:
            raise ShapeError(f"{asked} needs a tensor of one value, not of shape {self.shape}")
        return self.data.item()

    def __float__(self) -> float:
        return float(self._one("float()"))

    def __int__(self) -> int:
        return int(self._one("int()"))

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"only tensors of whole numbers can be an index, not of {self.dtype}")
        return int(self._one("an index"))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(
                f"a tensor of shape {self.shape} is neither true nor false; say with .any() or .all() which "
                "of its values are meant. To find one tensor among others, compare them with `is`"
            )
        return bool(self.data.item())

    def __format__(self, spec: str) -> str:
        return format(self._one(f"the format {spec!r}"), spec) if spec else str(self)

    def detach(self) -> Tensor:
        """The same values, off the tape."""
        return Tensor(self.data, name=self.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A tensor of its own with the same values and hooks; its gradient stays behind."""
        make, arguments, hooks = self._parts("copied", self.data.copy())
        other: Tensor = make(*arguments)
        memo[id(self)] = other  # a hook may hold this tensor
        other.__setstate__(copy.deepcopy(hooks, memo))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """What copy.copy and a pickle hold: the values and the hooks. The gradient stays behind."""
        return self._parts("pickled", self.data)

    def __setstate__(self, hooks: Sequence[Hook]) -> None:
        if hooks:
            self.on_tape("register_hook").hooks.extend(hooks)

    def _parts(
        self, action: str, data: Array
    ) -> tuple[Callable[..., Tensor], tuple[Any, ...], tuple[Hook, ...]]:
        """What makes a tensor like this one, and its hooks, which may hold it and so come afterwards."""
        if self._node is not None and self._node.op != "leaf":
            raise MiniresError(f"only leaf tensors can be {action}; use detach() to cut the tape")
        hooks = () if self._node is None else tuple(self._node.hooks)
        return _made_again, (type(self), data, self.requires_grad, self.name), hooks

    def replace_data(self, data: Array) -> None:
        """Hold another array of the same shape from now on, on another device or of another dtype, perhaps.

        A leaf stays the same tensor: hooks stay, and whoever holds it has the new array. Its gradient, which
        was that of the old array, is forgotten.
        """
        if data is not self.data:
            self.data, self.grad = data, None

    # ------------------------------------------------------------------------------------ the backward

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this tensor in ``.grad`` although it is not a leaf. Returns the tensor."""
        self.on_tape("retain_grad").retain = True
        return self

    def register_hook(self, hook: Hook) -> Callable[[], None]:
        """Call ``hook(gradient)`` once this tensor's gradient is complete; what it returns replaces it.

        Copies of the tensor have the hook, too. To be pickled with it, the hook must be a function of a
        module, no lambda.

        Returns a function that removes the hook.
        """
        hooks = self.on_tape("register_hook").hooks
        if not callable(hook):
            raise MiniresError(f"register_hook takes a function of the gradient, not {hook!r}")
        hooks.append(hook)
        return lambda: hooks.remove(hook)

    def on_tape(self, action: str) -> Node:
        """Its entry on the tape, for what is possible with one only. Raises: MiniresError if it has none."""
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
        root = self.on_tape("backward")
        return backward_steps(root, self._initial_gradient(grad), retain_graph=retain_graph)

    def _initial_gradient(self, grad: Array | None) -> Array:
        xp = backend.array_module(self.data)
        if grad is None:
            if self.data.size != 1:
                raise ShapeError(
                    f"backward() starts from a single value; this tensor has shape {self.shape}. "
                    "Reduce it with sum() or mean(), or give the upstream gradient: backward(grad)"
                )
            return xp.ones(self.shape, self.dtype)
        grad = array_of(grad, self.dtype)
        if grad.dtype.kind not in "biu" and not backend.is_float(grad.dtype):
            raise ShapeError(f"backward: the gradient must be of numbers, not of {grad.dtype}")
        grad = xp.asarray(grad, dtype=self.dtype)
        if grad.shape != self.shape:
            raise ShapeError(f"backward: the gradient has shape {grad.shape}, the tensor {self.shape}")
        return grad

    if not TYPE_CHECKING:  # which knows that there is nothing else

        def __getattr__(self, name: str) -> Never:
            """What other libraries call a method. Python asks here for what a tensor does not have."""
            if name not in _ELSEWHERE:
                object.__getattribute__(self, name)  # fails once more, also inside a subclass's property
            raise AttributeError(f"a tensor has no {name!r}; write {_ELSEWHERE[name]}", name=name, obj=self)

    if TYPE_CHECKING:  # bound in minires/ops/__init__.py, where each of these operations is a file

        def __add__(self, other: Operand) -> Tensor: ...
        def __radd__(self, other: Operand) -> Tensor: ...
        def __iadd__(self, other: Operand) -> Self: ...
        def __sub__(self, other: Operand) -> Tensor: ...
        def __rsub__(self, other: Operand) -> Tensor: ...
        def __isub__(self, other: Operand) -> Self: ...
        def __mul__(self, other: Operand) -> Tensor: ...
        def __rmul__(self, other: Operand) -> Tensor: ...
        def __imul__(self, other: Operand) -> Self: ...
        def __truediv__(self, other: Operand) -> Tensor: ...
        def __rtruediv__(self, other: Operand) -> Tensor: ...
        def __itruediv__(self, other: Operand) -> Self: ...
        def __pow__(self, exponent: Operand) -> Tensor: ...
        def __rpow__(self, base: Operand) -> Tensor: ...
        def __ipow__(self, exponent: Operand) -> Self: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __matmul__(self, other: Operand) -> Tensor: ...
        def __rmatmul__(self, other: Operand) -> Tensor: ...
        def __imatmul__(self, other: Operand) -> Tensor: ...
        def __lt__(self, other: Operand) -> Array: ...
        def __le__(self, other: Operand) -> Array: ...
        def __gt__(self, other: Operand) -> Array: ...
        def __ge__(self, other: Operand) -> Array: ...
        def __eq__(self, other: object) -> Any: ...
        def __ne__(self, other: object) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Never, value: Never) -> None: ...
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any: ...
        def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any: ...
        def sum(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor: ...
        def max(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor: ...
        def min(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor: ...
        def var(self, axis: Axis = None, *, keepdims: bool = False, correction: float = 0) -> Tensor: ...
        def std(self, axis: Axis = None, *, keepdims: bool = False, correction: float = 0) -> Tensor: ...
        def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Array: ...
        def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> Array: ...
        def any(self, axis: Axis = None, *, keepdims: bool = False) -> Array: ...
        def all(self, axis: Axis = None, *, keepdims: bool = False) -> Array: ...
        def abs(self) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def sqrt(self) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def sigmoid(self) -> Tensor: ...
        def relu(self, *, add: Tensor | None = None) -> Tensor: ...
        def softmax(self, axis: int = -1) -> Tensor: ...
        def log_softmax(self, axis: int = -1) -> Tensor: ...
        def clip(self, low: float | None = None, high: float | None = None) -> Tensor: ...
        def astype(self, dtype: str | np.dtype[Any] | type[Any]) -> Tensor: ...
        def to(self, device: str) -> Tensor: ...
        def reshape(self, *shape: Shape) -> Tensor: ...
        def flatten(self) -> Tensor: ...
        def squeeze(self, axis: Axis = None) -> Tensor: ...
        def expand_dims(self, axis: int | tuple[int, ...]) -> Tensor: ...
        def broadcast_to(self, *shape: Shape) -> Tensor: ...
        def repeat(self, count: int, axis: int) -> Tensor: ...
        def transpose(self, *axes: Shape) -> Tensor: ...
        def split(self, parts: int | Sequence[int], *, axis: int = 0) -> list[Tensor]: ...
        @property
        def T(self) -> Tensor: ...


# Names that PyTorch, TensorFlow and NumPy have for methods, and what to write here instead.
_ELSEWHERE = {
    "view": "x.reshape(...)", "permute": "x.transpose(...)", "unsqueeze": "x.expand_dims(axis)",
    "swapaxes": "np.swapaxes(x, a, b)", "ravel": "x.reshape(-1)",
    "contiguous": "nothing, copies are made where needed", "dim": "x.ndim", "numel": "x.size",
    "clone": "Tensor(x.data.copy()), off the tape",
    "copy": "Tensor(x.data.copy()), off the tape", "expand": "x.broadcast_to(...)", "chunk": "x.split(...)",
    "clamp": "x.clip(low, high)", "pow": "x**y", "matmul": "x @ y", "mm": "x @ y", "dot": "x @ y",
    "add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "square": "x * x", "amax": "x.max(axis)",
    "amin": "x.min(axis)", "cpu": 'x.to("cpu")', "cuda": 'x.to("cuda")', "float": 'x.astype("float32")',
    "double": 'x.astype("float64")', "type": "x.astype(dtype)",
    "requires_grad_": "x.requires_grad = True", "zero_": "x.grad = None", "grad_fn": "x.node",
}  # fmt: skip


def array_of(data: Any, dtype: Any = np.float32) -> Array:
    """What a tensor is made of, as an array: numbers become ``dtype``, and arrays keep theirs.

    Raises: ShapeError if there is something else than numbers, or lists are of unequal lengths.
    """
    if isinstance(data, Tensor):
        return data.data
    if _holds_tensor(data):
        raise MiniresError("a list of tensors would be copied without their gradients; use ops.stack")
    return made_of(data, dtype)


def as_array(data: Any) -> Array:
    """The array that a tensor or an array of any library holds; of anything else, what NumPy makes of it."""
    return data.data if isinstance(data, Tensor) else made_of(data, None)


def _holds_tensor(data: Any) -> bool:
    """Whether there is a tensor in a list or tuple, or in those inside."""
    return isinstance(data, list | tuple) and any(
        isinstance(one, Tensor) or (isinstance(one, list | tuple) and _holds_tensor(one)) for one in data
    )


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
    options: Mapping[str, Any] = NOTHING,
    saved: Mapping[str, Array | None] = NOTHING,
) -> Tensor:
    """Make the tensor of an operation's result and note on the tape how to go back.

    op: a name of its own: those of the operations of minires are refused to others.
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
    ...     a = x.data  # taken once: by the time of the backward x may hold another array
    ...     return record(
    ...         "cube", a**3, inputs={"x": x}, saved={"x": a}, backward=lambda dy: (3 * dy * a**2,)
    ...     )
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> cube(x).backward(np.ones(2))
    >>> x.grad.tolist()
    [3.0, 12.0]
    """
    if isinstance(data, Tensor):
        raise MiniresError(f"{op}: record takes the result as an array; compute it from x.data, not from x")
    output = Tensor(data)
    recording, watcher = mode.recording, mode.watcher
    if not recording and watcher is None:
        return output
    try:
        nodes = tuple([x._node for x in inputs.values() if x is not None])
    except AttributeError:
        raise _not_by_name(op, inputs) from None
    needed = recording and nodes.count(None) < len(nodes)
    if not needed and watcher is None:
        return output
    if not callable(backward):
        raise MiniresError(f"{op}: record needs backward, a function of dy, not {backward!r}")
    check_declared(op, output, options, saved, backward)
    given: Mapping[str, Any] = inputs
    if len(nodes) < len(inputs):
        backward = of_those_given(backward, [x is not None for x in inputs.values()])
        given = {name: x for name, x in inputs.items() if x is not None}
    kept = {name: array for name, array in saved.items() if array is not None}
    if needed:
        output._node = Node(
            op, output, nodes, backward, path=mode.path, names=tuple(given), options=options, saved=kept
        )
    if watcher is not None:
        watcher(Call(op, output, given, options, kept))
    return output


def _not_by_name(op: str, inputs: Any) -> MiniresError:
    if not isinstance(inputs, Mapping):
        kind = type(inputs).__name__
        return MiniresError(f'{op}: record takes its inputs by name, inputs={{"x": x}}, not a {kind}')
    odd = ", ".join(name for name, x in inputs.items() if not isinstance(x, Tensor | None))
    return MiniresError(f"{op}: the inputs that record is given are tensors or None, but not {odd}")
