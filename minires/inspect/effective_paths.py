"""The paths through a residual network: how many there are of each length, and how much gradient they carry.

A residual unit hands on its branch and its shortcut, added. So a gradient comes back through n units on 2^n
paths, one for every choice between branch and shortcut, and the length of a path is how many branches are on
it. With B for the backward of a unit's branch and S for that of its shortcut (dy itself, where the shortcut
is the identity), all paths of one length are found together, unit by unit from the last to the first::

    new[k] = S(old[k]) + B(old[k - 1])        past the branch, or through it and one longer

A backward is linear, so that the sum over k is the whole gradient. What stands before, between and behind the
units, and the ReLU after an addition, is on every path.

A unit is a module with the two methods of :class:`minires.nn.blocks.Residual`, ``parts`` and ``join``. The
tape is cut at each: the backward of a branch alone, or of a shortcut alone, is that of a tape of its own.

Source: Veit, Wilber, Belongie 2016, Residual networks behave like ensembles of relatively shallow networks,
arXiv:1605.06431, section 5 and figure 6.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.backend import Array
from minires.errors import ConfigError, ShapeError, as_seed, counted, number, whole
from minires.files import with_ending
from minires.nn import hooks
from minires.nn.blocks import Residual
from minires.nn.module import Module, Parameter
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Operand, Tensor, array_of, watching, with_settings

Numbers = NDArray[np.float64]
NEAR = 0.01  # the share of the whole gradient that rounding may make of it


@dataclass(frozen=True, eq=False, repr=False)
class PathLengths:
    """The paths through a network by their length, the number of branches on them: 0, 1, ... up to n units.

    units: the paths of the n units, in the order in which a picture passes them.
    count: how many paths have each length, n! / (k! (n - k)!) (floats: exact below 2^53, then rounded).
    measured: the norm of the gradient that comes over all paths of this length together, exactly.
    one_path: the norm of the gradient that comes over a single path, on average over paths of this length.
    analytic: what ``count * one_path`` would be if a branch, and so a shortcut, changed the norm of every
        gradient by one factor: see *Math*. It is also what ``measured`` would be, were the gradients of all
        paths of a length of one direction; they are not, so it is above.
    analytic_unrelated: what ``measured`` would be, were these directions at right angles to each other.
    branch_gains, shortcut_gains, gains: for each unit the factor between the norm of the whole gradient that
        comes to it and that of what comes out of its branch alone, its shortcut alone, and of both added.
    paths_tried: how many single paths ``one_path`` is the average of.

    Units: a norm is that of the gradient of one picture's own loss by its pixels, averaged over pictures.

    Math: with b[i], s[i], t[i] the gains of unit i through branch, shortcut and both, and g the norm of the
    whole gradient, analytic[k] is the coefficient of z^k in g * product of (s[i] + b[i] z) / t[i]: each path
    has the product of its units' factors for its norm, and the norms of C(n, k) paths are added. Norms of
    vectors at right angles add up by their squares, so analytic_unrelated[k] is the root of the coefficient
    of z^k in g^2 * product of (s[i]^2 + b[i]^2 z) / t[i]^2.
    Shapes: all arrays (n + 1,), and those of gains (n,).
    """

    units: tuple[str, ...]
    count: Numbers
    measured: Numbers
    one_path: Numbers
    analytic: Numbers
    analytic_unrelated: Numbers
    branch_gains: Numbers = field(repr=False)
    shortcut_gains: Numbers = field(repr=False)
    gains: Numbers = field(repr=False)
    paths_tried: NDArray[np.int64] = field(repr=False)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """0, 1, ..., n."""
        return np.arange(len(self.count))

    @property
    def effective(self) -> Numbers:
        """``count * one_path``, from which the paper reads what lengths are effective."""
        return self.count * self.one_path

    @property
    def mean_length(self) -> float:
        """The mean length of all paths, n / 2."""
        return self._mean(self.count)

    @property
    def effective_length(self) -> float:
        """The mean length, each path counted by the norm of its gradient: by ``effective``."""
        return self._mean(self.effective)

    @property
    def measured_length(self) -> float:
        """The mean length, each length counted by what its paths carry together: by ``measured``."""
        return self._mean(self.measured)

    def _mean(self, weights: Numbers) -> float:
        return float(self.lengths @ weights / weights.sum()) if weights.any() else 0.0

    def interval(self, share: float = 0.95) -> tuple[int, int]:
        """The first and the last of the fewest neighbouring lengths that hold this share of ``effective``;
        where there is a choice, those that hold most.

        Raises: ConfigError for a share that is not above 0, or above 1.
        """
        share = number("share", share, above=0, most=1)
        n, sums = len(self.count), np.concatenate([[0.0], np.cumsum(self.effective)])
        for wide in range(1, n):
            held = sums[wide:] - sums[:-wide]
            if (first := int(held.argmax())) >= 0 and held[first] >= share * sums[-1]:
                return first, first + wide - 1
        return 0, n - 1

    def table(self) -> str:
        """Give a table, a line for each length, and the figures of all paths below it."""
        head = ("length", "paths", "one path", "paths x one", "measured", "analytic")
        columns = (self.count, self.one_path, self.effective, self.measured, self.analytic)
        rows = [f"{head[0]:>6}" + "".join(f"{name:>13}" for name in head[1:])]
        for k, row in zip(self.lengths, zip(*columns, strict=True), strict=True):
            rows.append(f"{k:>6}" + "".join(f"{value:>13.4g}" for value in row))
        first, last = self.interval()
        return "\n".join([
            *rows,
            "",
            f"{counted(len(self.units), 'unit')}: 2^{len(self.units)} paths, mean length "
            f"{self.mean_length:.1f}; weighted by the gradient of one path "
            f"{self.effective_length:.1f}, by what they carry together {self.measured_length:.1f}",
            f"95% of paths x one: lengths {first} to {last}",
        ])  # fmt: skip

    def __repr__(self) -> str:
        return self.table()

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Draw the three panels of the paper's figure 6, as a .png or .svg: how many paths, the gradient of
        one, and both multiplied, as shares of their sum, with those of ``analytic`` and ``measured``.

        Raises: ConfigError for another ending; MiniresError if it cannot be written.
        """
        from minires.train.canvas import BLUE, GREY, ORANGE, new_figure, plain_axes, save_figure

        ending = with_ending("path", path, (".png", ".svg"), "a figure")
        figure = new_figure(13.0, 3.8)
        first, last = self.interval()
        number_of, one, both = figure.subplots(1, 3)
        number_of.bar(self.lengths, self.count, color=BLUE)
        number_of.set_title("How many paths", fontsize=11)
        one.plot(self.lengths, _positive(self.one_path), color=BLUE, marker="o", markersize=3)
        one.set_yscale("log")
        one.set_title("Gradient of one path, logarithmic axis", fontsize=11)
        both.axvspan(first - 0.5, last + 0.5, color="#e5e7eb")
        both.bar(self.lengths, _percent(self.effective), color=BLUE, label="paths x gradient of one")
        both.plot(self.lengths, _percent(self.analytic), color=ORANGE, label="the same, by the units' gains")
        both.plot(
            self.lengths, _percent(self.measured), color=GREY, linestyle="--", label="all paths together"
        )
        both.set_title(f"Share (%); 95% of the bars: {first} to {last}", fontsize=11)
        both.legend(frameon=False, fontsize=8, loc="upper left")
        for axes in (number_of, one, both):
            axes.set_xlabel("length of a path (branches on it)", fontsize=9)
            axes.set_xlim(-0.6, len(self.count) - 0.4)
            axes.xaxis.get_major_locator().set_params(integer=True)
            plain_axes(axes)
        metadata = {"Date": None} if ending == ".svg" else None
        save_figure(figure, path, format=ending[1:], metadata=metadata)


