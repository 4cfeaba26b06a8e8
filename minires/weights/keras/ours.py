"""Our models as graphs of plain layers: seen while a picture of zeros passes through."""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import backend
from minires.errors import ConfigError
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.tensor import Call, Tensor, no_grad, watching, with_settings
from minires.weights.keras import graph
from minires.weights.keras.graph import Node


def graph_of(model: Module, size: tuple[int, int]) -> Node:
    """The scores of ``model`` for pictures of ``size``, and all that leads to them.

    Raises: ShapeError if such pictures do not fit the model.
    """
    first = next(model.parameters()).data
    x = Tensor(np.zeros((1, *size, 3), first.dtype)).to(backend.device_of(first))
    watch = _Watch(model)
    watch.nodes[x] = Node("input", shape=(*size, 3))
    with modes(model, training=False), no_grad(), with_settings(fused=True), watching(watch.note):
        scores: Tensor = model(x)
    return watch.node(scores)


class _Watch:
    def __init__(self, model: Module) -> None:
        self.nodes: dict[Tensor, Node] = {}
        self.layers = {id(p.data): name.rpartition(".")[0] for name, p in model.named_parameters()}

    def node(self, x: Tensor) -> Node:
        if x not in self.nodes:
            raise ConfigError(
                f"numbers of shape {x.shape} are used that no layer computes; Keras's files have none such"
            )
        return self.nodes[x]

    def note(self, call: Call) -> None:
        options = call.options
        inputs = {name: x for name, x in call.inputs.items() if x is not None}
        layer = next((self.layers[id(x.data)] for x in inputs.values() if id(x.data) in self.layers), "")
        window: dict[str, Any] = {
            name: options.get(name) for name in ("kernel", "stride", "padding", "dilation")
        }
        y: Node
        match call.op:
            case "conv2d":
                w = inputs["w"].shape
                y = graph.convolution(self.node(inputs["x"]), channels=w[3], groups=options["groups"],
                                      bias="b" in inputs, layer=layer, **window)  # fmt: skip
            case "batch_norm":
                momentum = options["momentum"]
                keeps = momentum if options["convention"] == "keras" else 1 - momentum
                y = graph.batch_norm(self.node(inputs["x"]), epsilon=options["eps"], keeps=keeps, layer=layer)
            case "linear":
                y = graph.dense(
                    self.node(inputs["x"]), channels=inputs["w"].shape[1], bias="b" in inputs, layer=layer
                )
            case "max_pool2d":
                y = graph.max_pool(self.node(inputs["x"]), **window)
            case "avg_pool2d":
                y = graph.average_pool(self.node(inputs["x"]), counted=options["count_padding"], **window)
            case "global_avg_pool2d":
                y = graph.global_average_pool(self.node(inputs["x"]))
            case "flatten":
                y = graph.flatten(self.node(inputs["x"]))
            case "pad" if options["mode"] == "constant" and not options["value"]:
                y = graph.pad(self.node(inputs["x"]), options["padding"])
            case "add":
                y = graph.simple("add", self.node(inputs["a"]), self.node(inputs["b"]))
            case "concat" | "dense_buffer":
                parts = [self.node(x) for x in inputs.values()]
                y = graph.concatenation(*parts) if len(parts) > 1 else parts[0]
            case "pad_channels" if not options["before"] and not options["after"]:
                stride = _pair(options["stride"])
                y = graph.max_pool(self.node(inputs["x"]), kernel=(1, 1), stride=stride, padding=graph.NONE)
            case "relu":
                y = self.node(inputs["x"])
            case _:
                y = graph.simple(call.op, *(self.node(x) for x in inputs.values() if x in self.nodes))
        if "add" in inputs:
            y = graph.simple("add", y, self.node(inputs["add"]))
        if options.get("relu") or call.op == "relu":
            y = graph.simple("relu", y)
        self.nodes[call.y] = y


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
