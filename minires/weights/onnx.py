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
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minires import backend, tensor
from minires.errors import ConfigError
from minires.files import atomic_write, with_ending
from minires.nn import hooks
from minires.nn.module import Module
from minires.nn.restored import modes
from minires.ops.onnx_graph import CHANNELS_FIRST, CHANNELS_LAST, channels_first, elementwise
from minires.ops.registry import describe, described
from minires.tensor import Call, Tensor, no_grad, watching, with_settings
from minires.train.model_file import Trained, load_model
from minires.version import __version__

INPUT, OUTPUT = "input", "logits"
BATCH = 2  # pictures in the pass that is observed: an axis of 1 would not tell a batch from a broadcast
AGAIN = 7  # and in the second one, which must give the same graph
OLDEST_OPSET = 13  # before it, Softmax and the axes of some operators meant something else
LIMIT = 2**31  # bytes; protocol buffers allow no more in one file

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
    (it names the layer), the model has forward hooks or is changed by ``minires.intervene``, the classes
    are not as many as the logits, the file would exceed 2 GiB, or its name
    does not end in .onnx;
    ShapeError if such a picture does not fit the model; MiniresError if the file cannot be written.
    """
    onnx = _onnx(opset)
    of = model.model if isinstance(model, Trained) else model
    hooks.refuse(of, "export_onnx", "which is not of the model itself")
    with_ending("path", path, ".onnx", "a file of ONNX")
    notes = {}
    if isinstance(model, Trained):
        notes = _notes(model)
        classes, model = model.classes if classes is None else classes, model.model
    graph, scores, shape = _written(onnx, model, opset, input)
    if classes is not None:
        if len(classes) != scores.shape[-1]:
            raise ConfigError(
                f"{len(classes)} classes are named, but the model gives {scores.shape[-1]} scores"
            )
        notes["classes"] = list(classes)
    file = onnx.helper.make_model(
        graph.finished(input, scores, shape),
        producer_name="minires",
        producer_version=__version__,
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
            "Install it with pip install onnx"
        ) from error
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ConfigError(f"opset must be from {OLDEST_OPSET} to {newest}, what onnx knows here, not {opset}")
    return onnx


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


def _written(
    onnx: Any, model: Module, opset: int, input: tuple[int, int, int]
) -> tuple[_Graph, Tensor, tuple[int | None, ...]]:
    """The graph of a model, its scores, and their shape: None where it depends on the number of pictures.

    Numbers that a program reads out of tensors, such as ``float(x.mean())`` or ``len(x)``, would be written
    as they are for these pictures. So other pictures, and not as many, must give the same graph.
    """
    graph, again = _Graph(onnx, model, opset), _Graph(onnx, model, opset)
    scores = _observe(graph, model, np.zeros((BATCH, *input)))
    others = _observe(again, model, np.random.default_rng(0).standard_normal((AGAIN, *input)))
    for node, other in itertools.zip_longest(graph.nodes, again.nodes):
        if node != other or not all(graph.equal(again, name) for name in node.input):
            raise _depends((node or other).name)
    if graph.value(scores) != again.value(others) or scores.ndim != others.ndim:
        raise _depends("the result")
    sizes = zip(scores.shape, others.shape, strict=True)
    return graph, scores, tuple(one if one == other else None for one, other in sizes)


def _observe(graph: _Graph, model: Module, pictures: np.ndarray[Any, Any]) -> Tensor:
    """Pass pictures through the model, in inference mode, and note every operation in the graph.

    Raises: ConfigError if the result is not one row of scores for each.
    """
    first = next(model.parameters()).data
    x = Tensor(pictures.astype(first.dtype)).to(backend.device_of(first))
    graph.values[x] = INPUT
    with modes(model, training=False), no_grad(), with_settings(fused=True), watching(graph.note):
        scores: Tensor = model(x)
    if scores.shape[:1] != (len(pictures),):
        raise ConfigError(
            f"{len(pictures)} pictures give {scores.shape}; the first axis must be that of the pictures"
        )
    return scores


# -------------------------------------------------------------------------------------------- the graph


class _Graph:
    """What becomes the ONNX graph: its nodes and initializers, and what our tensors are called in it."""

    def __init__(self, onnx: Any, model: Module, opset: int) -> None:
        self.onnx, self.opset = onnx, opset
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray[Any, Any]] = {}
        self.values: dict[Tensor, str] = {}  # which also keeps the tensors, so that none is taken for another
        self._layers = {path for path, part in model.named_modules() if next(part.children(), None) is None}
        state = [(name, parameter.data) for name, parameter in model.named_parameters()]
        self._names = {id(array): name for name, array in (*state, *model.named_buffers())}
        self._taken = {INPUT, OUTPUT, *self._names.values()}
        self._state = self._taken - {INPUT, OUTPUT}  # names that are kept for parameters and buffers

    def note(self, call: Call) -> None:
        """Add what a call of an operation stands for, as the operation itself declares it."""
        write = describe(call.op).onnx
        if write is None:
            raise ConfigError(
                f"the operation {call.op!r}, here with a result {call.y.shape}, cannot be written as ONNX. "
                f"Those that can: {', '.join(known.name for known in described() if known.onnx)}. "
                "One of your own is written by what its @operation(onnx=...) says"
            )
        self.values[call.y] = elementwise(self, call, write) if isinstance(write, str) else write(self, call)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; it and its result are named after the layer that runs now. Returns the name."""
        path = tensor.settings()["path"]
        longer = f"{path}.{kind.lower()}" if path else kind.lower()
        # A layer's own name is that of its first node; blocks have many.
        names = itertools.chain([path] if path in self._layers else [], _numbered(longer))
        name: str = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def value(self, x: Tensor) -> str:
        """The name of a tensor that is computed here, or of a parameter, channels first."""
        if x not in self.values:
            return self.weight(x.data, CHANNELS_FIRST if x.ndim == 4 else None)
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

    def ours(self, x: Tensor) -> str:
        """The name of a tensor or parameter with its axes in our order, channels last."""
        if x not in self.values:
            return self.weight(x.data)
        name = self.values[x]
        return self.add("Transpose", name, perm=CHANNELS_LAST) if x.ndim == 4 else name

    def kernel(self, w: Tensor, axes: tuple[int, ...]) -> str:
        """The name of the kernels of a convolution with their axes, of our order, in this one."""
        if w not in self.values:
            return self.weight(w.data, axes)
        return self.add("Transpose", self.values[w], perm=[CHANNELS_FIRST.index(axis) for axis in axes])

    def equal(self, other: _Graph, name: str) -> bool:
        """Whether a name stands for the same numbers in another graph, if it stands for numbers."""
        one, two = self.initializers.get(name), other.initializers.get(name)
        return one is two is None or (one is not None and two is not None and _same(one, two))

    def integers(self, name: str, values: Sequence[int]) -> str:
        """The name of an initializer that holds shapes or places."""
        return self._initializer(f"constant.{name}", np.array(values, np.int64))

    def operand(self, x: Tensor, y: Tensor) -> str:
        """The name of ``x`` where it is broadcast to ``y``."""
        if x not in self.values:
            return self.weight(x.data, CHANNELS_FIRST if x.ndim and y.ndim == 4 else None)
        if x.ndim and x.ndim != y.ndim and 4 in (x.ndim, y.ndim):
            raise ConfigError(
                f"{x.shape} is broadcast to {y.shape}, which means something else where channels come first; "
                f"to write this as ONNX, reshape it to {y.ndim} axes before"
            )
        return self.values[x]

    def finished(self, input: tuple[int, int, int], scores: Tensor, shape: tuple[int | None, ...]) -> Any:
        """The graph as ONNX has it, with ``scores`` as its output, of this shape, None for any size."""
        last = self.value(scores)
        if last == INPUT:
            last = self.add("Identity", INPUT)
        size = sum(array.nbytes for array in self.initializers.values())
        if size >= LIMIT:
            raise ConfigError(f"the weights take {size:,} bytes, but an ONNX file has fewer than {LIMIT:,}")
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [OUTPUT if name == last else name for name in names]
        make = self.onnx.helper
        shapes = {INPUT: channels_first((BATCH, *input)), OUTPUT: channels_first(shape)}
        inputs, outputs = (
            [make.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, ["N", *sizes[1:]])]
            for name, sizes in shapes.items()
        )
        arrays = [self.onnx.numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
        return make.make_graph(self.nodes, "minires", inputs, outputs, arrays)

    def _initializer(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """The name of an initializer, a new one or an equal one that is there already."""
        for free in _numbered(name):
            there = self.initializers.get(free)
            if there is None and (free not in self._taken or (free == name and name in self._state)):
                self.initializers[free] = values
                self._taken.add(free)
                return free
            if there is not None and _same(there, values):
                return free
        raise AssertionError  # there are numbers enough


def _numbered(name: str) -> Iterator[str]:
    """name, name_2, name_3, ..."""
    yield name
    for number in itertools.count(2):
        yield f"{name}_{number}"


def _same(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays are equal to the bit: 0.0 is not -0.0, and NaN is NaN."""
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    same_memory = (one.ctypes.data, one.strides) == (two.ctypes.data, two.strides)  # as of one parameter
    return same_memory or one.tobytes() == two.tobytes()


def _depends(where: str) -> ConfigError:
    return ConfigError(
        f"{where}: what is done here depends on how many pictures there are, or on what they show, as a "
        "Python number read from them does; it cannot be written as ONNX"
    )


def _not_computed(array: Any) -> ConfigError:
    return ConfigError(
        f"numbers of shape {array.shape} are used that are neither computed from the picture by operations "
        "of minires nor a parameter or buffer of the model; they cannot be written as ONNX. What is always "
        "the same can be kept as an attribute of the model, self.name = array"
    )
