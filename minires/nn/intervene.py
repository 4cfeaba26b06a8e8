"""Interventions: a model that computes something else inside a block of code, and is left as it was.

    with minires.intervene(model, {"res3b": "drop", "res4a.shortcut": 0.5}) as done:
        y = model(x)
    print(done)

What a residual block learnt shows when it is taken away: the network whose block is dropped computes
join(0 x F(x), shortcut), and is worse by what the block was good for. So lesions (Veit et al. 2016), scaled
branches and shortcuts, silenced channels, reordered blocks, and activations of one picture put into the pass
of another (activation patching) are all one thing here: a change of a place, named by its path.

No weight is touched and no module replaced: each change stands around the module's forward pass, see
:mod:`minires.nn.hooks`, and goes when the block ends. Gradients flow through what is changed.

Source: Veit, Wilber, Belongie 2016, Residual networks behave like ensembles of relatively shallow networks,
arXiv:1605.06431, sections 4.1 to 4.3; patching: Vig et al. 2020, arXiv:2004.12265.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from minires import backend
from minires.array_making import is_array
from minires.errors import ConfigError, MiniresError, as_number, closest, nearest, unknown
from minires.nn import hooks
from minires.nn.blocks import Residual
from minires.nn.layers import BatchNorm2d, Conv2d, Sequential
from minires.nn.module import Module
from minires.nn.replaced import Channels, Shapes, left_out, other_instead, scaled, stored, zeros
from minires.nn.restored import left_as_it_is
from minires.tensor import Tensor, no_grad

WAYS = ("branch", "shortcut")
_MOVES = ("swap", "order")
_PLACES = {
    "output": ("its output", "输出"), "branch": ("the branch", "分支"), "shortcut": ("the shortcut", "捷径"),
}  # fmt: skip


class Words(str):
    """What is changed, in English; ``chinese`` says the same in Chinese.

    >>> Words("res3b: 0.5 x its output", "res3b：输出 × 0.5").chinese
    'res3b：输出 × 0.5'
    """

    chinese: str

    def __new__(cls, english: str, chinese: str) -> Self:
        self = super().__new__(cls, english)
        self.chinese = chinese
        return self

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return str(self), self.chinese


@dataclass(eq=False)
class _Change:
    """One change of one place: ``part`` and ``kind`` are those of its :class:`~minires.nn.hooks.Entry`."""

    key: str
    module: Module
    part: str
    kind: str
    act: Callable[..., Any]
    english: str
    chinese: str
    ran: bool = False

    @property
    def words(self) -> Words:
        later = ("", "") if self.ran else (" (has not run yet)", "（尚未运行）")
        return Words(f"{self.key}: {self.english}{later[0]}", f"{self.key}：{self.chinese}{later[1]}")

    def entry(self, owner: object) -> hooks.Entry:
        def act(*given: Any) -> Any:
            self.ran = True
            return self.act(*given)

        return hooks.Entry(owner, self.part, act, self.kind, f"{self.key}: {self.english}")


class Intervention:
    """What :func:`intervene` gives. Printed, it says what is changed, and what of it has not run yet.

    >>> from minires.nn import Linear
    >>> done = intervene(Sequential(dense=Linear(2, 2)), {"dense": 0.5})
    >>> done.words
    ('dense: 0.5 x its output (has not run yet)',)
    """

    def __init__(self, model: Module, changes: Mapping[str, Any], *, looks: bool = False) -> None:
        if not isinstance(model, Module):
            raise ConfigError(f"intervene: a model is changed, a Module, not a {type(model).__name__}")
        if not isinstance(changes, Mapping):
            raise ConfigError(
                f'intervene: changes are a dict, such as {{"res3b": "drop"}}, not a {type(changes).__name__}'
            )
        self._model, self._looks = model, looks
        self._on: list[Module] = []  # where changes stand now
        self._changes = list(_Reader(model, looks).read(changes))

    @property
    def words(self) -> tuple[Words, ...]:
        """What is changed, a line each; nothing where the places are only looked at."""
        return () if self._looks else tuple(one.words for one in self._changes if one.part != "skip")

    def __str__(self) -> str:
        return "\n".join(self.words) or "nothing is changed"

    def __repr__(self) -> str:
        return str(self)

    def __enter__(self) -> Self:
        if self._on:
            raise MiniresError("intervene: these changes are made already; call intervene(...) once more")
        changes = [*self._changes, *_skipped(self._model, self._changes)]
        _check(changes)
        _see_that_they_run(changes)
        for one in changes:
            self._on.append(one.module)
            hooks.attach(one.module, [one.entry(self)])
        return self

    def __exit__(self, *error: object) -> None:
        hooks.detach(self, self._on)
        self._on = []


def intervene(model: Module, changes: Mapping[str, Any]) -> Intervention:
    """Change what a model computes inside a ``with`` block; behind it, and after an error, all is as before.

    ``changes`` has places and what becomes of them. A place is the path of a module, as ``named_modules()``
    gives it; ``"res3b.branch"`` and ``"res3b.shortcut"`` are the two ways of a residual block (of any module
    that has :class:`~minires.nn.blocks.Residual`'s ``parts`` and ``join``), before they are joined. In
    brackets stand channels, of the last axis: ``"res3b[3]"``, ``"res3b[0:8]"``, ``"res3b.branch[1,5]"``.

    ===============================  ======================================================================
    ``"drop"``                       a residual block gives join(0 x branch, shortcut), and the branch does
                                     not run; any other module gives what comes in, and does not run
    a number                         the output, the branch, the shortcut, or these channels, times it
    an array or tensor               a stored activation in the place of the output: nothing runs for it, and
                                     of a Sequential nothing that stands before it
    a function                       is given the output, a tensor, and gives a new one
    ``"swap": ("res2b", "res2c")``   each runs in the place of the other; a list of pairs swaps several
    ``"order": ["c", "a", "b"]``     the places of these modules run them in this order
    ===============================  ======================================================================

    A module is what runs, wherever: ``{"swap": ("a", "b"), "a": 0.5}`` scales a, in b's place. One that is
    held twice is changed at both places. A dropped batch norm still adds the shortcut that it is given and
    ends in its ReLU, and a dropped convolution in its own. Blocks may be nested: scales multiply, functions
    follow one another, and what cannot be both is refused. Names, parameters, copies and saved files are
    those of the model as it is. The change holds for every thread.

    A plan (``minires.compile``) that was made before refuses to run, and none is made; ``fuse`` and
    ``export_onnx`` refuse; ``predict`` and ``evaluate`` run the model itself.

    Raises: ConfigError for an unknown path, word or way, or changes of one place that cannot be both;
    ShapeError, when the model runs, for a channel that is not there, a stored activation of another shape,
    a dropped module that would change the shape, and modules that do not fit in each other's places.
    Source: arXiv:1605.06431.

    >>> from minires.models import build
    >>> model = build("resnet20_cifar", seed=0).eval()
    >>> x = np.ones((1, 32, 32, 3), np.float32)
    >>> with intervene(model, {"res3b": "drop", "res4a.shortcut": 0.5}) as done:
    ...     y = model(x)
    >>> print(done)
    res3b: dropped: its shortcut + 0 x its branch
    res4a.shortcut: 0.5 x the shortcut
    >>> bool((y.data == model(x).data).all())
    False
    """
    return Intervention(model, changes)


def changes_of(model: Module) -> tuple[Words, ...]:
    """What all interventions that hold now change of a model, in words.

    >>> from minires.nn import Linear
    >>> model = Sequential(dense=Linear(2, 2))
    >>> with intervene(model, {"dense": 2}):
    ...     y = model(np.ones((1, 2), np.float32))
    ...     changes_of(model)
    ('dense: 2 x its output',)
    """
    owners = [one.owner for module in model.modules() for one in hooks.entries_of(module)]
    return tuple(words for owner in dict.fromkeys(owners) if isinstance(owner, Intervention)
                 for words in owner.words)  # fmt: skip


def activations(model: Module, x: Any, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of some modules of a model, and of branches and shortcuts of its blocks, of one pass of x.

    They are what :func:`intervene` takes for stored activations. The model runs in its own mode, without a
    tape, and is left as it was. Of a module that runs several times the last output is kept.

    Shapes: x what the model takes; the arrays what the modules give, on the CPU.
    Raises: ConfigError for a name that is not there, or that did not run; as the model itself.

    >>> from minires.models import build
    >>> model = build("resnet20_cifar", seed=0).eval()
    >>> x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32")
    >>> kept = activations(model, x, ["res3a", "res3b.branch"])
    >>> {name: array.shape for name, array in kept.items()}
    {'res3a': (2, 16, 16, 32), 'res3b.branch': (2, 16, 16, 32)}
    >>> with intervene(model, {"res3a": kept["res3a"]}):
    ...     y = model(x)  # runs from res3b on
    >>> bool(np.array_equal(y.data, model(x).data))
    True
    """
    if isinstance(names, str) or not all(isinstance(one, str) for one in names):
        raise ConfigError(f"activations: names are a list of paths, not {names!r:.80}")
    kept: dict[str, np.ndarray[Any, Any]] = {}

    def keeper(name: str) -> Callable[[Tensor], Tensor]:
        def keep(y: Tensor) -> Tensor:
            kept[name] = np.array(backend.to_device(y.data, "cpu"))
            return y

        return keep

    device = next((parameter.device for parameter in model.parameters()), None)
    picture = x if isinstance(x, Tensor) else Tensor(x, device=device)
    look = Intervention(model, {name: keeper(name) for name in names}, looks=True)
    with left_as_it_is(model), look, no_grad():
        model(picture)
    if missing := [name for name in names if name not in kept]:
        raise ConfigError(f"activations: {missing[0]} did not run in this pass, so it has no output")
    return {name: kept[name] for name in names}


# ------------------------------------------------------------------------------------- reading what is asked


@dataclass(frozen=True)
class _Place:
    """What a key names: a module, a part of it, and channels of that."""

    key: str
    module: Module
    part: str
    channels: Channels | None = field(default=None)


class _Reader:
    """Makes changes of a dict."""

    def __init__(self, model: Module, looks: bool) -> None:
        self.model, self.looks = model, looks
        self.modules: dict[str, Module] = {"": model, **dict(model.named_modules())}
        self.others = model.shared_names()  # the first name of what is held twice, and its other ones
        for first, others in self.others.items():
            inside = [path for path in self.modules if path == first or path.startswith(f"{first}.")]
            self.modules |= {
                other + path.removeprefix(first): self.modules[path] for other in others for path in inside
            }

    def read(self, changes: Mapping[str, Any]) -> Iterator[_Change]:
        moved: dict[str, str] = {}  # a place, and what runs there
        for key, value in changes.items():
            if not isinstance(key, str):
                raise ConfigError(f"intervene: a place is named by its path, as text, not by {key!r}")
            if key in _MOVES and key not in self.modules:
                for place, other in self._moves(key, value):
                    if place in moved:
                        raise ConfigError(f'intervene: {place} is moved twice; give one "order" for all')
                    moved[place] = other
            else:
                yield self._change(self._place(key), value)
        yield from self._moved({place: other for place, other in moved.items() if place != other})

    # -------------------------------------------------------------------------------------------- places

    def _place(self, key: str) -> _Place:
        if key in self.modules:
            return _Place(key, self.modules[key], "output")
        path, brackets, inside = key.partition("[")
        channels = Channels(inside.removesuffix("]"), key) if brackets else None
        if brackets and not key.endswith("]"):
            raise ConfigError(f'intervene: channels stand in brackets, "res3b[3]", not {key!r}')
        if channels is not None and self.looks:
            raise ConfigError(f"activations: take the channels out of the array; {path!r} gives all of them")
        if path in self.modules:
            return _Place(key, self.modules[path], "output", channels)
        before, _, way = path.rpartition(".")
        if way in WAYS and before in self.modules:
            if not isinstance(self.modules[before], Residual):
                raise ConfigError(self._no_ways(before, way))
            return _Place(key, self.modules[before], way, channels)
        known = [one for one in self.modules if one]
        raise ConfigError(f"intervene: there is no module {path!r}; {nearest(path, known)}")

    def _no_ways(self, path: str, way: str) -> str:
        blocks = [name for name, module in self.modules.items() if name and isinstance(module, Residual)]
        near = closest(path, blocks, count=1) or blocks[:1]
        hint = f"; {near[0]}.{way}, for example, is there" if near else ""
        kind = f"{path or 'the model'} ({type(self.modules[path]).__name__})"
        return (
            f"intervene: {kind} has no {way}: only a block with parts(x) and join(branch, shortcut) has{hint}"
        )

    # -------------------------------------------------------------------------------------------- values

    def _change(self, place: _Place, value: Any) -> _Change:
        what, chinese = _PLACES[place.part]
        if place.channels is not None:
            what, chinese = f"{place.channels} of {what}", f"{chinese}的通道 {place.channels.text}"

        def change(kind: str, act: Callable[..., Any], english: str, said: str) -> _Change:
            part = "source" if place.part == "output" and kind in ("drop", "stored") else place.part
            return _Change(place.key, place.module, part, kind, act, english, said)

        if callable(value) and not isinstance(value, type | Tensor):
            if place.channels is not None:
                raise ConfigError(
                    f"intervene: {place.key}: channels are scaled by a number; a function gets all of them, "
                    "under the path alone"
                )
            name = getattr(value, "__name__", "") or type(value).__name__
            kind = "look" if self.looks else "function"
            return change(
                kind, _through(value, place.key), f"{what} goes through {name}", f"{chinese}经过函数 {name}"
            )
        if isinstance(value, Tensor) or is_array(value):
            if value.dtype.kind in "OSUcMm" or value.dtype.names:
                raise ConfigError(
                    f"intervene: {place.key}: what is stored in its place is real numbers, not {value.dtype}"
                )
            if place.channels is not None:
                raise ConfigError(f"intervene: {place.key}: channels are scaled by a number, not stored")
            return self._stored(place, value, change)
        if isinstance(value, str):
            if value != "drop":
                raise ConfigError(
                    f"intervene: {place.key}: {unknown('change', value, ['drop'])}; or a number, an array or "
                    "a function"
                )
            if place.channels is not None:
                raise ConfigError(f"intervene: {place.key}: channels are silenced by 0, not dropped")
            return self._dropped(place, change)
        factor = as_number(value)
        if factor is None or not math.isfinite(factor):
            raise ConfigError(
                f'intervene: {place.key} is changed by "drop", a finite number, an array or a function, not '
                f"{value!r:.80}"
            )
        act = scaled(factor, place.channels, place.key)
        return change("scale", act, f"{factor:g} x {what}", f"{chinese} × {factor:g}")

    def _stored(self, place: _Place, value: Any, change: Callable[..., _Change]) -> _Change:
        what, chinese = _PLACES[place.part]
        shape = tuple(value.shape)
        words = f"{shape} stored, in the place of {what}", f"用存储的 {shape} 代替{chinese}"
        if place.part != "output":
            return change("stored", lambda like: stored(value, like, like.shape, place.key), *words)
        shapes, before = Shapes(), self._before(place.module)

        def act(module: Module, inputs: Any, options: Any) -> Tensor:
            skipped = before and hooks.is_skipped(before[0])
            chain, owner = ([*before, module], self.model) if skipped else ([module], module)
            expected = shapes.of(chain, inputs, options, owner=owner)
            return stored(value, inputs[0] if inputs else None, expected, place.key)

        return change("stored", act, *words)

    def _before(self, module: Module) -> list[Module]:
        """The modules of a Sequential before this one."""
        chain = _chain(self.model)
        places = [i for i, one in enumerate(chain) if one is module]
        return chain[: max(places)] if places else []

    def _dropped(self, place: _Place, change: Callable[..., _Change]) -> _Change:
        if place.part != "output":
            what, chinese = _PLACES[place.part]
            return change("drop", zeros, f"dropped: 0 x {what}", f"去掉：{chinese} × 0")
        shapes = Shapes()
        alone = "dropped: what comes in goes out", "去掉：输入原样输出"
        if isinstance(place.module, BatchNorm2d):
            alone = f"{alone[0]}, still added and activated", f"{alone[1]}，加法与 ReLU 保留"
        elif isinstance(place.module, Conv2d) and place.module.relu:
            alone = f"{alone[0]}, with its ReLU", f"{alone[1]}，ReLU 保留"

        def act(module: Any, inputs: Any, options: Any) -> Tensor:
            if isinstance(module, Residual):
                if hasattr(module, "shortcut_of"):
                    branch = shortcut = module.shortcut_of(*inputs, **options)
                else:
                    branch, shortcut = module.parts(*inputs, **options)
                if shortcut is not None:
                    return module.join(zeros(branch), shortcut)
                made.english, made.chinese = alone  # a plain block
            return left_out(module, inputs, options, shapes, place.key)

        with_shortcut = "dropped: its shortcut + 0 x its branch", "去掉：捷径 + 0 × 分支"
        made = change("drop", act, *(with_shortcut if isinstance(place.module, Residual) else alone))
        return made

    # --------------------------------------------------------------------------------------------- moves

    def _moves(self, key: str, value: Any) -> Iterator[tuple[str, str]]:
        """Places, and what runs there."""
        if key == "swap":
            pairs = [value] if _is_names(value) else value
            if not isinstance(pairs, list | tuple) or not all(_is_names(p) and len(p) == 2 for p in pairs):
                raise ConfigError(
                    f'intervene: "swap" takes two paths, or a list of such pairs, not {value!r:.80}'
                )
            for one, other in pairs:
                yield from ((self._side(one), self._side(other)), (self._side(other), self._side(one)))
            return
        if not _is_names(value) or len(set(value)) != len(value):
            raise ConfigError(f'intervene: "order" takes a list of different paths, not {value!r:.80}')
        stand = [path for path in self.modules if path in {self._side(one) for one in value}]
        yield from zip(stand, value, strict=True)

    def _side(self, path: str) -> str:
        """A path that can be moved. Raises: ConfigError."""
        if not path or path not in self.modules:
            known = [one for one in self.modules if one]
            raise ConfigError(f"intervene: there is no module {path!r}; {nearest(path, known)}")
        if path in self.others or any(path in others for others in self.others.values()):
            raise ConfigError(f"intervene: {path} stands at several places, so it cannot be moved")
        return path

    def _moved(self, moved: Mapping[str, str]) -> Iterator[_Change]:
        parents = {id(child): module for module in self.modules.values() for _, child in module.children()}
        for place, other in moved.items():
            module, runs = self.modules[place], self.modules[other]
            if parents[id(module)] is not parents[id(runs)]:
                raise ConfigError(
                    f"intervene: {other} and {place} do not stand side by side in one module, so they cannot "
                    "be moved to each other's places"
                )
            act = other_instead(place, other, runs, Shapes())
            yield _Change(place, module, "place", "place", act, f"{other} runs here", f"此处运行 {other}")


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(one, str) for one in value)


