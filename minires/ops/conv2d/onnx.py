"""A convolution as ONNX nodes."""

from __future__ import annotations

from minires.ops.onnx_graph import Graph, window
from minires.tensor import Call


def write(graph: Graph, call: Call) -> str:
    """Kernels are (O, C/groups, KH, KW) there, for our (KH, KW, C/groups, O)."""
    x, w, *b = call.inputs.values()
    bias = [graph.value(one) for one in b]
    kernel = graph.kernel(w, (3, 2, 0, 1))
    y = graph.add("Conv", graph.value(x), kernel, *bias, group=call.options["groups"], **window(call))
    return graph.add("Relu", y) if call.options.get("relu") else y
