"""What stands for the output of a module in an intervention: zeros, scaled channels, stored activations, what
comes in, another module. See :mod:`minires.nn.intervene`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, ShapeError
from minires.nn import hooks
from minires.nn.module import Module
from minires.nn.paths import locate
from minires.nn.restored import left_as_it_is
from minires.tensor import Tensor, enter, with_settings

Shape = tuple[int, ...]


class Channels:
    """Some channels, as a user names them: ``3``, ``0:8``, ``1,5``, ``-1``.

    Raises: ConfigError for another text.

    >>> str(Channels("1,4:6", "res3b[1,4:6]")), Channels("1,4:6", "res3b[1,4:6]").of(8).tolist()
    ('channels 1,4:6', [1, 4, 5])
    """

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text.replace(" ", ""), key
        pieces = [re.fullmatch(r"(-?\d+)|(-?\d*):(-?\d*)", one) for one in self.text.split(",")]
        if not all(pieces):
            raise ConfigError(f'intervene: {key!r}: channels are written as in "[3]", "[0:8]" or "[1,5]"')
        self._pieces = [
            int(one[1]) if one[1] else slice(*(int(end) if end else None for end in one.groups()[1:]))
            for one in pieces
            if one is not None
        ]

    def __str__(self) -> str:
        return f"channel{'' if self.text.lstrip('-').isdecimal() else 's'} {self.text}"

    def of(self, count: int) -> np.ndarray[Any, Any]:
        """Their numbers, of so many. Raises: ShapeError for one that is not there, or for none at all."""
        found: list[int] = []
        for one in self._pieces:
            ends = [one] if isinstance(one, int) else [one.start or 0, (one.stop or count) - 1]
            if isinstance(one, slice) and one.stop is not None and one.stop <= 0:
                ends[1] = one.stop
            if not all(-count <= end < count for end in ends):
                raise ShapeError(f"{self.key}: there are {count} channels, 0 to {count - 1}")
            found += [one % count] if isinstance(one, int) else range(count)[one]
        if not found:
            raise ShapeError(f"{self.key}: these are no channels at all; there are {count}, 0 to {count - 1}")
        return np.unique(found)


class Shapes:
    """What modules give, one after the other, of one picture: found once for each shape that comes in.

    >>> from minires.nn import Conv2d
    >>> conv = Conv2d(3, 8, 3, stride=2, padding=1)
    >>> Shapes().of([conv], (Tensor(np.zeros((5, 8, 8, 3), np.float32)),), {}, owner=conv)
    (5, 4, 4, 8)
    """

    def __init__(self) -> None:
        self._known: dict[object, Shape] = {}

    def of(
        self, chain: Sequence[Module], inputs: Sequence[Any], options: Mapping[str, Any], *, owner: Module
    ) -> Shape:
        """The shape of the last one's output; ``owner`` holds them all, and is left as it was."""
        count = next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim), 1)
        shapes = [x.shape[1:] if isinstance(x, Tensor) else None for x in (*inputs, *options.values())]
        key = *shapes, *(id(module) for module in chain)
        if key not in self._known:
            first, *others = chain
            with (
                left_as_it_is(owner), np.errstate(all="ignore"),
                with_settings(recording=False, watcher=None, bare=True),
            ):  # fmt: skip
                owner.eval()
                given = {name: _first(x) for name, x in options.items()}
                y: Any = first.forward(*map(_first, inputs), **given)
                for module in others:
                    y = module(y)
            if not isinstance(y, Tensor):
                raise ConfigError(f"a {type(y).__name__} comes out, and only one tensor can be changed")
            self._known[key] = y.shape
        shape = self._known[key]
        return (count, *shape[1:]) if shape[:1] == (1,) else shape


def _first(x: Any) -> Any:
    """The first picture of a batch, apart from its tape."""
    return Tensor(x.data[:1] if x.ndim else x.data) if isinstance(x, Tensor) else x


