"""Weight files that others give away, and what is known of each: where it is, its hash, what it learnt.

All of it is copied from those who publish the files:

    torchvision   torchvision 0.28.0, torchvision/models/{resnet,vgg,densenet}.py: address, MiB, "acc@1"
    timm, cadene  huggingface/pytorch-image-models, commit aa4b585: address in timm/models/{resnet,senet}.py,
                  accuracy in results/results-imagenet.csv, the row of pictures of 224x224
    akamaster     akamaster/pytorch_resnet_cifar10, commit d5489e8: address and test error in README.md

A publisher puts the first eight digits of a file's SHA-256 into its name; where the file itself was at hand,
all 64 stand here. What a file is stays its publisher's: the licence is the one that it states for its files,
and the pictures that a network learnt from may have conditions of their own (those of ImageNet have).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minires.data import Normalize, cache
from minires.errors import ConfigError
from minires.models import entry
from minires.registry import Registry
from minires.train import starters
from minires.weights.sources import SOURCES

WHOLE = 64  # digits of a SHA-256


@dataclass(frozen=True, kw_only=True)
class Known:
    """A file of weights that is known.

    ``source`` says whose names it has, one of :data:`minires.weights.SOURCES`, and ``variant`` the options of
    ``model`` on top of that source's. ``sha256`` are all digits of it, or the first eight, which the
    publisher puts into the name of the file. ``accuracy`` is the share of right pictures, in %, as
    ``measured`` says. ``mib`` is the size, as published, None where it is not. A file that is part of
    this package is a model of ours already: it has no ``source`` and no ``url``.
    """

    model: str
    file: str
    sha256: str
    trained_on: str
    accuracy: float
    measured: str
    licence: str
    source: str = ""
    url: str = ""
    mib: float | None = None
    variant: Mapping[str, Any] = field(default_factory=dict)

    @property
    def packaged(self) -> bool:
        """Whether it is part of this package, and always here."""
        return not self.url

    @property
    def whole_hash(self) -> bool:
        """Whether all digits of the hash are known, and not only the publisher's eight."""
        return len(self.sha256) == WHOLE

    @property
    def normalize(self) -> Normalize | None:
        """How pictures are to be scaled; None of a packaged file, which says it itself."""
        if self.packaged:
            return None
        return SOURCES[self.source].small_pictures if entry(self.model).size == 32 else Normalize.imagenet()


# --------------------------------------------------------------------------------------------- the table


def _hash_in(file: str) -> str:
    found = re.search(r"-([0-9a-f]{8})\.\w+$", file)
    assert found, file
    return found[1]


def _torchvision(
    model: str, file: str, mib: float, accuracy: float, variant: Mapping[str, Any] | None = None
) -> Known:
    return Known(
        model=model, file=file, sha256=_hash_in(file), trained_on="ImageNet-1K", accuracy=accuracy, mib=mib,
        measured="validation, 224x224; torchvision 0.28", licence="BSD-3-Clause", source="torchvision",
        url=f"https://download.pytorch.org/models/{file}", variant=variant or {},
    )  # fmt: skip


def _timm(model: str, path: str, accuracy: float, source: str = "timm", **variant: Any) -> Known:
    """``path`` is that of the release's file, behind the address of who released it."""
    file = path.rpartition("/")[2]
    return Known(
        model=model, file=file, sha256=_hash_in(file), trained_on="ImageNet-1K", accuracy=accuracy,
        measured="validation, 224x224; timm's results-imagenet.csv", licence="Apache-2.0", source=source,
        url=f"https://github.com/{path}", variant=variant,
    )  # fmt: skip


def _akamaster(model: str, file: str, error: float, size: int | None = None, sha256: str = "") -> Known:
    """``error`` is that of the test, in %, and ``size`` the bytes of a file that was at hand."""
    base = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
    return Known(
        model=model, file=file, sha256=sha256 or _hash_in(file), trained_on="CIFAR-10",
        accuracy=round(100 - error, 2), measured="test, 32x32; its README", licence="BSD-2-Clause",
        source="akamaster", url=f"{base}/{file}", mib=size and size / 2**20,
    )  # fmt: skip


_WIDE = {"width": 128}  # of our resnext50_1x64d: torchvision's wide_resnet50_2
_RSB = "huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights"
_ROSS = "rwightman/pytorch-image-models/releases/download"
_GLUON = "rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1"

