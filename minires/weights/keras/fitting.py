"""Which arrays of a file of Keras's are which of our model's: by its configuration, its names, or its
order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.errors import CheckpointError, MiniresError, ShapeError
from minires.nn.layers import BatchNorm2d
from minires.nn.module import Module
from minires.weights.keras import files, names
from minires.weights.keras.applications import EPSILONS
from minires.weights.keras.config import Channel, Network, network
from minires.weights.keras.files import Arrays
from minires.weights.keras.graph import Node, in_order, layers_of, matched
from minires.weights.keras.ours import graph_of

SIDES = (224, 64, 32, 96, 128, 160, 192, 48, 256, 299)  # of pictures, where neither file nor model says


@dataclass(frozen=True)
class File:
    """A file that was read: its arrays, and the configuration and notes in it."""

    path: str
    arrays: Arrays
    config: Any = None
    notes: Any = None
    models: int = 1  # in which convolutions and batch norms stand

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> File:
        arrays, info = files.read(path)
        return cls(os.fspath(path), arrays, info["config"], info["notes"], info["models"])

    @property
    def classes(self) -> int | None:
        """How many outputs the last dense layer has."""
        dense = [a for name, a in self.arrays.items() if name.endswith("/kernel") and a.ndim == 2]
        return dense[-1].shape[1] if dense else None

    def network(self, side: int) -> Network | None:
        try:
            return network(self.config, self.arrays, size=(side, side))
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error


def by_graph(arrays: Arrays, found: Network, model: Module, *, head: bool = True) -> Arrays:
    """The state of ``model`` from a file whose configuration is ``found``."""
    try:
        theirs, ours = found.scores, graph_of(model, found.size)
    except ShapeError as error:
        high, wide = found.size
        raise CheckpointError(
            f"the model takes no pictures of {high}x{wide}, as the file has them: {error}"
        ) from error
    if not head:
        ours = ours.inputs[0]
        if theirs.kind == "dense":
            theirs = theirs.inputs[0]
        elif len(theirs.shape) == 3 and len(ours.shape) == 1:  # a model without its top
            ours = ours.inputs[0]
    layers = matched(theirs, ours)
    named = {
        name: names.their_name(name, layers[layer])
        for name in names.shapes_of(model)
        if (layer := name.rpartition(".")[0]) in layers
    }
    return names.taken(arrays, model, named, head=head)


def by_names_or_order(
    file: File, model: Module, convention: str, *, side: int | None = None, head: bool = True
) -> tuple[Arrays, list[str]]:
    """The state of ``model`` from a file without a configuration, and what is to be said of it."""
    try:
        return names.to_state(file.arrays, model, convention=convention, head=head), []
    except CheckpointError as by_names:
        try:
            if file.models > 1:
                raise CheckpointError(
                    f"its layers have no names that are known here, and stand in {file.models} models, whose "
                    "order it does not say: save the whole model, as a .keras file"
                )
            return _by_order(file.arrays, model, convention, side=side, head=head)
        except CheckpointError as by_order:
            known = names.recognised(file.arrays) is not None
            raise (by_names if known else by_order) from by_order


def _by_order(
    arrays: Arrays, model: Module, convention: str, *, side: int | None = None, head: bool = True
) -> tuple[Arrays, list[str]]:
    """The state of ``model`` from layers without names, in the order of the file, and what is to be said of
    it.

    A file lists the layers of a kind in the order of Keras's models
    (:func:`minires.weights.keras.graph.in_order`). That order depends on which of an addition's two inputs is
    given first; where the shapes do not tell which, nothing is taken. A layer that has a name of the
    ``convention`` must be where that says.
    """
    ours = _graph_of_any(model, side)
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, array in arrays.items():
        layer, _, leaf = name.rpartition("/")
        groups.setdefault(layer, {})[leaf] = array.shape
    kinds: dict[str, list[str]] = {"convolution": [], "batch norm": [], "dense": []}
    for layer, leaves in groups.items():
        kind = "batch norm" if "gamma" in leaves else "dense" if len(leaves["kernel"]) == 2 else "convolution"
        kinds[kind].append(layer)
    shapes = names.shapes_of(model)
    found: list[dict[str, str]] = []
    for shortcut_first in (False, True):
        nodes = [node for node in in_order(ours, shortcut_first=shortcut_first) if node.has_weights]
        counters = {kind: iter(layers) for kind, layers in kinds.items()}
        layers = {node.layer: next(counters[node.kind], "") for node in nodes}
        expected = {layer: names.CONVENTIONS[convention](layer) for layer in layers}
        if any(name in groups and layers[layer] != name for layer, name in expected.items()):
            continue
        named = {name: names.their_name(name, layers[name.rpartition(".")[0]]) for name in shapes}
        fits = all(
            arrays[there].shape == shapes[name] if there in arrays else False
            for name, there in named.items()
            if head or not name.startswith(f"{names.head_of(model)}.")
        )
        if fits and named not in found:
            found.append(named)
    if len(found) == 2:
        raise CheckpointError(
            "its layers have no names that are known here, and their order may be that of a model that "
            "adds the branch to the shortcut, or the shortcut to the branch: the shapes fit both. Save the "
            "whole model, as a .keras file"
        )
    if not found:
        counts = ", ".join(f"{len(layers)} of {kind}" for kind, layers in kinds.items())
        here = Counter(node.kind for node in layers_of(ours) if node.has_weights)
        raise CheckpointError(
            "its layers have no names that are known here, and do not fit by their order: there are "
            f"{counts} layers, here {', '.join(f'{here[kind]} of {kind}' for kind in kinds)}, or the shapes "
            "differ"
        )
    state = names.taken(arrays, model, found[0], head=head)
    return state, [
        "its layers have no names that are known here: they were taken in their order, which fits the shapes "
        "in one way only"
    ]


def normalization(arrays: Arrays) -> tuple[Channel, ...] | None:
    """How a layer Normalization scales red, green and blue, if the file has one."""
    layers = [name.rpartition("/")[0] for name in arrays if name.endswith("/variance")]
    if not layers:
        return None
    mean, variance = (arrays.get(f"{layers[0]}/{which}", np.zeros(0)) for which in ("mean", "variance"))
    if len(layers) > 1 or mean.shape != (3,) or variance.shape != (3,):
        raise CheckpointError(f"its {len(layers)} layers Normalization are not one for three channels")
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # as Keras has it
    return tuple(
        (i, float(1 / d), float(-m / d)) for i, (m, d) in enumerate(zip(mean, deviation, strict=True))
    )


def _graph_of_any(model: Module, side: int | None) -> Node:
    """The graph of a model, for pictures of a size that it takes."""
    for one in SIDES if side is None else (side,):
        try:
            return graph_of(model, (one, one))
        except MiniresError as error:
            failed = error
    raise CheckpointError(f"the model takes pictures of none of the sizes {SIDES}: {failed}")


def unlike_named(model: Module, convention: str) -> list[str]:
    usual = EPSILONS.get(convention)
    other = {part.eps for part in norms(model)} - {usual}
    if usual is None or not other:
        return []
    return [
        f"the file states no options; models with these names have batch norms of epsilon {usual:g}, this "
        f"one of {', '.join(f'{eps:g}' for eps in sorted(other))}"
    ]


def norms(model: Module) -> Iterator[BatchNorm2d]:
    return (part for _, part in model.named_modules() if isinstance(part, BatchNorm2d))