def zeros(like: Tensor) -> Tensor:
    """Zeros of the shape of a tensor.

    >>> zeros(Tensor([1.0, 2.0])).tolist()
    [0.0, 0.0]
    """
    return Tensor(backend.array_module(like.data).zeros(like.shape, like.dtype))


def scaled(factor: float, channels: Channels | None, key: str) -> Callable[[Any], Tensor]:
    """What multiplies a tensor, or some channels of it, by a number.

    >>> scaled(0.5, Channels("1", "a[1]"), "a[1]")(Tensor([[4.0, 4.0]])).tolist()
    [[4.0, 2.0]]
    """

    def act(y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            raise ConfigError(f"{key} gives a {type(y).__name__}, and only one tensor can be scaled")
        if channels is None:
            return y * factor
        if not y.ndim:
            raise ShapeError(f"{key} gives a single value, which has no channels")
        factors: Array = np.ones(y.shape[-1], y.dtype)
        factors[channels.of(y.shape[-1])] = factor
        return y * Tensor(backend.to_device(factors, y.device))

    return act


def stored(value: Any, like: Any, expected: Shape, key: str) -> Tensor:
    """A stored activation as a tensor, on the device and of the dtype of ``like``; a tensor stays as it is.

    Raises: ShapeError if it is of another shape than the output in whose place it stands, or of no numbers.

    >>> stored(np.zeros((2, 3)), Tensor([1.0]), (2, 4), "dense")
    Traceback (most recent call last):
    minires.errors.ShapeError: the stored activation for 'dense' is (2, 3), but for these inputs it is (2, 4)
    """
    if tuple(value.shape) != tuple(expected):
        raise ShapeError(
            f"the stored activation for {key!r} is {tuple(value.shape)}, but for these inputs it is "
            f"{tuple(expected)}"
        )
    if isinstance(value, Tensor):
        return value
    array = backend.to_device(value, like.device) if isinstance(like, Tensor) else value
    if isinstance(like, Tensor) and backend.is_float(like.dtype):
        array = array.astype(like.dtype, copy=False)
    return Tensor(array)


def left_out(module: Module, inputs: Any, options: Any, shapes: Shapes, key: str) -> Tensor:
    """What a dropped module gives: what comes in. Raises: ShapeError if the module would change its shape.

    >>> from minires.nn import ReLU
    >>> x = Tensor([-1.0])
    >>> left_out(ReLU(), (x,), {}, Shapes(), "relu") is x
    True
    """
    y = module.left_out(*inputs, **options)
    expected = shapes.of([module], inputs, options, owner=module)
    if y.shape != expected:
        raise ShapeError(
            f"{key} cannot be dropped: {y.shape} comes in and {expected} goes out, and what comes in would "
            f"go on. Scale it by 0 ({key!r}: 0), or give a stored activation or a function instead"
        )
    return y


def other_instead(place: str, name: str, other: Module, shapes: Shapes) -> Callable[..., Any]:
    """What runs ``other`` in the place of a module. Raises (what it returns): ShapeError that names both.

    >>> from minires.nn import Linear, ReLU
    >>> act = other_instead("relu", "dense", Linear(3, 2), Shapes())
    >>> act(ReLU(), (Tensor([[1.0]]),), {})
    Traceback (most recent call last):
    minires.errors.ShapeError: dense cannot run in the place of relu, where (1, 1) comes in and (1, 1) goes \
out: linear: x (1, 1) has 1 features but w (3, 2) expects 3
    """

    def act(module: Module, inputs: Any, options: Any) -> Any:
        expected = shapes.of([module], inputs, options, owner=module)
        comes = " and ".join(str(x.shape) for x in inputs if isinstance(x, Tensor))
        told = f"{name} cannot run in the place of {place}, where {comes} comes in and {expected} goes out"
        tree, path = locate(other)
        before = enter(tree, path)
        try:
            y = hooks.run(other, inputs, options)
        except ShapeError as error:
            raise ShapeError(f"{told}: {error.message}") from error
        finally:
            enter(*before)
        if isinstance(y, Tensor) and y.shape != expected:
            raise ShapeError(f"{told}: it gives {y.shape}")
        return y

    return act
