"""Whole files of weights as PyTorch, Keras and safetensors have them, of small nets, and their doors."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Content = dict[str, str]


def digest(array: Any) -> str:
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape} {hashlib.sha1(array.tobytes()).hexdigest()[:16]}"


def arrays(state: Mapping[str, Any]) -> Content:
    return {f"array {name}": digest(array) for name, array in state.items()}


RESNET = {"repeats": [1, 1, 1], "widths": [4, 4, 8]}  # of resnet20_cifar, as small as it goes


def torch_state() -> dict[str, Any]:
    """The state of a small ResNet of akamaster's, as arrays with the names and the layout of PyTorch's."""
    rng, state = np.random.default_rng(0), {}

    def conv(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = rng.normal(0, 0.3, (outputs, inputs, 3, 3))

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = rng.uniform(0.5, 1.5, channels)

    conv("conv1", 3, 4)
    norm("bn1", 4)
    for stage, (inputs, outputs) in enumerate([(4, 4), (4, 4), (4, 8)], 1):
        for part in (1, 2):
            conv(f"layer{stage}.0.conv{part}", inputs if part == 1 else outputs, outputs)
            norm(f"layer{stage}.0.bn{part}", outputs)
    state["linear.weight"], state["linear.bias"] = rng.normal(0, 0.3, (10, 8)), rng.normal(0, 0.3, 10)
    return {name: array.astype(np.float32) for name, array in state.items()}


def read_torch(folder: Path, path: Path) -> Content:
    """Import weights, and read what was written."""
    from minires import train, weights

    out = folder / "imported.safetensors"
    weights.import_weights(path, "resnet20_cifar", out, variant=RESNET)
    return arrays(train.load_model(out).model.state_dict())


def make_torch(folder: Path, *, zipped: bool = True) -> None:
    import torch

    state = {name: torch.from_numpy(array) for name, array in torch_state().items()}
    content = {"state_dict": state, "epoch": 3, "best_prec1": 91.2}
    torch.save(content, folder / "weights.pth", _use_new_zipfile_serialization=zipped)


def make_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(torch_state(), folder / "weights.safetensors", {"format": "pt"})


def make_shards(folder: Path) -> None:
    from safetensors.numpy import save_file

    state, index = torch_state(), {}
    for number, part in enumerate((list(state)[::2], list(state)[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    size = sum(array.nbytes for array in state.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))


def read_shards(folder: Path, path: Path) -> Content:
    return read_torch(folder, folder / "model.safetensors.index.json")


LAYERS: list[
    tuple[str, str, dict[str, Any], list[tuple[str, tuple[int, ...]]]]
] = [  # of torture_net, in Keras
    ("InputLayer", "input_layer", {"batch_shape": [None, 16, 16, 3], "sparse": False}, []),
    (
        "Conv2D",
        "conv1",
        {
            "filters": 4,
            "kernel_size": [3, 3],
            "strides": [1, 1],
            "padding": "same",
            "groups": 1,
            "data_format": "channels_last",
            "dilation_rate": [1, 1],
            "activation": "linear",
            "use_bias": True,
        },
        [("kernel", (3, 3, 3, 4)), ("bias", (4,))],
    ),
    (
        "BatchNormalization",
        "bn_conv1",
        {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True},
        [(leaf, (4,)) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")],
    ),
    ("ReLU", "relu", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, []),
    ("Dropout", "drop", {"rate": 0.2, "seed": None, "noise_shape": None}, []),
    ("GlobalAveragePooling2D", "pool", {"data_format": "channels_last", "keepdims": False}, []),
    (
        "Dense",
        "fc1",
        {"units": 8, "activation": "linear", "use_bias": True},
        [("kernel", (4, 8)), ("bias", (8,))],
    ),
    (
        "Dense",
        "fc",
        {"units": 3, "activation": "softmax", "use_bias": True},
        [("kernel", (8, 3)), ("bias", (3,))],
    ),
]
GROUPS = (
    "input_layer",
    "conv2d",
    "batch_normalization",
    "re_lu",
    "dropout",
    "global_average_pooling2d",
    "dense",
    "dense_1",
)


def keras_config() -> dict[str, Any]:
    layers, before = [], None
    policy = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "float32"},
        "registered_name": None,
    }
    for kind, name, options, _ in LAYERS:
        config = {"name": name, "trainable": True, "dtype": policy, **options}
        history = {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None], "dtype": "float32", "keras_history": [before, 0, 0]},
        }
        inbound = [{"args": [history], "kwargs": {}}] if before else []
        layers.append(
            {
                "module": "keras.layers",
                "class_name": kind,
                "config": config,
                "registered_name": None,
                "name": name,
                "inbound_nodes": inbound,
            }
        )
        before = name
    config = {
        "name": "small",
        "trainable": True,
        "layers": layers,
        "input_layers": ["input_layer", 0, 0],
        "output_layers": ["fc", 0, 0],
    }
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }


def keras_arrays() -> dict[str, list[tuple[str, Any]]]:
    rng = np.random.default_rng(0)
    return {
        name: [(leaf, rng.uniform(0.1, 1, shape).astype(np.float32)) for leaf, shape in leaves]
        for _, name, _, leaves in LAYERS
    }


def make_keras_legacy(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "weights.h5", "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "3.15.1", "torch"
        file.attrs["model_config"] = json.dumps(keras_config())
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = list(keras_arrays())
        for name, leaves in keras_arrays().items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/{leaf}" for leaf, _ in leaves]
            for leaf, array in leaves:
                layer[f"{name}/{leaf}"] = array


def write_keras_weights(file: Any) -> None:
    for group, (name, leaves) in zip(GROUPS, keras_arrays().items(), strict=True):
        variables = file.create_group(f"layers/{group}/vars")
        variables.attrs["name"] = name
        for number, (_, array) in enumerate(leaves):
            variables[str(number)] = array


def make_keras_weights(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "small.weights.h5", "w") as file:
        write_keras_weights(file)


def make_keras(folder: Path) -> None:
    import h5py

    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        write_keras_weights(file)
    with zipfile.ZipFile(folder / "small.keras", "w") as archive:
        archive.writestr(
            "metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"})
        )
        archive.writestr("config.json", json.dumps(keras_config()))
        archive.writestr("model.weights.h5", made.getvalue())


def read_keras(folder: Path, path: Path) -> Content:
    from minires import models, weights

    model = models.build("torture_net", classes=3)
    weights.load_pretrained(model, path)
    return arrays(model.state_dict())
