"""What a model is made of, as a picture shows it: stages of blocks, blocks of steps, forks and joins.

All of it is read off the tape of one forward pass. Between two nodes that all paths go through, the tape is
either one operation or a fork: branches that start at the first node and are joined in the second. A branch
is again such a chain. So a residual block is a fork that ends in an addition, a layer of a dense block or an
Inception module one that ends in a concatenation, and a squeeze-excitation gate one that ends in a product.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from minires.errors import MiniresError
from minires.inspect.summary import Shape, Summary, handed_on, summarize
from minires.nn.module import Module
from minires.nn.restored import left_as_it_is
from minires.ops.registry import describe
from minires.tape import Node, reachable
from minires.tensor import Tensor, with_settings

PRODUCT = "×"  # the sign of a join whose branches scale one another


@dataclass(frozen=True)
class Step:
    """One box: a convolution, pool or dense layer with the small operations ``before`` and ``after`` it.

    Two steps are equal if they look the same; their ``output`` (without the batch axis) does not count.
    """

    main: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    learned: bool = False
    output: Shape = field(default=(), compare=False)


@dataclass(frozen=True)
class Fork:
    """Branches that start in one place, what ``join`` makes of them, and the small operations after it."""

    branches: tuple[Chain, ...]
    join: str  # its sign, as the operation declares it, or its name
    after: tuple[str, ...] = ()
    output: Shape = field(default=(), compare=False)

    @property
    def gate(self) -> Chain | None:
        """The branch whose numbers scale the tensor itself; None if this is no gate."""
        if self.join == PRODUCT and len(self.branches) == 2 and () in self.branches:
            return self.branches[0] or self.branches[1]
        return None


Chain = tuple[Step | Fork, ...]


@dataclass(frozen=True)
class Run:
    """Blocks in a row that look the same, drawn once. Layers outside of blocks are a run without names."""

    names: tuple[str, ...]
    chain: Chain

    @property
    def joins(self) -> bool:
        """Whether branches are joined in it, other than by a gate."""
        return any(isinstance(item, Fork) and item.gate is None for item in self.chain)


@dataclass(frozen=True)
class Stage:
    """The runs that end in one picture size. Units: ``params`` counts numbers, running statistics too."""

    size: Shape
    runs: tuple[Run, ...]
    params: int

    @property
    def blocks(self) -> int:
        """How many blocks there are: those that join branches, or all where none does."""
        joined = [run for run in self.runs if run.joins]
        return sum(len(run.names) for run in joined or self.runs)


def stages(model: Module, input: Shape) -> tuple[Summary, list[Stage]]:
    """The layer table of ``model`` and its stages, seen in two forward passes of a picture of zeros.

    The model runs as in inference (so there is no dropout) and is left as it was. Operations that are fused
    are seen one by one.

    Shapes: input (H, W, C), without the batch axis.
    Raises: ShapeError if such a picture does not fit the model; MiniresError if nothing leads from it to the
    result.
    """
    summary = summarize(model, input)
    tables = list(summary.stages())
    stage_of = {layer.block: number for number, (_, table) in enumerate(tables) for layer in table}
    members: list[list[_Item]] = [[] for _ in tables]
    now = 0
    tape = _Tape(model, input)
    for item in tape.items():
        now = max(now, *(stage_of.get(top, 0) for top in item.tops))
        members[now].append(item)
    return summary, [
        Stage(size, tuple(_runs(tape, items)), sum(layer.params for layer in table))
        for (size, table), items in zip(tables, members, strict=True)
    ]


@dataclass(frozen=True)
class _Item:
    """An operation or a fork of the main path, the block it is in, and the parts of the model it touches."""

    what: Node | Step | Fork
    block: str
    tops: tuple[str, ...]


def _runs(tape: _Tape, items: Iterable[_Item]) -> Iterator[Run]:
    """The items block by block, blocks that look the same as one."""
    last: Run | None = None
    for name, group in itertools.groupby(items, key=lambda item: item.block):
        run = Run((name,) if name else (), tape.fold(item.what for item in group))
        if last is not None and last.names and name and last.chain == run.chain:
            # What the last of them hands on is what the run hands on.
            last = Run(last.names + run.names, run.chain)
            continue
        if last is not None and last.chain:
            yield last
        last = run
    if last is not None and last.chain:
        yield last


class _Tape:
    """The tape of one forward pass, from the picture to the result."""

    def __init__(self, model: Module, input: Shape) -> None:
        self.modules = dict(model.named_modules())
        self.chains: dict[str, tuple[str, ...]] = dict(chains(model))
        with left_as_it_is(model), with_settings(recording=True, fused=False):
            model.eval()
            weight = next(model.parameters())
            picture = Tensor(np.zeros((1, *input), weight.dtype), requires_grad=True, device=weight.device)
            result = handed_on(model(picture), model)
        assert picture.node is not None and result.node is not None
        self.start, self.end = picture.node, result.node
        # Only what comes from the picture counts: not the parameters, nor what is computed from them alone.
        self.parents: dict[Node, list[Node]] = {self.start: []}
        for node in sorted(reachable(self.end), key=lambda node: node.number):
            parents = [parent for parent in node.parents if parent is not None and parent in self.parents]
            if parents:
                self.parents[node] = parents
        if self.end not in self.parents:
            raise MiniresError(
                "nothing leads from the picture to what the model returns, so there is no plot"
            )

    def items(self) -> Iterator[_Item]:
        """What the main path is made of, in order."""
        for start, end, what in self._pieces(self.start, self.end):
            nodes = self._between(start, end)
            tops = tuple(chain[0] for node in nodes if (chain := self.chains.get(node.path, ())))
            # A fork may be joined in the block around it: a dense block appends what its layers give.
            around = _common(self._around(node) for node in nodes[:-1] or nodes)
            if isinstance(what, Fork) and what.gate is not None:
                around = around[:-1]  # a gate is part of the block it stands in
            yield _Item(what, around[-1] if around else "", tops or ("",))

    def fold(self, pieces: Iterable[Node | Step | Fork]) -> Chain:
        """Put operations together into steps."""
        done: list[Step | Fork] = []
        for piece in pieces:
            last = done[-1] if done else None
            waiting = last if isinstance(last, Step) and not last.main else None
            if not isinstance(piece, Node):
                done.append(piece)
                continue
            output, known = tuple(piece.shape[1:]), describe(piece.op)
            word = known.called(piece.options, piece.shape, piece.names, short=True)
            if known.role == "silent":
                continue
            if known.role == "box":
                learned = any(self._is_parameter(parent) for parent in piece.parents)
                if waiting:
                    done[-1] = replace(waiting, main=word, learned=learned, output=output)
                else:
                    done.append(Step(word, learned=learned, output=output))
            elif waiting:
                done[-1] = replace(waiting, before=(*waiting.before, word), output=output)
            elif last and not (isinstance(last, Step) and word in last.before):
                done[-1] = replace(last, after=(*last.after, word), output=output)
            else:  # the first, or the next round of BN, ReLU, convolution
                done.append(Step("", (word,), output=output))
        return tuple(done)

    def _pieces(self, start: Node, end: Node) -> Iterator[tuple[Node, Node, Node | Step | Fork]]:
        """Cut what lies between two nodes at every node that all paths go through."""
        nodes = [start, *self._between(start, end)]
        places = {node: place for place, node in enumerate(nodes)}
        used = [[places[p] for p in self.parents[node] if p in places] for node in nodes[1:]]
        first = 0
        for place in itertools.islice(crossings([[], *used]), 1, None):
            before, node, inside = nodes[first], nodes[place], place - first - 1
            joins = len(self.parents[node]) > 1
            yield before, node, self._fork(before, node, inside) if joins else node
            first = place

    def _fork(self, start: Node, end: Node, inside: int) -> Step | Fork:
        """The branches from ``start`` to ``end``, with ``inside`` nodes between them."""
        output = tuple(end.shape[1:])
        ends = self.parents[end]
        if sum(len(self._between(start, branch)) for branch in ends) != inside:
            return Step(f"{inside + 1} operations", output=output)  # branches that meet on their way
        join = describe(end.op).join or end.op
        branches: list[Chain] = []
        for branch in ends:
            chain = self.fold(what for _, _, what in self._pieces(start, branch))
            # (a + b) + c is one addition of three.
            inner = chain[0] if len(chain) == 1 else None
            same = isinstance(inner, Fork) and inner.join == join and not inner.after and not inner.gate
            branches += inner.branches if same and isinstance(inner, Fork) else [chain]
        return Fork(tuple(branches), join, output=output)

    def _between(self, start: Node, end: Node) -> list[Node]:
        """The nodes on the way, in order, without ``start`` but with ``end`` (unless they are one)."""
        seen, waiting = {start}, [end]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += self.parents[node]
        return sorted(seen - {start}, key=lambda node: node.number)

    def _around(self, node: Node) -> tuple[str, ...]:
        """The paths of the modules that an operation is in, outermost first, without its own layer."""
        chain = self.chains.get(node.path, ())
        leaf = bool(chain) and next(self.modules[chain[-1]].children(), None) is None
        return chain[:-1] if leaf else chain

    def _is_parameter(self, node: Node | None) -> bool:
        return node is not None and node.op == "leaf" and node is not self.start


def crossings(used: Sequence[Iterable[int]]) -> Iterator[int]:
    """The places in a row of operations that every path through it goes through, in order.

    ``used`` has for each operation the places of those whose results it uses.
    """
    last_use = {place: user for user, places in enumerate(used) for place in places}
    reach = 0
    for place in range(len(used)):
        if reach <= place:  # nothing before it is used after it
            yield place
        reach = max(reach, last_use.get(place, 0))


def chains(model: Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each module's path, with those of the modules around it and its own, outermost first.

    A module that is held twice is found once, as in ``named_modules``.
    """
    seen = {id(model)}

    def inside(module: Module, prefix: str, around: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name, child in module.children():
            if id(child) not in seen:
                seen.add(id(child))
                path = f"{prefix}{name}"
                yield path, (*around, path)
                yield from inside(child, f"{path}." if child.in_path else prefix, (*around, path))

    return inside(model, "", ())


def _common(chains: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """What all chains begin with."""
    return tuple(os.path.commonprefix(list(chains)))
