"""The architecture of a model, or a tape, as a picture: an SVG file that needs nothing else.

The picture flows down. Everything is drawn around an axis: a piece knows how far it reaches to the left and
to the right of it, and how high it is, and pieces are put below one another or side by side. Coordinates are
pixels, y grows downwards.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard
from xml.sax.saxutils import escape

from minires.errors import MiniresError
from minires.files import atomic_write, with_ending
from minires.inspect.graph import Chain, Fork, Run, Stage, Step, stages
from minires.inspect.summary import Shape, Summary
from minires.nn.module import Module
from minires.ops.plot_labels import times
from minires.tape import Node, reachable
from minires.tensor import Tensor

FONT = 13
BOX = 32  # the height of a box
GAP = 22  # from one box to the next
RADIUS = 12  # of the circle of a join
PAD = 16
SIDE = 26  # between a branch and what is beside it
LINE = 18  # from one line of text to the next
SIGNS = {"+": "plus", "×": "times"}  # the joins that are circles; others are named

STYLE = """
text { font-family: Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 13px; fill: #24303d; }
.title { font-size: 22px; font-weight: bold; }
.strong { font-weight: bold; }
.soft { fill: #5d6b7a; }
.stage { fill: #f3f5f8; }
.block { fill: #ffffff; stroke: #c3ccd6; }
.step { fill: #dfe9f5; stroke: #7f9cc0; }
.plain { fill: #eceff3; stroke: #a9b4c0; }
.gate { fill: #f9ecdf; stroke: #cf9a68; }
.label { fill: #ffffff; stroke: #cf9a68; }
.join { fill: #ffffff; stroke: #b5651d; stroke-width: 1.5; }
.sign { font-weight: bold; fill: #b5651d; }
.badge { fill: #24303d; }
.count { font-weight: bold; fill: #ffffff; }
.line { fill: none; stroke: #5d6b7a; stroke-width: 1.5; }
.skip { fill: none; stroke: #b5651d; stroke-width: 1.5; }
.head { fill: #5d6b7a; }
.skiphead { fill: #b5651d; }
"""

Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """Something drawn: its points, and how it is written once these are where they belong."""

    points: tuple[Point, ...]
    write: Callable[[Sequence[Point]], str]

    def moved(self, right: float, down: float) -> Mark:
        return Mark(tuple((x + right, y + down) for x, y in self.points), self.write)


@dataclass(frozen=True)
class Piece:
    """Marks around an axis at x = 0, from y = 0 down to ``height``.

    ``box`` says whether a box is at its upper end, which a line from above reaches with an arrow.
    """

    left: float
    right: float
    height: float
    marks: tuple[Mark, ...]
    box: bool = False

    def moved(self, right: float, down: float) -> tuple[Mark, ...]:
        return tuple(mark.moved(right, down) for mark in self.marks)


def plot(model: Module, input: Shape, out: str | os.PathLike[str], *, name: str | None = None) -> None:
    """Draw the architecture of ``model`` into the SVG file ``out``: stages, blocks, branches, shapes.

    What is drawn is read off a forward pass, as in inference, of one picture of zeros: see
    :mod:`minires.inspect.graph`. Blocks in a row that look the same are drawn once, with their number.

    Shapes: input (H, W, C), without the batch axis.
    Raises: ShapeError if such a picture does not fit the model; MiniresError if nothing leads from it to the
    result, or the file cannot be written; ConfigError if ``out`` does not end in .svg.
    """
    with_ending("out", out, ".svg", "a drawing")
    summary, found = stages(model, input)
    name = name or type(model).__name__
    drawing = _svg(_page(name, summary, found), name)
    with atomic_write(out) as file:
        file.write(drawing.encode())


def plot_tape(result: Tensor, out: str | os.PathLike[str]) -> None:
    """Draw the tape behind ``result`` (a loss, say) into the SVG file ``out``, one box per operation.

    A box says which operation it is, in which module, and the shape of its result; to its right stand the
    leaves that it uses (parameters). It is for small models: the picture grows by a box per operation.

    Raises: MiniresError if no gradient flows to ``result``, it is a leaf, its tape was freed by a backward
    pass, or the file cannot be written; ConfigError if ``out`` does not end in .svg.
    """
    with_ending("out", out, ".svg", "a drawing")
    if result.node is None or result.node.op == "leaf":
        why = "no gradient flows to this tensor" if result.node is None else "this tensor is a leaf"
        raise MiniresError(f"there is no tape to draw: {why}. Give the result of a forward pass, a loss say")
    nodes = sorted(reachable(result.node), key=lambda node: node.number)
    drawing = _svg(_tape([node for node in nodes if node.op != "leaf"]), "tape")
    with atomic_write(out) as file:
        file.write(drawing.encode())


def _svg(piece: Piece, title: str) -> str:
    width, height = round(piece.left + piece.right), round(piece.height)
    marks = [mark.write(mark.points) for mark in piece.moved(piece.left, 0)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<title>{_clean(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *marks,
        "</svg>",
        "",
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------ the whole page


def _page(name: str, summary: Summary, found: list[Stage]) -> Piece:
    """The title, the stages below one another, and on the arrows between blocks the shapes."""
    inside = [[(run, _chain(run.chain, shapes=not run.names)) for run in stage.runs] for stage in found]
    total = f"{summary.params_total:,} parameters, {summary.macs:,} MACs for one picture"
    pieces = [(run, piece) for runs in inside for run, piece in runs]
    # Everything is as wide as the widest: blocks, and the words left and right of the axis.
    left = max(max(piece.left, _wide(_run_name(run))) for run, piece in pieces)
    right = max(piece.right for _, piece in pieces)
    left = max(left, *(_wide(_stage_name(stage)) for stage in found)) + PAD
    right = max(right, *(_wide(_stage_params(stage)) for stage in found)) + PAD
    right = max(right, _wide(name, 22) - left, _wide(total) - left)
    marks = [_text(-left - PAD, 40, name, "title", "start"), _text(-left - PAD, 64, total, "soft", "start")]
    above, shape = 84.0, summary.input  # where the arrow from above starts, and what it carries
    for stage, runs in zip(found, inside, strict=True):
        top = above + 2 * GAP
        rows: list[Mark] = []
        y = top + 2 * GAP
        for number, (run, piece) in enumerate(runs):
            if run.names:
                piece = _block(run, piece, left, right)
            y += 2 * GAP if number else 0
            rows += _arrow(above, y, head=piece.box)
            rows.append(
                _text(8, (top if number == 0 else y) - GAP + (11 if number == 0 else 5), times(shape))
            )
            rows += piece.moved(0, y)
            y += piece.height
            above, shape = y, run.chain[-1].output
        marks.append(_rect(-left - PAD, top, right + PAD, y + PAD, "stage", 10))
        marks.append(_text(-left, top + 24, _stage_name(stage), "strong", "start"))
        marks.append(_text(right, top + 24, _stage_params(stage), "soft", "end"))
        marks += rows
        above = y
    marks += _arrow(above, above + 2 * GAP + PAD, head=True)
    marks.append(_text(8, above + GAP + PAD + 4, times(shape)))
    return Piece(left + 2 * PAD, right + 2 * PAD, above + 2 * GAP + 2 * PAD, tuple(marks))


def _stage_name(stage: Stage) -> str:
    blocks = f", {stage.blocks} block{'s' * (stage.blocks > 1)}" if stage.blocks else ""
    return (times(stage.size) or "scores") + blocks


def _stage_params(stage: Stage) -> str:
    return f"{stage.params:,} parameters"


def _run_name(run: Run) -> str:
    """``block1.layer1 to layer6``."""
    if len(run.names) < 2:
        return "".join(run.names)
    last = run.names[-1]
    above = last.rpartition(".")[0]
    inside = above and run.names[0].startswith(f"{above}.")
    return f"{run.names[0]} to {last.removeprefix(f'{above}.') if inside else last}"


def _block(run: Run, inside: Piece, left: float, right: float) -> Piece:
    """A frame around a block, with its name, and the number of blocks that look like it."""
    top = 2 * GAP
    height = top + inside.height + PAD
    marks = [
        _rect(-left, 0, right, height, "block", 8),
        _text(-left + PAD, 24, _run_name(run), "strong", "start"),
        *_arrow(0, top, head=inside.box),
        *inside.moved(0, top),
        *_arrow(top + inside.height, height),
    ]
    if len(run.names) > 1:
        marks += _badge(right - PAD, 19, len(run.names))
    return Piece(left, right, height, tuple(marks))


def _badge(right: float, y: float, count: int) -> list[Mark]:
    words = f"x{count}"
    wide = _wide(words) + 12
    return [
        _rect(right - wide, y - 11, right, y + 11, "badge", 11),
        _text(right - wide / 2, y + 5, words, "count", "middle"),
    ]


# ------------------------------------------------------------------------------- steps, branches, joins


def _chain(chain: Chain, *, shapes: bool = False) -> Piece:
    """Steps and forks below one another; with ``shapes`` these stand between where they change."""
    width = max([_wide(_words(step)) + 20 for step in chain if isinstance(step, Step)], default=0)
    pieces = [_step(item, width) if isinstance(item, Step) else _fork(item) for item in chain]
    marks: list[Mark] = []
    y = 0.0
    for number, piece in enumerate(pieces):
        if number:
            before = chain[number - 1].output
            changes = shapes and before != chain[number].output
            gap = 2 * GAP if changes else GAP
            marks += _arrow(y, y + gap, head=piece.box)
            marks += [_text(8, y + GAP + 3, times(before))] if changes else []
            y += gap
        marks += piece.moved(0, y)
        y += piece.height
    left, right = (max(side) for side in zip(*((piece.left, piece.right) for piece in pieces), strict=True))
    return Piece(left, right, y, tuple(marks), pieces[0].box)


def _words(step: Step) -> str:
    """All of a step's label."""
    return ", ".join(filter(None, (*step.before, step.main, *step.after)))


def _step(step: Step, width: float) -> Piece:
    style = "step" if step.learned else "plain"
    marks = (_rect(-width / 2, 0, width / 2, BOX, style, 5), _label(0, BOX / 2 + 5, step))
    return Piece(width / 2, width / 2, BOX, marks, box=True)


def _fork(fork: Fork) -> Piece:
    """Branches and their join: a gate, a branch with a skip path, or branches side by side."""
    steps = _gate_steps(fork)
    if steps:
        return _gate(fork, steps)
    if len(fork.branches) == 2:
        skip, main = sorted(fork.branches, key=_size)
        if main and len(skip) < 3 and not any(map(_splits, skip)):
            return _skip(fork, skip, main)
    return _lanes(fork)


def _gate_steps(item: Step | Fork) -> list[Step]:
    """What a gate computes by how much to scale with; nothing if this is no gate, or a gate with forks."""
    gate = item.gate or () if isinstance(item, Fork) else ()
    steps = [step for step in gate if isinstance(step, Step)]
    return steps if len(steps) == len(gate) else []


def _splits(item: Step | Fork) -> TypeGuard[Fork]:
    """Whether it has branches that are drawn as such."""
    return isinstance(item, Fork) and not _gate_steps(item)


def _size(chain: Chain) -> int:
    """How many steps there are in a chain; a gate is one."""
    return sum(sum(map(_size, item.branches)) if _splits(item) else 1 for item in chain)


def _gate(fork: Fork, steps: list[Step]) -> Piece:
    """A box beside the axis that computes by how much to scale."""
    width = max(_wide(_words(step)) for step in steps) + 20
    x, top = RADIUS + SIDE, 20
    bottom = top + LINE * len(steps) + 12
    middle, join = x + width / 2, bottom + RADIUS + 2
    marks = [
        *_arrow(0, join - RADIUS, head=True),
        _path(
            "skip", "M{} H{} Q{} {} V{}",
            (0, 6), (middle - 8, 6), (middle, 6), (middle, 14), (middle, top),
        ),
        _head((middle, top), (0, 1), "skiphead"),
        _rect(x, top, x + width, bottom, "gate", 5),
        *(_label(middle, top + LINE * number + 19, step) for number, step in enumerate(steps)),
        _path(
            "skip", "M{} V{} Q{} {} H{}",
            (middle, bottom), (middle, join - 8), (middle, join), (middle - 8, join), (RADIUS, join),
        ),
        _head((RADIUS, join), (-1, 0), "skiphead"),
    ]  # fmt: skip
    return _joined(fork, Piece(RADIUS, x + width, join - RADIUS, tuple(marks)))


def _skip(fork: Fork, skip: Chain, main: Chain) -> Piece:
    """The longer branch on the axis, the shorter a curved arrow around it that says what it does."""
    lines = [line for item in skip for line in _skip_lines(item)] or ["identity"]
    piece = _chain(main)
    width, high = max(map(_wide, lines)) + 16, LINE * len(lines) + 8
    start, top = 8.0, GAP + 10.0
    bottom = top + piece.height + GAP
    join, lane = bottom + RADIUS, -(piece.left + SIDE + width / 2)
    bend = min(44, (join - start) / 3)
    middle = (start + join) / 2
    marks = [
        *_arrow(0, top, head=piece.box),
        *piece.moved(0, top),
        *_arrow(bottom - GAP, bottom, head=True),
        _path(
            "skip", "M{} C{} {} {} V{} C{} {} {}",
            (0, start), (lane * 0.6, start), (lane, start), (lane, start + bend),
            (lane, join - bend), (lane, join), (lane * 0.6, join), (-_half(fork), join),
        ),
        _head((-_half(fork), join), (1, 0), "skiphead"),
        _rect(lane - width / 2, middle - high / 2, lane + width / 2, middle + high / 2, "label", 5),
    ]  # fmt: skip
    for number, line in enumerate(lines):
        y = middle - high / 2 + LINE * number + 17
        marks.append(_text(lane, y, line, "soft" if number else "strong", "middle"))
    return _joined(fork, Piece(width / 2 - lane, piece.right, bottom, tuple(marks)))


def _skip_lines(item: Step | Fork) -> list[str]:
    """What stands on a skip path for one of its steps."""
    if isinstance(item, Fork):
        return ["× gate", *(_words(step) for step in _gate_steps(item)), *item.after]
    return list(filter(None, (", ".join(item.before), item.main, ", ".join(item.after))))


def _lanes(fork: Fork) -> Piece:
    """Branches side by side, equal ones once with their number."""
    lanes = [(_lane(branch), len(list(group))) for branch, group in itertools.groupby(fork.branches)]
    width = sum(piece.left + piece.right for piece, _ in lanes) + SIDE * (len(lanes) - 1)
    start, top = 12.0, 12.0 + GAP
    bottom = top + max(piece.height for piece, _ in lanes) + GAP
    marks: list[Mark] = []
    x, axes = -width / 2, []
    for piece, count in lanes:
        x += piece.left
        axes.append(x)
        marks += [mark.moved(x, 0) for mark in _arrow(start, top, head=piece.box)]
        marks += piece.moved(x, top)
        marks += [mark.moved(x, 0) for mark in _arrow(top + piece.height, bottom)]
        marks += _badge(x + piece.right, top - 13, count) if count > 1 else []
        x += piece.right + SIDE
    marks += [*_arrow(0, start), *_arrow(bottom, bottom + GAP, head=True)]
    for y in (start, bottom):
        marks.append(_path("line", "M{} H{}", (min(0, *axes), y), (max(0, *axes), y)))
    return _joined(fork, Piece(width / 2, width / 2, bottom + GAP, tuple(marks)))


def _lane(branch: Chain) -> Piece:
    return _chain(branch) if branch else _step(Step("identity"), _wide("identity") + 20)


def _half(fork: Fork) -> float:
    """Half the width of the sign of a join."""
    return RADIUS if fork.join in SIGNS else _wide(fork.join) / 2 + 10


def _joined(fork: Fork, branches: Piece) -> Piece:
    """The sign of a join below its branches, and what is done after it."""
    y = branches.height + RADIUS
    half = _half(fork)
    sign = _rect(-half, y - RADIUS, half, y + RADIUS, f"join {SIGNS.get(fork.join, 'named')}", RADIUS)
    after = ", ".join(fork.after)
    marks = (
        *branches.marks, sign, _text(0, y + 5, fork.join, "sign", "middle"),
        *((_text(half + 8, y + 5, after, "soft"),) if after else ()),
    )  # fmt: skip
    right = max(branches.right, half + 8 + _wide(after))
    return Piece(max(branches.left, half), right, y + RADIUS, marks)


# ---------------------------------------------------------------------------------------------- the tape


def _tape(nodes: list[Node]) -> Piece:
    """Operations below one another in the order of the tape; what is used later goes around on the left."""
    leaves = {node: [parent for parent in node.parents if parent and parent.op == "leaf"] for node in nodes}
    steps = [
        Step(node.op, (), (node.path or "no module", times(node.shape) or "scalar"), bool(leaves[node]))
        for node in nodes
    ]
    width = max(_wide(_words(step)) for step in steps) + 20
    row = {node: number for number, node in enumerate(nodes)}
    tops = [84.0 + number * (BOX + GAP) for number in range(len(nodes))]
    title = f"{len(nodes)} operations on the tape"
    edges = [(row[parent], row[node]) for node in nodes for parent in node.parents if parent in row]
    lanes = _free_lanes([edge for edge in edges if edge[1] > edge[0] + 1])
    left = width / 2 + SIDE + LINE * len(set(lanes.values())) + PAD
    right = max(width / 2, _wide(title, 22) - left + PAD)
    marks = [_text(PAD - left, 40, title, "title")]
    for node, step, top in zip(nodes, steps, tops, strict=True):
        marks += _step(step, width).moved(0, top)
        if leaves[node]:
            words = "leaf " + ", ".join(times(leaf.shape) or "scalar" for leaf in leaves[node])
            start, y = width / 2 + SIDE, top + BOX / 2
            marks += [_text(start + 4, y + 5, words, "soft"), _head((width / 2, y), (-1, 0))]
            marks.append(_path("line", "M{} H{}", (start, y), (width / 2 + 4, y)))
            right = max(right, start + 4 + _wide(words))
    for a, b in edges:
        if b == a + 1:
            marks += _arrow(tops[a] + BOX, tops[b], head=True)
            continue
        x, side = -(width / 2 + SIDE + LINE * lanes[a, b]), -width / 2
        start, end = tops[a] + BOX * 0.7, tops[b] + BOX * 0.3
        marks.append(
            _path(
                "skip", "M{} H{} Q{} {} V{} Q{} {} H{}",
                (side, start), (x + 8, start), (x, start), (x, start + 8),
                (x, end - 8), (x, end), (x + 8, end), (side - 4, end),
            )
        )  # fmt: skip
        marks.append(_head((side, end), (1, 0), "skiphead"))
    return Piece(left, right + PAD, tops[-1] + BOX + PAD, tuple(marks))


def _free_lanes(edges: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """A lane for each edge, so that those in one lane have no rows in common; short ones are innermost."""
    lanes: dict[tuple[int, int], int] = {}
    for a, b in sorted(edges, key=lambda edge: (edge[1] - edge[0], edge)):
        taken = {lane for (c, d), lane in lanes.items() if a <= d and c <= b}
        lanes[a, b] = next(lane for lane in itertools.count() if lane not in taken)
    return lanes


# ------------------------------------------------------------------------------------------------- marks


def _wide(words: str, size: int = FONT) -> float:
    """About how wide some text is, rather more than less: fonts differ."""
    return size * sum(0.38 if letter in " ,.:/il" else 0.68 for letter in words)


def _clean(words: str) -> str:
    """Text as XML takes it."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in words))


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> Mark:
    style = f' class="{style}"' if style else ""
    return Mark(
        ((x, y),),
        lambda p: (
            f'<text x="{_n(p[0][0])}" y="{_n(p[0][1])}"{style} text-anchor="{anchor}">{_clean(words)}</text>'
        ),
    )


def _label(x: float, y: float, step: Step) -> Mark:
    """What a step does, the main thing in bold."""
    if not step.main:
        return _text(x, y, _words(step), "soft", "middle")
    before = "".join(f"{word}, " for word in step.before)
    after = "".join(f", {word}" for word in step.after)
    spans = "".join(
        f'<tspan class="{style}">{_clean(words)}</tspan>'
        for words, style in ((before, "soft"), (step.main, "strong"), (after, "soft"))
        if words
    )
    return Mark(
        ((x, y),),
        lambda p: (
            f'<text x="{_n(p[0][0])}" y="{_n(p[0][1])}" text-anchor="middle" xml:space="preserve">'
            f"{spans}</text>"
        ),
    )


def _rect(x0: float, y0: float, x1: float, y1: float, style: str, round_by: float) -> Mark:
    def write(p: Sequence[Point]) -> str:
        (x, y), (right, bottom) = p
        return (
            f'<rect class="{style}" x="{_n(x)}" y="{_n(y)}" width="{_n(right - x)}" '
            f'height="{_n(bottom - y)}" rx="{_n(round_by)}"/>'
        )

    return Mark(((x0, y0), (x1, y1)), write)


def _path(style: str, commands: str, *points: Point) -> Mark:
    """A line through points; where ``commands`` say H or V only one number of the point is used."""
    pieces = commands.split()

    def write(p: Sequence[Point]) -> str:
        d = " ".join(
            piece.replace("{}", _n(x) if "H" in piece else _n(y) if "V" in piece else f"{_n(x)} {_n(y)}")
            for piece, (x, y) in zip(pieces, p, strict=True)
        )
        return f'<path class="{style}" d="{d}"/>'

    return Mark(points, write)


def _head(tip: Point, direction: Point, style: str = "head") -> Mark:
    """The head of an arrow that points right, left or down."""
    (x, y), (dx, dy) = tip, direction
    base = (x - 8 * dx, y - 8 * dy)
    sides = (base[0] - 4 * dy, base[1] - 4 * dx), (base[0] + 4 * dy, base[1] + 4 * dx)
    return Mark(
        (tip, *sides),
        lambda p: f'<path class="{style}" d="M{" L".join(f"{_n(a)} {_n(b)}" for a, b in p)} Z"/>',
    )


def _arrow(top: float, bottom: float, *, head: bool = False) -> list[Mark]:
    """A line down the axis."""
    line = _path("line", "M{} V{}", (0, top), (0, bottom - 4 * head))
    return [line, _head((0, bottom), (0, 1))] if head else [line]


def _n(number: float) -> str:
    """A number without needless digits."""
    return f"{number:.1f}".removesuffix(".0")
