"""Weights that Keras wrote, read without Keras.

:func:`read` gives the arrays of a file as ``<layer>/<variable>``, and what the file says of the network.
Three kinds of files are in use; which one a file is shows in what is in it, not in its name:

    legacy .h5, Keras 1 to 3      [model_weights/]<layer>/<path of the variable>; the attributes layer_names
                                  and weight_names list the layers and each layer's variables in order; a
                                  whole model has the attribute model_config
    .weights.h5, Keras 3          layers/<conv2d_7>/vars/<0, 1, ...>; the layer's own name is the attribute
                                  "name" of vars (the first versions of Keras 3 did not write it)
    .keras, Keras 3               a zip of config.json, metadata.json and model.weights.h5

Keras 3 numbers variables instead of naming them: kernel, bias for dense layers and convolutions; gamma, beta,
moving_mean, moving_variance for batch norms; mean, variance, count for Normalization. Kernels are
(KH, KW, C, O) or (C, O) there and here. The groups conv2d, conv2d_1, ... are numbered in the order that
the layers have in the model; that of the arrays that are returned is the same within each kind of layer.

Nothing in a file is run or unpickled. Links out of a file, and arrays kept elsewhere, are refused; a file is
read in a process of its own, within limits (:mod:`minires.limits`).

Source: keras/src/saving/saving_lib.py, keras/src/legacy/saving/legacy_h5_format.py of Keras 3.15 and 3.0.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from minires import hdf5
from minires.errors import CheckpointError
from minires.limits import apart, regular_file, unfolded
from minires.weights.values import check_values

Arrays = dict[str, np.ndarray]

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
SCALING = ("mean", "variance", "count")  # of a layer Normalization
# Keras 1 wrote W, b, running_mean, and running_std for what was a variance already.
OLD = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
_NAMES = "|".join(("kernel", "bias", *NORM, *SCALING, *OLD))
VARIABLE = re.compile(rf"(?:.*?[/_])?({_NAMES})(?:_\d+)?(?::\d+)?")
MODELS = ("Functional", "Model", "Sequential")  # layers that have layers
SUFFIXES = (".h5", ".hdf5", ".keras")  # of files that Keras writes
NOTES = "minires"  # the attribute in which we say what a file of ours holds
SHOWN = 5  # names of each kind in a message
MOST_OBJECTS = 20_000  # groups and arrays, layers of a configuration, texts of a list
MOST_TEXT = 16 * 2**20  # bytes of a configuration or another attribute
DEEPEST = 32  # models in models


def read(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a Keras file by ``<layer>/<variable>``, for example ``conv1_bn/moving_mean``; and
    ``"config"``, the configuration of the model, ``"notes"``, what we wrote there ourselves, each None where
    the file has none, and ``"models"``, in how many models its convolutions and batch norms stand.

    The layers of a model inside the model have their own names, as if they stood directly in it.

    Raises: CheckpointError if the file is missing, damaged, not of Keras, or larger than it looks; has a
    Lambda layer, numbers that are not finite, or variances below zero; or has weights of a layer that is
    neither a dense layer nor a convolution nor a batch norm.
    """
    return apart(parse, path, error=CheckpointError)


