"""What differs between two models, layer by layer: ``print(diff(a, b, (224, 224, 3)))``.

Layers are aligned in the order in which a picture passes through them. Layers of one name belong together;
between those, layers of one kind (a convolution and a convolution) do, in their order. What is left stands in
one of the models only. Not compared are the values of the weights and what is done between layers.
"""

from __future__ import annotations

import difflib
import itertools
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minires.errors import ConfigError
from minires.inspect.summary import Layer, Row, Shape, Summary, aligned, count, in_short, summarize
from minires.models import option
from minires.nn.module import Module, Parameter
from minires.ops.plot_labels import times

Pair = tuple[Layer | None, Layer | None]  # a layer of each model; None where a model has no such layer
COMPARED = ("kind", "output", "params", "params_trainable", "macs")
# Attributes of a module that are no settings, and settings that kinds and shapes tell already.
NO_SETTINGS = {"training"}
TOLD = {
    "in_channels", "out_channels", "in_features", "out_features", "channels",
    "kernel", "stride", "dilation", "groups", "relu",
}  # fmt: skip
TOTALS = {
    "parameters": "params_total", "  in torch": "parameters", "  trainable": "params_trainable",
    "MACs": "macs", "output bytes": "output_bytes", "saved bytes": "saved",
}  # fmt: skip
NAMED = 4  # of a list of names so many are shown


@dataclass(frozen=True)
class Setting:
    """A setting (the eps of a batch norm, say) that has another value in the modules at ``where``."""

    name: str
    a: Any
    b: Any
    where: tuple[str, ...]


