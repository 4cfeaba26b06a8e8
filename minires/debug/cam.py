"""Where in a picture a network sees what speaks for a class: class-activation maps, one for each stage.

With A the output of a stage, f the score of a class before softmax, and g = df/dA:

    map(i, j) = sum_k a_k A(i, j, k),    a_k = mean over i, j of g(i, j, k)       Grad-CAM, before its ReLU

Where a network ends in a global average pool and one dense layer, a_k of its last stage is the dense layer's
weight over the number of places. There the map, times that number, is the class-activation map of Zhou et
al., and the map's sum plus the bias is the score. Grad-CAM needs no such end: it serves the whole family, and
every stage.

How the score comes about is told by the same gradients. In inference such a network is piecewise linear, and
for this very picture

    f = sum(A g) + (what the biases of all later layers add)

so from one stage to the next, sum(A g) grows by what the biases in between add (those of batch norm are
beta - gamma mean / sqrt(var + eps)). These shares, and that of the picture itself, add up to the score. Where
a layer is not piecewise linear (the sigmoid of a gate, local response norm) they still do, but a share is no
longer the biases' alone.

Source: maps: Selvaraju et al. 2017, Grad-CAM, arXiv:1610.02391, equations 1 and 2, and Zhou et al. 2016,
arXiv:1512.04150, equation 2; shares: Srinivas & Fleuret 2019, Full-gradient representation,
arXiv:1905.00780, proposition 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minires import backend
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.inspect.graph import chains, crossings
from minires.inspect.summary import handed_on, left_as_it_is
from minires.nn.module import Module
from minires.tape import Node, reachable
from minires.tensor import Tensor, set_apart, watching, with_settings

# The heat of a map from weak to strong, as it is laid over a picture.
COLOURS = np.array([[66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], float)
COVER = 0.75  # of the picture is covered where a map is strongest


@dataclass(frozen=True, eq=False)
class StageMap:
    """What one stage sees of a class.

    ``name`` has the parts of the model it spans. ``values`` (H, W) is positive where the picture speaks for
    the class, negative where against; ``share`` is what the stage adds to the score.
    """

    name: str
    values: NDArray[np.float64]
    share: float


@dataclass(frozen=True, eq=False)
class ActivationMaps:
    """The maps of the class ``label``, first stage first, with the scores (classes,) of all classes.

    ``picture_share``, the shares of the stages and ``rest_share``, that of the layers behind the last stage,
    add up to the score of the class.
    """

    label: int
    scores: NDArray[np.float64]
    stages: tuple[StageMap, ...]
    picture_share: float
    rest_share: float


def activation_maps(model: Module, x: Any, label: int | None = None) -> ActivationMaps:
    """Find where ``model`` sees the class ``label`` in one picture, or the likeliest class if it is left out.

    A stage ends with the last result of its size, larger than 1x1, that all paths through the network cross.
    The model runs as in inference and is left as it was, gradients included.

    Math, Source: see the head of this file.
    Shapes: x (H, W, C) or (1, H, W, C), normalised as the model learnt it; maps as the stages' outputs.
    Raises: ShapeError if x is not one picture that fits the model, or the result no scores; ConfigError if
    there is no such class; MiniresError if no result of the network is a picture.
    """
    values = x.data if isinstance(x, Tensor) else x
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or len(values) != 1:
        raise ShapeError(f"activation_maps: x must be one picture, (H, W, C) or (1, H, W, C), not {x.shape}")
    parameters = list(model.parameters())
    kept: list[Tensor] = []  # the tape alone keeps no result alive
    with left_as_it_is(model), set_apart(parameters), with_settings(recording=True, fused=True):
        for parameter in parameters:
            parameter.requires_grad = False  # only the results' gradients are asked for
        model.eval()
        picture = Tensor(values, requires_grad=True, device=parameters[0].device if parameters else None)
        with watching(lambda call: kept.append(call.y)):
            result = handed_on(model(picture), model)
        if result.ndim != 2:
            raise ShapeError(f"activation_maps: the model must give scores (1, classes), not {result.shape}")
        scores = np.asarray(result.numpy()[0], np.float64)
        label = int(scores.argmax()) if label is None else label
        if not 0 <= label < len(scores):
            raise ConfigError(
                f"activation_maps: label is {label}; the model has classes 0 to {len(scores) - 1}"
            )
        if result.node is None or not (ends := list(_stage_ends(picture, result, kept))):
            raise MiniresError("activation_maps: no result of this network is a picture, so there is no map")
        gradients = _gradients(result, label, [picture, *ends])
    sums = [_sum(end, gradients[end]) for end in (picture, *ends)]
    shares = np.diff([*sums, scores[label]])
    stages = tuple(
        StageMap(name, _map(end, gradients[end]), float(share))
        for name, end, share in zip(_names(model, picture, ends, kept), ends, shares, strict=False)
    )
    return ActivationMaps(label, scores, stages, sums[0], float(shares[-1]))


def overlay(picture: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lay the positive part of a map over its picture as heat: the stronger, the brighter and the less clear.

    Shapes: picture (H, W, 3); values of any size, enlarged with a bilinear filter -> (H, W, 3).
    Source: Selvaraju et al. 2017, equation 2 (the ReLU).
    """
    size = (picture.shape[1], picture.shape[0])
    from PIL import Image  # not needed to step through a network

    positive = Image.fromarray(np.maximum(values, 0).astype(np.float32))
    heat = np.asarray(positive.resize(size, Image.Resampling.BILINEAR), np.float64)
    if heat.max() > 0:
        heat = heat / heat.max()
    places = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(heat, places, channel) for channel in COLOURS.T], axis=-1)
    cover = COVER * heat[..., None]
    laid: NDArray[np.uint8] = np.round((1 - cover) * picture + cover * colour).astype(np.uint8)
    return laid