def parse(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """What :func:`read` gives, read in this process."""
    size = regular_file(path, CheckpointError)
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            arrays, info = _read_archive(path, size)
        else:
            with h5py.File(path, "r") as file:
                arrays, info = _Reader(size).read(file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # whatever h5py, zipfile and json meet in a file that is not what it should be
        # Some of their messages have several lines.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or not a file of Keras: {reason}") from error
    check_values(path, arrays)
    return arrays, info


def _read_archive(path: Path, size: int) -> tuple[Arrays, dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        members = {"config.json": MOST_TEXT, "model.weights.h5": unfolded(size)}
        names = Counter(archive.namelist())
        for name, most in members.items():
            if names[name] != 1:
                there = f"has {names[name]} of {name}" if names[name] else f"has no {name}"
                raise CheckpointError(f"this zip {there}, so it is not a .keras file; it has {some(names)}")
            entry = archive.getinfo(name)
            if entry.flag_bits & 1:
                raise CheckpointError(f"{name} in it is encrypted; unpack it and give the .weights.h5 file")
            if entry.file_size > most:
                raise CheckpointError(
                    f"{name} in it unpacks to {entry.file_size:,} bytes, where the file has {size:,}; the "
                    f"limit is {most:,}"
                )
        config = _parsed(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))  # checks the checksum of the zip too
    with h5py.File(weights, "r") as file:
        return _Reader(size).read(file, config)


class _Reader:
    """Reads an HDF5 file that came in ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.left = unfolded(size)  # bytes of arrays that it may still hold
        self.objects = MOST_OBJECTS
        self.models: set[str] = set()  # the groups of models in which convolutions and batch norms stand

    def read(self, file: h5py.File, config: Any = None) -> tuple[Arrays, dict[str, Any]]:
        if "model_config" in file.attrs:
            config = _parsed(self.attribute(file, "model_config"))
        notes = json.loads(self.attribute(file, NOTES)) if NOTES in file.attrs else None
        if self.texts(file, "layer_names"):
            found = self.listed(file, _models(config))
        elif "model_weights" in file:
            found = self.listed(hdf5.subgroup(file, "model_weights"), _models(config))
        elif "layers" in file:
            found = self.numbered(hdf5.subgroup(file, "layers"), _configs_by_group(config))
        else:
            raise CheckpointError(
                "this HDF5 file has no group layers or model_weights, and no attribute layer_names, "
                f"so it holds no weights of Keras; it has {some(file) or 'nothing'}"
            )
        arrays: Arrays = {}
        for name, array in found:
            if name in arrays:
                raise CheckpointError(f"two layers of this file have one name: {name} is there twice")
            arrays[name] = array
        if not arrays:
            raise CheckpointError("this file of Keras holds layers but no weights")
        return arrays, {"config": config, "notes": notes, "models": max(len(self.models), 1)}

    def listed(self, group: h5py.Group, models: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        """The weights of a legacy file; ``models`` are the layers that are known to have layers."""
        for layer in self.texts(group, "layer_names"):
            inside = self.group(group, layer)
            paths = self.texts(inside, "weight_names")
            variables = [_variable(layer, path) for path in paths]
            # The variables of a single layer stand under its name or that of an earlier session, conv1_2; if
            # two have the same name, this layer is a model, and its layers' names are in the paths.
            a_model = layer in models or len(set(variables)) < len(variables)
            for path, variable in zip(paths, variables, strict=True):
                name = path.split("/")[-2] if a_model and "/" in path else layer
                if variable != "count":
                    yield f"{name}/{variable}", self.array(inside, path)

    def numbered(
        self, group: h5py.Group, configs: Mapping[str, Any], depth: int = 0
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The weights of a Keras 3 file. ``configs`` are the layers' configurations where there are some."""
        if depth > DEEPEST:
            raise CheckpointError(
                f"{group.name[:60]!r}...: groups more than {DEEPEST} deep, or one that contains itself"
            )
        for key in sorted(group, key=_kind_and_number):
            layer, config = self.group(group, key), configs.get(key, {})
            if "vars" in layer:
                variables = self.group(layer, "vars")
                named = self.attribute(variables, "name") if "name" in variables.attrs else None
                name = str(named or config.get("name", key))
                if sorted(variables) != sorted(str(number) for number in range(len(variables))):
                    raise CheckpointError(
                        f"layer {name!r} has variables {some(variables)} instead of 0, 1, ..."
                    )
                shapes = [_shape(variables, str(number)) for number in range(len(variables))]
                leaves = _leaves(name, shapes)
                if leaves == NORM or (shapes and len(shapes[0]) == 4):
                    self.models.add(group.name)
                for number, leaf in enumerate(leaves):
                    if leaf != "count":
                        yield f"{name}/{leaf}", self.array(variables, str(number))
            if "layers" in layer:
                inner = self.group(layer, "layers")
                yield from self.numbered(inner, _configs_by_group(config), depth + 1)

    def group(self, group: h5py.Group, path: str) -> h5py.Group:
        self.objects -= 1
        if self.objects < 0:
            raise CheckpointError(f"it has more than {MOST_OBJECTS:,} groups, arrays and names of them")
        return hdf5.subgroup(group, path)

    def array(self, group: h5py.Group, path: str) -> np.ndarray:
        self.objects -= 1
        array = hdf5.array(group, path, kinds="f", most=self.left)
        self.left -= array.nbytes
        return array

    def texts(self, group: h5py.Group, name: str) -> list[str]:
        """An attribute that is a list of strings; Keras cuts one above 64 kB into name0, name1, ..."""
        values = [self.attribute(group, name)] if name in group.attrs else []
        while f"{name}{len(values)}" in group.attrs:
            values.append(self.attribute(group, f"{name}{len(values)}"))
        texts = [text for value in values for text in np.ravel(value)]
        return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]

    def attribute(self, group: h5py.Group, name: str) -> Any:
        """An attribute of a group: a text, or an array of texts."""
        found = h5py.h5a.open(group.id, name.encode())
        count = found.get_space().get_simple_extent_npoints()
        held = found.get_storage_size() if count else 0  # h5py takes a size of 0 for an error
        self.objects -= count
        if held > MOST_TEXT or self.objects < 0:
            raise CheckpointError(
                f"the attribute {name!r} of {group.name!r} has {count:,} values in {held:,} bytes; the "
                f"limits are {MOST_OBJECTS:,} and {MOST_TEXT:,}"
            )
        value = group.attrs[name]
        if isinstance(value, str | bytes) and len(value) > MOST_TEXT:
            raise CheckpointError(f"the attribute {name!r} has {len(value):,} letters, above {MOST_TEXT:,}")
        return value


def _shape(group: h5py.Group, path: str) -> tuple[int, ...]:
    found = hdf5.member(group, path)
    if not isinstance(found, h5py.Dataset):
        raise CheckpointError(f"{found.name!r} is a group and should be an array")
    return tuple(found.shape or ())


def _kind_and_number(key: str) -> tuple[str, int, str]:
    """conv2d, conv2d_1, ..., conv2d_10 in this order."""
    kind, _, number = key.rpartition("_")
    return (kind, int(number), key) if kind and number.isascii() and number.isdigit() else (key, 0, key)


def _variable(layer: str, path: str) -> str:
    """``bn_conv1_2/gamma:0`` -> ``gamma``."""
    found = VARIABLE.fullmatch(path)
    if found is None:
        raise CheckpointError(
            f"layer {layer!r} has the variable {path!r}; only kernel, bias and those of batch norm "
            f"({', '.join(NORM)}) can be read"
        )
    return OLD.get(found[1], found[1])


def _leaves(layer: str, shapes: list[tuple[int, ...]]) -> tuple[str, ...]:
    """The names of a layer's variables, told from their shapes."""
    match [len(shape) for shape in shapes]:
        case []:
            return ()
        case [1, 1, 1, 1]:
            return NORM
        case [1, 1, 0]:
            return SCALING
        case [rank] if rank > 1:
            return ("kernel",)
        case [rank, 1] if rank > 1:
            return ("kernel", "bias")
    raise CheckpointError(
        f"layer {layer!r} has variables of the shapes {', '.join(map(str, shapes))}; only dense layers, "
        "convolutions and batch norms with gamma and beta can be read"
    )


# --------------------------------------------------------------------------------- the configuration's layers


def _parsed(text: str | bytes) -> Any:
    """The configuration of a model. Raises: CheckpointError if there is a Lambda layer in it."""
    if len(text) > MOST_TEXT:
        raise CheckpointError(f"its configuration has {len(text):,} letters, above {MOST_TEXT:,}")
    try:
        config = json.loads(text)
    except RecursionError:
        raise CheckpointError("its configuration is nested too deeply") from None
    for node in _everything(config):
        if isinstance(node, dict) and node.get("class_name") in ("Lambda", "__lambda__"):
            raise CheckpointError(
                "this model has a Lambda layer, whose code is in the file; code from files is never run. "
                "Save the model without that layer"
            )
    return config


def _everything(config: Any) -> Iterator[Any]:
    rest = [config]
    while rest:
        node = rest.pop()
        yield node
        if isinstance(node, dict):
            rest.extend(node.values())
        elif isinstance(node, list):
            rest.extend(node)


def _models(config: Any) -> set[str]:
    """The names of the models inside the model."""
    return {
        str(node["config"].get("name"))
        for node in _everything(config)
        if isinstance(node, dict)
        and node.get("class_name") in MODELS
        and isinstance(node.get("config"), dict)
    }


def _configs_by_group(config: Any) -> dict[str, Any]:
    """The configuration of each layer by its group: conv2d, conv2d_1, ... in the order of the model."""
    found: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    try:
        config = config.get("config", config) if isinstance(config, dict) else {}
        for layer in config.get("layers", []):
            kind = group_of(layer["class_name"])
            found[numbered_name(kind, counts[kind])] = dict(layer["config"])
            counts[kind] += 1
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"config.json describes a layer as Keras does not: {error!r}") from error
    return found


def group_of(kind: str) -> str:
    """What Keras 3 calls the groups of a class of layers in a file.

    >>> group_of("BatchNormalization"), group_of("Conv2D")
    ('batch_normalization', 'conv2d')
    """
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()


def numbered_name(kind: str, number: int) -> str:
    """conv2d, conv2d_1, conv2d_2, ... for 0, 1, 2, ..."""
    return f"{kind}_{number}" if number else kind


def some(names: Any) -> str:
    """The first of the names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
