"""The table of known weight files: whole in itself, and as those who publish the files have it."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
from pathlib import Path

import pytest
from weights import real

from minires import models
from minires.errors import ConfigError
from minires.weights import KNOWN, path_of, place_of, variant_for
from minires.weights.contents import kind_of

NAMES = json.loads(real.NAMES.read_text())
OTHERS = {name: one for name, one in KNOWN.items() if not one.packaged}


def test_the_table_has_the_families_that_are_read_here():
    assert {one.source for one in OTHERS.values()} == {"akamaster", "torchvision", "timm", "cadene"}
    for model in ("resnet50", "resnext101_32x8d", "vgg16_bn", "densenet161", "resnet56_cifar", "senet154"):
        assert any(one.model == model for one in OTHERS.values())


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_said_of_a_file_fits_together(name):
    one = KNOWN[name]
    assert one.url.startswith("https://") and one.url.endswith(f"/{one.file}")
    digits = re.search(r"-([0-9a-f]{8})\.(pth|th)$", one.file)[1]
    assert one.sha256.startswith(digits) and len(one.sha256) == (64 if one.whole_hash else 8)
    assert one.model in models.names()
    assert 50 < one.accuracy < 100 and one.licence and one.measured
    assert one.trained_on == ("CIFAR-10" if models.entry(one.model).size == 32 else "ImageNet-1K")
    assert len({other.file for other in OTHERS.values()}) == len(OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_our_model_has_the_names_and_shapes_of_the_file(name):
    """Those of the real packages, which names.json has; the wide network has them of its own."""
    one = KNOWN[name]
    options = {**variant_for(one.source, one.model), **one.variant}
    model = models.build(one.model, initializer="zeros", **options)
    if one.source != "akamaster":
        assert one.model in NAMES[one.source]
    parameters = sum(parameter.size for parameter in model.parameters())
    if one.mib is not None and one.file != "wide_resnet50_2-95faca4d.pth":  # that one is of 16 bits
        buffers = sum(array.size for _, array in model.named_buffers())
        # Names and a table take some more; a file of 16 bits would have half, one of 64 twice.
        assert 1 <= one.mib * 2**20 / (4 * (parameters + buffers)) < (1.35 if one.mib < 10 else 1.02)


@pytest.mark.parametrize("name", [name for name in OTHERS if KNOWN[name].source == "torchvision"])
def test_torchvision_says_the_same(name):
    try:
        theirs = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was made for another PyTorch
        pytest.skip(f"needs torchvision: {error}")
    network, _, version = name.rpartition("-torchvision-")
    said = theirs.get_model_weights(network)[f"IMAGENET1K_{version.upper()}"]
    one = KNOWN[name]
    assert (said.url, said.meta["_file_size"]) == (one.url, one.mib)
    assert said.meta["_metrics"]["ImageNet-1K"]["acc@1"] == one.accuracy
    options = {**variant_for(one.source, one.model), **one.variant, "initializer": "zeros"}
    parameters = models.build(one.model, **options).parameters()
    assert sum(parameter.size for parameter in parameters) == said.meta["num_params"]
    scaling = said.transforms()
    assert (tuple(scaling.mean), tuple(scaling.std)) == (one.normalize.mean, one.normalize.std)


@pytest.mark.parametrize("name", [name for name in OTHERS if KNOWN[name].source in ("timm", "cadene")])
def test_timm_says_the_same(name):
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs timm: {error}")
    one = KNOWN[name]
    tags = [tag for tag in timm.list_pretrained() if timm.get_pretrained_cfg(tag).url == one.url]
    assert len(tags) == 1
    said = timm.get_pretrained_cfg(tags[0])
    assert said.license == one.licence.lower()
    assert (said.mean, said.std, said.num_classes) == (one.normalize.mean, one.normalize.std, 1000)


def test_a_file_of_akamaster_has_the_hash_that_stands_here():
    if "MINIRES_DATA" not in os.environ:
        pytest.skip("needs trained weights: set MINIRES_DATA")
    root = Path(os.environ["MINIRES_DATA"])
    known = {one.file: one for one in OTHERS.values() if one.source == "akamaster"}
    there = [path for place in (root, root.parent) for path in (place / "weights").glob("resnet*.th")]
    found = [path for path in there if path.name in known]
    if not found:
        pytest.skip("needs weights/resnet20-12fca82f.th at MINIRES_DATA")
    for path in found:
        assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(known[path.name].sha256)
        assert math.isclose(path.stat().st_size / 2**20, known[path.name].mib)


@pytest.mark.parametrize("name", [name for name in KNOWN if KNOWN[name].packaged])
def test_a_file_that_is_part_of_the_package_is_there(name):
    place = place_of(name)
    assert kind_of(place) == "safetensors" and path_of(name) == str(place)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == KNOWN[name].sha256


def test_a_name_stands_for_the_path_of_its_model_once_it_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = "resnet20_cifar-akamaster"
    with pytest.raises(ConfigError, match=rf"not here yet: `minires weights {name} --fetch`.*--verify resn"):
        path_of(name)
    place_of(name).parent.mkdir(parents=True)
    place_of(name).write_bytes(b"model")
    assert path_of(name) == str(tmp_path / "minires" / "weights" / f"{name}.safetensors")
    assert path_of("runs/mine") == "runs/mine" and path_of(Path("a.safetensors")) == "a.safetensors"
    Path(name).write_bytes(b"a file of that name here goes before")
    assert path_of(name) == name
    with pytest.raises(ConfigError, match="unknown weight file 'resnet20'; the nearest is resnet20_cifar-ak"):
        place_of("resnet20")
