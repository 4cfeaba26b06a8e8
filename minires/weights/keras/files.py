"""Weights that Keras wrote, read without Keras.

``read`` gives the arrays of a file as ``<layer>/<variable>``, ``to_state`` our names for them. Three kinds of
files are in use; which one a file is shows in what is in it, not in its name:

    legacy .h5, Keras 1 to 3      [model_weights/]<layer>/<path of the variable>; the attributes layer_names
                                  and weight_names list the layers and each layer's variables in order
    .weights.h5, Keras 3          layers/<conv2d_7>/vars/<0, 1, ...>; the layer's own name is the attribute
                                  "name" of vars (the first versions of Keras 3 did not write it)
    .keras, Keras 3               a zip of config.json, metadata.json and model.weights.h5

Keras 3 numbers variables instead of naming them: kernel, bias for dense layers and convolutions; gamma, beta,
moving_mean, moving_variance for batch norms. Kernels are (KH, KW, C, O) or (C, O) there and here.

Nothing in a file is run or unpickled. Links out of a file, and arrays kept elsewhere, are refused.

Source: keras/src/saving/saving_lib.py, keras/src/legacy/saving/legacy_h5_format.py of Keras 3.15 and 3.0.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minires.errors import CheckpointError
from minires.nn.module import Module

Arrays = dict[str, np.ndarray]

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# Keras 1 wrote W, b, running_mean, and running_std for what was a variance already.
OLD = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
VARIABLE = re.compile(rf"(?:.*[/_])?({'|'.join(('kernel', 'bias', *NORM, *OLD))})(?:_\d+)?(?::\d+)?")
# What h5py, zipfile and json raise where a file is not what it should be.
DAMAGED = (
    OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
SUFFIXES = (".h5", ".hdf5", ".keras")  # of files that Keras writes
SHOWN = 5  # names of each kind in a message

# ------------------------------------------------------------------------------------------- reading files


def read(path: str | os.PathLike[str]) -> Arrays:
    """The arrays of a Keras file by ``<layer>/<variable>``, for example ``conv1_bn/moving_mean``.

    The layers of a model inside the model have their own names, as if they stood directly in it.

    Raises: CheckpointError if the file is missing, damaged or not of Keras; has a Lambda layer; or has
    weights of a layer that is neither a dense layer nor a convolution nor a batch norm.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is no file; give a .keras, .weights.h5 or .h5 file")
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        with h5py.File(path, "r") as file:
            return _read_h5(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is damaged or not a file of Keras: {error}") from error


def _read_archive(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        for name in ("config.json", "model.weights.h5"):
            if name not in archive.namelist():
                raise CheckpointError(
                    f"this zip has no {name}, so it is not a .keras file; it has {_some(archive.namelist())}"
                )
        config = _config(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))  # checks the checksum of the zip too
    with h5py.File(weights, "r") as file:
        return _read_h5(file, config)


def _read_h5(file: h5py.File, config: Any = None) -> Arrays:
    if "model_config" in file.attrs:
        _config(file.attrs["model_config"])
    if _strings(file, "layer_names"):
        found = _listed(file)
    elif "model_weights" in file:
        found = _listed(_group(file, "model_weights"))
    elif "layers" in file:
        found = _numbered(_group(file, "layers"), _configs_by_group(config))
    else:
        raise CheckpointError(
            "this HDF5 file has neither the group layers nor model_weights nor the attribute layer_names, so "
            f"it holds no weights of Keras; it has {_some(file) or 'nothing'}"
        )
    arrays: Arrays = {}
    for name, array in found:
        if name in arrays:
            raise CheckpointError(f"two layers of this file have one name: {name} is there twice")
        arrays[name] = array
    if not arrays:
        raise CheckpointError("this file of Keras holds layers but no weights")
    return arrays


def _listed(group: h5py.Group) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of a legacy file."""
    for layer in _strings(group, "layer_names"):
        inside = _group(group, layer)
        paths = _strings(inside, "weight_names")
        variables = [_variable(layer, path) for path in paths]
        # The variables of a single layer stand under its name or that of an earlier session, conv1_2; if two
        # have the same name, this layer is a model, and its layers' names are in the paths.
        a_model = len(set(variables)) < len(variables)
        for path, variable in zip(paths, variables, strict=True):
            name = path.split("/")[-2] if a_model and "/" in path else layer
            yield f"{name}/{variable}", _array(inside, path)


def _variable(layer: str, path: str) -> str:
    """``bn_conv1_2/gamma:0`` -> ``gamma``."""
    found = VARIABLE.fullmatch(path)
    if found is None:
        raise CheckpointError(
            f"layer {layer!r} has the variable {path!r}; only kernel, bias and those of batch norm "
            f"({', '.join(NORM)}) can be read"
        )
    return OLD.get(found[1], found[1])


def _numbered(group: h5py.Group, configs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of a Keras 3 file. ``configs`` are the layers' configurations where there are some."""
    for key in group:
        layer, config = _group(group, key), configs.get(key, {})
        if "vars" in layer:
            variables = _group(layer, "vars")
            name = str(variables.attrs.get("name", config.get("name", key)))
            if sorted(variables) != sorted(str(number) for number in range(len(variables))):
                raise CheckpointError(f"layer {name!r} has variables {_some(variables)} instead of 0, 1, ...")
            arrays = [_array(variables, str(number)) for number in range(len(variables))]
            for leaf, array in zip(_leaves(name, arrays), arrays, strict=True):
                yield f"{name}/{leaf}", array
        if "layers" in layer:
            yield from _numbered(_group(layer, "layers"), _configs_by_group(config))


def _leaves(layer: str, arrays: list[np.ndarray]) -> tuple[str, ...]:
    """The names of a layer's variables, told from their shapes."""
    match [array.ndim for array in arrays]:
        case []:
            return ()
        case [1, 1, 1, 1]:
            return NORM
        case [rank] if rank > 1:
            return ("kernel",)
        case [rank, 1] if rank > 1:
            return ("kernel", "bias")
    shapes = ", ".join(str(array.shape) for array in arrays)
    raise CheckpointError(
        f"layer {layer!r} has variables of the shapes {shapes}; only dense layers, convolutions and batch "
        "norms with gamma and beta can be read"
    )


def _config(text: str | bytes) -> Any:
    """The configuration of a model, parsed. Raises: CheckpointError if there is a Lambda layer in it."""
    config = json.loads(text)
    rest = [config]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            if node.get("class_name") in ("Lambda", "__lambda__"):
                raise CheckpointError(
                    "this model has a Lambda layer, whose code is in the file; code from files is never run. "
                    "Save the model without that layer"
                )
            rest.extend(node.values())
        elif isinstance(node, list):
            rest.extend(node)
    return config.get("config") if isinstance(config, dict) else None


def _configs_by_group(config: Any) -> dict[str, Any]:
    """The configuration of each layer by its group: conv2d, conv2d_1, ... in the order of the model."""
    found: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    try:
        for layer in config.get("layers", []) if isinstance(config, dict) else []:
            kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"])
            kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
            found[f"{kind}_{counts[kind]}" if counts[kind] else kind] = dict(layer["config"])
            counts[kind] += 1
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json describes a layer as Keras does not: {error!r}") from error
    return found


def _member(group: h5py.Group, path: str) -> Any:
    """What stands at ``path`` in an HDF5 group itself, not behind a link."""
    for part in path.split("/"):
        if not isinstance(group, h5py.Group) or not part or part not in group:
            raise CheckpointError(f"{path!r} should be in this file but is not in {group.name!r}")
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{part!r} in {group.name!r} is a link to elsewhere; it is not followed")
        group = group[part]
    return group


def _group(group: h5py.Group, path: str) -> h5py.Group:
    found = _member(group, path)
    if not isinstance(found, h5py.Group):
        raise CheckpointError(f"{found.name!r} is an array and should be a group")
    return found


def _array(group: h5py.Group, path: str) -> np.ndarray:
    dataset = _member(group, path)
    if not isinstance(dataset, h5py.Dataset):
        raise CheckpointError(f"{dataset.name!r} is a group and should be an array")
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"the numbers of {dataset.name!r} are in another file; these are not read")
    if dataset.dtype.kind != "f":
        raise CheckpointError(f"{dataset.name!r} has the type {dataset.dtype}, not floating-point numbers")
    stored, needed = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    if stored < needed and not dataset.id.get_create_plist().get_nfilters():  # a filter may compress
        raise CheckpointError(f"{dataset.name!r} {dataset.shape} needs {needed} bytes, the file has {stored}")
    return np.asarray(dataset[()])