def _percent(values: Numbers) -> Numbers:
    return 100 * values / (values.sum() or 1.0)


def _positive(values: Numbers) -> Numbers:
    """What a logarithmic axis can show; the rest is left out."""
    return np.where(values > 0, values, np.nan)


def path_lengths(model: Module, x: Operand, y: Any, *, samples: int = 1, seed: int = 0) -> PathLengths:
    """Find how much of the gradient comes back over paths of each length through a residual network.

    model: one whose units, in a row, have the two methods of :class:`minires.nn.blocks.Residual`: networks of
        minires (V1, V2, SE, ResNeXt), or with blocks of your own. A unit without a shortcut (None) is on
        every path; a unit inside another belongs to the outer one's branch or shortcut.
    x: pictures as the model takes them, normalised; they go to its device.
    y: their class numbers; the loss is the cross entropy.
    samples: how many single paths of each length are followed for ``one_path``, of every picture its own. Of
        a length that has no more paths than that all are followed, each once, and ``one_path`` is exact.
    seed: of the choice of these paths.

    The model is used in inference mode (in training mode the pictures of a batch would not be apart) and is
    left as it is: all is done on a copy, which shares its weights. Memory is that of a training step without
    gradients of weights, and for n units n + 2 arrays of the size of an activation. The time is that of about
    n / 2 + (n + 1) * samples backward passes.

    Rounding: what a single path carries is a product of n factors; below 1e-38 float32 has zero.
    Shapes: x (N, H, W, C), y (N,).
    Raises: ConfigError if the model has no units, if these are not in a row, if joining its parts is not
    what a unit gives, or if it has forward hooks or is changed by ``minires.intervene``; ShapeError if x is
    no array of floats, or a unit's first axis is not that of pictures.
    Source: arXiv:1605.06431, section 5. Differs: there one path is drawn for a batch, and the norm is that of
    the gradient of the batch's loss.

    >>> from minires.models import build
    >>> model = build("preresnet110_cifar", classes=3, repeats=(1, 2, 1), seed=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("float32")
    >>> found = path_lengths(model, x, [0, 2], samples=6)
    >>> found.count.tolist(), found.mean_length
    ([1.0, 4.0, 6.0, 4.0, 1.0], 2.0)
    >>> bool(np.isclose(found.one_path[0], found.measured[0]))  # of length 0 there is one path
    True
    """
    samples, rng = whole("samples", samples), np.random.default_rng(as_seed(seed))
    probe = _copy(model)
    pixels = _pixels(x, next((one.device for one in model.parameters()), "cpu"))
    with watching(lambda call: None), with_settings(recording=True):  # watched, recomputed blocks are plain
        whole_gradient = _back(_loss(probe, pixels, y), pixels)
        cut = _Cut(probe, pixels)
        cut.end(_loss(probe, pixels, y))
    by_length, gains = _by_length(cut)
    if _away(by_length, whole_gradient) > NEAR:
        raise ConfigError(
            f"{type(model).__name__}: over the paths through its {counted(len(cut.units), 'unit')} comes "
            f"another gradient than over the whole tape (off by {_away(by_length, whole_gradient):.1%}). The "
            "units must follow each other in a row, with no way around one, and join(*parts(x)) must give "
            "what forward(x) gives"
        )
    g, n = _size(whole_gradient), len(cut.units)
    singles = [_one_path(cut, k, samples, rng) for k in range(n + 1)]
    b, s, t = gains
    return PathLengths(
        units=tuple(unit.name for unit in cut.units),
        count=np.array([comb(n, k) for k in range(n + 1)], float),
        measured=np.array([_size(gradient) for gradient in by_length]),
        one_path=np.array([size for size, _ in singles]),
        analytic=g * _coefficients(s, b, t),
        analytic_unrelated=g * np.sqrt(_coefficients(s**2, b**2, t**2)),
        branch_gains=b, shortcut_gains=s, gains=t,
        paths_tried=np.array([tried for _, tried in singles]),
    )  # fmt: skip


