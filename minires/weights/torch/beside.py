"""What the files beside weights say of them: what Hugging Face and timm write there.

    config.json of transformers    layer_type, downsample_in_bottleneck, hidden_act, id2label, ...
    config.json of timm            architecture, model_args, label_names, pretrained_cfg (mean, std)
    preprocessor_config.json       image_mean, image_std

They are read only beside a file that is called as those programs call theirs: beside others, in a folder of
downloads, they may belong to anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minires.data import Normalize
from minires.errors import CheckpointError, MiniresError
from minires.weights.classes import KEYS, names_in

CALLED = re.compile(r"(pytorch_)?model[-.\w]*\.(safetensors|bin)(\.index\.json)?")
LONGEST = 10_000_000  # bytes
# What a network of timm's may be made with and still be the one of its name.
HARMLESS = {"num_classes", "drop_rate", "drop_path_rate", "pretrained", "checkpoint_path", "in_chans"}


@dataclass(frozen=True)
class Beside:
    """``named`` are architectures with where they stand; ``options`` those of our model that follow."""

    named: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] | None = None
    normalize: Normalize | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> Beside:
    """What stands beside the file of weights at ``path``.

    Raises: CheckpointError if it says that the network is one that our models cannot be.
    """
    if not CALLED.fullmatch(path.name):
        return Beside()
    config = _json(path.with_name("config.json"))
    processor = _json(path.with_name("preprocessor_config.json"))
    where = str(path.with_name("config.json"))
    named: list[tuple[str, str]] = []
    if isinstance(config.get("architecture"), str):
        named.append((f"{where}: architecture", config["architecture"]))
        _check_timm(config, where)
    options = _huggingface(config, where) if config.get("model_type") == "resnet" else {}
    places = (config, _mapping(config.get("pretrained_cfg")))
    labels = [names for place in places for key in KEYS if (names := names_in(place.get(key)))]
    normalize = None
    if processor.get("do_normalize", True):
        normalize = _normalize(processor.get("image_mean"), processor.get("image_std"))
    normalize = normalize or _normalize(places[1].get("mean"), places[1].get("std"))
    return Beside(tuple(named), tuple(labels[0]) if labels else None, normalize, options)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:
            return {}
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}, which belongs to the weights beside it, cannot be read: {error}"
        ) from error


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _check_timm(config: Mapping[str, Any], where: str) -> None:
    arguments = _mapping(config.get("model_args"))
    usual = {"in_chans": 3, "global_pool": "avg"}
    strange = {
        name: value
        for name, value in arguments.items()
        if value is not None and (name not in HARMLESS | usual.keys() or value != usual.get(name, value))
    }
    if strange:
        name, value = next(iter(strange.items()))
        raise CheckpointError(f"{where}: the network was made with {name}={value!r}, which none here is")


def _huggingface(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of a ResNet of transformers', which no name and no shape shows."""
    for key, wanted in {"downsample_in_first_stage": False, "hidden_act": "relu", "num_channels": 3}.items():
        if config.get(key, wanted) != wanted:
            raise CheckpointError(f"{where}: {key} is {config[key]!r}; the models here have {wanted!r}")
    if config.get("layer_type", "bottleneck") == "basic":
        return {}
    return {"stride_on": "1x1" if config.get("downsample_in_bottleneck", False) else "3x3"}


def _normalize(mean: Any, std: Any) -> Normalize | None:
    if not all(isinstance(one, Sequence) and len(one) == 3 for one in (mean, std)):
        return None
    try:
        return Normalize(
            (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))
        )
    except (TypeError, ValueError, MiniresError):
        return None
