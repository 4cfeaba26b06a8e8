"""Weights under PyTorch's names: read back they are the same bits, and PyTorch's layers take them."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from minires import Tensor
from minires.errors import ConfigError
from minires.models import build
from minires.weights import load_pretrained, variant_for
from minires.weights.torch.export import export_torch

MODELS = [
    ("torchvision", "resnet18", {"repeats": (1, 1, 1, 1), "widths": (4, 8, 12, 16)}),
    ("torchvision", "resnet50", {"repeats": (1, 2, 1, 1), "widths": (4, 8, 12, 16)}),
    ("torchvision", "densenet121", {"blocks": (2, 1, 1, 2)}),
    ("torchvision", "vgg11_bn", {"size": 64}),
    ("akamaster", "resnet20_cifar", {}),
]


@pytest.mark.parametrize(("source", "name", "options"), MODELS)
def test_what_goes_out_comes_in_again(tmp_path, source, name, options):
    options = {**variant_for(source, name), **options}
    model, other = (build(name, classes=7, seed=seed, **options) for seed in (0, 1))
    for array in (array for _, array in model.named_buffers()):
        array += np.random.default_rng(0).random(array.shape, np.float32)
    written = export_torch(model, tmp_path / "theirs.safetensors", source)
    assert written == len(model.state_dict()) == len(load_file(tmp_path / "theirs.safetensors"))
    load_pretrained(other, tmp_path / "theirs.safetensors", source=source)
    theirs = other.state_dict()
    assert all(np.array_equal(array, theirs[key]) for key, array in model.state_dict().items())


def test_pytorch_computes_the_same_with_them(tmp_path):
    torch = pytest.importorskip("torch")
    model = build("resnet18", classes=5, repeats=(1, 1, 1, 1), widths=(4, 8, 12, 16))
    export_torch(model, tmp_path / "theirs.safetensors")
    tensors = {key: torch.tensor(array) for key, array in load_file(tmp_path / "theirs.safetensors").items()}
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7) and tensors["fc.weight"].shape == (5, 16)
    x = np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype(np.float32)
    ours = model.conv1(Tensor(x)).numpy()
    theirs = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2), tensors["conv1.weight"], stride=2, padding=3
    )
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-5)


def test_a_source_that_cannot_have_them(tmp_path):
    with pytest.raises(ConfigError, match="source must be one of 'timm', 'akamaster', 'torchvision', not"):
        export_torch(build("resnet20_cifar"), tmp_path / "out.safetensors", "tensorflow")
    assert not list(tmp_path.iterdir())