KNOWN: Registry[Known] = Registry("weight file", {
    "starter": Known(
        model="resnet20_cifar", file="starter.safetensors", trained_on="CIFAR-10", mib=0.605,
        sha256="56ca551cb237d1717af75f5d99adc9953dc9bfb0364b3980297247c2c113f7fc",
        accuracy=86.83, measured="test, 32x32, JPEG; benchmarks/results/starter.json", licence="MIT",
        variant={"widths": [24, 48, 96]},
    ),
    "resnet20_cifar-akamaster": _akamaster("resnet20_cifar", "resnet20-12fca82f.th", 8.27, 1099231,
        "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "resnet32_cifar-akamaster": _akamaster("resnet32_cifar", "resnet32-d509ac18.th", 7.37, 1890043,
        "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    "resnet44_cifar-akamaster": _akamaster("resnet44_cifar", "resnet44-014dd654.th", 6.90, 2680855,
        "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
    "resnet56_cifar-akamaster": _akamaster("resnet56_cifar", "resnet56-4bfd9763.th", 6.61, 3471733,
        "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "resnet110_cifar-akamaster": _akamaster("resnet110_cifar", "resnet110-1d1ed7c2.th", 6.32),
    "resnet1202_cifar-akamaster": _akamaster("resnet1202_cifar", "resnet1202-f3b1deed.th", 6.18),

    "resnet18-torchvision-v1": _torchvision("resnet18", "resnet18-f37072fd.pth", 44.661, 69.758),
    "resnet34-torchvision-v1": _torchvision("resnet34", "resnet34-b627a593.pth", 83.275, 73.314),
    "resnet50-torchvision-v1": _torchvision("resnet50", "resnet50-0676ba61.pth", 97.781, 76.13),
    "resnet50-torchvision-v2": _torchvision("resnet50", "resnet50-11ad3fa6.pth", 97.79, 80.858),
    "resnet101-torchvision-v1": _torchvision("resnet101", "resnet101-63fe2227.pth", 170.511, 77.374),
    "resnet101-torchvision-v2": _torchvision("resnet101", "resnet101-cd907fc2.pth", 170.53, 81.886),
    "resnet152-torchvision-v1": _torchvision("resnet152", "resnet152-394f9c45.pth", 230.434, 78.312),
    "resnet152-torchvision-v2": _torchvision("resnet152", "resnet152-f82ba261.pth", 230.474, 82.284),
    "resnext50_32x4d-torchvision-v1": _torchvision(
        "resnext50_32x4d", "resnext50_32x4d-7cdf4587.pth", 95.789, 77.618),
    "resnext50_32x4d-torchvision-v2": _torchvision(
        "resnext50_32x4d", "resnext50_32x4d-1a0047aa.pth", 95.833, 81.198),
    "resnext101_32x8d-torchvision-v1": _torchvision(
        "resnext101_32x8d", "resnext101_32x8d-8ba56ff5.pth", 339.586, 79.312),
    "resnext101_32x8d-torchvision-v2": _torchvision(
        "resnext101_32x8d", "resnext101_32x8d-110c445d.pth", 339.673, 82.834),
    "resnext101_64x4d-torchvision-v1": _torchvision(
        "resnext101_64x4d", "resnext101_64x4d-173b62eb.pth", 319.318, 83.246),
    "wide_resnet50_2-torchvision-v1": _torchvision(
        "resnext50_1x64d", "wide_resnet50_2-95faca4d.pth", 131.82, 78.468, _WIDE),
    "wide_resnet50_2-torchvision-v2": _torchvision(
        "resnext50_1x64d", "wide_resnet50_2-9ba9bcbe.pth", 263.124, 81.602, _WIDE),
    "vgg11-torchvision-v1": _torchvision("vgg11", "vgg11-8a719046.pth", 506.84, 69.02),
    "vgg11_bn-torchvision-v1": _torchvision("vgg11_bn", "vgg11_bn-6002323d.pth", 506.881, 70.37),
    "vgg13-torchvision-v1": _torchvision("vgg13", "vgg13-19584684.pth", 507.545, 69.928),
    "vgg13_bn-torchvision-v1": _torchvision("vgg13_bn", "vgg13_bn-abd245e5.pth", 507.59, 71.586),
    "vgg16-torchvision-v1": _torchvision("vgg16", "vgg16-397923af.pth", 527.796, 71.592),
    "vgg16_bn-torchvision-v1": _torchvision("vgg16_bn", "vgg16_bn-6c64b313.pth", 527.866, 73.36),
    "vgg19-torchvision-v1": _torchvision("vgg19", "vgg19-dcbb9e9d.pth", 548.051, 72.376),
    "vgg19_bn-torchvision-v1": _torchvision("vgg19_bn", "vgg19_bn-c79401a0.pth", 548.143, 74.218),
    "densenet121-torchvision-v1": _torchvision("densenet121", "densenet121-a639ec97.pth", 30.845, 74.434),
    "densenet161-torchvision-v1": _torchvision("densenet161", "densenet161-8d451a50.pth", 110.369, 77.138),
    "densenet169-torchvision-v1": _torchvision("densenet169", "densenet169-b2777c0a.pth", 54.708, 75.6),
    "densenet201-torchvision-v1": _torchvision("densenet201", "densenet201-c1103571.pth", 77.373, 76.896),

    "resnet18-timm-a1": _timm("resnet18", f"{_RSB}/resnet18_a1_0-d63eafa0.pth", 71.504),
    "resnet34-timm-a1": _timm("resnet34", f"{_RSB}/resnet34_a1_0-46f8f793.pth", 76.42),
    "resnet50-timm-a1": _timm(
        "resnet50", f"{_ROSS}/v0.1-rsb-weights/resnet50_a1_0-14fe96d1.pth", 80.382),
    "resnet101-timm-a1h": _timm(
        "resnet101", f"{_ROSS}/v0.1-rsb-weights/resnet101_a1h-36d3f2aa.pth", 81.95),
    "resnet152-timm-a1h": _timm(
        "resnet152", f"{_ROSS}/v0.1-rsb-weights/resnet152_a1h-dc400468.pth", 82.818),
    "resnext50_32x4d-timm-a1h": _timm(
        "resnext50_32x4d", f"{_ROSS}/v0.1-rsb-weights/resnext50_32x4d_a1h-0146ab0a.pth", 81.14),
    "resnext101_32x4d-timm-gluon": _timm(
        "resnext101_32x4d", f"{_GLUON}/gluon_resnext101_32x4d-b253c8c4.pth", 80.336),
    "resnext101_64x4d-timm-c1": _timm(
        "resnext101_64x4d", f"{_ROSS}/v0.1-tpu-weights/resnext101_64x4d_c-0d0e0cc0.pth", 82.446),
    "se_resnet50-timm-ra2": _timm(
        "se_resnet50", f"{_ROSS}/v0.1-weights/seresnet50_ra_224-8efdb4bb.pth", 80.26),
    "se_resnext50_32x4d-timm-racm": _timm(
        "se_resnext50_32x4d", f"{_ROSS}/v0.1-weights/seresnext50_32x4d_racm-a304a460.pth", 81.268),

    "se_resnet50-cadene": _timm(
        "se_resnet50", f"{_ROSS}/v0.1-cadene/se_resnet50-ce0d4300.pth", 77.65, "cadene"),
    "se_resnet101-cadene": _timm(
        "se_resnet101", f"{_ROSS}/v0.1-cadene/se_resnet101-7e38fcc6.pth", 78.37, "cadene"),
    "se_resnet152-cadene": _timm(
        "se_resnet152", f"{_ROSS}/v0.1-cadene/se_resnet152-d17c99b7.pth", 78.662, "cadene"),
    "se_resnext50_32x4d-cadene": _timm(
        "se_resnext50_32x4d", f"{_ROSS}/v0.1-weights/legacy_se_resnext50_32x4d-f3651bad.pth", 79.08,
        "cadene"),
    "se_resnext101_32x4d-cadene": _timm(
        "se_resnext101_32x4d", f"{_ROSS}/v0.1-weights/legacy_se_resnext101_32x4d-37725eac.pth", 80.274,
        "cadene"),
    "senet154-cadene": _timm(
        "senet154", f"{_ROSS}/v0.1-weights/legacy_senet154-e9eb9fe6.pth", 81.32, "cadene"),
}, listed="`minires weights`")  # fmt: skip


# ---------------------------------------------------------------------------------------- where they are


def place_of(name: str) -> Path:
    """Where the model of a known file is, or comes to be: in the package, or in the user's cache.

    Raises: ConfigError, with the nearest name, if it is not known.
    """
    one = KNOWN.find(name)
    if one.packaged:
        return Path(starters.__file__).parent / one.file
    return cache() / "weights" / f"{name}.safetensors"


def path_of(text: str | os.PathLike[str]) -> str:
    """The path of a trained model that is given by its path, or by the name of a known file of weights.

    Raises: ConfigError, with what to do, for a known file that is not here.

    >>> path_of("runs/mine")
    'runs/mine'
    """
    text = os.fspath(text)
    if os.path.lexists(text) or text not in KNOWN:
        return text
    place = place_of(text)
    if not place.is_file():
        raise ConfigError(f"{text} is known, and not here yet: {ways(text)}")
    return str(place)


def ways(name: str) -> str:
    """How a known file comes here, with a network and without."""
    return f"`minires weights {name} --fetch` downloads it; without a network {by_hand(name)}"


def by_hand(name: str) -> str:
    """How a known file comes to a machine without a network."""
    one = KNOWN.find(name)
    return (
        f"bring {one.url} another way and run `minires weights {name} --verify {shlex.quote(one.file)}`"
    )
