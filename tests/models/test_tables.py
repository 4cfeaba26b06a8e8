"""Every model against the figures of its paper: 141 rows of parameters, MACs and output sizes.

``counts.json`` holds the rows. Each was derived layer by layer from the paper or release that its ``source``
names; ``verified`` says that a figure equals one that was published independently. ``build`` and ``options``
are what of ours the row is about. ``params_total`` counts what is trained (convolutions, gamma and beta of
batch norms, dense layers) and two running statistics per channel of a batch norm; ``macs`` counts
convolutions and dense layers.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from family import ROWS, figures, holds

import minires
from minires import models
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor

LISTED = """
    vgg11 vgg11_lrn vgg13 vgg16_c vgg16 vgg19
    vgg11_bn vgg11_lrn_bn vgg13_bn vgg16_c_bn vgg16_bn vgg19_bn
    plain18 plain34 resnet18 resnet34 resnet50 resnet101 resnet152 resnet200
    resnet50_signs resnet50_keras resnet101_keras resnet152_keras
    plain20_cifar plain32_cifar plain44_cifar plain56_cifar plain110_cifar
    resnet20_cifar resnet32_cifar resnet44_cifar resnet56_cifar resnet110_cifar resnet1202_cifar
    preresnet18 preresnet34 preresnet50 preresnet101 preresnet152 preresnet200
    preresnet110_cifar preresnet164_cifar preresnet1001_cifar
    resnet50v2_keras resnet101v2_keras resnet152v2_keras
    resnext50_1x64d resnext50_2x40d resnext50_4x24d resnext50_8x14d resnext50_32x4d
    resnext101_1x64d resnext101_2x40d resnext101_4x24d resnext101_8x14d resnext101_32x4d
    resnext101_1x100d resnext101_2x64d resnext101_64x4d resnext101_32x8d
    resnext29_32x4d_cifar resnext29_8x64d_cifar resnext29_16x64d_cifar
    densenet121 densenet169 densenet201 densenet264 densenet161
    densenet40_k12_cifar densenet100_k12_cifar densenet100_k24_cifar
    densenet_bc100_k12_cifar densenet_bc250_k24_cifar densenet_bc190_k40_cifar
    se_resnet50 se_resnet101 se_resnet152 se_resnext50_32x4d se_resnext101_32x4d
    se_vgg16_bn bn_inception se_bn_inception senet154 se_resnet56_cifar se_resnet110_cifar
""".split()


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['build']}-{row['variant']}" for row in ROWS])
def test_row(row):
    assert holds(row) == []


def test_there_are_141_rows_and_no_two_of_one_thing():
    assert len(ROWS) == 141
    assert len({(row["build"], json.dumps(row["options"]), row["classes"]) for row in ROWS}) == 141


# Models that no row is about, and a row (or a sum) that has their figures.
def test_plain_networks_have_the_figures_of_option_a():
    for depth in (20, 32, 44, 56, 110):
        plain, residual = (
            figures(f"{kind}{depth}_cifar", {}, 10, (32, 32, 3)) for kind in ("plain", "resnet")
        )
        assert all(plain[key] == residual[key] for key in ("params_total", "params_trainable", "macs"))


def test_a_resnext_of_one_path_has_the_figures_of_the_resnet():
    for depth in (50, 101):
        one = figures(f"resnext{depth}_1x64d", {}, 1000, (224, 224, 3))
        resnet = figures(f"resnet{depth}", {"stride_on": "3x3"}, 1000, (224, 224, 3))
        assert all(one[key] == resnet[key] for key in ("params_total", "params_trainable", "macs"))


def test_vgg_with_both_normalisations_has_the_figures_of_batch_norm_alone():
    both, one = (figures(name, {}, 1000, (224, 224, 3)) for name in ("vgg11_lrn_bn", "vgg11_bn"))
    assert all(both[key] == one[key] for key in ("params_total", "params_trainable", "macs"))


def test_the_gates_of_se_vgg16_bn():
    """A gate of C channels has 2 C^2 / 16 weights, and biases C + C / 16, used once per picture."""
    gated, plain = (figures(name, {}, 1000, (224, 224, 3)) for name in ("se_vgg16_bn", "vgg16_bn"))
    gates = [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    weights, biases = sum(2 * c * c // 16 for c in gates), sum(c + c // 16 for c in gates)
    assert gated["params_trainable"] - plain["params_trainable"] == weights + biases
    assert gated["macs"] - plain["macs"] == weights


def test_every_listed_model_is_registered_and_no_other():
    assert sorted(models.names()) == sorted(LISTED)


@pytest.mark.parametrize("name", LISTED)
def test_every_model_says_what_it_is_and_where_it_comes_from(name):
    entry = models.entry(name)
    assert entry.title and entry.paper is not None
    assert 2014 <= entry.paper.year <= 2017
    # The paper is the one that the head of the model's file names as its source.
    head = sys.modules[entry.make.__module__].__doc__
    assert f"arXiv:{entry.paper.arxiv}" in head


def test_models_are_found_by_a_part_of_their_names_or_a_pattern():
    assert models.names("resnet20") == ["resnet200", "resnet20_cifar", "preresnet200"]
    assert models.names("plain?4") == ["plain34"]
    assert models.names("plain3[42]*") == ["plain34", "plain32_cifar"]
    assert models.names("no_such") == [] and sorted(models.names()) == sorted(LISTED)



def smallest(name: str) -> tuple[int, dict[str, Any]]:
    """A picture side that is small and fits, and the option that says so."""
    entry = models.entry(name)
    side = 16 if name.endswith("_cifar") else 64 if "inception" in name else 32
    return side, entry.fitted(side)


@pytest.mark.parametrize("name", LISTED)
def test_every_model_runs_forward_and_backward(name):
    side, options = smallest(name)
    model = models.build(name, classes=3, seed=1, **options)
    x = Tensor(np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32))
    logits = model(x)
    assert logits.shape == (2, 3) and np.isfinite(logits.data).all()
    loss = cross_entropy(logits, np.array([0, 2]))
    assert minires.unused_parameters(loss, model) == []
    loss.backward()
    assert all(p.grad is not None and np.isfinite(p.grad).all() for p in model.parameters())
