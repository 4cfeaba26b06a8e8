"""The networks of torchvision, timm, transformers and akamaster that are ours, made by the real packages.

    python tests/weights/real.py        writes names.json: names and shapes, where the packages are installed

``names.json`` has for each network how many tensors it has and a digest of their names and shapes: enough to
see, where a package is not installed, that ours are the same.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NAMES = Path(__file__).with_name("names.json")

_RESNET = {f"resnet{n}": f"resnet{n}" for n in (18, 34, 50, 101, 152)}
_TORCHVISION = {
    **_RESNET,
    **{name: name for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")},
    **{f"vgg{n}{bn}": f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")},
    **{f"densenet{n}": f"densenet{n}" for n in (121, 161, 169, 201)},
}
# source: our model: what it is called there
NETWORKS: dict[str, dict[str, str]] = {
    "torchvision": {**_TORCHVISION, "resnext50_1x64d": "resnet50"},
    "timm": {
        **_TORCHVISION,
        "resnext101_32x4d": "resnext101_32x4d", "resnext50_1x64d": "resnet50",
        **{f"se_resnet{n}": f"seresnet{n}" for n in (50, 101, 152)},
        **{f"se_resnext{n}_32x4d": f"seresnext{n}_32x4d" for n in (50, 101)},
        **{f"preresnet{n}": f"resnetv2_{n}" for n in (18, 34, 50, 101, 152)},
    },
    "cadene": {  # in timm
        **{f"se_resnet{n}": f"legacy_seresnet{n}" for n in (50, 101, 152)},
        **{f"se_resnext{n}_32x4d": f"legacy_seresnext{n}_32x4d" for n in (50, 101)},
        "senet154": "legacy_senet154",
    },
    "huggingface": {name: f"microsoft/{name.replace('net', 'net-')}" for name in _RESNET},
}  # fmt: skip
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "cadene": "timm", "huggingface": "transformers"}
_DEPTHS = {
    "resnet18": ("basic", [2, 2, 2, 2]), "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]), "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}  # fmt: skip


def make(source: str, ours: str, classes: int, **options: Any) -> Any:
    """The network of a real package, with weights drawn at random."""
    if source == "torchvision":
        import torchvision

        return getattr(torchvision.models, NETWORKS[source][ours])(num_classes=classes, **options)
    if source in ("timm", "cadene"):
        import timm

        return timm.create_model(NETWORKS[source][ours], num_classes=classes, **options)
    from transformers import ResNetConfig, ResNetForImageClassification

    kind, depths = _DEPTHS[ours]
    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    config = {"layer_type": kind, "depths": depths, "hidden_sizes": widths, "num_labels": classes}
    return ResNetForImageClassification(ResNetConfig(**{**config, **options}))


def on_meta(source: str, ours: str, classes: int) -> Any:
    """The same without numbers."""
    import torch

    with torch.device("meta"):
        return make(source, ours, classes)


def digest(shapes: Iterable[tuple[str, Iterable[int]]]) -> list[Any]:
    """How many tensors there are, and a digest of their names and shapes."""
    lines = sorted(
        f"{name} {list(shape)}" for name, shape in shapes if not name.endswith("num_batches_tracked")
    )
    return [len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]]


def akamaster(folder: Path) -> Callable[..., Any]:
    """Their resnet.py, loaded from a copy of their repository."""
    spec = importlib.util.spec_from_file_location("akamaster_resnet", folder / "resnet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name, classes: module.ResNet(
        module.BasicBlock, [(int(re.findall(r"\d+", name)[0]) - 2) // 6] * 3, num_classes=classes
    )


def _main() -> None:
    found: dict[str, Any] = {"classes": 7, "versions": {}}
    for source, networks in NETWORKS.items():
        package = PACKAGES[source]
        found["versions"][package] = importlib.metadata.version(package)
        found[source] = {}
        for ours in networks:
            state = on_meta(source, ours, found["classes"]).state_dict()
            found[source][ours] = digest((name, tensor.shape) for name, tensor in state.items())
    text = json.dumps(found, indent=1)
    NAMES.write_text(re.sub(r"\[\s+(\d+),\s+(\S+)\s+\]", r"[\1, \2]", text) + "\n")


if __name__ == "__main__":
    _main()
