"""The network that a file of Keras's describes in its configuration, as a graph of plain layers.

A configuration lists layers with their options, and for each call of a layer what it read:

    Keras 3   "inbound_nodes": [{"args": [{"class_name": "__keras_tensor__", "config": {"keras_history":
              ["conv1", 0, 0]}}, ...], "kwargs": {...}}]
    Keras 2   "inbound_nodes": [[["conv1", 0, 0, {}], ...]]

and a Sequential has its layers one after the other. A model among the layers is a layer; it is taken apart.
What stands before the first layer with weights and scales pixels (Rescaling, Normalization, the operations of
preprocess_input) becomes one :class:`Scaling`.

Source: keras/src/models/functional.py, keras/src/ops/function.py of Keras 3.15; tf.keras 2.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minires.errors import CheckpointError, MiniresError
from minires.weights.keras import graph
from minires.weights.keras.files import DEEPEST, MODELS, MOST_OBJECTS
from minires.weights.keras.graph import Node

# What changes nothing in use: it works in training alone, or on names and types.
TRAINING_ONLY = (
    "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
    "ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
    "RandomContrast", "RandomBrightness", "RandomHue", "RandomSaturation", "RandomColorJitter",
    "RandomErasing", "RandomShear", "Identity",
)  # fmt: skip
WIDEST = 1 << 16  # channels, and pixels of a window
LARGEST = 1024  # pixels of a picture's side: such a one passes through our model, for its graph
MOST_CALLS = 5_000  # of layers, those of models inside models too
Channel = tuple[int, float, float]  # which channel of the picture, times what, plus what


@dataclass(frozen=True)
class Network:
    """A graph that ends in scores, and what the configuration says besides.

    ``scaling`` is that of each channel, None where the pictures come in as they are. ``size`` is the height
    and width of the pictures, ``stated`` whether the file says it. ``notes`` tell the user of what was left
    out.
    """

    scores: Node
    size: tuple[int, int]
    stated: bool
    scaling: tuple[Channel, ...] | None
    notes: tuple[str, ...] = ()


def network(config: Any, arrays: Mapping[str, np.ndarray], *, size: tuple[int, int]) -> Network | None:
    """The network of a configuration; ``size`` is that of the pictures where it does not say. None if it
    lists no layers, as that of a class of one's own, or is of Keras 1, whose options have other names.

    ``arrays`` are the file's: a layer Normalization keeps its mean and variance there.

    Raises: CheckpointError if a layer is described as Keras does not, or pictures are no (H, W, 3).
    """
    if not isinstance(config, dict) or config.get("class_name") not in MODELS or _is_keras_1(config):
        return None
    builder = _Builder(arrays, size)
    try:
        scores = builder.model(config, None)
    except MiniresError as error:
        raise CheckpointError(f"its configuration: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, graphlib.CycleError) as error:
        raise CheckpointError(
            f"its configuration describes {builder.where} as Keras does not: {error!r:.200}"
        ) from error
    if scores.kind == "softmax":
        scores = scores.inputs[0]
    return Network(scores, builder.size, builder.stated, builder.scaling, tuple(builder.notes))


@dataclass
class _Builder:
    arrays: Mapping[str, np.ndarray]
    size: tuple[int, int]
    stated: bool = False
    scaling: tuple[Channel, ...] | None = None
    notes: list[str] = field(default_factory=list)
    where: str = "the model"
    picture: Node | None = None  # as it comes in
    taken: Node | None = None  # as the network takes it, and with which channels
    channels: tuple[Channel, ...] = ()
    depth: int = 0
    calls: int = 0

    # -------------------------------------------------------------------------------------------- models

    def model(self, described: Mapping[str, Any], x: Node | None) -> Node:
        """What a model gives for ``x``, by default for a picture."""
        self.count()
        self.depth += 1
        if self.depth > DEEPEST:
            raise CheckpointError(f"models are nested more than {DEEPEST} deep")
        config = described["config"]
        sequential = described["class_name"] == "Sequential"
        layers = config["layers"] if isinstance(config, dict) else config
        y = self.chain(layers, x) if sequential else self.functional(config, x)
        self.depth -= 1
        return y

    def chain(self, layers: Sequence[Any], x: Node | None) -> Node:
        for layer in layers:
            if layer["class_name"] == "InputLayer":
                x = self.input(layer["config"]) if x is None else x
                continue
            if x is None:
                # an old Sequential has no InputLayer; a model that begins it has its own
                x = None if layer["class_name"] in MODELS else self.input(layer["config"])
            x = self.call(layer, [] if x is None else [x], ())
        if x is None:
            raise CheckpointError("a model without layers")
        return x

    def functional(self, config: Mapping[str, Any], x: Node | None) -> Node:
        layers = {layer.get("name") or layer["config"]["name"]: layer for layer in config["layers"]}
        nodes = {
            name: [_read(call) for call in layer.get("inbound_nodes", ())] for name, layer in layers.items()
        }
        inputs, outputs = (_ends(config[key]) for key in ("input_layers", "output_layers"))
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(
                f"{len(inputs)} inputs and {len(outputs)} outputs; our models have one each"
            )
        before = {
            (name, number): [(there, min(at, max(len(nodes[there]) - 1, 0))) for there, at in reads]
            for name, calls in nodes.items()
            for number, (reads, _) in enumerate(calls)
        }
        done: dict[tuple[str, int], Node] = {}
        for name, number in graphlib.TopologicalSorter(before).static_order():
            layer = layers[name]
            if layer["class_name"] == "InputLayer":
                done[name, number] = self.input(layer["config"]) if x is None else x
                continue
            _, arguments = nodes[name][number]
            done[name, number] = self.call(layer, [done[key] for key in before[name, number]], arguments)
        name, number = outputs[0]
        return done[name, min(number, max(len(nodes[name]) - 1, 0))]

    def input(self, config: Mapping[str, Any]) -> Node:
        if self.picture is not None:
            return self.picture
        shape = config.get("batch_shape") or config.get("batch_input_shape") or [None, None, None, 3]
        if len(shape) != 4 or shape[3] not in (3, None):
            raise CheckpointError(f"it takes {shape}; our models take pictures (N, H, W, 3)")
        if shape[1] and shape[2]:
            self.size, self.stated = (_side(shape[1]), _side(shape[2])), True
        self.picture = Node("input", shape=(*self.size, 3))
        return self.picture

    def count(self) -> None:
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise CheckpointError(f"more than {MOST_CALLS:,} calls of layers")

    # -------------------------------------------------------------------------------------------- layers

    def call(self, layer: Mapping[str, Any], inputs: list[Node], arguments: Sequence[Any]) -> Node:
        """What a layer gives for ``inputs``; ``arguments`` are all that it was called with."""
        kind, config = layer["class_name"], layer["config"]
        if kind in MODELS:
            return self.model(layer, inputs[0] if inputs else None)
        name = str(layer.get("name") or config["name"])
        self.where = f"layer {name!r} ({kind})"
        self.count()
        if config.get("data_format") == "channels_first":
            raise CheckpointError(f"{self.where} has its channels first; save the model with channels_last")
        if kind in TRAINING_ONLY:
            return inputs[0]
        scaled = self.scaled(kind, config, inputs, arguments, name)
        if scaled is not None:
            return scaled
        y = self.layer(kind, config, [self.settled(x) for x in inputs], name)
        if config.get("activation") not in (None, "linear"):
            y = _activation(config["activation"], y, name)
        return y

    def layer(self, kind: str, config: Mapping[str, Any], inputs: list[Node], name: str) -> Node:
        x = inputs[0]
        window: dict[str, Any] = {"kernel": config.get("kernel_size") or config.get("pool_size"),
                  "stride": config.get("strides") or config.get("pool_size") or (1, 1),
                  "padding": config.get("padding"), "layer": name}  # fmt: skip
        if kind in ("Conv2D", "MaxPooling2D", "AveragePooling2D"):
            window |= {side: _pair(window[side]) for side in ("kernel", "stride")}
        match kind:
            case "Conv2D":
                return graph.convolution(
                    x, channels=_whole(config["filters"]), groups=_whole(config.get("groups", 1)),
                    dilation=_pair(config.get("dilation_rate", 1)), bias=config.get("use_bias", True),
                    **window,
                )  # fmt: skip
            case "Dense":
                return graph.dense(
                    x, channels=_whole(config["units"]), bias=config.get("use_bias", True), layer=name
                )
            case "BatchNormalization":
                return self.batch_norm(x, config, name)
            case "MaxPooling2D":
                return graph.max_pool(x, **window)
            case "AveragePooling2D":
                return graph.average_pool(x, **window)
            case "GlobalAveragePooling2D":
                y = graph.global_average_pool(x, layer=name)
                return Node(y.kind, y.inputs, {}, (1, 1, *y.shape), name) if config.get("keepdims") else y
            case "Flatten":
                return graph.flatten(x, layer=name)
            case "Reshape" if (
                math.prod(config["target_shape"]) in (math.prod(x.shape), -1)
                and len(config["target_shape"]) == 1
            ):
                return graph.flatten(x, layer=name)
            case "ZeroPadding2D":
                return graph.pad(x, _sides(config["padding"]), layer=name)
            case "Activation":
                return x  # its activation is applied by whoever calls
            case "ReLU":
                return _relu(x, config, name)
            case "Softmax":
                return graph.simple("softmax", x, layer=name)
            case "Add" if len(inputs) == 2:
                return graph.simple("add", *inputs, layer=name)
            case "Concatenate" if config.get("axis", -1) in (-1, len(x.shape)):
                return graph.concatenation(*inputs, layer=name)
        return graph.simple(kind, *inputs, layer=name)

    def batch_norm(self, x: Node, config: Mapping[str, Any], name: str) -> Node:
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        more = {option: False for option in ("scale", "center") if not config.get(option, True)}
        if axis not in (-1, len(x.shape)):
            more["axis"] = axis
        epsilon, keeps = _number(config.get("epsilon", 1e-3)), _number(config.get("momentum", 0.99))
        if epsilon < 0 or not 0 <= keeps <= 1:
            raise CheckpointError(f"{self.where} has epsilon {epsilon} and momentum {keeps}")
        return graph.batch_norm(x, epsilon=epsilon, keeps=keeps, layer=name, **more)

    # ------------------------------------------------------------------------------------------- scaling

    def scaled(
        self, kind: str, config: Mapping[str, Any], inputs: list[Node], arguments: Sequence[Any], name: str
    ) -> Node | None:
        """A picture that a layer scales, or None if this layer does something else."""
        pictures = [x for x in inputs if x.kind in ("input", "scaled")]
        if not pictures or len(pictures) < len(inputs):
            return None
        now = [_channels(x) for x in pictures]
        x, channels = pictures[0], now[0]
        if kind == "Resizing":
            size = (_side(config["height"]), _side(config["width"]))
            self.size, self.stated = size, True
            self.notes.append(f"{name} resizes pictures to {size[0]}x{size[1]}; minires does that itself")
            return Node("scaled", (), {"channels": channels}, (*size, 3), name)
        if kind == "Rescaling":
            factors, offsets = _numbers(config["scale"]), _numbers(config.get("offset", 0.0))
        elif kind == "Normalization":
            factors, offsets = self.normalization(config, name)
        elif kind == "GetItem":
            picked = _picked(arguments, len(channels))
            if picked is None:
                return None
            shape = x.shape[:2] if len(picked) == 1 and picked[0] >= 0 and _is_number(arguments) else x.shape
            return Node("scaled", (), {"channels": tuple(channels[i] for i in picked)}, shape, name)
        elif kind in ("Stack", "Concatenate") and config.get("axis", -1) in (-1, 3):
            parts = tuple(part for channels in now for part in channels)
            return Node("scaled", (), {"channels": parts}, (*x.shape[:2], len(parts)), name)
        elif kind in ("Add", "Subtract", "Multiply", "TrueDivide", "Divide") and len(inputs) == 1:
            values = [_numbers(argument) for argument in arguments if not _is_tensor(argument)]
            if len(arguments) != 2 or len(values) != 1 or not _is_tensor(arguments[0]):
                return None
            (value,) = values
            if "Divide" in kind:
                value = [1 / one if one else math.inf for one in value]
            if kind in ("Add", "Subtract"):
                factors, offsets = [1.0], [one if kind == "Add" else -one for one in value]
            else:
                factors, offsets = value, [0.0]
        else:
            return None
        factors, offsets = (_spread(some, len(channels)) for some in (factors, offsets))
        changed = tuple(
            (source, scale * factor, offset * factor + shift)
            for (source, scale, offset), factor, shift in zip(channels, factors, offsets, strict=True)
        )
        if not all(map(math.isfinite, (number for channel in changed for number in channel))):
            raise CheckpointError(f"{self.where} scales pictures by what is no number")
        return Node("scaled", (), {"channels": changed}, x.shape, name)

    def normalization(self, config: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
        """y = (x - mean) / sqrt(variance), as in keras/src/layers/preprocessing/normalization.py."""
        if config.get("axis", -1) not in (-1, 3, [-1], [3]) or config.get("invert"):
            raise CheckpointError(f"{self.where} is not over channels, or inverted; that is not read")
        found = []
        for which in ("mean", "variance"):
            value = config.get(which)
            if value is None:
                value = self.arrays.get(f"{name}/{which}")
            if value is None:
                raise CheckpointError(f"{self.where} has no {which} in this file")
            found.append(_numbers(value))
        mean, variance = found
        size = max(len(mean), len(variance))
        mean, variance = _spread(mean, size), _spread(variance, size)
        if min(variance) < 0:
            raise CheckpointError(f"{self.where} has the variance {min(variance)}")
        deviations = [max(math.sqrt(one), 1e-7) for one in variance]  # 1e-7: Keras's own least
        return [1 / one for one in deviations], [-m / d for m, d in zip(mean, deviations, strict=True)]

    def settled(self, x: Node) -> Node:
        """The picture as the network takes it, after all scaling."""
        if x.kind not in ("input", "scaled"):
            return x
        channels = _channels(x)
        if sorted(source for source, _, _ in channels) != [0, 1, 2]:
            raise CheckpointError(
                f"{self.where} takes {len(channels)} channels of the picture; ours take three"
            )
        if self.taken is None:
            self.taken, self.channels = Node("input", shape=x.shape), channels
            self.size = (x.shape[0], x.shape[1])
            self.scaling = None if channels == _UNSCALED else channels
        elif (self.taken.shape, self.channels) != (x.shape, channels):
            raise CheckpointError(f"{self.where} takes the picture in another scale than the layer before")
        return self.taken


_UNSCALED: tuple[Channel, ...] = tuple((i, 1.0, 0.0) for i in range(3))


def _channels(x: Node) -> tuple[Channel, ...]:
    channels: tuple[Channel, ...] = x.options.get("channels", _UNSCALED)
    return channels


# ------------------------------------------------------------------------------------------ reading values


def _is_keras_1(config: Any) -> bool:
    layers = (
        config["config"].get("layers") if isinstance(config.get("config"), dict) else config.get("config")
    )
    return isinstance(layers, list) and any(
        isinstance(layer, dict) and layer.get("class_name") in ("Convolution2D", "Merge") for layer in layers
    )


def _read(call: Any) -> tuple[list[tuple[str, int]], list[Any]]:
    """What a call of a layer read, (layer, number of its call), and all its arguments in order."""
    if isinstance(call, dict):
        arguments = [*call.get("args", ()), *call.get("kwargs", {}).values()]
        reads = [tuple(node["config"]["keras_history"][:2]) for node in _tensors(arguments)]
        flat = [
            item for part in call.get("args", ()) for item in (part if _is_list_of_tensors(part) else [part])
        ]
        return [(str(name), _at(number)) for name, number in reads], flat
    return [(str(item[0]), _at(item[1])) for item in call], []


def _tensors(content: Any) -> Iterator[Any]:
    rest = [content]
    while rest:
        node = rest.pop()
        if _is_tensor(node):
            yield node
        elif isinstance(node, dict):
            rest.extend(reversed(node.values()))
        elif isinstance(node, list):
            rest.extend(reversed(node))


def _is_tensor(node: Any) -> bool:
    return isinstance(node, dict) and node.get("class_name") == "__keras_tensor__"


def _is_list_of_tensors(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(map(_is_tensor, part))


def _ends(listed: Any) -> list[tuple[str, int]]:
    """["a", 0, 0], [["a", 0, 0]] or {"a": [...]} -> [("a", 0)]."""
    if isinstance(listed, dict):
        listed = list(listed.values())
    if listed and isinstance(listed[0], str):
        listed = [listed]
    return [(str(item[0]), _at(item[1])) for item in listed]


def _at(number: Any) -> int:
    if not isinstance(number, int) or not 0 <= number < MOST_OBJECTS:
        raise ValueError(f"the call {number!r}")
    return number


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= WIDEST:
        raise ValueError(f"{value!r} is no whole number from 1 to {WIDEST:,}")
    return value


def _side(value: Any) -> int:
    if _whole(value) > LARGEST:
        raise CheckpointError(
            f"pictures with {value:,} pixels a side; files with more than {LARGEST:,} are not read"
        )
    return int(value)


def _pair(value: Any) -> tuple[int, int]:
    high, wide = value if isinstance(value, list | tuple) else (value, value)
    return _whole(high), _whole(wide)


def _sides(value: Any) -> graph.Sides:
    if isinstance(value, int):
        value = [value, value]
    (top, bottom), (left, right) = (side if isinstance(side, list) else [side, side] for side in value)
    for one in (top, bottom, left, right):
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= WIDEST:
            raise ValueError(f"padding {one!r}")
    return (top, bottom), (left, right)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _numbers(value: Any) -> list[float]:
    """A number, or a tensor of as many as there are channels, as lists in lists."""
    if isinstance(value, dict):
        value = value["config"]["value"]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return [_number(one) for one in (value if isinstance(value, list) else [value])]


def _spread(values: list[float], count: int) -> list[float]:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers for {count} channels")
    return values


def _is_number(arguments: Sequence[Any]) -> bool:
    return isinstance(arguments[1], list) and isinstance(arguments[1][-1], int)


def _picked(arguments: Sequence[Any], count: int) -> list[int] | None:
    """The channels that x[..., 2] or x[..., ::-1] takes."""
    if len(arguments) != 2 or not isinstance(arguments[1], list):
        return None
    *before, last = arguments[1]
    whole = {"class_name": "__slice__", "config": {"start": None, "stop": None, "step": None}}
    ellipsis = [
        part for part in before if isinstance(part, dict) and part.get("class_name") == "__ellipsis__"
    ]
    slices = [part for part in before if part == whole]
    if not (len(ellipsis) == len(before) == 1 or len(slices) == len(before) == 3):
        return None
    if isinstance(last, int) and not isinstance(last, bool):
        return [range(count)[last]]
    if isinstance(last, dict) and last.get("class_name") == "__slice__":
        parts = [last["config"][part] for part in ("start", "stop", "step")]
        return list(range(count))[slice(*parts)]
    return None


def _activation(value: Any, x: Node, name: str) -> Node:
    """``value``: a name, or how Keras writes a function or a layer."""
    options: Mapping[str, Any] = {}
    if isinstance(value, dict):
        config = value.get("config")
        options = config if isinstance(config, dict) else {}
        value = config if isinstance(config, str) else value["class_name"]
    match str(value):
        case "linear":
            return x
        case "relu":
            return graph.simple("relu", x, layer=name)
        case "ReLU":
            return _relu(x, options, name)
        case "softmax" | "Softmax":
            return graph.simple("softmax", x, layer=name)
    return graph.simple(str(value), x, layer=name)


def _relu(x: Node, config: Mapping[str, Any], name: str) -> Node:
    usual = {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}
    own = {
        option: config.get(option)
        for option, value in usual.items()
        if config.get(option) not in (value, None)
    }
    return graph.simple("relu", x, layer=name, **own)
