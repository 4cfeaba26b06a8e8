"""The twin in PyTorch that torch_peer.py makes of a model: the same numbers, or a clear refusal."""

import numpy as np
import oracle
import pytest

from minires.errors import ConfigError
from minires.models import build
from minires.nn import Module
from minires.nn.layers import AvgPool2d, BatchNorm2d, Conv2d, Sequential
from minires.tensor import Tensor

torch = pytest.importorskip("torch")
torch_peer = pytest.importorskip("torch_peer")

SMALL = {"repeats": (1, 2), "widths": (16, 32)}
# In Keras the biased variance is kept, in PyTorch the unbiased one: here both keep what they had.
KERAS = {"bn_momentum": 1.0}
MODELS = [
    # resnet50_signs is compared in test_resnet_signs.py
    ("resnet50", 64, SMALL),
    ("resnet50", 33, {**SMALL, "shortcut": "C", "stride_on": "3x3", "pool_padding": "ceil", "bias": True}),
    ("resnet50_keras", 64, {**SMALL, **KERAS}),
    ("plain18", 64, SMALL),
    ("resnet20_cifar", 16, {"repeats": (1, 2, 1)}),
    ("resnet20_cifar", 15, {"repeats": (1, 1, 1), "pad": "both"}),
    ("densenet_bc100_k12_cifar", 16, {"blocks": (3, 2, 2)}),
    ("densenet121", 64, {"blocks": (2, 2), "growth": 8, "dropout": 0.2}),
    ("se_resnext50_32x4d", 64, SMALL),
    ("se_resnet50", 64, {**SMALL, "placement": "pre", "squeeze": "max"}),
    ("se_resnet50", 64, {**SMALL, "placement": "post", "squeeze": "none", "gate_bias": False}),
    ("se_resnet56_cifar", 16, {"repeats": (1, 2), "widths": (16, 32), "placement": "identity"}),
    ("senet154", 64, {**SMALL, "cardinality": 4, "width": 16}),
    ("vgg16_bn", 64, {"widths": (4, 8, 8, 16, 16), "hidden": 24, "size": 64}),
    ("vgg11_lrn", 32, {"widths": (8, 8, 8, 16, 16), "head": "linear", "size": 32}),
    ("preresnet164_cifar", 16, {"repeats": (2, 1, 2)}),
    ("preresnet110_cifar", 15, {"repeats": (2, 1, 1), "order": "relu_only"}),
    ("preresnet18", 64, {**SMALL, "order": "relu_before_add"}),
    ("preresnet18", 64, {**SMALL, "order": "bn_after_add"}),
    ("resnet50v2_keras", 64, {**SMALL, **KERAS}),
    ("se_bn_inception", 64, {}),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "size", "options"), MODELS)
def test_the_twin_has_our_numbers(name, size, options, training):
    ours = build(name, classes=10, **options)
    theirs = torch_peer.twin(ours)
    peer = oracle.Torch(theirs, theirs.names.__getitem__)
    oracle.assert_equal(ours, peer, (2, size, size, 3), training=training, dtype="float64", tolerance=1e-8)


def test_weights_go_there_and_gradients_come_back_under_our_names():
    ours = build("se_resnet56_cifar", repeats=(1, 1), widths=(16, 32))
    state = {name: np.random.default_rng(0).random(array.shape) for name, array in ours.state_dict().items()}
    theirs = torch_peer.twin(ours).load_ours(state)
    there = dict(theirs.state_dict())
    assert np.allclose(there["res3a.res3a_branch1.weight"][:, :, 0, 0].T, state["res3a_branch1.weight"][0, 0])
    assert np.allclose(there["res2a.bn2a_branch2b.weight"], state["bn2a_branch2b.gamma"])
    theirs(torch.ones(2, 3, 16, 16)).sum().backward()
    gradients = theirs.gradients()
    assert {name: gradients[name].shape for name in gradients} == {
        name: parameter.shape for name, parameter in ours.named_parameters()
    }
    with pytest.raises(AssertionError, match="fc.bias"):
        theirs.load_ours({name: state[name] for name in state if name != "fc.bias"})


@pytest.mark.parametrize("norm", [{"convention": "keras", "momentum": 0.7}, {"convention": "torch"}])
def test_momentum_is_translated(norm):
    ours = Sequential(bn=BatchNorm2d(3, **norm))
    theirs = torch_peer.twin(ours)
    x = np.random.default_rng(0).standard_normal((4, 5, 5, 3)).astype(np.float32)
    ours(Tensor(x))
    theirs(torch.tensor(x).permute(0, 3, 1, 2))
    assert np.abs(ours.bn.running_mean).max() > 1e-3
    assert np.allclose(ours.bn.running_mean, theirs.bn.running_mean, rtol=1e-5, atol=1e-7)


def test_even_folded_it_has_the_same_numbers():
    """PyTorch's own folding of batch norms finds those of the twin; compare.py times the result."""
    from torch.fx.experimental.optimization import fuse

    ours = oracle.shake(build("resnet50", **SMALL)).astype(np.float64)
    theirs = torch_peer.twin(ours).to(torch.float64).load_ours(ours.state_dict()).eval()
    folded = fuse(theirs)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(theirs(x), folded(x), rtol=1e-8, atol=1e-8)


class Swish(Module):
    pass


def conv(**options):
    return Conv2d(3, 4, 3, rng=np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sequential(conv1=conv(), act=Swish()), "act: torch_peer has no twin of a Swish, only of "),
        (lambda: Sequential(inner=Sequential(act=Swish())), "act: torch_peer has no twin of a Swish"),
        (lambda: build("resnext50_32x4d", repeats=(1,), widths=(64,), form="concat"), "twin of a Paths"),
        (
            lambda: build("preresnet18", **SMALL, order="original", gating="dropout"),
            "res2a: torch_peer has no gating 'dropout'",
        ),
        (lambda: Sequential(conv1=conv(padding="same")), "Conv2d has no padding='same'"),
        (lambda: Sequential(conv1=conv(padding=((1, 0), (1, 0)))), "Conv2d has no padding="),
        (lambda: Sequential(pool=AvgPool2d(3, stride=2, padding="same")), "AvgPool2d has no padding='same'"),
        (lambda: Sequential(pool=AvgPool2d(2, padding="ceil", count_padding=True)), "does not count"),
        (lambda: conv(), "twins of a Sequential, not of a Conv2d"),
    ],
)
def test_what_it_cannot_copy_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        torch_peer.twin(make())
