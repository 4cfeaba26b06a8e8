"""How strong the responses of a model's layers are, and how strong the two ways of its residual blocks.

The response of a layer is what it hands on behind its batch norm, where it has one, and before what is not
linear and before the addition of a shortcut; its standard deviation is what figure 7 of the ResNet paper
shows. Of a residual block

    y = join(F(x), shortcut(x))

the ways are F(x) and shortcut(x) as they are when they are joined: how large the one is beside the other says
how much the block changes what passes.

Both are seen while pictures pass, with each operation by itself: nothing has to be said of a model, but that
its blocks have the methods of :class:`~minires.nn.blocks.Residual`.

Source: He, Zhang, Ren, Sun 2015, Deep residual learning for image recognition, arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from minires.backend import Array
from minires.errors import ConfigError
from minires.nn.blocks import Residual
from minires.nn.module import Module, Parameter
from minires.nn.restored import left_as_it_is
from minires.ops.forms import Products
from minires.ops.registry import describe
from minires.tensor import Call, Tensor, settings, watching, with_settings


class Response(NamedTuple):
    """What one call of a layer hands on: the path of the layer, its operation ("conv2d", "linear"), mean and
    standard deviation of all numbers, and their shape.

    >>> Response("conv1", "conv2d", mean=0.0, std=1.5, shape=(8, 32, 32, 16)).std
    1.5
    """

    path: str
    op: str
    mean: float
    std: float
    shape: tuple[int, ...]


class BlockWays(NamedTuple):
    """The standard deviations of the two ways of a residual block; ``shortcut`` is None in a plain block.

    >>> one = BlockWays("res2a", branch=0.5, shortcut=2.0)
    >>> one.branch / one.shortcut  # the share of the branch
    0.25
    """

    path: str
    branch: float
    shortcut: float | None


def responses(model: Module, x: Any) -> list[Response]:
    """The response of each layer that multiplies by weights to the pictures ``x``, in the order of execution.

    A layer that is called twice is there twice. The model is in the modes that it is in (in training, batch
    norm takes the statistics of these pictures), and is left as it was, running statistics and random
    generators too; nothing is recorded on the tape.

    Math: std of BN(w * x), or of w * x + b where no batch norm reads it.
    Shapes: x as the model takes it, (N, H, W, C).
    Raises: ConfigError if ``model`` is no module; what the model raises.
    Source: arXiv:1512.03385, figure 7.

    >>> from minires import nn
    >>> norm = nn.BatchNorm2d(4, relu=True)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(16, 2))
    >>> x = np.random.default_rng(0).standard_normal((8, 4, 4, 3)).astype("float32")
    >>> [(one.path, one.op, one.shape) for one in responses(model, x)]
    [('0', 'conv2d', (8, 2, 2, 4)), ('3', 'linear', (8, 2))]
    >>> round(responses(model, x)[0].std, 2)  # behind the batch norm, before its ReLU
    1.0
    """
    return _seen(model, x).responses


def ways(model: Module, x: Any) -> list[BlockWays]:
    """How strong branch and shortcut of each residual block are for the pictures ``x``, in the order of
    execution.

    Blocks are those that have ``parts`` and ``join`` (see :class:`~minires.nn.blocks.Residual`) and are
    called with one input. What :func:`minires.intervene` makes of the two ways is seen, and a block that it
    drops has a branch of 0. Modes, Shapes, Raises: as :func:`responses`.

    >>> from minires.models import build
    >>> model = build("resnet20_cifar").eval()
    >>> found = ways(model, np.ones((1, 32, 32, 3), np.float32))
    >>> [one.path for one in found][:3], len(found)
    (['res2a', 'res2b', 'res2c'], 9)
    """
    return _seen(model, x).ways


class Noted:
    """What was noted of the passes inside a block of :func:`noting`.

    >>> Noted().responses
    []
    """

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self.ways: list[BlockWays] = []
        # By the id of a tensor that a layer hands on, so far: the tensor, and the place of the response.
        self._open: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def note(self, call: Call) -> None:
        """Note one call of an operation."""
        known = describe(call.op)
        if _is_of_layer(call):
            self._hands_on(call.y, len(self.responses))
            path = settings()["path"]
            self.responses.append(Response(path, call.op, *_moments(call.y.data), call.y.shape))
            return
        place = self._place(next(iter(call.inputs.values()), None))
        if place is None or call.y.size != int(np.prod(self.responses[place].shape)):
            return
        if known.moves:  # a batch norm, which has running statistics
            mean, std = _moments(call.y.data)
            self.responses[place] = self.responses[place]._replace(mean=mean, std=std)
        elif known.role == "silent":  # another dtype or shape
            self._hands_on(call.y, place)

    def note_ways(self, branch: Tensor, shortcut: Tensor | None) -> None:
        """Note the two ways of the block that runs now."""
        other = None if shortcut is None else _moments(shortcut.data)[1]
        self.ways.append(BlockWays(settings()["path"], _moments(branch.data)[1], other))

    def _hands_on(self, y: Tensor, place: int) -> None:
        self._open[id(y)] = weakref.ref(y), place

    def _place(self, x: Tensor | None) -> int | None:
        found, place = self._open.get(id(x), (None, 0))
        # A tensor that is gone may have left its id to a new one.
        return place if found is not None and found() is x else None


@contextmanager
def noting(model: Module, watcher: Callable[[Call], None] | None = None) -> Iterator[Noted]:
    """Note responses and ways of all passes through ``model`` inside this block, which run operation by
    operation; ``watcher`` hears of each, too.

    The block changes nothing else: modes, and whether a tape is written, are as they are outside. Residual
    blocks run as ``join(*parts(x))``, which is what they give.

    >>> from minires import nn
    >>> model = nn.Linear(2, 1)
    >>> with noting(model) as noted:
    ...     y = model(Tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> [one.shape for one in noted.responses]
    [(2, 1)]
    """
    hearing = _Hearing(Noted(), watcher)
    blocks = {id(one): one for one in model.modules() if _is_residual(one)}.values()
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_in_parts(block))
        stack.enter_context(with_settings(fused=False))
        stack.enter_context(watching(hearing))
        yield hearing.noted


class _Hearing:
    """Hears of each call, and says it on."""

    def __init__(self, noted: Noted, watcher: Callable[[Call], None] | None) -> None:
        self.noted, self._watcher = noted, watcher

    def __call__(self, call: Call) -> None:
        self.noted.note(call)
        if self._watcher is not None:
            self._watcher(call)


def _seen(model: Module, x: Any) -> Noted:
    """What is noted of one pass of x."""
    if not isinstance(model, Module):
        raise ConfigError(f"responses are those of a module, not of a {type(model).__name__}")
    x = x if isinstance(x, Tensor) else Tensor(x)
    if (first := next(model.parameters(), None)) is not None:
        x = x.to(first.device)
    with left_as_it_is(model), with_settings(recording=False), noting(model) as noted:
        model(x)
    return noted


_lock = threading.Lock()
_in_use: dict[int, tuple[int, dict[str, Any]]] = {}  # by block: how many note it, and what was its own


@contextmanager
def _in_parts(block: Any) -> Iterator[None]:
    """The forward of a block in two steps, between which its ways are noted. It goes its own way in a thread
    in which nothing is noted, and where it is given more than one input."""
    with _lock:
        count, own = _in_use.get(id(block), (0, {}))
        if not count:
            own = {name: vars(block)[name] for name in ("forward", "join") if name in vars(block)}
            vars(block).update(forward=_forward(block, block.forward), join=_join(block.join))
        _in_use[id(block)] = count + 1, own
    try:
        yield
    finally:
        with _lock:
            count, own = _in_use.pop(id(block))
            if count > 1:
                _in_use[id(block)] = count - 1, own
            else:
                del vars(block)["forward"], vars(block)["join"]
                vars(block).update(own)


def _forward(block: Any, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Any, **options: Any) -> Tensor:
        if len(inputs) != 1 or options or not isinstance(settings()["watcher"], _Hearing):
            return forward(*inputs, **options)
        y: Tensor = block.join(*block.parts(*inputs))
        return y

    return run


def _join(join: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(branch: Tensor, shortcut: Tensor | None) -> Tensor:
        hearing = settings()["watcher"]
        if isinstance(hearing, _Hearing):
            hearing.noted.note_ways(branch, shortcut)
        return join(branch, shortcut)

    return run


def _is_residual(module: Module) -> bool:
    """Whether its class has the two methods; a list of layers may be called ``parts``, too."""
    kind = type(module)
    return isinstance(module, Residual) and hasattr(kind, "parts") and hasattr(kind, "join")


def _is_of_layer(call: Call) -> bool:
    """Whether an operation mixes its input's channels by weights: a convolution or a dense layer, one of
    another's own too."""
    known = describe(call.op)
    if isinstance(known.arithmetic, Products):
        return True
    learned = [isinstance(one, Parameter) and one.ndim > 1 for one in call.inputs.values()]
    return any(learned) and not all(learned) and not known.works_by_channel


def _moments(y: Array) -> tuple[float, float]:
    """Mean and standard deviation of all numbers; NaN where there are none, or one is NaN."""
    if not y.size:
        return float("nan"), float("nan")
    wide = y if y.dtype == np.float64 else y.astype(np.float32, copy=False)
    with np.errstate(all="ignore"):  # what is not finite gives NaN
        return float(wide.mean()), float(wide.std())