def _stage_ends(picture: Tensor, result: Tensor, kept: list[Tensor]) -> Iterator[Tensor]:
    """The last result of each size that is a picture and that all paths cross."""
    assert picture.node is not None and result.node is not None
    tensors = {tensor.node: tensor for tensor in kept}
    crossed = [node for node in _crossings(picture.node, result.node) if _is_picture(node)]
    for _, group in itertools.groupby(crossed, key=lambda node: node.shape[1:3]):
        last = list(group)[-1]
        if last is not picture.node:
            yield tensors[last]


def _is_picture(node: Node) -> bool:
    return len(node.shape) == 4 and math.prod(node.shape[1:3]) > 1


def _crossings(start: Node, end: Node) -> Iterator[Node]:
    """The nodes that every path from ``start`` to ``end`` goes through, in order."""
    parents: dict[Node, list[Node]] = {start: []}
    for node in sorted(reachable(end), key=lambda node: node.number):
        if found := [parent for parent in node.parents if parent in parents]:
            parents[node] = [parent for parent in found if parent is not None]
    nodes = list(parents)
    places = {node: place for place, node in enumerate(nodes)}
    used = [[places[parent] for parent in parents[node]] for node in nodes]
    yield from (nodes[place] for place in crossings(used))


def _gradients(result: Tensor, label: int, wanted: list[Tensor]) -> dict[Tensor, backend.Array]:
    """The gradients of the score of ``label`` with respect to ``wanted``, the first of which is a leaf."""
    upstream = np.zeros(result.shape, result.dtype)
    upstream[0, label] = 1
    steps = result.backward_steps(backend.to_device(upstream, result.device))
    nodes = {tensor.node: tensor for tensor in wanted}
    found = {nodes[step.node]: step.incoming for step in steps if step.node in nodes}
    return {**found, wanted[0]: wanted[0].grad}


def _sum(value: Tensor, gradient: backend.Array) -> float:
    return float((value.data.astype(np.float64) * gradient).sum())


def _map(value: Tensor, gradient: backend.Array) -> NDArray[np.float64]:
    weights = gradient[0].astype(np.float64).mean(axis=(0, 1))  # (C,)
    summed = value.data[0] @ weights  # (H, W, C) @ (C,) -> (H, W)
    found: NDArray[np.float64] = backend.to_device(summed, "cpu")
    return found


def _names(model: Module, picture: Tensor, ends: list[Tensor], kept: list[Tensor]) -> Iterator[str]:
    """For each stage, the parts of the model that its first and its last operation are in."""
    parts = {path: around[0] for path, around in chains(model)}
    assert picture.node is not None
    before = picture.node.number
    for end in ends:
        assert end.node is not None
        nodes = [tensor.node for tensor in kept if tensor.node is not None]
        inside = [parts.get(node.path, "") for node in nodes if before < node.number <= end.node.number]
        named = [part for part in inside if part] or ["network"]
        yield named[0] if named[0] == named[-1] else f"{named[0]} – {named[-1]}"
        before = end.node.number
