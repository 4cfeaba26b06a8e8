"""Sequential, ModuleList and ModuleDict as lists and dicts, small layers, and layers that are replaced."""

from __future__ import annotations

import pickle
import re
from functools import partial

import numpy as np
import pytest

import minires
from minires import nn, ops
from minires.errors import ConfigError, MiniresError
from minires.ops.cross_entropy import cross_entropy
from minires.tape import reachable
from minires.tensor import Tensor


def ran(model, x):
    """The paths of what is recorded in one call, in order."""
    y = model(Tensor(x, requires_grad=True))
    nodes = sorted(reachable(y.node), key=lambda node: node.number)
    return [node.path for node in nodes if node.op != "leaf"]


def rows(width=3):
    return np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)


def test_sequential_is_a_list():
    model = nn.Sequential(nn.Linear(3, 4), act=nn.ReLU(), last=nn.Linear(4, 2))
    assert len(model) == 3 and [type(module).__name__ for module in model] == ["Linear", "ReLU", "Linear"]
    assert model[0] is getattr(model, "0") and model[-1] is model.last is model["last"]
    assert model[-3] is model[0]
    head = model.eval()[1:]
    assert isinstance(head, nn.Sequential) and [name for name, _ in head.children()] == ["act", "last"]
    assert head[1] is model.last and not head.training and not model.last.training
    assert model.append(nn.Sigmoid()) is model and [name for name, _ in model.children()][-1] == "3"
    model.append(nn.ReLU(), name="end")
    assert model[:][4] is model.end
    model[1] = nn.Sigmoid()
    assert type(model.act) is nn.Sigmoid and [name for name, _ in model.children()][1] == "act"
    relu = nn.ReLU()
    again = nn.Sequential(relu, nn.Linear(2, 2), relu)  # one layer twice: it runs twice
    assert len(again) == 3 and ran(again, rows(2)) == ["0", "1", "0"]
    assert ran(nn.Sequential(nn.Linear(3, 3))[:0].append(nn.Linear(3, 3)), rows()) == ["0"]
    for place in (5, -6, "act2"):
        with pytest.raises(
            MiniresError, match="there is no module|unknown module 'act2'. Did you mean 'act'"
        ):
            model[place]
    with pytest.raises(ConfigError, match="there is a module 'act' already"):
        model.append(nn.ReLU(), name="act")


def test_a_module_list_and_a_module_dict_are_modules_and_containers():
    layers = nn.ModuleList([nn.Linear(2, 2)])
    layers.append(nn.ReLU()).extend([nn.Linear(2, 3)]).insert(0, nn.Identity())
    assert len(layers) == 4 and [name for name, _ in layers.children()] == ["0", "1", "2", "3"]
    layers[0] = nn.Sigmoid()
    del layers[1]
    assert [type(layer).__name__ for layer in layers] == ["Sigmoid", "ReLU", "Linear"]
    assert isinstance(layers[:2], nn.ModuleList) and len(layers[:2]) == 2 and layers[-1].out_features == 3
    heads = nn.ModuleDict({"a": nn.Linear(2, 2)})
    heads.update({"keys": nn.ReLU()})  # any name will do
    assert list(heads) == ["a", "keys"] == list(heads.keys()) and "a" in heads and len(heads) == 2
    assert [name for name, _ in heads.items()] == [name for name, _ in heads.children()]
    assert list(heads.values())[1] is heads["keys"]
    del heads["keys"]
    with pytest.raises(MiniresError, match="unknown module 'keys'. Known: a"):
        heads["keys"]
    with pytest.raises(ConfigError, match="holds modules, not a int"):
        layers.append(3)
    for one in (layers, heads):
        assert len(list(one.parameters())) == 2 and one.eval() is one and one.astype(np.float64) is one
        with pytest.raises(MiniresError, match="is not called itself"):
            one(1)
    net = nn.Module()
    net.layers, net.heads = layers, heads
    assert [path for path, _ in net.named_modules()] == ["layers.0", "layers.1", "layers.2", "heads.a"]
    thawed = pickle.loads(pickle.dumps(net))
    assert list(thawed.state_dict()) == list(net.state_dict())


