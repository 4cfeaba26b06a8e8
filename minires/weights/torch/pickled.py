"""What torch.save wrote, opened by PyTorch's own safe loader; only :func:`minires.limits.apart` imports this.

A zip is checked before: the checksum of each file in it, and how much it unfolds to. A pickle from before
PyTorch 1.6 has no checksums, so a changed number in it is not found out, unless it makes no sense.
"""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.errors import CheckpointError
from minires.limits import unfolded
from minires.weights.classes import KEYS, contradiction, names_in
from minires.weights.contents import DAMAGED_ZIP
from minires.weights.torch.containers import state_dict_in
from minires.weights.values import COUNTERS

if TYPE_CHECKING:
    import torch

PIECE = 1 << 20  # bytes
NAMED = ("arch", "architecture", "model_name", "model", "backbone", "encoder_name", "encoder")


def read(path: str, container: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file in float32 by their names, and what else it says of itself, see ``_said``;
    ``odd`` are those of another kind, by name.

    Raises: CheckpointError.
    """
    import torch

    torch.set_num_threads(1)
    most = unfolded(os.path.getsize(path))
    if zipfile.is_zipfile(path):
        _check_zip(path, most)
    content = _load(path)
    try:
        state, taken, others = state_dict_in(content, is_tensor, container)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    said = {**_said(content), "container": taken, "containers": others}
    odd: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if str(name).endswith(COUNTERS):
            continue
        if kind := odd_kind(tensor):
            odd[str(name)] = kind
            continue
        most -= 4 * tensor.numel()
        if most < 0:
            raise CheckpointError(
                f"{path} is damaged: its tensors unfold to more than {unfolded(os.path.getsize(path)):,} "
                f"bytes at {name} {tuple(tensor.shape)}"
            )
        arrays[str(name)] = np.array(tensor.detach().to(torch.float32).numpy())
    return arrays, {**said, "odd": odd}


def _check_zip(path: str, most: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            name, times = Counter(one.filename for one in members).most_common(1)[0]
            if times > 1:
                raise CheckpointError(f"{path} is damaged: its zip holds {name} {times} times")
            needed = sum(one.file_size for one in members)
            if needed > most:
                raise CheckpointError(
                    f"{path} unfolds to {needed:,} bytes; a file of its size may have {most:,}. "
                    "torch.save does not compress; a file that it wrote is no larger inside"
                )
            for one in members:
                with archive.open(one) as file:  # raises at the end, if the checksum is another
                    while file.read(PIECE):
                        pass
    except CheckpointError:
        raise
    except DAMAGED_ZIP as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. Download or copy it again; or, if it was written with "
            "torch.serialization.set_crc32_options(False), which leaves out the checksums, write it with them"
        ) from error


def _load(path: str) -> Any:
    import torch

    try:
        # What programs save of their options: a bare object with attributes.
        # An open file, because for a name that ends in .safetensors it would expect such a file.
        with torch.serialization.safe_globals([argparse.Namespace]), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever its unpickler met: RuntimeError, EOFError, KeyError, ...
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise CheckpointError(_refused(path, str(error), type(error).__name__)) from error


def _refused(path: str, message: str, kind: str) -> str:
    # Its message tells the user to switch the safe loader off; ours names what was refused.
    refused = re.search(r"GLOBAL ([\w.]+)", message)
    if refused is None:
        return f"{path} is damaged or no file of PyTorch's: its safe loader cannot read it ({kind})"
    name = refused[1]
    if name.startswith("numpy"):
        return (
            f"{path} holds arrays or numbers of NumPy's ({name}), which the safe loader of PyTorch refuses. "
            "Save model.state_dict() alone, or arrays with numpy.savez"
        )
    package = name.partition(".")[0]
    return (
        f"{path} holds a {name}, which is no tensor; unpickling such objects can run any code, so PyTorch's "
        "safe loader refuses the file. Load it where "
        + (f"{package} is installed" if package != "__main__" else "the program that wrote it is")
        + " and you trust it, and save model.state_dict() alone"
    )


def is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def odd_kind(tensor: torch.Tensor) -> str:
    """What a tensor is, in words, if it is not of plain floating-point numbers; else nothing."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized:
        return f"quantised ({dtype}); save the model before it was quantised"
    if tensor.is_sparse or tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        return f"sparse ({layout}); save it as tensor.to_dense()"
    if tensor.is_meta or tensor.device.type != "cpu":
        return "on the device meta, a shape without numbers; load the weights before saving"
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return dtype
    return ""


def _said(content: Any) -> dict[str, Any]:
    """What a checkpoint says of itself beside the weights: ``named``, the architecture with where it stands,
    ``classes`` with where these stand, and their ``contradiction``."""
    named: list[list[str]] = []
    classes: list[tuple[str, list[str]]] = []
    for place, part in _beside(content):
        named += [[f"{place}{key}", str(part[key])] for key in NAMED if isinstance(part.get(key), str)]
        for key in KEYS:
            if (found := names_in(_numbers(part.get(key)))) is not None:
                classes.append((f"{place}{key}", found))
    where, names = classes[0] if classes else ("", None)
    return {
        "named": named, "classes": names, "classes_from": where, "contradiction": contradiction(classes)
    }  # fmt: skip


def _numbers(value: Any) -> Any:
    """A dict with whole numbers in the place of tensors that hold one."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: int(one) if is_tensor(one) and one.numel() == 1 and not one.dtype.is_floating_point else one
        for name, one in value.items()
    }


def _beside(content: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, Mapping):
        return []
    parts: list[tuple[str, Any]] = [("", content)]
    for key in ("hyper_parameters", "hparams", "args", "config", "cfg", "meta", "opt"):
        value = content.get(key)
        parts.append((f"{key}.", vars(value) if isinstance(value, argparse.Namespace) else value))
    return [(place, part) for place, part in parts if isinstance(part, Mapping)]
