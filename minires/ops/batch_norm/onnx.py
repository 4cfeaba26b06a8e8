"""A batch norm as ONNX nodes."""

from __future__ import annotations

from minires.errors import ConfigError
from minires.ops.onnx_graph import Graph
from minires.tensor import Call


def write(graph: Graph, call: Call) -> str:
    """With its running statistics, and the addition and the ReLU that may follow in the same pass."""
    x, gamma, beta, *add = call.inputs.values()
    if call.options["training"]:
        raise ConfigError(
            "a batch norm uses the statistics of its batch in inference too; ONNX has none such"
        )
    state = (gamma.data, beta.data, call.options["running_mean"], call.options["running_var"])
    y = graph.add(
        "BatchNormalization", graph.value(x), *map(graph.weight, state), epsilon=float(call.options["eps"])
    )
    for one in add:
        y = graph.add("Add", y, graph.value(one))
    return graph.add("Relu", y) if call.options.get("relu") else y
