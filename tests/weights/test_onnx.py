"""ONNX files: what onnxruntime makes of them, beside our own outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import shake

import minires
from minires import ConfigError, MiniresError, Tensor, models, nn, no_grad, ops, tensor
from minires.data import Normalize
from minires.nn.module import Parameter
from minires.ops.avg_pool2d import avg_pool2d, global_avg_pool2d
from minires.ops.batch_norm import batch_norm
from minires.ops.cases import all_cases
from minires.ops.concat import concat
from minires.ops.conv2d import conv2d
from minires.ops.conv_transpose2d import conv_transpose2d
from minires.ops.dense_buffer import DenseBuffer
from minires.ops.dropout import dropout
from minires.ops.forms import Formula
from minires.ops.linear import linear
from minires.ops.local_response_norm import local_response_norm
from minires.ops.max_pool2d import max_pool2d
from minires.ops.pad import pad
from minires.ops.pad_channels import pad_channels
from minires.ops.registry import Case, describe
from minires.ops.relu import relu
from minires.ops.reshape import flatten
from minires.ops.sigmoid import sigmoid
from minires.ops.softmax import log_softmax, softmax
from minires.train import Trained, save_model
from minires.weights import onnx as onnx_export
from minires.weights.onnx import export_onnx, export_onnx_run

try:
    import onnx
    import onnxruntime
except ImportError:
    onnx = None
needs_onnx = pytest.mark.skipif(onnx is None, reason="needs onnx and onnxruntime")


def ours_and_theirs(model: nn.Module, path: Path, input: tuple[int, ...], batch: int) -> tuple[Any, Any]:
    """Our output for random pictures and that of onnxruntime, both channels first."""
    x = np.random.default_rng(batch).standard_normal((batch, *input)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["logits"], {"input": x.transpose(0, 3, 1, 2)})
    with no_grad():
        ours = model.eval()(Tensor(x)).numpy()
    return ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours, theirs


def check(model: nn.Module, path: Path, input: tuple[int, int, int], **options: Any) -> Any:
    """Write the model, hold it against our own outputs at two batch sizes, and give the file's content."""
    export_onnx(model, path, input, **options)
    onnx.checker.check_model(path, full_check=True)
    for batch in (1, 3, 5):
        ours, theirs = ours_and_theirs(model, path, input, batch)
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours) > 1e-3
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(ours)
    return onnx.load(path)


# ----------------------------------------------------------------------------------------------- models

MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "vgg11_bn": (64, {"size": 64, "hidden": 64}),
    "vgg11_lrn": (64, {"size": 64, "hidden": 64}),
    "resnet18": (64, {}),
    "resnet50_signs": (64, {}),
    "resnet20_cifar": (32, {}),  # shortcut A
    "preresnet110_cifar": (32, {}),
    "resnet50v2_keras": (64, {}),
    "resnext50_32x4d": (64, {}),
    "densenet_bc100_k12_cifar": (32, {}),
    "se_resnext50_32x4d": (64, {"pool_padding": "ceil"}),
    "bn_inception": (64, {}),
}


