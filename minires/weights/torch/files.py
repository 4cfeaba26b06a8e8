"""Weight files as PyTorch's users write them, read into NumPy arrays.

    .pth .pt .th .bin .tar   what torch.save wrote: a pickle, so only PyTorch's safe loader opens it
    .safetensors             names and numbers alone; needs no PyTorch

A checkpoint of a training run often holds its weights one level down (``state_dict``), and a model that was
trained on several GPUs has ``module.`` before each name; both are undone here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from minires.errors import CheckpointError, ConfigError

TORCH = (".pth", ".pt", ".th", ".bin", ".tar")
SAFETENSORS = ".safetensors"
NUMPY_HAS = ("F16", "F32", "F64", "I32", "I64")  # I64: num_batches_tracked
CONTAINERS = ("state_dict", "model_state_dict", "model")
Arrays = dict[str, np.ndarray[Any, Any]]


def read(path: str | os.PathLike[str]) -> Arrays:
    """The arrays of a weight file by their names there, in the layout that they have there.

    Raises: ConfigError if the file needs PyTorch and it is not installed; CheckpointError if the file is
    missing, damaged, of another kind, or holds more than weights.
    """
    path = Path(path)
    if path.suffix not in (*TORCH, SAFETENSORS):
        known = ", ".join((*TORCH, SAFETENSORS))
        raise CheckpointError(f"{path}: not a weight file known here; its name must end in one of {known}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    arrays = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    if not arrays:
        raise CheckpointError(f"{path}: there is no tensor in it")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _read_safetensors(path: Path) -> Arrays:
    try:
        with safe_open(path, framework="numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            strange = {name: dtype for name, dtype in types.items() if dtype not in NUMPY_HAS}
            if not strange:
                return {name: file.get_tensor(name) for name in types}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    name, dtype = next(iter(strange.items()))
    raise CheckpointError(
        f"{path}: {len(strange)} of its {len(types)} tensors have a type that NumPy lacks, such as {name} "
        f"({dtype}); convert them to float32"
    )


def _read_torch(path: Path) -> Arrays:
    content = _load(path)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()"
        )
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not _is_tensor(value)]
    if others:
        raise CheckpointError(
            f"{path}: a state dict holds tensors alone, but {len(others)} of its {len(content)} entries are "
            f"none: {', '.join(others[:3])}; save model.state_dict()"
        )
    return {name: _to_numpy(tensor) for name, tensor in content.items()}


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ConfigError(
            f"{path} was written by PyTorch, and reading it needs PyTorch: pip install torch; "
            f"a {SAFETENSORS} file needs none"
        ) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever its unpickler met: RuntimeError, EOFError, KeyError, ...
        # Its message tells the user to switch the safe loader off; this one names what was refused.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path} holds a {refused[1]}, which is no tensor; unpickling such objects can run any code, "
                "so PyTorch's safe loader refuses the file. Save model.state_dict() alone"
            ) from error
        raise CheckpointError(
            f"{path} is damaged or no file of PyTorch's: its safe loader cannot read it "
            f"({type(error).__name__})"
        ) from error


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")


def _to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    tensor = tensor.detach()
    # to float32, because NumPy has no bfloat16
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
