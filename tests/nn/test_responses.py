"""Responses and ways against passes that are written out by hand, in models of every kind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from minires import nn
from minires.errors import ConfigError
from minires.models import build
from minires.nn.blocks import ResidualBlock, basic
from minires.nn.intervene import intervene
from minires.nn.responses import noting, responses, ways
from minires.ops.cross_entropy import cross_entropy
from minires.tensor import Tensor, is_fused, record


def pictures(count=4, side=32, channels=3, dtype="float32"):
    return np.random.default_rng(1).standard_normal((count, side, side, channels)).astype(dtype)


def std(y):
    return pytest.approx(float(np.std(y.numpy().astype("float64"))), rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_responses_are_behind_the_batch_norm_and_before_relu_and_addition(training):
    model = build("resnet20_cifar", shortcut="B", repeats=(1, 1, 1))
    model.train(training)
    x = Tensor(pictures())
    found = {one.path: one for one in responses(model, x)}
    y, expected, means = x, {}, {}

    def layer(block, conv, bn, y):
        y = getattr(block, bn)(getattr(block, conv)(y), relu=False)
        expected[conv], means[conv] = std(y), float(y.numpy().mean())
        return y

    y = layer(model, "conv1", "bn_conv1", y).relu()
    for stage in (2, 3, 4):
        block, name = getattr(model, f"res{stage}a"), f"{stage}a_branch"
        inner = layer(block, f"res{name}2a", f"bn{name}2a", y).relu()
        inner = layer(block, f"res{name}2b", f"bn{name}2b", inner)
        y = (inner + (y if stage == 2 else layer(block, f"res{name}1", f"bn{name}1", y))).relu()
    logits = model(x)
    dense = list(found)[-1]
    assert list(found)[:-1] == list(expected) and dense.startswith("fc")
    assert {path: found[path].std for path in expected} == expected
    assert found[dense].std == std(logits) and found[dense].op == "linear"
    assert all(abs(found[path].mean - means[path]) < 1e-4 for path in means)
    assert found["conv1"].op == "conv2d" and found["conv1"].shape == (4, 32, 32, 16)


def test_without_batch_norm_a_response_is_what_the_convolution_gives_before_its_relu():
    first, second = nn.Conv2d(3, 5, 3, relu=True), nn.Conv2d(5, 2, 1)
    x = pictures(side=6)
    found = responses(nn.Sequential(first, second), x)
    before = nn.Conv2d(3, 5, 3)
    before.load_state_dict(first.state_dict())
    y = before(x)
    assert (y.numpy() < 0).any()
    assert [one.std for one in found] == [std(y), std(second(y.relu()))]


def test_a_norm_that_reads_something_else_is_not_that_of_the_layer():
    """In the second version of ResNet the addition comes between: the norm is the next unit's."""
    model = build("preresnet110_cifar", repeats=(2, 1, 1)).eval()
    x = Tensor(pictures())
    found = {one.path: one.std for one in responses(model, x)}
    unit, y = model.res2a, model.bn_conv1(model.conv1(x))
    inner = unit.res2a_branch2a(y)
    norm = unit.bn2a_branch2b
    assert found["res2a_branch2a"] == std(norm(inner, relu=False))
    assert found["res2a_branch2b"] == std(unit.res2a_branch2b(norm(inner)))


def test_a_dense_layer_of_sequences_is_normed_behind_its_reshape():
    dense, norm = nn.Linear(3, 5), nn.BatchNorm2d(5)
    x = pictures(side=4)
    [one] = responses(nn.Sequential(dense, norm), x)
    assert one.std == pytest.approx(1.0, abs=0.01) and std(dense(x)) != one.std


def test_a_norm_over_several_layers_together_belongs_to_none():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(6)

        def forward(self, x):
            from minires.ops.concat import concat

            return self.norm(concat([self.a(x), self.b(x)], axis=3))

    model, x = Two(), pictures(side=4)
    assert [one.std for one in responses(model, x)] == [std(model.a(x)), std(model.b(x))]