def test_the_new_layers_are_their_operations():
    x = Tensor(np.array([[0.5, -1.0, 2.0]], np.float32), requires_grad=True)
    assert np.allclose(nn.Sigmoid()(x).data, 1 / (1 + np.exp(-x.data)))
    assert np.allclose(nn.Softmax()(x).data, np.exp(x.data) / np.exp(x.data).sum())
    assert nn.Identity()(x) is x
    for smoothing in (0.0, 0.1):
        loss = nn.CrossEntropyLoss(label_smoothing=smoothing)(x, np.array([2]))
        assert loss.item() == cross_entropy(x, np.array([2]), label_smoothing=smoothing).item()
    with pytest.raises(ConfigError, match="3 channels in and 4 out cannot be cut into 2 groups"):
        nn.Conv2d(3, 4, 3, groups=2)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("resnet20_cifar", {"repeats": (1, 1, 1)}, "res2a.res2a_branch2b"),
        ("preresnet110_cifar", {"repeats": (1, 1, 1)}, "res2a.res2a_branch2b"),
        (
            "resnext29_8x64d_cifar", {"repeats": (1, 1, 1), "form": "branches"},
            "res2a.res2a_branch2.res2a_branch2b_1",
        ),
        ("bn_inception", {}, "inception_3a.conv_3x3"),
    ],
)  # fmt: skip
def test_a_layer_that_is_put_in_the_place_of_another_is_the_one_that_runs(name, options, layer):
    model = minires.models.build(name, **options)
    *blocks, last = layer.split(".")
    owner = model
    for block in blocks:
        owner = getattr(owner, block)
    ran_it = []

    class Counts(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            ran_it.append(x.shape)
            return self.inner(x)

    before = len(list(model.parameters()))
    setattr(owner, last, Counts(getattr(owner, last)))
    size = 64 if name == "bn_inception" else 8
    model(Tensor(np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)))
    assert len(ran_it) == 1 and len(list(model.parameters())) == before


def test_a_function_in_a_sequential_is_called_and_shown_by_its_name():
    dense = nn.Linear(3, 2)
    x = rows()
    want = np.maximum(dense(x).numpy(), 0) * 2
    model = nn.Sequential(dense, ops.relu, last=lambda y: y * 2)
    np.testing.assert_allclose(model(x).numpy(), want)
    np.testing.assert_allclose(model[:](x).numpy(), want)
    np.testing.assert_allclose(nn.Sequential(dense).append(ops.relu).append(lambda y: y * 2)(x).numpy(), want)
    assert "1: Function(relu)" in repr(model) and "last: Function(<lambda>)" in repr(model)
    assert "Function(clip)" in repr(nn.Sequential(partial(ops.clip, low=0.0)))
    model[1] = ops.sigmoid
    assert "1: Function(sigmoid)" in repr(model)
    assert len(pickle.loads(pickle.dumps(nn.Sequential(dense, ops.relu)))) == 2


@pytest.mark.parametrize("odd", [nn.ReLU, None, "relu", 3])
@pytest.mark.parametrize(
    ("place", "put"),
    [
        ("1", lambda odd: nn.Sequential(nn.ReLU(), odd)),
        ("'act'", lambda odd: nn.Sequential(act=odd)),
        ("'1'", lambda odd: nn.Sequential(nn.ReLU()).append(odd)),
        ("'0'", lambda odd: nn.Sequential(nn.ReLU()).__setitem__(0, odd)),
    ],
)
def test_what_is_no_layer_is_refused_with_its_place_in_a_sequential(odd, place, put):
    text = "the class ReLU; make a module of it" if isinstance(odd, type) else f"not {odd!r}"
    with pytest.raises(ConfigError, match=f"the module {place} of a Sequential .*{re.escape(text)}"):
        put(odd)


def test_a_class_among_the_modules_of_a_list_is_refused():
    model = nn.Module()
    with pytest.raises(ConfigError, match="layers.1 is the class ReLU among modules"):
        model.layers = [nn.Linear(2, 2), nn.ReLU]
    model.kinds = [nn.ReLU, nn.Sigmoid]  # classes alone are what a factory chooses from