def _pixels(x: Operand, device: str) -> Tensor:
    data = x.data if isinstance(x, Tensor) else array_of(x)
    if not backend.is_float(data.dtype) or data.ndim < 2 or len(data) == 0:
        raise ShapeError(
            f"x must be at least one picture as the model takes it, floats (N, H, W, C), not {data.dtype} "
            f"{data.shape}; minires.data.Normalize makes them of uint8"
        )
    return Tensor(data, device=device, requires_grad=True)


def _copy(model: Module) -> Module:
    """The model in inference mode with frozen weights, which are the same arrays."""
    if not isinstance(model, Module):
        raise ConfigError(f"path_lengths takes a model, a minires.nn.Module, not a {type(model).__name__}")
    hooks.refuse(model, "path_lengths", "and the copy on which all is done would not know of it")
    shared: dict[int, Any] = {}
    for parameter in model.parameters():
        shared[id(parameter)] = frozen = Parameter(parameter.data)
        frozen.requires_grad = False
    return copy.deepcopy(model, shared).eval()


def _loss(model: Module, pixels: Tensor, y: Any) -> Tensor:
    """The sum, so that each picture has the gradient of its own loss."""
    return cross_entropy(model(pixels), y, reduction="sum")


# ------------------------------------------------------------------------------------------ the cut tape