def test_a_norm_of_a_buffer_that_grows_belongs_to_no_layer_in_it():
    """In a dense block a batch norm reads what several convolutions have written into one buffer."""
    model = build("densenet40_k12_cifar", blocks=(2, 1, 1))
    for number, norm in enumerate(one for one in model.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.gamma.data[...] = 2.0 + number
    x = Tensor(pictures())
    found = {one.path: one.std for one in responses(model, x)}
    y = model.conv1(x)
    first = model.block1.layer1(y)
    assert found["conv1"] == pytest.approx(2.0, rel=0.01)  # the first norm reads it alone
    assert found["block1.layer1.conv1"] == std(first)


def test_another_thread_in_the_same_model_is_not_noted():
    model, x = Shared(), pictures(side=5)
    with noting(model) as noted, ThreadPoolExecutor(1) as pool:
        other = pool.submit(model, x).result()
    assert not noted.ways and not noted.responses and other.shape == x.shape


def test_threads_that_note_in_one_model_do_not_disturb_each_other():
    model, x = build("resnet20_cifar", repeats=(1, 1, 1)).eval(), pictures()
    alone = ways(model, x)
    together = Barrier(3)

    def note(_):
        together.wait()
        return [ways(model, x) for _ in range(5)]

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(note, range(3)):
            assert found == [alone] * 5
    assert not any({"forward", "join"} & set(vars(one)) for one in model.modules())


def test_ways_are_those_that_an_intervention_has_made_of_them():
    model, x = build("resnet20_cifar", repeats=(1, 2, 1)).eval(), pictures()
    before = {one.path: one for one in ways(model, x)}
    with intervene(model, {"res3b.branch": 0.5, "res4a.shortcut": 0.0}):
        changed = {one.path: one for one in ways(model, x)}
    assert list(changed) == list(before)
    assert changed["res3b"].branch == pytest.approx(before["res3b"].branch / 2, rel=1e-5)
    assert changed["res3b"].shortcut == before["res3b"].shortcut and changed["res4a"].shortcut == 0
    with intervene(model, {"res3b": "drop"}):
        dropped = {one.path: one for one in ways(model, x)}
    assert list(dropped) == list(before) and dropped["res3b"].branch == 0
    assert dropped["res3b"].shortcut == before["res3b"].shortcut


class Own(nn.Module):
    """Multiplies by weights in three ways: by an own operation, by @, and by what is no layer's product."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(3)
        self.w = nn.Parameter(rng.standard_normal((3, 6)).astype("float32"))
        self.v = nn.Parameter(rng.standard_normal((6, 2)).astype("float32"))
        self.scale = nn.Parameter(np.full((1, 2), 3.0, np.float32))

    def forward(self, x):
        y = record("own_product", x.data @ self.w.data, inputs={"x": x, "w": self.w},
                   backward=lambda dy: (dy @ self.w.data.T, x.data.T @ dy))  # fmt: skip
        return (y.relu() @ self.v) * self.scale


def test_a_model_of_somebodys_own_needs_no_layers():
    model, x = Own(), pictures()[:, 0, 0]
    found = responses(model, x)
    first = x @ model.w.data
    second = np.maximum(first, 0) @ model.v.data
    assert [(one.op, one.path) for one in found] == [("own_product", ""), ("matmul", "")]
    assert [one.std for one in found] == pytest.approx([first.std(), second.std()], rel=1e-4)


def test_layers_that_are_called_twice_are_there_twice():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert [one.path for one in responses(model, pictures()[:, 0, 0])] == ["0", "0"]


@pytest.mark.parametrize("options", [
    ("resnet20_cifar", {}), ("plain20_cifar", {}), ("preresnet110_cifar", {"repeats": (2, 1, 1)}),
    ("se_resnet56_cifar", {"repeats": (1, 1, 1), "placement": "pre"}),
    ("se_resnet56_cifar", {"repeats": (1, 1, 1), "placement": "post"}),
])  # fmt: skip
def test_ways_are_those_that_are_added(options):
    model = build(options[0], **options[1]).eval()
    x = Tensor(pictures())
    found = {one.path: one for one in ways(model, x)}
    expected, y = {}, x
    for name, child in model.children():
        if hasattr(child, "parts"):
            branch, shortcut = child.parts(y)
            expected[name] = std(branch), None if shortcut is None else std(shortcut)
        y = child(y)
    assert len(found) >= 3
    assert {path: (one.branch, one.shortcut) for path, one in found.items()} == expected


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = ResidualBlock(3, basic(3), stage=2, block="a")
        self.parts_list = nn.ModuleList([nn.ReLU()])

    def forward(self, x):
        return self.block(self.block(x))


class ListOfParts(nn.Module):
    """Has something under both names, and is no block."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(3, 3)])
        self.join = nn.ReLU()

    def forward(self, x):
        return self.join(self.parts[0](x))


def test_a_block_that_runs_twice_is_there_twice_and_what_is_no_block_is_not():
    x = pictures(side=5)
    assert [one.path for one in ways(Shared(), x)] == ["block", "block"]
    assert ways(ListOfParts(), x) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = build("preresnet110_cifar", repeats=(1, 1, 1), gating="dropout")
    model.train(training)
    model.bn_conv1.eval()
    modes = [one.training for one in model.modules()]
    state, random = model.state_dict(), repr(model.random_states())
    forwards = [vars(one).get("forward") for one in model.modules()]
    tree = repr(model)
    x = Tensor(pictures())
    found = responses(model, x), ways(model, x)
    assert found == (responses(model, x), ways(model, x))
    after = model.state_dict()
    assert all(np.array_equal(state[name], after[name]) for name in state) and len(state) == len(after)
    assert repr(model.random_states()) == random and [one.training for one in model.modules()] == modes
    assert [vars(one).get("forward") for one in model.modules()] == forwards and repr(model) == tree
    assert is_fused() and all(one.grad is None for one in model.parameters())


def test_an_error_inside_leaves_the_model_as_it_was():
    model = build("resnet20_cifar", repeats=(1, 1, 1))
    with pytest.raises(Exception, match="channels"):
        responses(model, pictures(channels=4))
    assert not any("forward" in vars(one) for one in model.modules()) and is_fused()


def test_the_gradients_of_a_noted_pass_are_those_of_the_pass():
    model = build("resnet20_cifar", repeats=(1, 1, 1)).astype("float64")
    x, y, seen, found = pictures(dtype="float64"), np.array([0, 1, 2, 3]), [], []
    for noted in (False, True):
        model.zero_grad()
        if noted:
            with noting(model, lambda call: seen.append(call.op)) as noted:
                logits = model(x)
        else:
            logits = model(x)
        cross_entropy(logits, y).backward()
        found.append([one.grad.copy() for one in model.parameters()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert len(noted.ways) == 3 and len(noted.responses) == 8 and "conv2d" in seen


def test_nothing_is_recorded_on_the_tape():
    kept = []

    class Keeps(nn.Linear):
        def forward(self, x):
            kept.append(super().forward(x))
            return kept[-1]

    responses(Keeps(2, 2), np.ones((1, 2), np.float32))
    assert not kept[0].requires_grad


def test_what_is_no_module_is_refused():
    with pytest.raises(ConfigError, match="responses are those of a module, not of a function"):
        responses(pictures, pictures())