def _through(function: Callable[[Tensor], Any], key: str) -> Callable[[Any], Tensor]:
    def act(y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            raise ConfigError(f"{key} gives a {type(y).__name__}, and only one tensor can be changed")
        new = function(y)
        if not isinstance(new, Tensor):
            raise ConfigError(f"the function for {key} must return a tensor, not {type(new).__name__}")
        if new.shape != y.shape:
            raise ConfigError(
                f"the function for {key} must return the shape that it is given, {y.shape}, not {new.shape}"
            )
        return new

    return act


# ----------------------------------------------------------------------------------------- what fits together


def _chain(model: Module) -> list[Module]:
    """The modules that run one after the other, if a model does no more than that."""
    return list(model) if isinstance(model, Sequential) and type(model).forward is Sequential.forward else []


def _skipped(model: Module, changes: Sequence[_Change]) -> Iterator[_Change]:
    """What need not run, as the output of a later module at the top of a Sequential is stored."""
    chain, stores = _chain(model), [one for one in changes if one.part == "source" and one.kind == "stored"]
    places = [i for i, module in enumerate(chain) if any(one.module is module for one in stores)]
    moved = {id(one.module) for one in changes if one.part == "place"}
    last = max(places, default=0)
    if not places or any(id(module) in moved or hooks.is_moved(module) for module in chain[: last + 1]):
        return
    before = {id(module): module for module in chain[:last]}
    later = (module for one in chain[last:] for module in one.modules())
    if any(id(module) in before for module in later):  # held twice, and the second time it runs
        return
    key = next(one.key for one in stores if one.module is chain[last])
    for first in before.values():
        inside = {id(module) for module in first.modules()}
        for one in changes:
            if id(one.module) in inside and one.kind != "look":
                raise ConfigError(
                    f"intervene: {one.key} is not run, since the output of {key}, which comes after it, is "
                    "stored; leave one of them out"
                )
        yield _Change(key, first, "skip", "skip", lambda module, inputs, options: inputs[0], "", "")


def _see_that_they_run(changes: Sequence[_Change]) -> None:
    """Raises: ConfigError for a change inside a module whose output is stored or left out: it never runs."""
    for outer in changes:
        of_block = isinstance(outer.module, Residual) and outer.kind == "drop"  # its shortcut runs
        if outer.part != "source" or of_block:
            continue
        inside = {id(module) for module in outer.module.modules()} - {id(outer.module)}
        for one in changes:
            if id(one.module) in inside and one.kind != "look" and one.part != "skip":
                raise ConfigError(
                    f"intervene: {one.key} is not run, since {outer.key}, which holds it, is not: "
                    f"{outer.english}; leave one of them out"
                )


def _check(changes: Sequence[_Change]) -> None:
    """Raises: ConfigError if a change cannot be beside another of them, or beside one that holds already."""
    here: dict[int, list[tuple[str, str, str]]] = {}  # what is done to a module: part, kind, key
    for one in changes:
        if id(one.module) not in here:
            around = hooks.entries_of(one.module)
            here[id(one.module)] = [(e.part, e.kind, e.words) for e in around if e.part != "hook"]
        for part, kind, words in here[id(one.module)]:
            if "look" in (kind, one.kind) or one.part == "skip" or not _clash(one, part, kind):
                continue
            raise ConfigError(
                f"intervene: {one.key}: {one.english} cannot be beside what is changed already ({words})"
            )
        here[id(one.module)].append((one.part, one.kind, f"{one.key}: {one.english}"))


def _clash(one: _Change, part: str, kind: str) -> bool:
    """Whether a change leaves nothing for another of the same module to change."""
    if part == "skip":
        return True
    if "place" in (part, one.part):
        return part == one.part
    if "source" in (part, one.part):
        return True
    instead = kind in ("drop", "stored") or one.kind in ("drop", "stored")
    return part == one.part and instead