def _back(end: Tensor, start: Tensor, dy: Array | None = None) -> Array:
    """The gradient of ``start``, a leaf, if that of ``end`` is ``dy``; of a loss it is 1."""
    if end is start and dy is not None:
        return dy
    start.grad = None
    if end.requires_grad:
        end.backward(dy, retain_graph=True)
    return _taken(start)


def _taken(leaf: Tensor) -> Array:
    """The gradient of a leaf, which has none afterwards; zeros if none has come."""
    found, leaf.grad = leaf.grad, None
    return backend.array_module(leaf.data).zeros_like(leaf.data) if found is None else found


def _leaf(x: Tensor) -> Tensor:
    return Tensor(x.data, requires_grad=True)


@dataclass(frozen=True)
class _Link:
    """What stands between two units, and is on every path."""

    start: Tensor
    end: Tensor

    def back(self, dy: Array | None = None) -> Array:
        return _back(self.end, self.start, dy)


@dataclass(frozen=True)
class _Unit:
    """A unit on three tapes: start to branch, start to shortcut, and the joined two (leaves) to end."""

    name: str
    start: Tensor
    branch: Tensor
    shortcut: Tensor
    joined: tuple[Tensor, Tensor]
    end: Tensor

    def before_addition(self, dy: Array) -> tuple[Array, Array]:
        """The gradients of branch and shortcut."""
        branch, shortcut = self.joined
        db = _back(self.end, branch, dy)
        return db, _taken(shortcut)

    def ways(self, dy: Array) -> tuple[Array, Array]:
        """What comes back to the start through the branch alone, and through the shortcut alone."""
        db, ds = self.before_addition(dy)
        return _back(self.branch, self.start, db), _back(self.shortcut, self.start, ds)

    def chosen(self, dy: Array, through: NDArray[np.bool_]) -> Array:
        """What comes back if each picture takes one way, the branch where ``through`` (N,) is True."""
        db, ds = self.before_addition(dy)
        if through.all():
            return _back(self.branch, self.start, db)
        if not through.any():
            return _back(self.shortcut, self.start, ds)
        xp = backend.array_module(dy)
        takes = xp.asarray(through).reshape(-1, *[1] * (dy.ndim - 1))
        db, ds = xp.where(takes, db, xp.zeros((), db.dtype)), xp.where(takes, xp.zeros((), ds.dtype), ds)
        return _back(self.branch, self.start, db) + _back(self.shortcut, self.start, ds)


def _is_unit(module: Module) -> bool:
    """Whether it has the two methods; a list of layers may be called ``parts``, too."""
    return isinstance(module, Residual) and callable(getattr(type(module), "parts", None))


class _Cut:
    """A forward pass with the tape cut before and behind each unit, and before its addition.

    From here on the units of ``model``, a copy, cut it whenever they are called; ``end`` says what the last
    piece leads to.
    """

    def __init__(self, model: Module, pixels: Tensor) -> None:
        self.pieces: list[_Link | _Unit] = []
        self.pixels = self._start = pixels
        inside: set[int] = set()
        found = 0
        for name, module in (("", model), *model.named_modules()):
            if _is_unit(module) and id(module) not in inside:
                inside.update(map(id, module.modules()))
                vars(module)["forward"] = partial(self._pass, name or type(model).__name__, module)
                found += 1
        if not found:
            raise ConfigError(
                f"{type(model).__name__} has no residual units: none of its modules has the methods parts(x) "
                "and join(branch, shortcut), as nn.ResidualBlock does. Give them to the blocks of your own: "
                "see minires.nn.blocks.Residual"
            )

    def _pass(self, name: str, unit: Any, x: Tensor) -> Tensor:
        """What a unit does instead of its forward."""
        start = _leaf(x)
        branch, shortcut = unit.parts(start)
        if shortcut is None:  # on every path
            end = unit.join(branch, None)
            self.pieces += [_Link(self._start, x), _Link(start, end)]
        else:
            joined = _leaf(branch), _leaf(shortcut)
            end = unit.join(*joined)
            self.pieces += [_Link(self._start, x), _Unit(name, start, branch, shortcut, joined, end)]
        if len(end.data) != len(self.pixels.data):
            raise ShapeError(
                f"{name}: of {counted(len(self.pixels.data), 'picture')} the unit makes an array "
                f"{end.shape}; its first axis must be that of the pictures"
            )
        self._start = _leaf(end)
        return self._start

    def end(self, loss: Tensor) -> None:
        self.pieces.append(_Link(self._start, loss))

    @property
    def units(self) -> list[_Unit]:
        return [piece for piece in self.pieces if isinstance(piece, _Unit)]

    def backwards(self) -> tuple[Array, list[_Link | _Unit]]:
        """The gradient where the last unit ends, and the pieces before that, the last one first."""
        last, *before = reversed(self.pieces)
        assert isinstance(last, _Link)
        return last.back(), before