def _strings(group: h5py.Group, name: str) -> list[str]:
    """An attribute that is a list of strings; Keras cuts one above 64 kB into name0, name1, ..."""
    values = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(values)}" in group.attrs:
        values.append(group.attrs[f"{name}{len(values)}"])
    texts = [text for value in values for text in np.ravel(value)]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


# ---------------------------------------------------------------------------------------------- our names


def to_state(arrays: Mapping[str, np.ndarray], model: Module) -> Arrays:
    """The state of ``model`` from the arrays of :func:`read`, ready for ``model.load_state_dict``.

    The names are those of keras.applications, or res2a_branch2a, bn2a_branch2a, ...; the last dense layer may
    have any name. ``model`` must be the same network: see ``variant_for`` in applications.py.

    Raises: CheckpointError that counts and names what is missing, unexpected or of another shape.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    shapes |= {name: buffer.shape for name, buffer in model.named_buffers()}
    *_, (last, _) = model.named_parameters()
    head = last.rpartition(".")[0]
    candidates = [_theirs(shapes, arrays, head, convention) for convention in CONVENTIONS]
    theirs = max(candidates, key=lambda names: sum(name in arrays for name in names.values()))
    used = set(theirs.values())
    problems = {
        "missing": [f"{there} (our {name})" for name, there in theirs.items() if there not in arrays],
        "unexpected": [f"{name} {array.shape}" for name, array in arrays.items() if name not in used],
        "misshapen": [
            f"{there} is {arrays[there].shape}, our {name} is {shapes[name]}"
            for name, there in theirs.items()
            if there in arrays and arrays[there].shape != shapes[name]
        ],
    }
    if any(problems.values()):
        lines = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
        raise CheckpointError(
            f"these weights of Keras do not fit the model ({len(arrays)} arrays there, {len(shapes)} here); "
            "build it with the options that variant_for gives\n  " + "\n  ".join(lines)
        )
    return {name: arrays[there] for name, there in theirs.items()}


LEAVES = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}
BLOCK = re.compile(r"(res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])")


def _theirs(
    names: Mapping[str, Any], arrays: Mapping[str, np.ndarray], head: str, convention: Callable[[str], str]
) -> dict[str, str]:
    """Our name -> ``layer/variable``, where ``convention`` names all layers but the last dense one.

    That is the one dense layer left over, or "predictions" if there is not just one.
    """
    ours = {name.rpartition(".")[0] for name in names}
    layers = {layer: convention(layer) for layer in ours - {head}}
    dense = {name.rpartition("/")[0] for name, array in arrays.items() if array.ndim == 2}
    others = dense - set(layers.values())
    layers[head] = others.pop() if len(others) == 1 else "predictions"
    found = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        found[name] = f"{layers[layer]}/{LEAVES.get(leaf, leaf)}"
    return found


def _block(layer: str) -> tuple[str, int, str] | None:
    """``res3b2_branch2c`` -> ("conv3_block3", 3, "conv"): block, layer in it (0: shortcut), kind."""
    found = BLOCK.fullmatch(layer)
    if found is None:
        return None
    kind, stage, letter, count, branch = found.groups()
    number = int(count) + 1 if count else ord(letter) - ord("a") + 1
    return f"conv{stage}_block{number}", "1abc".index(branch[-1]), "conv" if kind == "res" else "bn"


def _vgg(layer: str) -> str:
    if found := re.fullmatch(r"conv(\d)_(\d)", layer):
        return f"block{found[1]}_conv{found[2]}"
    return {"fc6": "fc1", "fc7": "fc2"}.get(layer, layer)


def _resnet(layer: str) -> str:
    if parts := _block(layer):
        block, number, kind = parts
        return f"{block}_{number}_{kind}"
    return {"conv1": "conv1_conv", "bn_conv1": "conv1_bn"}.get(layer, layer)


def _resnet_v2(layer: str) -> str:
    """A batch norm stands before its convolution here, and counts with the one before it there."""
    if parts := _block(layer):
        block, number, kind = parts
        if kind == "bn":
            return f"{block}_{number - 1}_bn" if number > 1 else f"{block}_preact_bn"
        return f"{block}_{number}_conv"
    return "conv1_conv" if layer == "conv1" else layer


def _densenet(layer: str) -> str:
    if found := re.fullmatch(r"block(\d)\.layer(\d+)\.(bn|conv)(\d)", layer):
        number = int(found[4]) - (found[3] == "bn")
        return f"conv{int(found[1]) + 1}_block{found[2]}_{number}_{found[3]}"
    if found := re.fullmatch(r"transition(\d)\.(bn|conv)", layer):
        return f"pool{int(found[1]) + 1}_{found[2]}"
    return {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "bn_last": "bn"}.get(layer, layer)


def _released(layer: str) -> str:
    """Our own names, which are those of the released model."""
    return layer


CONVENTIONS = (_released, _vgg, _resnet, _resnet_v2, _densenet)


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
