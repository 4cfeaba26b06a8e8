"""A model as an ONNX file, for every runtime that reads ONNX: onnxruntime, a phone, a browser, Netron.

The graph is written down while two pictures of zeros pass through the model and we watch every operation,
see ``minires.tensor.watching``: the inputs and the options (stride, padding, eps, ...) come
with the call, as each operation declares them. So it does not matter how a model is put together.

ONNX has the channels before the height and the width. In the graph every tensor of four axes is (N, C, H, W)
where ours is (N, H, W, C); kernels are transposed when they are written, (O, C/groups, KH, KW) for our
(KH, KW, C/groups, O). A ``Transpose`` is needed only where a picture is flattened, because the dense layer
behind it expects our order.

Source: ONNX operators, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minires import backend, tensor
from minires.errors import ConfigError
from minires.files import atomic_write
from minires.nn.module import Module
from minires.tensor import Call, Tensor, no_grad, watching, with_settings
from minires.train.model_file import Trained, load_model

INPUT, OUTPUT = "input", "logits"
BATCH = 2  # pictures in the pass that is observed: an axis of 1 would not tell a batch from a broadcast
OLDEST_OPSET = 13  # before it, Softmax and the axes of some operators meant something else
LIMIT = 2**31  # bytes; protocol buffers allow no more in one file
CHANNELS_FIRST, CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # axes of the other order, in their new order

# ----------------------------------------------------------------------------------------------- public


def export_onnx(
    model: Module | Trained,
    path: str | os.PathLike[str],
    input: tuple[int, int, int],
    *,
    classes: Sequence[str] | None = None,
    opset: int = 17,
    description: str | None = None,
) -> None:
    """Write a model in inference mode as an ONNX file, whole or not at all.

    The file has one input, "input", and one output, "logits", both float32, for any number of pictures. Its
    initializers carry the names of our parameters, its nodes the paths of our modules. The names of the
    ``classes`` are written into its metadata; of a ``Trained``, its own, and what is to be done to a picture:

        classes     names, in the order of the logits
        size        height and width of the pictures it learnt from
        channels    "RGB"
        range       of the pixels, before mean and std: [0, 1]
        mean, std   pixels enter the model as (pixel - mean) / std

    each as JSON. The model is left as it was.

    Shapes: input (H, W, C), a picture without the batch axis; in the file it is (N, C, H, W).
    Raises: ConfigError if onnx is not installed or does not know the opset, an operation cannot be written
    (it names the layer), the classes are not as many as the logits, or the file would exceed 2 GiB;
    ShapeError if such a picture does not fit the model; MiniresError if the file cannot be written.
    """
    onnx = _onnx(opset)
    notes = {}
    if isinstance(model, Trained):
        notes = _notes(model)
        classes, model = model.classes if classes is None else classes, model.model
    graph = _Graph(onnx, model)
    scores = _observe(graph, model, input)
    if classes is not None:
        if len(classes) != scores.shape[-1]:
            raise ConfigError(
                f"{len(classes)} classes are named, but the model gives {scores.shape[-1]} scores"
            )
        notes["classes"] = list(classes)
    file = onnx.helper.make_model(
        graph.finished(input, scores),
        producer_name="minires",
        producer_version=_version(),
        doc_string=description or "",
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    # The oldest format that has this opset: more runtimes read it.
    file.ir_version = onnx.helper.find_min_ir_version_for(file.opset_import)
    onnx.helper.set_model_props(file, {name: json.dumps(value) for name, value in notes.items()})
    with atomic_write(path) as out:
        out.write(file.SerializeToString())


def export_onnx_run(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    opset: int = 17,
    description: str | None = None,
) -> Trained:
    """Write the trained model of a run folder or model file as ONNX; see :func:`export_onnx`.

    Returns the model that was written.

    Raises: CheckpointError if ``run`` is no trained model; and as :func:`export_onnx`.
    """
    trained = load_model(run)
    export_onnx(trained, path, (*trained.size, 3), opset=opset, description=description)
    return trained


def _onnx(opset: int) -> Any:
    """The package onnx, if it is there and knows this opset."""
    try:
        onnx = importlib.import_module("onnx")
    except ImportError as error:
        raise ConfigError(
            "ONNX files are written with the package onnx, which is not installed. "
            "Install it with pip install 'minires[onnx]'"
        ) from error
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ConfigError(f"opset must be from {OLDEST_OPSET} to {newest}, what onnx knows here, not {opset}")
    return onnx


def _version() -> str:
    try:
        return importlib.metadata.version("minires")
    except importlib.metadata.PackageNotFoundError:  # run from its source folder
        return ""


def _notes(trained: Trained) -> dict[str, Any]:
    """What a user of the file needs besides the graph, as plain data for JSON."""
    return {
        "model": trained.name,
        "dataset": trained.dataset,
        "size": list(trained.size),
        "channels": "RGB",
        "range": [0, 1],
        "mean": list(trained.normalize.mean),
        "std": list(trained.normalize.std),
    }


# -------------------------------------------------------------------------------------------- observing


def _observe(graph: _Graph, model: Module, input: tuple[int, int, int]) -> Tensor:
    """Pass pictures through the model, in inference mode, and note every operation in the graph."""
    first = next(model.parameters()).data
    modes = [(module, module.training) for module in (model, *(part for _, part in model.named_modules()))]
    x = Tensor(np.zeros((BATCH, *input), first.dtype)).to(backend.device_of(first))
    graph.values[x] = INPUT
    model.eval()
    try:
        with no_grad(), with_settings(fused=True), watching(graph.note):
            return model(x)
    finally:
        for module, training in modes:
            module.training = training


# -------------------------------------------------------------------------------------------- the graph


class _Graph:
    """What becomes the ONNX graph: its nodes and initializers, and what our tensors are called in it."""

    def __init__(self, onnx: Any, model: Module) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray[Any, Any]] = {}
        self.values: dict[Tensor, str] = {}  # which also keeps the tensors, so that none is taken for another
        self._taken = {INPUT, OUTPUT}
        self._layers = {path for path, part in model.named_modules() if next(part.children(), None) is None}
        state = [(name, parameter.data) for name, parameter in model.named_parameters()]
        self._names = {id(array): name for name, array in (*state, *model.named_buffers())}

    def note(self, call: Call) -> None:
        """Add what a call of an operation stands for."""
        if call.op not in OPERATIONS:
            raise ConfigError(
                f"the operation {call.op!r}, here with a result {call.y.shape}, cannot be written as ONNX. "
                f"Those that can: {', '.join(OPERATIONS)}"
            )
        self.values[call.y] = OPERATIONS[call.op](self, call)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; it and its result are named after the layer that runs now. Returns the name."""
        path = tensor.settings()["path"]
        longer = f"{path}.{kind.lower()}" if path else kind.lower()
        # A layer's own name is that of its first node; blocks have many.
        names = itertools.chain([path] if path in self._layers else [], _numbered(longer))
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def value(self, x: Tensor) -> str:
        """The name of a tensor that is computed from the picture."""
        if x not in self.values:
            raise _not_computed(x.data)
        return self.values[x]

    def weight(self, array: Any, axes: tuple[int, ...] | None = None) -> str:
        """The name of a parameter or buffer of the model, or of a number, as an initializer.

        With ``axes`` it gets as many axes, new ones of 1 in front, and then this order of them.
        """
        if array.ndim and id(array) not in self._names:
            raise _not_computed(array)
        values = np.asarray(backend.to_device(array, "cpu"), np.float32)
        if axes is not None:
            values = values.reshape((1,) * (len(axes) - values.ndim) + values.shape).transpose(axes)
        return self._initializer(self._names.get(id(array), "constant.number"), values)

    def integers(self, name: str, values: Sequence[int]) -> str:
        """The name of an initializer that holds shapes or places."""
        return self._initializer(f"constant.{name}", np.array(values, np.int64))

    def operand(self, x: Tensor, y: Tensor) -> str:
        """The name of ``x`` where it is broadcast to ``y``."""
        if x not in self.values:
            return self.weight(x.data, CHANNELS_FIRST if x.ndim and y.ndim == 4 else None)
        if x.ndim != y.ndim:
            raise ConfigError(
                f"{x.shape} is broadcast to {y.shape}, which means something else where channels come first; "
                f"to write this as ONNX, reshape it to {y.ndim} axes before"
            )
        return self.values[x]

    def finished(self, input: tuple[int, int, int], scores: Tensor) -> Any:
        """The graph as ONNX has it, with ``scores`` as its output."""
        last = self.value(scores)
        size = sum(array.nbytes for array in self.initializers.values())
        if size >= LIMIT:
            raise ConfigError(f"the weights take {size:,} bytes, but an ONNX file has fewer than {LIMIT:,}")
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [OUTPUT if name == last else name for name in names]
        make = self.onnx.helper
        shapes = {INPUT: _channels_first((BATCH, *input)), OUTPUT: _channels_first(scores.shape)}
        inputs, outputs = (
            [make.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, ["N", *shape[1:]])]
            for name, shape in shapes.items()
        )
        arrays = [self.onnx.numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
        return make.make_graph(self.nodes, "minires", inputs, outputs, arrays)

    def _initializer(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """The name of an initializer, a new one or an equal one that is there already."""
        for free in _numbered(name):
            there = self.initializers.setdefault(free, values)
            if there is values or np.array_equal(there, values):  # NaN equals nothing
                return free
        raise AssertionError  # there are numbers enough


def _numbered(name: str) -> Iterator[str]:
    """name, name_2, name_3, ..."""
    yield name
    for number in itertools.count(2):
        yield f"{name}_{number}"


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in CHANNELS_FIRST) if len(shape) == 4 else shape


def _not_computed(array: Any) -> ConfigError:
    return ConfigError(
        f"numbers of shape {array.shape} are used that are neither computed from the picture by operations "
        "of minires nor a parameter or buffer of the model; they cannot be written as ONNX"
    )


# ------------------------------------------------------------------------------------------- operations
# Each writes one of our operations as nodes and gives the name of its result.


def _conv2d(graph: _Graph, call: Call) -> str:
    x, w, *b = call.inputs.values()
    bias = [graph.weight(one.data) for one in b]
    kernel = graph.weight(w.data, (3, 2, 0, 1))
    y = graph.add(
        "Conv", graph.value(x), kernel, *bias, group=call.options["groups"], **_window(call)
    )
    return graph.add("Relu", y) if call.options.get("relu") else y


def _batch_norm(graph: _Graph, call: Call) -> str:
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


def _relu(graph: _Graph, call: Call) -> str:
    x, *add = map(graph.value, call.inputs.values())
    return graph.add("Relu", graph.add("Add", x, *add) if add else x)


def _first(call: Call) -> Tensor:
    return next(iter(call.inputs.values()))


def _max_pool2d(graph: _Graph, call: Call) -> str:
    return graph.add("MaxPool", graph.value(_first(call)), **_window(call))


def _avg_pool2d(graph: _Graph, call: Call) -> str:
    counted = int(call.options["count_padding"])
    x = graph.value(_first(call))
    return graph.add("AveragePool", x, count_include_pad=counted, **_window(call))


def _window(call: Call) -> dict[str, Any]:
    """What ONNX calls the window of a convolution or a pool."""
    (top, bottom), (left, right) = call.options["padding"]
    pads = [top, left, bottom, right]
    return {"kernel_shape": call.options["kernel"], "strides": call.options["stride"], "pads": pads}


def _global_avg_pool2d(graph: _Graph, call: Call) -> str:
    return graph.add("Flatten", graph.add("GlobalAveragePool", graph.value(_first(call))), axis=1)


def _max(graph: _Graph, call: Call) -> str:
    """The maximum over the whole picture, as in a squeeze; no other axes."""
    (x,) = call.inputs.values()
    if x.ndim != 4 or set(call.options["axis"]) != {1, 2}:
        raise ConfigError(
            f"of max over axes only that over (1, 2) can be written, not {call.options['axis']}"
        )
    y = graph.add("GlobalMaxPool", graph.value(x))
    return y if call.options["keepdims"] else graph.add("Flatten", y, axis=1)


def _linear(graph: _Graph, call: Call) -> str:
    x, *weights = call.inputs.values()
    return graph.add("Gemm", graph.value(x), *(graph.weight(one.data) for one in weights))


def _reshape(graph: _Graph, call: Call) -> str:
    """The numbers in our order, channels last, are brought into another shape."""
    (x,), y = call.inputs.values(), call.y
    if x.shape[0] != BATCH or y.shape[:1] != (BATCH,):
        raise ConfigError(
            f"reshape from {x.shape} to {y.shape} changes the first axis, that of the pictures; keep it"
        )
    value = graph.value(x)
    if x.ndim == 4 and x.shape[1:3] != (1, 1):
        value = graph.add("Transpose", value, perm=CHANNELS_LAST)
    if y.ndim == 2:
        return graph.add("Flatten", value, axis=1)
    if y.ndim != 4 or y.shape[1:3] != (1, 1):
        value = graph.add("Reshape", value, graph.integers("shape", (0, *y.shape[1:])))  # 0: as it was
        return graph.add("Transpose", value, perm=CHANNELS_FIRST) if y.ndim == 4 else value
    return graph.add("Reshape", value, graph.integers("shape", (0, *_channels_first(y.shape)[1:])))


def _concat(graph: _Graph, call: Call) -> str:
    axis = call.options["axis"]
    axis = CHANNELS_FIRST.index(axis) if call.y.ndim == 4 else axis
    return graph.add("Concat", *map(graph.value, call.inputs.values()), axis=axis)


def _dense_buffer(graph: _Graph, call: Call) -> str:
    """A history that begins is its first part; one that goes on is a concatenation."""
    parts = [graph.value(x) for x in call.inputs.values()]
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


def _pad(graph: _Graph, call: Call) -> str:
    (top, bottom), (left, right) = call.options["padding"]
    border = graph.integers("border", (0, 0, top, left, 0, 0, bottom, right))
    return graph.add("Pad", graph.value(_first(call)), border)


def _pad_channels(graph: _Graph, call: Call) -> str:
    (x,) = call.inputs.values()
    stride, before, after = (call.options[name] for name in ("stride", "before", "after"))
    value = graph.value(x)
    if stride > 1:
        height, width = x.shape[1:3]
        ranges = {"starts": (0, 0), "ends": (height, width), "axes": (2, 3), "steps": (stride, stride)}
        value = graph.add("Slice", value, *(graph.integers(name, places) for name, places in ranges.items()))
    return graph.add("Pad", value, graph.integers("border", (0, before, 0, 0, 0, after, 0, 0)))


def _local_response_norm(graph: _Graph, call: Call) -> str:
    (x,), options = call.inputs.values(), call.options
    if x.ndim != 4:
        raise ConfigError(f"local_response_norm can be written for pictures (N, H, W, C) only, not {x.shape}")
    size = options["size"]
    alpha = options["alpha"] * size  # which ONNX divides by it
    return graph.add(
        "LRN", graph.value(x), size=size, alpha=alpha, beta=options["beta"], bias=options["k"]
    )


def _channelwise(kind: str) -> Callable[[_Graph, Call], str]:
    """Along the channels, our last axis."""

    def write(graph: _Graph, call: Call) -> str:
        return graph.add(kind, graph.value(_first(call)), axis=1 if call.y.ndim == 4 else -1)

    return write


def _elementwise(kind: str) -> Callable[[_Graph, Call], str]:
    def write(graph: _Graph, call: Call) -> str:
        return graph.add(kind, *(graph.operand(x, call.y) for x in call.inputs.values()))

    return write


OPERATIONS: dict[str, Callable[[_Graph, Call], str]] = {
    "conv2d": _conv2d, "batch_norm": _batch_norm, "relu": _relu, "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d, "global_avg_pool2d": _global_avg_pool2d, "max": _max, "linear": _linear,
    "reshape": _reshape, "concat": _concat, "dense_buffer": _dense_buffer, "pad": _pad,
    "pad_channels": _pad_channels, "local_response_norm": _local_response_norm,
    "softmax": _channelwise("Softmax"), "log_softmax": _channelwise("LogSoftmax"),
    **{op: _elementwise(op.capitalize())
       for op in ("add", "sub", "mul", "div", "neg", "exp", "log", "sqrt", "sigmoid")},
}  # fmt: skip