def _by_length(cut: _Cut) -> tuple[list[Array], tuple[Numbers, Numbers, Numbers]]:
    """The gradient of the pixels over all paths of each length; and the gains of the units, of the first to
    the last, through branch, shortcut and both."""
    first, before = cut.backwards()
    by_length, gains = [first], []
    for piece in before:
        if isinstance(piece, _Link):
            by_length = [piece.back(dy) for dy in by_length]
            continue
        size = _size(sum(by_length[1:], by_length[0]))
        branches: Any = 0
        shortcuts: Any = 0
        longer: list[Array] = []
        carried: Array | None = None  # through the branch, to be added to the next length
        for dy in by_length:
            through, past = piece.ways(dy)
            branches, shortcuts = branches + through, shortcuts + past
            longer.append(past if carried is None else past + carried)
            carried = through
        assert carried is not None
        by_length = [*longer, carried]
        sizes = [_size(branches), _size(shortcuts), _size(branches + shortcuts)]
        gains.append([one / size if size else 0.0 for one in sizes])
    b, s, t = np.array(gains[::-1], float).reshape(-1, 3).T
    return by_length, (b, s, t)


def _one_path(cut: _Cut, length: int, samples: int, rng: np.random.Generator) -> tuple[float, int]:
    """The mean norm over single paths of this length, and over how many."""
    n, pictures = len(cut.units), len(cut.pixels.data)
    all_paths = comb(n, length) <= samples
    ways: Iterator[NDArray[np.bool_]]
    if all_paths:
        ways = (np.isin(np.arange(n), taken)[None].repeat(pictures, 0)
                for taken in combinations(range(n), length))  # fmt: skip
    else:  # n places in random order, of each picture its own; the first `length` numbers are of branches
        ways = (rng.random((pictures, n)).argsort(axis=1) < length for _ in range(samples))
    sizes = [_size(_over(cut, chosen)) for chosen in ways]
    return float(np.mean(sizes)), len(sizes) * (1 if all_paths else pictures)


def _over(cut: _Cut, chosen: NDArray[np.bool_]) -> Array:
    """The gradient of the pixels over one path of each picture: through the branches ``chosen`` (N, n)."""
    dy, before = cut.backwards()
    place = chosen.shape[1]
    for piece in before:
        if isinstance(piece, _Unit):
            place -= 1
            dy = piece.chosen(dy, chosen[:, place])
        else:
            dy = piece.back(dy)
    return dy


# ------------------------------------------------------------------------------------------------- numbers


def _size(gradient: Array) -> float:
    """The norm of a picture's gradient, on average over pictures; squares of float32 would be too small."""
    rows = backend.to_device(gradient, "cpu").astype(np.float64).reshape(len(gradient), -1)
    return float(np.sqrt(np.einsum("nk,nk->n", rows, rows)).mean())


def _away(by_length: Sequence[Array], gradient: Array) -> float:
    """How far the sum of all lengths is from the whole gradient, as a share of it."""
    size, away = _size(gradient), _size(sum(by_length[1:], by_length[0]) - gradient)
    return away / size if size else float(away > 0)


def _coefficients(shortcut: Numbers, branch: Numbers, both: Numbers) -> Numbers:
    """The coefficients of z^0, z^1, ... in the product of (shortcut[i] + branch[i] z) / both[i]."""
    product = np.ones(1)
    for s, b, t in zip(shortcut, branch, both, strict=True):
        product = np.convolve(product, np.array([s, b]) / t if t else [0.0, 0.0])
    return product
