"""What Keras's models call our layers.

A convention gives the name of each of our layers but the last dense one, whose name is free. :func:`to_state`
finds by it the arrays of a file that says nothing of the network but names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from minires.errors import CheckpointError
from minires.nn.module import Module
from minires.weights.keras.files import Arrays, some

LEAVES = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}
BLOCK = re.compile(r"(res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])")


def to_state(
    arrays: Mapping[str, np.ndarray], model: Module, *, convention: str | None = None, head: bool = True
) -> Arrays:
    """The state of ``model`` from the arrays of a file, ready for ``model.load_state_dict``.

    The names are those of ``convention``, or of the one in :data:`CONVENTIONS` that fits best; the last dense
    layer may have any name. Without ``head`` that layer's arrays are left out.

    Raises: CheckpointError that counts and names what is missing, unexpected or of another shape.
    """
    return taken(arrays, model, names_of(arrays, model, convention or best(arrays, model)), head=head)


def taken(
    arrays: Mapping[str, np.ndarray], model: Module, theirs: Mapping[str, str], *, head: bool = True
) -> Arrays:
    """The state of ``model`` from the arrays that are called as ``theirs`` says for each name of ours.

    Raises: CheckpointError as :func:`to_state`.
    """
    last = head_of(model)
    if not head:
        theirs = {name: there for name, there in theirs.items() if not name.startswith(f"{last}.")}
    shapes = shapes_of(model)
    used = set(theirs.values())
    free = {name for name in arrays if name.endswith(("/mean", "/variance"))}  # of a layer Normalization
    if not head:  # what stands behind the last of our layers is the file's own head
        free |= {name for name in arrays if dense_layer(name, arrays)}
    problems = {
        "missing": [f"{there} (our {name})" for name, there in theirs.items() if there not in arrays],
        "unexpected": [
            f"{name} {array.shape}" for name, array in arrays.items() if name not in used and name not in free
        ],
        "misshapen": [
            f"{there} is {arrays[there].shape}, our {name} is {shapes[name]}"
            for name, there in theirs.items()
            if there in arrays and arrays[there].shape != shapes[name]
        ],
    }
    if any(problems.values()):
        lines = [f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names]
        raise CheckpointError(
            f"these weights of Keras do not fit the model ({len(arrays)} arrays there, {len(shapes)} here); "
            "build it with the options that variant_for gives\n  " + "\n  ".join(lines)
        )
    return {name: np.asarray(arrays[there], np.float32) for name, there in theirs.items()}


def shapes_of(model: Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return shapes | {name: buffer.shape for name, buffer in model.named_buffers()}


def head_of(model: Module) -> str:
    """The path of the last dense layer."""
    *_, (last, _) = model.named_parameters()
    return last.rpartition(".")[0]


def best(arrays: Mapping[str, np.ndarray], model: Module) -> str:
    """The convention by which the most arrays are found."""
    counts = {
        convention: sum(name in arrays for name in names_of(arrays, model, convention).values())
        for convention in CONVENTIONS
    }
    return max(counts, key=lambda convention: counts[convention])


def recognised(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The convention of a file's names, as the layers that only it has show; None if there are none."""
    layers = {name.rpartition("/")[0] for name in arrays}
    return next((name for name, mark in MARKS.items() if any(map(mark.fullmatch, layers))), None)


def dense_layer(name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether this array is of a dense layer."""
    kernel = arrays.get(f"{name.rpartition('/')[0]}/kernel")
    return kernel is not None and kernel.ndim == 2


def names_of(arrays: Mapping[str, np.ndarray], model: Module, convention: str) -> dict[str, str]:
    """Our name -> ``layer/variable`` for all parameters and buffers.

    The last dense layer is the one of the file's that is left over, or "predictions" if there is not just
    one.
    """
    names, head = shapes_of(model), head_of(model)
    ours = {name.rpartition(".")[0] for name in names}
    layers = {layer: CONVENTIONS[convention](layer) for layer in ours - {head}}
    dense = {name.rpartition("/")[0] for name, array in arrays.items() if array.ndim == 2}
    others = dense - set(layers.values())
    layers[head] = others.pop() if len(others) == 1 else "predictions"
    return {name: their_name(name, layers[name.rpartition(".")[0]]) for name in names}


def their_name(name: str, layer: str) -> str:
    """``bn_conv1.running_var`` in their ``layer`` -> ``layer/moving_variance``."""
    leaf = name.rpartition(".")[2]
    return f"{layer}/{LEAVES.get(leaf, leaf)}"


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


CONVENTIONS: dict[str, Callable[[str], str]] = {
    "released": _released, "vgg": _vgg, "resnet": _resnet, "resnet_v2": _resnet_v2, "densenet": _densenet,
}  # fmt: skip
# Layers that only one convention has. (That of ResNet has no layer that ResNet V2 and DenseNet lack; they are
# asked before it.)
MARKS = {
    "released": re.compile(r"res\d[a-z]\d*_branch.*"),
    "vgg": re.compile(r"block\d_conv\d"),
    "resnet_v2": re.compile(r"conv\d_block\d+_preact_bn"),
    "densenet": re.compile(r"pool\d_conv"),
    "resnet": re.compile(r"conv\d_block\d+_\d_conv"),
}