@needs_onnx
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_each_family(name: str, tmp_path: Path) -> None:
    size, options = MODELS[name]
    model = shake(models.build(name, classes=7, **options))
    file = check(model, tmp_path / "model.onnx", (size, size, 3))
    state = model.state_dict()
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in file.graph.initializer}
    assert {name for name, array in arrays.items() if array.dtype == np.float32} == set(state)
    for key, array in arrays.items():
        if array.ndim == 4:
            assert np.array_equal(array, state[key].transpose(3, 2, 0, 1)), key
    convs = {node.name for node in file.graph.node if node.op_type == "Conv"}
    assert convs == {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    # Pictures are turned once at most, where a dense layer reads one of more than one place.
    turned = [node for node in file.graph.node if node.op_type == "Transpose"]
    assert len(turned) == name.startswith("vgg")


@needs_onnx
@pytest.mark.parametrize(
    "name, options",
    [
        ("preresnet110_cifar", {"order": "relu_only", "gating": "exclusive"}),  # bare relu; 1 - gate
        ("preresnet110_cifar", {"shortcut": "B", "gating": "constant", "scale": (0.5, 0.5)}),
        ("se_resnet56_cifar", {"squeeze": "max"}),
        ("se_resnet56_cifar", {"squeeze": "none", "placement": "pre"}),
        ("densenet40_k12_cifar", {"shared": False, "dropout": 0.2}),
    ],
)
def test_variants_with_operations_of_their_own(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    check(shake(models.build(name, **options)), tmp_path / "model.onnx", (32, 32, 3))


@needs_onnx
def test_a_model_with_folded_batch_norms(tmp_path: Path) -> None:
    model = minires.fuse(shake(models.build("resnet18", classes=5)), (32, 32, 3))
    file = check(model, tmp_path / "model.onnx", (32, 32, 3))
    assert not [node for node in file.graph.node if node.op_type == "BatchNormalization"]


# ------------------------------------------------------------------------------------------- operations


class Doing(nn.Module):
    """A few parameters, and a function of the picture and them."""

    def __init__(self, function: Callable[[Tensor, Doing], Tensor]) -> None:
        super().__init__()
        rng = np.random.default_rng(0)

        def numbers(*shape: int) -> np.ndarray[Any, Any]:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32) * rng.choice([-1, 1], shape).astype("f")

        self.function = function
        self.kernel, self.grouped = Parameter(numbers(3, 2, 4, 6)), Parameter(numbers(2, 3, 2, 6))
        self.back = Parameter(numbers(3, 2, 6, 4))
        self.six, self.four, self.beta = Parameter(numbers(6)), Parameter(numbers(4)), Parameter(numbers(4))
        self.map, self.matrix = Parameter(numbers(1, 9, 1, 4)), Parameter(numbers(9 * 7 * 4, 3))
        self.wide, self.turned = Parameter(numbers(28, 5)), Parameter(numbers(3, 9 * 7 * 4))
        self.scalar = Parameter(numbers())
        self.add, self.mul, self.input, self.logits = (Parameter(numbers(4)) for _ in range(4))
        self.mean, self.var = numbers(4), np.abs(numbers(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


def norm(x: Tensor, p: Doing, **options: Any) -> Tensor:
    return batch_norm(
        x, p.four, p.beta, training=False, running_mean=p.mean, running_var=p.var, eps=0.1, **options
    )


def one(x: Tensor) -> Tensor:
    return x * 0 + 1


def attention(x: Tensor) -> Tensor:
    """Each place looks at all others, of its own picture."""
    return softmax(x @ x.transpose(0, 2, 1) * 0.1) @ x


def history(x: Tensor, room: int) -> Tensor:
    buffer = DenseBuffer(x, room)
    buffer.append(buffer.latest * 2)
    return buffer.append(relu(buffer.latest))


OPERATIONS: dict[str, Callable[[Tensor, Doing], Tensor]] = {
    "conv": lambda x, p: conv2d(x, p.kernel, p.six),
    "conv same": lambda x, p: conv2d(x, p.kernel, padding="same", stride=(2, 1)),
    "conv ceil": lambda x, p: conv2d(x, p.kernel, padding="ceil", stride=(4, 3)),
    "conv four sides": lambda x, p: conv2d(x, p.kernel, padding=((2, 0), (1, 3)), relu=True),
    "conv groups": lambda x, p: conv2d(x, p.grouped, p.six, groups=2, stride=2, padding=1),
    "conv dilated": lambda x, p: conv2d(x, p.kernel, p.six, dilation=(2, 3), stride=(1, 2), padding=(2, 1)),
    "transposed conv": lambda x, p: conv_transpose2d(x, p.back, p.six, stride=2, padding=1, output_padding=1),
    "transposed conv same": lambda x, p: conv_transpose2d(x, p.back, stride=4, padding="same"),
    "transposed conv groups": lambda x, p: conv_transpose2d(x, p.back, groups=2, padding=((1, 0), (0, 1))),
    "transposed conv dilated": lambda x, p: conv_transpose2d(x, p.back, dilation=(1, 3), padding=(0, 2)),
    "one kernel twice": lambda x, p: conv2d(x, p.kernel) + conv2d(x * 0.5, p.kernel),
    "batch norm": norm,
    "batch norm of rows": lambda x, p: norm(global_avg_pool2d(x), p),
    "batch norm, add, relu": lambda x, p: norm(x, p, add=x * 3, relu=True),
    "relu": lambda x, p: relu(x),
    "relu add": lambda x, p: relu(x, add=x * x),
    "max pool": lambda x, p: max_pool2d(x, (3, 2)),
    "max pool sides": lambda x, p: max_pool2d(x - 5, 3, stride=2, padding=((0, 1), (1, 0))),
    "max pool ceil": lambda x, p: max_pool2d(x - 5, 2, stride=2, padding="ceil"),
    "max pool dilated": lambda x, p: max_pool2d(x - 5, 3, stride=1, padding=1, dilation=(2, 3)),
    "avg pool": lambda x, p: avg_pool2d(x, 3, stride=2, padding=1),
    "avg pool counting": lambda x, p: avg_pool2d(x, 3, padding=((1, 0), (0, 2)), count_padding=True),
    "avg pool ceil": lambda x, p: avg_pool2d(x, 2, padding="ceil"),
    "avg pool ceil counting": lambda x, p: avg_pool2d(x, 2, padding="ceil", count_padding=True),
    "global avg pool": lambda x, p: global_avg_pool2d(x),
    "max": lambda x, p: x.max(axis=(1, 2)),
    "max keepdims": lambda x, p: x.max(axis=(2, 1), keepdims=True),
    "linear": lambda x, p: linear(flatten(x), p.matrix),
    "flatten": lambda x, p: flatten(x),
    "reshape": lambda x, p: x.reshape(x.shape[0], 3, 21, 4),
    "reshape to three axes": lambda x, p: x.reshape(x.shape[0], 63, 4),
    "reshape and back": lambda x, p: flatten(x).reshape(x.shape[0], 7, 9, 4),
    "reshape of one place": lambda x, p: flatten(max_pool2d(x, (9, 7))).reshape(x.shape[0], 1, 1, 4),
    "concat": lambda x, p: concat([x, x * 2, relu(x)]),
    "concat rows": lambda x, p: concat([x, x * 2], axis=1),
    "concat of vectors": lambda x, p: concat([flatten(x), global_avg_pool2d(x)]),
    "dense buffer": lambda x, p: history(x, 20),
    "pad": lambda x, p: pad(x, ((1, 2), (3, 0))),
    "pad with a number": lambda x, p: pad(x, (1, 2), value=-1.5),
    "pad edge": lambda x, p: pad(x, ((0, 9), (2, 1)), mode="edge"),
    "pad reflect": lambda x, p: pad(x, ((8, 1), (0, 6)), mode="reflect"),
    "pad channels": lambda x, p: pad_channels(x, 9),
    "pad channels, stride, both": lambda x, p: pad_channels(x, 9, stride=2, both=True),
    "local response norm": lambda x, p: local_response_norm(x, 3, k=0.5, alpha=0.7, beta=0.6),
    "dropout": lambda x, p: dropout(x, 0.5, rng=np.random.default_rng(0), training=False) * 2,
    "softmax": lambda x, p: softmax(global_avg_pool2d(x)),
    "softmax of pictures": lambda x, p: softmax(x),
    "log softmax": lambda x, p: log_softmax(global_avg_pool2d(x)),
    "gate": lambda x, p: x * sigmoid(global_avg_pool2d(x)).reshape(x.shape[0], 1, 1, 4),
    "times each channel": lambda x, p: x * p.four + p.map,
    "rows times each channel": lambda x, p: p.four * global_avg_pool2d(x),
    "numbers": lambda x, p: (1 - x) * 0.25 + 2 / (3 + x * x),
    "exp, neg, log, sqrt": lambda x, p: (-x).exp().log() + (x * x).sqrt(),
    "abs, tanh": lambda x, p: abs(x).tanh() - x.tanh(),
    "maximum, minimum": lambda x, p: ops.maximum(x, p.four) + ops.minimum(0.25, x),
    "clip": lambda x, p: x.clip(-0.5, 0.75) + x.clip(low=0.1) * x.clip(high=0.2),
    "powers": lambda x, p: x**3 + abs(x) ** 0.5 + 2.0**x + (x * x + 0.5) ** x,
    "sum": lambda x, p: x.sum((1, 2)) + x.sum(axis=(-1, 1), keepdims=True).reshape(len(x), 7)[:, :4],
    "mean": lambda x, p: x.mean(axis=1) - x.mean(axis=3).transpose(0, 2, 1).mean(-1, keepdims=True),
    "mean of rows": lambda x, p: flatten(x) - flatten(x).mean(-1, keepdims=True),
    "no axis": lambda x, p: x.sum(()) * x.max(axis=()),
    "max and min over channels": lambda x, p: x.max(axis=3, keepdims=True) * x.min(axis=-1, keepdims=True),
    "max over one axis": lambda x, p: x.max(axis=2) + x.min(1, keepdims=True).squeeze(1)[:, :1],
    "layer norm": lambda x, p: (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + 0.1) * p.four,
    "var and std": lambda x, p: x.var((1, 2), correction=1) + x.std(axis=2).var(axis=1),
    "transpose": lambda x, p: x.transpose(0, 2, 1, 3) * p.four,
    "transpose twice": lambda x, p: x.reshape(x.shape[0], 63, 4).transpose(0, 2, 1).transpose(0, -1, -2),
    "matmul": lambda x, p: flatten(x) @ p.matrix,
    "matmul of pictures": lambda x, p: x @ (p.kernel.reshape(9, -1)[:4, :5] * p.matrix[:4, 0].reshape(4, 1)),
    "attention": lambda x, p: attention(x.reshape(x.shape[0], 63, 4)),
    "linear of sequences": lambda x, p: linear(x.reshape(x.shape[0], 9, 28), p.wide),
    "selection": lambda x, p: x[:, 2:-1, ::-2, 1:3],
    "selection of numbers": lambda x, p: x[..., 3, -1] + x[:, 0, 6:2:-1, None].max(axis=-1)[:, -1],
    "selection backwards": lambda x, p: x[:, ::-1, -2::-3, 2:],
    "split": lambda x, p: ops.concat(ops.split(x, 2, axis=3)[::-1]),
    "split channels of rows": lambda x, p: flatten(x)[:, 5:250:7],
    "stack": lambda x, p: flatten(ops.stack([x, x * 2], axis=-1)),
    "stack of rows": lambda x, p: ops.stack([x[:, 0, 0], x[:, 1, 1]], axis=1),
    "rows with vectors": lambda x, p: global_avg_pool2d(x) * global_avg_pool2d(x)[:, :1] + p.four,
    "selection of pictures": lambda x, p: x[:4].mean(0, keepdims=True) - x[1:].sum(0, keepdims=True) + x,
    "the last picture": lambda x, p: x + x[-1:] * 2 - x[:1],
    "new axis": lambda x, p: x[:, 3, None] + x[:, None, 2] * p.four,
    "new axis of a picture": lambda x, p: x[:, None, ::2].mean(1) * p.four,
    "new axis at the end": lambda x, p: flatten(x)[..., None] * 2,
    "stack of sequences": lambda x, p: ops.stack([x[:, 1], x[:, 0] * 2], axis=1) * p.four,
    "weights that are computed": lambda x, p: linear(flatten(x), abs(p.matrix)) + flatten(x) @ p.turned.T,
    "kernels that are computed": lambda x, p: conv2d(x, p.kernel - p.kernel.mean(2, keepdims=True), -p.six),
    "parameters by themselves": lambda x, p: x * softmax(p.four).reshape(1, 1, 1, 4) * p.map.max(),
    "parts of a parameter": lambda x, p: x + p.map[:, ::2].sum(1, keepdims=True),
    "a turned parameter": lambda x, p: x - p.map.transpose(0, 2, 1, 3)[:, :, :7],
    "a number that is learned": lambda x, p: x * abs(p.scalar),
    "each with each": lambda x, p: flatten(x) @ flatten(x).T * 0.01,
    "nothing": lambda x, p: x,
    "everything": lambda x, p: x[:],
    "named like others": lambda x, p: (x + p.add) * p.mul * p.input - p.logits,
    "zeros of both signs": lambda x, p: (one(x) / 0.0).clip(-1, 1) * 2 + (one(x) / -0.0).clip(-1, 1),
    "squeeze, expand_dims": lambda x, p: flatten(max_pool2d(x, (9, 7)).squeeze((1, 2)).expand_dims(1)),
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("what", OPERATIONS)
def test_an_operation(what: str, tmp_path: Path) -> None:
    check(Doing(OPERATIONS[what]), tmp_path / "model.onnx", (9, 7, 4))


FROM_OPSET_19: dict[str, Callable[[Tensor, Doing], Tensor]] = {
    "pad with mode 'wrap'": lambda x, p: pad(x, ((9, 0), (1, 7)), mode="wrap"),
    "a dilated average pool": lambda x, p: avg_pool2d(x, 3, stride=1, dilation=(2, 1), padding=2),
}


@needs_onnx
@pytest.mark.parametrize("what", FROM_OPSET_19)
def test_an_operation_of_newer_opsets(what: str, tmp_path: Path) -> None:
    model, path = Doing(FROM_OPSET_19[what]), tmp_path / "model.onnx"
    check(model, path, (9, 7, 4), opset=19)
    with pytest.raises(ConfigError, match=f"{what} is in ONNX from opset 19 on, not in 18"):
        export_onnx(model, path, (9, 7, 4), opset=18)


@needs_onnx
def test_a_convolution_that_pads_with_pixels(tmp_path: Path) -> None:
    conv = nn.Conv2d(4, 3, 3, padding="same", padding_mode="reflect", dilation=2)
    file = check(conv, tmp_path / "model.onnx", (9, 7, 4))
    assert [node.op_type for node in file.graph.node] == ["Pad", "Conv"]


def of_one_picture() -> Iterator[Any]:
    """The cases of every operation that takes one tensor, and works number by number and can be written."""
    for name, table in all_cases().items():
        known = describe(name)
        elementwise = isinstance(known.arithmetic, Formula) and not known.arithmetic.axes
        for case in table:
            if known.onnx and elementwise and list(case.inputs) == ["x"]:
                yield pytest.param(case, id=str(case))


@needs_onnx
@pytest.mark.parametrize("case", list(of_one_picture()))
def test_whatever_works_number_by_number(case: Case, tmp_path: Path) -> None:
    above_zero = bool((case.arrays()["x"] > 0).all())  # where a logarithm or a root is asked for
    # A case may come out as numbers without any picture in them: x ** 0.
    model = Doing(lambda x, p: case(x * x + 0.5 if above_zero else x) + 2 * x)
    check(model, tmp_path / "model.onnx", (9, 7, 4))


@needs_onnx
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_other_opsets(opset: int, tmp_path: Path) -> None:
    model = shake(models.build("se_resnet56_cifar", squeeze="max"))
    file = check(model, tmp_path / "model.onnx", (32, 32, 3), opset=opset)
    assert [entry.version for entry in file.opset_import] == [opset]


# ----------------------------------------------------------------------------------- what is in the file


class Named(nn.Module):
    """Layers with the names of the file's own input and output, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.input, self.again = (
            nn.Conv2d(3, 4, 1, rng=rng),
            nn.Conv2d(4, 4, 3, padding=1, relu=True, rng=rng),
        )
        self.pool, self.logits = nn.GlobalAvgPool2d(), nn.Linear(4, 3, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        return softmax(self.logits(self.pool(self.again(self.again(self.input(x))))))


@needs_onnx
def test_names_of_nodes(tmp_path: Path) -> None:
    file = check(shake(Named()), tmp_path / "model.onnx", (8, 8, 3))
    assert [node.name for node in file.graph.node] == [
        "input.conv", "again", "again.relu", "again.conv", "again.relu_2", "pool", "pool.flatten",
        "logits.gemm", "softmax",
    ]  # fmt: skip
    shapes = [
        [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*file.graph.input, *file.graph.output)
    ]
    assert shapes == [["N", 3, 8, 8], ["N", 3]]


def trained(size: int = 32) -> Trained:
    model = shake(models.build("resnet20_cifar", classes=3)).eval()
    normalize = Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    return Trained(model, "resnet20_cifar", {}, ("a", "b", "ü"), normalize, (size, size), "letters")


def notes(file: Any) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in file.metadata_props}


@needs_onnx
def test_a_trained_model_from_its_run(tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "model.onnx"
    run.mkdir()
    save_model(run / "model.safetensors", trained())
    written = export_onnx_run(run, path, description="about letters")
    assert written.classes == ("a", "b", "ü")
    ours, theirs = ours_and_theirs(trained().model, path, (32, 32, 3), 2)
    assert np.allclose(ours, theirs, rtol=1e-4)
    file = onnx.load(path)
    assert notes(file) == {
        "model": "resnet20_cifar", "dataset": "letters", "classes": ["a", "b", "ü"], "size": [32, 32],
        "channels": "RGB", "range": [0, 1], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    assert file.producer_name == "minires" and file.doc_string == "about letters"
    assert file.producer_version == minires.__version__


@needs_onnx
def test_classes_of_a_model(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", trained().model
    export_onnx(model, path, (32, 32, 3), classes=("x", "y", "z"))
    assert notes(onnx.load(path)) == {"classes": ["x", "y", "z"]}
    with pytest.raises(ConfigError, match="2 classes are named, but the model gives 3 scores"):
        export_onnx(model, path, (32, 32, 3), classes=("x", "y"))


@needs_onnx
def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = models.build("resnet20_cifar").train()
    model.bn_conv1.eval()
    before, record = model.state_dict(), tensor.record
    export_onnx(model, tmp_path / "model.onnx", (32, 32, 3))
    assert [path for path, part in model.named_modules() if not part.training] == ["bn_conv1"]
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert tensor.record is record and vars(sys.modules["minires.ops.relu"])["record"] is record


@needs_onnx
def test_float64_weights_are_written_as_float32(tmp_path: Path) -> None:
    model = shake(models.build("resnet20_cifar"))
    model.astype(np.float64)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, (32, 32, 3))
    ours, theirs = ours_and_theirs(model.astype(np.float32), path, (32, 32, 3), 2)
    assert theirs.dtype == np.float32 and np.allclose(ours, theirs, rtol=1e-4)


@needs_onnx
def test_a_diverged_model_is_written_too(tmp_path: Path) -> None:
    model = models.build("resnet20_cifar")
    for parameter in model.parameters():
        parameter.data[...] = np.nan
    export_onnx(model, tmp_path / "model.onnx", (32, 32, 3))
    _, theirs = ours_and_theirs(model, tmp_path / "model.onnx", (32, 32, 3), 1)
    assert np.isnan(theirs).all()


# --------------------------------------------------------------------------------------------- refusals


class Repeating(nn.Module):
    """An operation that ONNX could have, but not here."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(2, 1)


@needs_onnx
def test_an_operation_that_cannot_be_written_names_the_layer(tmp_path: Path) -> None:
    model = nn.Sequential(
        conv=nn.Conv2d(3, 4, 1, rng=np.random.default_rng(0)), again=Repeating()
    )
    path, record = tmp_path / "model.onnx", tensor.record
    path.write_bytes(b"as before")
    with pytest.raises(
        ConfigError, match=r"^again: the operation 'broadcast_to', here with a result \(2, 6, 2, 8, 4\)"
    ):
        export_onnx(model, path, (6, 8, 3))
    assert path.read_bytes() == b"as before" and list(tmp_path.iterdir()) == [path]
    assert tensor.record is record


REFUSED: dict[str, tuple[Callable[[Tensor, Doing], Tensor], str]] = {
    "detached": (lambda x, p: x + Tensor(x.data * 2), "numbers of shape .2, 9, 7, 4. are used"),
    "constant result": (lambda x, p: p.four, r"2 pictures give \(4,\); the first axis must be that of the p"),
    "constant result of two": (lambda x, p: p.matrix[: len(x)], "^slice: what is done here depends on how"),
    "picture from outside": (lambda x, p: relu(Tensor(x.data)), "numbers of shape .2, 9, 7, 4. are used"),
    "batch norm in training": (
        lambda x, p: batch_norm(x, p.four, p.beta, training=True), "statistics of its batch",
    ),
    "reshape over the batch": (lambda x, p: x.reshape(1, -1), r"^2 pictures give \(1, 504\); the first"),
    "sum over the batch": (lambda x, p: x.sum(), r"^2 pictures give \(\); the first axis must be that of"),
    "their number": (lambda x, p: x.sum(0, keepdims=True) / len(x) + x, "^div: what is done here depends on"),
    "half their number": (lambda x, p: x * (len(x) // 2), "^mul_2: what is done here depends on"),
    "a number read from them": (lambda x, p: relu(x) / (1 + float(x.max())), "^div: what is done here dep"),
    "a shape of their number": (
        lambda x, p: x.reshape(252, -1).sum(0).reshape(-1, 1), "^reshape: what is done here depends on how",
    ),
    "a branch": (lambda x, p: relu(x) if x.data.max() > 0 else -x, "^neg: what is done here depends on how"),
    "another end": (lambda x, p: relu(x) if x.data.max() > 0 else relu(x) * 2, "^mul_2: what is done here d"),
    "one of two ends": (lambda x, p: (relu(x), -x)[len(x) % 2], "^the result: what is done here depends"),
    "one of two ends, by a number": (lambda x, p: (relu(x), -x)[int(x.max() > 0)], "^the result: what is d"),
    "a selection of nothing": (lambda x, p: x[:, -100::-1].sum((1, 2, 3)), "a selection of nothing"),
    "broadcast to more axes": (lambda x, p: x.reshape(len(x), 1, 9, 7, 4) * x, "is broadcast to"),
    "a list in an index": (lambda x, p: x[:, [0, 2]], "lists and arrays cannot be written"),
    "a condition": (lambda x, p: ops.where(x > 0, x, -x), "the operation 'where', here with"),
    "broadcast of fewer axes": (  # two rows are left of the picture, as many as there are pictures here
        lambda x, p: max_pool2d(x, (5, 7), stride=4) * global_avg_pool2d(x).reshape(x.shape[0], 1, 4),
        r"\(2, 1, 4\) is broadcast to \(2, 2, 1, 4\)",
    ),
    "norm of rows": (lambda x, p: local_response_norm(global_avg_pool2d(x)), "for pictures"),
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_written_wrongly_is_refused(what: str, tmp_path: Path) -> None:
    function, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message):
        export_onnx(Doing(function), tmp_path / "model.onnx", (9, 7, 4))
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = models.build("resnet20_cifar"), tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="opset must be from 13 to [0-9]+, what onnx knows here, not 12"):
        export_onnx(model, path, (32, 32, 3), opset=12)
    with pytest.raises(MiniresError, match="cannot write .*nowhere"):
        export_onnx(model, tmp_path / "nowhere" / "model.onnx", (32, 32, 3))
    monkeypatch.setattr(onnx_export, "LIMIT", 10_000)
    with pytest.raises(ConfigError, match="the weights take 1,0[0-9,]+ bytes, but .* fewer than 10,000"):
        export_onnx(model, path, (32, 32, 3))
    assert not list(tmp_path.iterdir())


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="Install it with pip install onnx$"):
        export_onnx(models.build("resnet20_cifar"), tmp_path / "model.onnx", (32, 32, 3))
    assert not list(tmp_path.iterdir())


def test_onnx_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, minires.weights.onnx; print('onnx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