@dataclass(frozen=True)
class Diff:
    """What differs between the models ``a`` and ``b``; ``str`` of it is a report, - for a and + for b.

    ``layers`` are the pairs that differ in kind, output, parameters or MACs, with None for a layer
    that one model does not have. ``moved`` are names of layers that stand elsewhere in the order, ``renamed``
    the two names of layers that differ in nothing else.
    """

    a: Summary
    b: Summary
    layers: tuple[Pair, ...]
    moved: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    settings: tuple[Setting, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing that is compared differs."""
        same_totals = all(getattr(self.a, total) == getattr(self.b, total) for total in TOTALS.values())
        return same_totals and not (self.layers or self.moved or self.renamed or self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON."""
        return {
            "a": self.a.model, "b": self.b.model, "input": list(self.a.input), "equal": self.equal,
            "totals": {name: {"a": getattr(self.a, name), "b": getattr(self.b, name)}
                       for name in TOTALS.values()},
            "layers": [{"a": a and asdict(a), "b": b and asdict(b)} for a, b in self.layers],
            "moved": list(self.moved), "renamed": [list(names) for names in self.renamed],
            "settings": [asdict(setting) for setting in self.settings],
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"- {self.a.model}", f"+ {self.b.model}", f"input {times(self.a.input)}", ""]
        if self.equal:
            return "\n".join([
                *lines,
                f"Equal: {len(self.a.layers)} layers of the same names, kinds, settings, shapes, parameters,",
                "MACs and order. Not compared: weights, and what is done between layers.",
            ])  # fmt: skip
        lines += [*aligned(list(_totals(self)), left=1), "", _tally(self)]
        if self.layers:
            lines += ["", *aligned(list(_rows(self.layers)), left=3)]
        if self.moved:
            lines += ["", _listed("In another order", self.moved)]
        if self.renamed:
            lines += ["", _listed("Other names", [f"{old} -> {new}" for old, new in self.renamed])]
        if self.settings:
            lines += ["", "Other settings:"]
            lines += [_listed(f"  {one.name} {one.a} -> {one.b}", one.where) for one in self.settings]
        return "\n".join(lines)


def diff(
    a: Module, b: Module, input: Shape, *, names: tuple[str, str] | None = None, memory: bool = False
) -> Diff:
    """Compare two models while one zero picture passes through each; both are left as they were.

    ``names`` are what the report calls them, and ``memory`` also measures what the tape keeps: see
    :func:`minires.inspect.summarize`.

    Shapes: input (H, W, C), without the batch axis.
    Raises: ShapeError if such a picture does not fit one of the models.
    """
    one, other = (
        summarize(model, input, name=name, memory=memory)
        for model, name in zip((a, b), names or (None, None), strict=True)
    )
    pairs, moved = _align(one.layers, other.layers)
    differing, renamed = [], []
    for pair in pairs:
        before, after = pair
        if before is None or after is None or _compared(before) != _compared(after):
            differing.append(pair)
        elif before.name != after.name:
            renamed.append((before.name, after.name))
    return Diff(one, other, tuple(differing), tuple(moved), tuple(renamed), tuple(_other_settings(a, b)))


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Read a model with its options: ``"resnet34 shortcut=A"`` -> ``("resnet34", {"shortcut": "A"})``.

    A value is JSON, or else a word. Name and options are what ``minires.models.build`` takes.

    Raises: ConfigError if there is no name, or an option is not NAME=VALUE, or none of the model itself.
    """
    name, *options = text.split() or [""]
    if not name or "=" in name:
        raise ConfigError(f"{text!r} names no model; write the name first, for example 'resnet34 shortcut=A'")
    found = dict(option(text) for text in options)
    if beside := [one for one in ("classes", "seed") if one in found]:
        raise ConfigError(f"{text!r}: {beside[0]} is no option of a model, but given beside both")
    return name, found


# ---------------------------------------------------------------------------------------------- comparing


def _compared(layer: Layer) -> tuple[Any, ...]:
    return tuple(getattr(layer, what) for what in COMPARED)


def _align(a: Sequence[Layer], b: Sequence[Layer]) -> tuple[list[Pair], list[str]]:
    """Pairs of layers that belong together, in order, and the names of those that were moved."""
    keys_a, keys_b = _keys(a), _keys(b)
    by_key = dict(zip(keys_b, b, strict=True))
    both = set(keys_a) & set(keys_b)
    pairs: list[Pair] = []
    moved: list[str] = []
    for same, part, other in _parts(keys_a, keys_b):
        if same:
            pairs += zip(a[part], b[other], strict=True)
            continue
        for key, layer in zip(keys_a[part], a[part], strict=True):
            if key in both:
                moved.append(layer.name)
                pairs.append((layer, by_key[key]))
        pairs += _align_kinds(
            [layer for key, layer in zip(keys_a[part], a[part], strict=True) if key not in both],
            [layer for key, layer in zip(keys_b[other], b[other], strict=True) if key not in both],
        )
    return pairs, moved


def _align_kinds(a: Sequence[Layer], b: Sequence[Layer]) -> Iterator[Pair]:
    """Pairs of layers whose names differ.

    Where both have the same sequence (convolution, batch norm, ...), by position. Else only those that do the
    same and hand on the same shape: in two unlike networks no convolution stands for another.
    """
    keys: list[list[Hashable]] = [[layer.kind.split()[0] for layer in layers] for layers in (a, b)]
    if keys[0] != keys[1]:
        keys = [[(layer.kind, layer.output) for layer in layers] for layers in (a, b)]
    for same, part, other in _parts(*keys):
        if same:
            yield from zip(a[part], b[other], strict=True)
        else:
            yield from ((layer, None) for layer in a[part])
            yield from ((None, layer) for layer in b[other])


def _parts(a: Sequence[Hashable], b: Sequence[Hashable]) -> Iterator[tuple[bool, slice, slice]]:
    """The parts of two sequences, and whether they are the same in both."""
    for tag, start, stop, other, end in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        yield tag == "equal", slice(start, stop), slice(other, end)


def _keys(layers: Sequence[Layer]) -> list[tuple[str, int]]:
    """Names, numbered where a layer is called more than once."""
    calls: Counter[str] = Counter()
    keys = []
    for layer in layers:
        keys.append((layer.name, calls[layer.name]))
        calls[layer.name] += 1
    return keys


def _other_settings(a: Module, b: Module) -> Iterator[Setting]:
    """What differs in the settings of modules that both models have."""
    modules = dict(b.named_modules())
    found: dict[tuple[str, str, str], list[tuple[str, Any, Any]]] = {}
    for path, module in a.named_modules():
        if path not in modules:
            continue
        one, other = _settings(module), _settings(modules[path])
        for name in one.keys() & other.keys():
            if one[name] != other[name]:
                key = (name, repr(one[name]), repr(other[name]))
                found.setdefault(key, []).append((path, one[name], other[name]))
    for (name, _, _), places in sorted(found.items()):
        _, before, after = places[0]
        yield Setting(name, before, after, tuple(path for path, _, _ in places))


def _settings(module: Module) -> dict[str, Any]:
    """The plain values among a module's attributes: eps, momentum, rate, shortcut; "learned" for a bias."""
    return {
        name.lstrip("_"): "learned" if isinstance(value, Parameter) else value
        for name, value in vars(module).items()
        if name not in NO_SETTINGS | TOLD and (_is_plain(value) or isinstance(value, Parameter))
    }


def _is_plain(value: Any) -> bool:
    """Whether a value is a setting; a list is not (a block keeps the names of its layers in lists)."""
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


# --------------------------------------------------------------------------------------------- the report


def _totals(found: Diff) -> Iterator[Row]:
    yield ("", "-", "+", "difference")
    for name, total in TOTALS.items():
        a, b = getattr(found.a, total), getattr(found.b, total)
        if a is not None and b is not None:
            yield (name, f"{a:,}", f"{b:,}", f"{b - a:+,}" if a != b else "none")


def _tally(found: Diff) -> str:
    """How many layers differ, in a sentence."""
    only_a = sum(b is None for _, b in found.layers)
    only_b = sum(a is None for a, _ in found.layers)
    both = len(found.layers) - only_a - only_b
    return (
        f"Of {len(found.a.layers)} and {len(found.b.layers)} layers, {both} differ, {only_a} are only in -, "
        f"{only_b} only in +."
    )


def _rows(pairs: Sequence[Pair]) -> Iterator[Row]:
    """Two lines for a layer that both models have, = where nothing changed; else see :func:`_only`."""
    yield ("  layer", "what", "output", "parameters", "MACs")
    for sign, group in itertools.groupby(
        pairs, key=lambda pair: "-" if not pair[1] else "" if pair[0] else "+"
    ):
        if sign:
            yield from _only(sign, [layer for pair in group for layer in pair if layer])
            continue
        for a, b in group:
            if a and b:
                before, after = _cells(a), _cells(b)
                if before == after:  # one of them is frozen
                    before, after = (
                        (*cells[:2], f"{layer.params_trainable:,} trained", cells[3])
                        for cells, layer in ((before, a), (after, b))
                    )
                yield (f"- {a.name}", *before)
                changes = ("=" if x == y else y or "0" for x, y in zip(before, after, strict=True))
                yield (f"+ {b.name}", *changes)


def _only(sign: str, layers: Sequence[Layer]) -> Iterator[Row]:
    """What only one model has: a line with the sums for what is of one block, or of a run of equal blocks."""
    blocks = [list(block) for _, block in itertools.groupby(layers, key=lambda layer: layer.block)]
    for _, group in itertools.groupby(blocks, key=lambda block: [_compared(layer) for layer in block]):
        run = list(group)
        first, last = run[0], run[-1]
        name = first[0].block if len(run) == 1 else f"{first[0].block}-{last[0].block}"
        name += f": {len(first)} layers" + (f"  x{len(run)}" if len(run) > 1 else "")
        if len(run) == len(first) == 1:
            name = first[0].name
        sums = [sum(getattr(layer, what) for block in run for layer in block) for what in ("params", "macs")]
        yield (f"{sign} {name}", in_short(first), times(first[-1].output), *map(count, sums))


def _cells(layer: Layer) -> Row:
    return layer.kind, times(layer.output), count(layer.params), count(layer.macs)


def _listed(title: str, names: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    more = ", ..." if len(names) > NAMED else ""
    text = f"{title}: {len(names)} ({', '.join(names[:NAMED])}{more})"
    return textwrap.fill(text, 100, subsequent_indent="    ")
