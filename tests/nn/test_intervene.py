"""Interventions: by value, against the same network computed by hand, with gradients; and what is refused."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest

import minires
from minires import Tensor, nn, ops
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.models import build
from minires.nn.blocks import Residual
from minires.nn.intervene import changes_of
from minires.ops.relu import relu

NETS = {
    "resnet20": ("resnet20_cifar", {}, "res3b", "res3a"),
    "projection": ("resnet20_cifar", {"shortcut": "B"}, "res3b", "res3a"),
    "preresnet": ("preresnet110_cifar", {"repeats": (2, 2, 2)}, "res3b", "res3a"),
    "preresnet, 1x1": ("preresnet110_cifar", {"repeats": (2, 2, 2), "shortcut": "B"}, "res3b", "res3a"),
    "exclusive": (
        "preresnet110_cifar", {"repeats": (2, 2, 2), "order": "original", "gating": "exclusive"},
        "res3b", "res3a",
    ),
    "se": ("se_resnet56_cifar", {"repeats": (2, 2, 2)}, "res3b", "res3a"),
    "signs": ("resnet50_signs", {}, "res3b", "res3a"),
}  # fmt: skip


def made(name, training=False):
    model, options, *blocks = NETS[name]
    model = build(model, seed=1, **options).train(training)
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that nothing is 0 or 1 by itself
            module.gamma.data[...] = rng.uniform(0.5, 1.5, module.gamma.shape)
            module.beta.data[...] = rng.uniform(-0.5, 0.5, module.beta.shape)
    return model, Tensor(rng.standard_normal((3, 32, 32, 3)).astype("float32")), *blocks


def by_hand(model, x, changed):
    """A Sequential of blocks, with some of them computed by ``changed``: name -> function of module and x."""
    for name, module in model.children():
        x = changed[name](module, x) if name in changed else module(x)
    return x


def states(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def close(a, b, tolerance=1e-5):
    a, b = (one.data if isinstance(one, Tensor) else one for one in (a, b))
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(abs(b).max()))))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: None if p.grad is None else p.grad.copy() for n, p in model.named_parameters()}


def same_gradients(ours, right):
    assert ours.keys() == right.keys()
    for name, gradient in right.items():
        if gradient is None or not gradient.any():
            assert ours[name] is None or not ours[name].any(), name
        else:
            assert close(ours[name], gradient, 2e-4), name


def loss_of(y):
    return (y * Tensor(np.random.default_rng(5).standard_normal(y.shape).astype(y.dtype))).sum()


def joined(branch=1.0, shortcut=1.0):
    def changed(block, x):
        f, s = block.parts(x)
        return block.join(f * branch, s * shortcut)

    return changed


# ---------------------------------------------------------------------------------------- blocks, by value


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_a_dropped_block_is_its_shortcut_and_nothing_of_its_branch_runs(name, training):
    model, x, same, changes_shape = made(name, training)
    before = states(model)
    for block in (same, changes_shape):
        right = by_hand(model, x, {block: joined(branch=0.0)})
        wanted = gradients(model, loss_of(right))
        model.load_state_dict(before)
        with minires.intervene(model, {block: "drop"}) as done:
            y = model(x)
            ours = gradients(model, loss_of(y))
        assert str(done) == f"{block}: dropped: its shortcut + 0 x its branch"
        assert close(y, right)
        same_gradients(ours, wanted)
        of_block = {n for n, _ in getattr(model, block).named_parameters()}
        assert any(ours[n] is None for n in of_block)  # the branch is not on the tape
        if training:  # and has counted nothing: its last batch norm has the statistics of before
            unmoved = [n for n, _ in getattr(model, block).named_buffers()
                       if np.array_equal(model.state_dict()[n], before[n])]  # fmt: skip
            assert unmoved
        model.load_state_dict(before)
        plain = model(x)
        assert not close(plain, y)
        model.load_state_dict(before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_branch_and_shortcut_are_scaled_with_their_gradients(name, training):
    model, x, same, changes_shape = made(name, training)
    before = states(model)
    right = by_hand(model, x, {same: joined(branch=0.25), changes_shape: joined(shortcut=-2.0)})
    wanted = gradients(model, loss_of(right))
    model.load_state_dict(before)
    with minires.intervene(model, {f"{same}.branch": 0.25, f"{changes_shape}.shortcut": -2}) as done:
        y = model(x)
        ours = gradients(model, loss_of(y))
    assert done.words == (f"{same}.branch: 0.25 x the branch", f"{changes_shape}.shortcut: -2 x the shortcut")
    assert close(y, right)
    same_gradients(ours, wanted)


def test_both_ways_of_one_block_and_its_output_are_changed_together():
    model, x, block, _ = made("resnet20")

    def hand(module, x):
        f, s = module.parts(x)
        return module.join(f * 0.5, s * 3.0) * 2.0

    changes = {f"{block}.branch": 0.5, f"{block}.shortcut": 3, block: 2.0}
    with minires.intervene(model, changes):
        assert close(model(x), by_hand(model, x, {block: hand}))


@pytest.mark.parametrize("name", ["resnet20_cifar", "se_resnet56_cifar"])
def test_a_plain_block_has_no_shortcut_so_what_comes_in_goes_out(name):
    options = {"shortcut": "none"} if name == "resnet20_cifar" else {"shortcut": "none", "repeats": (2, 2, 2)}
    model = build(name, seed=1, **options).eval()
    x = Tensor(np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32"))
    with minires.intervene(model, {"res3b": "drop"}) as done:
        assert close(model(x), by_hand(model, x, {"res3b": lambda block, x: x}))
    assert str(done) == "res3b: dropped: what comes in goes out" and "输入原样" in done.words[0].chinese
    with minires.intervene(model, {"res3a": "drop"}), pytest.raises(ShapeError) as caught:
        model(x)
    assert "(2, 32, 32, 16) comes in and (2, 16, 16, 32) goes out" in str(caught.value)
    assert "'res3a': 0" in str(caught.value)  # what to do
    with minires.intervene(model, {"res3b.shortcut": 2}), pytest.raises(ConfigError, match="has no shortcut"):
        model(x)
    with minires.intervene(model, {"res3b.branch": 0.5}):
        assert close(model(x), by_hand(model, x, {"res3b": lambda m, x: m.join(m.parts(x)[0] * 0.5, None)}))


@pytest.mark.parametrize("name", ["projection", "preresnet, 1x1"])
def test_one_way_of_a_block_is_dropped_and_a_branch_that_is_not_needed_does_not_run(name):
    model, x, _, block = made(name)
    right = by_hand(model, x, {block: joined(branch=0.0)})
    without_shortcut = by_hand(model, x, {block: joined(shortcut=0.0)})
    branch = minires.activations(model, x, [f"{block}.branch"])[f"{block}.branch"]
    plain, runs = model(x), counted(model)
    with minires.intervene(model, {f"{block}.branch": "drop"}) as done:
        assert close(model(x), right)
    assert str(done) == f"{block}.branch: dropped: 0 x the branch"
    assert f"{block}_branch2b" not in runs and f"{block}_branch1" in runs
    runs.clear()
    with minires.intervene(model, {f"{block}.branch": branch}):
        assert close(model(x), plain)
    assert f"{block}_branch2b" not in runs and f"{block}_branch1" in runs
    with minires.intervene(model, {f"{block}.shortcut": "drop"}):
        assert close(model(x), without_shortcut)


def test_nobody_who_watches_sees_how_a_shape_is_found_out():
    model = nn.Sequential(a=nn.Conv2d(3, 3, 1), b=nn.ReLU())
    calls = []
    with minires.intervene(model, {"a": "drop"}), minires.tensor.watching(lambda call: calls.append(call.op)):
        model(np.ones((2, 4, 4, 3), np.float32))
    assert calls == ["relu"]


def test_a_whole_output_and_the_model_itself_are_scaled():
    model, x, block, _ = made("resnet20")
    y = model(x)
    with minires.intervene(model, {"": 0.5}):
        assert close(model(x), y.data / 2)
    with minires.intervene(model, {block: np.float32(0.5)}):
        assert close(model(x), by_hand(model, x, {block: lambda m, x: m.forward(x) * 0.5}))
    single = model.res3b
    h = Tensor(np.random.default_rng(0).standard_normal((2, 16, 16, 32)).astype("float32"))
    with minires.intervene(single, {"branch": 0}):
        assert close(single(h), relu(h))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("0:8", range(8)), ("1,5", [1, 5]), ("-1", [31]), (":2,30:", [0, 1, 30, 31]),
     ("-4:-2", [28, 29])],
)  # fmt: skip
@pytest.mark.parametrize("part", ["", ".branch", ".shortcut"])
def test_channels_are_scaled_and_no_others(text, numbers, part):
    model, x, block, _ = made("resnet20")
    factors = np.ones(32, "float32")
    factors[list(numbers)] = 0.5

    def hand(module, x):
        f, s = module.parts(x)
        f = f * Tensor(factors) if part == ".branch" else f
        s = s * Tensor(factors) if part == ".shortcut" else s
        y = module.join(f, s)
        return y if part else y * Tensor(factors)

    right = by_hand(model, x, {block: hand})
    wanted = gradients(model, loss_of(right))
    with minires.intervene(model, {f"{block}{part}[{text}]": 0.5}):
        y = model(x)
        ours = gradients(model, loss_of(y))
    assert close(y, right)
    same_gradients(ours, wanted)


def test_channels_in_float64_keep_the_dtype():
    model, x, block, _ = made("resnet20")
    model.astype("float64")
    with minires.intervene(model, {f"{block}[1]": 0, f"{block}.branch": 0.5}):
        assert model(Tensor(x.data.astype("float64"))).dtype == np.float64


# ------------------------------------------------------------------------------------------- any module


class Once(nn.Module):
    """A block of a user: conv, batch norm with shortcut and ReLU in one call."""

    def __init__(self, relu=True):
        super().__init__()
        rng = np.random.default_rng(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, relu=True, rng=rng)
        self.bn = nn.BatchNorm2d(4, relu=relu)
        self.bn.gamma.data[...] = rng.uniform(0.5, 1.5, 4)

    def forward(self, x):
        return self.bn(self.conv(x), add=x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_relu", [False, True])
def test_a_dropped_batch_norm_still_adds_and_activates_and_a_convolution_keeps_its_relu(training, with_relu):
    block = Once(with_relu).train(training)
    x = Tensor(np.random.default_rng(1).standard_normal((2, 5, 5, 4)).astype("float32"), requires_grad=True)
    h = block.conv(x)
    mean = block.bn.running_mean.copy()
    with minires.intervene(block, {"bn": "drop"}) as done:
        y = block(x)
    right = relu(h + x) if with_relu else h + x
    assert close(y, right) and (block.bn.running_mean == mean).all()
    assert str(done) == "bn: dropped: what comes in goes out, still added and activated"
    with minires.intervene(block, {"conv": "drop"}) as done:
        assert close(block(x), block.bn(relu(x), add=x))
    assert str(done) == "conv: dropped: what comes in goes out, with its ReLU"


def test_batch_norms_and_convolutions_inside_a_block_are_dropped_where_they_stand():
    model, x, block, _ = made("resnet20")

    def without_last_norm(m, x):
        y = m.bn3b_branch2a(m.res3b_branch2a(x))
        return relu(m.res3b_branch2b(y), add=x)

    def without_first_convolution(m, x):
        return m.bn3b_branch2b(m.res3b_branch2b(m.bn3b_branch2a(x)), add=x)

    with minires.intervene(model, {"bn3b_branch2b": "drop"}):
        assert close(model(x), by_hand(model, x, {block: without_last_norm}))
    with minires.intervene(model, {"res3b_branch2a": "drop"}):
        assert close(model(x), by_hand(model, x, {block: without_first_convolution}))
    with minires.intervene(model, {"res3a_branch2a": "drop"}):
        with pytest.raises(ShapeError, match="res3a_branch2a cannot be dropped"):
            model(x)


def test_a_gate_and_its_scale_are_dropped():
    model, x, block, _ = made("se")

    def ungated(m, x):
        y = m.bn3b_branch2b(m.res3b_branch2b(m.bn3b_branch2a(m.res3b_branch2a(x))))
        return relu(y, add=x)

    right = by_hand(model, x, {block: ungated})
    for path in ("res3b_se", "res3b_se.scale"):
        with minires.intervene(model, {path: "drop"}):
            assert close(model(x), right)


def test_relu_and_dropout_are_dropped_and_pools_are_not():
    model = nn.Sequential(a=nn.Linear(3, 3), relu=nn.ReLU(), drop=nn.Dropout(0.5))
    x = Tensor(np.random.default_rng(0).standard_normal((4, 3)).astype("float32"))
    with minires.intervene(model, {"relu": "drop", "drop": "drop"}):
        assert (model(x).data == model.a(x).data).all()
    pooled = nn.Sequential(pool=nn.MaxPool2d(2), end=nn.GlobalAvgPool2d())
    with minires.intervene(pooled, {"pool": "drop"}):
        with pytest.raises(ShapeError, match="pool cannot be dropped"):
            pooled(np.ones((2, 4, 4, 3), np.float32))


def test_the_layer_of_a_dense_block_is_silenced():
    model = build("densenet40_k12_cifar", blocks=(3, 3, 3), seed=1).eval()
    x = Tensor(np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32"))

    def hand(block, x):
        for name, layer in block.children():
            y = layer(x)
            x = ops.concat([x, y * 0 if name == "layer2" else y])
        return x

    right = by_hand(model, x, {"block2": hand})
    wanted = gradients(model, loss_of(right))
    with minires.intervene(model, {"block2.layer2": 0}):
        y = model(x)
        ours = gradients(model, loss_of(y))
    assert close(y, right)
    same_gradients(ours, wanted)
    assert not any(ours[n].any() for n in ours if n.startswith("block2.layer2."))


def test_a_module_with_two_tensors_says_what_to_define():
    class Product(nn.Module):
        def forward(self, a, b):
            return a * b

    class Net(nn.Module):
        def __init__(self, product):
            super().__init__()
            self.product = product

        def forward(self, x):
            return self.product(x, x)

    x = Tensor([2.0, 3.0])
    with minires.intervene(net := Net(Product()), {"product": "drop"}):
        with pytest.raises(ConfigError, match="left_out"):
            net(x)
    said = type("Said", (Product,), {"left_out": lambda self, a, b: b})
    with minires.intervene(net := Net(said()), {"product": "drop"}):
        assert net(x).tolist() == [2.0, 3.0]


# --------------------------------------------------------------------------------- stored, functions, moves


def counted(model):
    """How often each module ran, by path."""
    runs = {}
    for path, module in model.named_modules():
        module.register_forward_hook(
            lambda module, inputs, y, path=path: runs.__setitem__(path, runs.get(path, 0) + 1)
        )
    return runs


@pytest.mark.parametrize("name", ["resnet20", "preresnet", "signs"])
def test_a_stored_activation_stands_for_all_that_comes_before_it(name):
    model, x, block, earlier = made(name)
    other = Tensor(x.data[::-1].copy())
    kept = minires.activations(model, other, [earlier, block, f"{block}.branch", f"{block}.shortcut"])
    runs = counted(model)
    with minires.intervene(model, {block: kept[block]}) as done:
        y = model(x)
    assert np.array_equal(y.data, model(other).data)
    first = list(dict(model.children())).index(block)
    with minires.intervene(model, {block: kept[block]}):
        runs.clear()
        model(x)
    names = [n for n, _ in model.children()]
    assert set(runs) & set(names) == set(names[first:]) and f"{block}_branch2a" not in runs
    assert "stored, in the place of its output" in str(done)
    # patched into the pass of another picture: its branch alone
    with minires.intervene(model, {f"{block}.branch": kept[f"{block}.branch"]}):
        y = model(x)
    with minires.intervene(model, {f"{block}.shortcut": Tensor(kept[f"{block}.shortcut"])}):
        z = model(x)
    f, s = (Tensor(kept[f"{block}.{way}"]) for way in ("branch", "shortcut"))
    assert close(y, by_hand(model, x, {block: lambda m, x: m.join(f, m.parts(x)[1])}))
    assert close(z, by_hand(model, x, {block: lambda m, x: m.join(m.parts(x)[0], s)}))


def test_the_gradient_reaches_a_stored_tensor():
    model, x, block, _ = made("resnet20")
    h = Tensor(minires.activations(model, x, [block])[block], requires_grad=True)
    with minires.intervene(model, {block: h}):
        loss_of(model(x)).backward()
    rest = nn.Sequential(**dict(list(model.children())[list(dict(model.children())).index(block) + 1 :]))
    again = Tensor(h.data, requires_grad=True)
    loss_of(rest(again)).backward()
    assert close(h.grad, again.grad)


def test_a_stored_activation_of_another_shape_is_refused():
    model, x, block, _ = made("resnet20")
    for shape in ((3, 16, 16, 31), (2, 16, 16, 32), (3, 8, 8, 32)):
        array = np.zeros(shape, "f4")
        for place in (block, f"{block}.branch", "res3b_branch2a"):
            with minires.intervene(model, {place: array}), pytest.raises(ShapeError) as caught:
                model(x)
            assert "is (3, 16, 16, 32)" in str(caught.value) and place in str(caught.value)
    with minires.intervene(model, {block: np.zeros((3, 16, 16, 32), "f8")}):
        assert model(x).dtype == np.float32


def test_a_module_before_a_stored_one_still_runs_inside_a_later_one():
    class Inner(nn.Module):
        def __init__(self, held):
            super().__init__()
            self.held = held

        def forward(self, x):
            return self.held(x)

    twice = nn.Linear(2, 2)
    model = nn.Sequential(a=twice, b=nn.ReLU(), c=Inner(twice))
    stored = np.ones((3, 2), np.float32)
    right = twice(Tensor(stored))
    with minires.intervene(model, {"b": stored}):
        assert close(model(Tensor(np.zeros((3, 2), np.float32))), right)


def test_a_module_held_twice_before_a_stored_one_still_runs():
    twice = nn.Linear(2, 2)
    model = nn.Sequential(a=twice, b=nn.Linear(2, 2), c=twice)
    x = Tensor([[1.0, 2.0]])
    stored = np.array([[3.0, 4.0]], "f4")
    right = twice(Tensor(stored))
    with minires.intervene(model, {"b": stored}):
        assert (model(x).data == right.data).all()


def test_deleting_each_block_is_cheap_with_stored_activations():
    model, x, *_ = made("resnet20")
    names = [n for n, m in model.children() if isinstance(m, Residual)]
    kept = minires.activations(model, x, names)
    assert len(names) == 9
    for before, block in zip(names, names[1:], strict=False):
        with minires.intervene(model, {before: kept[before], block: "drop"}):
            y = model(x)
        with minires.intervene(model, {block: "drop"}):
            assert close(y, model(x))


def test_activations_leave_everything_as_it_is_and_name_what_did_not_run():
    model, x, block, _ = made("resnet20", training=True)
    before = states(model)
    kept = minires.activations(model, x.data, ["conv1", "res3b_branch2a", f"{block}.branch"])
    assert all(np.array_equal(model.state_dict()[n], a) for n, a in before.items())
    assert np.array_equal(kept["conv1"], model.conv1(x).data) and list(kept) == [
        "conv1", "res3b_branch2a", f"{block}.branch"
    ]  # fmt: skip
    assert not any("_around" in vars(m) for m in model.modules())
    with minires.intervene(model, {"res3b": "drop"}):
        with pytest.raises(ConfigError, match="res3b_branch2a did not run"):
            minires.activations(model, x, ["res3b_branch2a"])
        assert minires.activations(model, x, [block])[block].any()  # what is changed is what it gives
    for wrong, said in (("conv1", "list of paths"), (["conv1[3]"], "channels"), (["res9"], "nearest")):
        with pytest.raises(ConfigError, match=said):
            minires.activations(model, x, wrong)


def test_a_function_is_given_the_output_and_gives_a_new_one():
    model, x, block, _ = made("resnet20")
    seen = []

    def half(y):
        seen.append(y)
        return y * 0.5

    with minires.intervene(model, {block: half, "res4a.branch": lambda f: -f}) as done:
        y = model(x)
    right = by_hand(model, x, {block: lambda m, x: m(x) * 0.5, "res4a": joined(branch=-1.0)})
    assert close(y, right) and len(seen) == 1 and seen[0].requires_grad
    assert done.words[0] == "res3b: its output goes through half"
    with minires.intervene(model, {block: lambda y: None}), pytest.raises(ConfigError, match="NoneType"):
        model(x)


def test_swapped_and_ordered_blocks_run_in_each_others_places():
    model, x, *_ = made("resnet20")

    def other(name):
        return lambda module, x: getattr(model, name)(x)

    names = list(model.state_dict())
    right = by_hand(model, x, {"res2b": other("res2c"), "res2c": other("res2b")})
    wanted = gradients(model, loss_of(right))
    with minires.intervene(model, {"swap": ("res2b", "res2c")}) as done:
        assert list(model.state_dict()) == names and [n for n, _ in model.children()][3:6] == [
            "res2b", "res2c", "res3a"
        ]  # fmt: skip
        y = model(x)
        ours = gradients(model, loss_of(y))
    assert close(y, right, 1e-6)
    same_gradients(ours, wanted)
    assert str(done) == "res2b: res2c runs here\nres2c: res2b runs here"
    right = by_hand(model, x, {"res2a": other("res2c"), "res2b": other("res2a"), "res2c": other("res2b")})
    with minires.intervene(model, {"order": ["res2c", "res2a", "res2b"]}):
        assert close(model(x), right, 1e-6)
    pairs = {"res2b": "res2c", "res2c": "res2b", "res4b": "res4c", "res4c": "res4b"}
    right = by_hand(model, x, {one: other(name) for one, name in pairs.items()})
    with minires.intervene(model, {"swap": [("res2b", "res2c"), ("res4b", "res4c")]}):
        assert close(model(x), right, 1e-6)
    with minires.intervene(model, {"swap": ("res2b", "res2c"), "res2c": 0.5}):  # the module, wherever it runs
        y = model(x)
    right = by_hand(model, x, {"res2b": lambda m, x: model.res2c(x) * 0.5, "res2c": other("res2b")})
    assert close(y, right)
    inside = {"swap": ("res2b_branch2a", "res2b_branch2b")}
    with minires.intervene(model, inside):
        y = model(x)

    def hand(m, x):
        return m.bn2b_branch2b(m.res2b_branch2a(m.bn2b_branch2a(m.res2b_branch2b(x))), add=x)

    assert close(y, by_hand(model, x, {"res2b": hand}))


def test_shapes_that_do_not_fit_name_both_blocks():
    model, x, *_ = made("resnet20")
    for pair in (("res2b", "res3a"), ("res2c", "res3b")):
        with minires.intervene(model, {"swap": pair}), pytest.raises(ShapeError) as caught:
            model(x)
        assert all(name in str(caught.value) for name in pair)
    for wrong, said in (
        (("conv1", "res2b_branch2a"), "side by side"), (("res2b", "res2q"), "no module 'res2q'"),
        (("res2b",), "two paths"), ("res2b", "two paths"),
        ([("res2a", "res2b"), ("res2b", "res2c")], "moved twice"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            minires.intervene(model, {"swap": wrong})
    for wrong in ("res2b", ["res2b", "res2b"], [1]):
        with pytest.raises(ConfigError, match="order"):
            minires.intervene(model, {"order": wrong})


# ------------------------------------------------------------------------------------ a block of a user's own


class Mine(nn.Module):
    def __init__(self, rng):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, rng=rng)

    def parts(self, x):
        return self.conv(x), x

    def join(self, branch, shortcut):
        return ops.tanh(branch + shortcut)

    def forward(self, x):
        return self.join(*self.parts(x))


class Listed(nn.Module):
    """A model that calls the blocks of a list."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.blocks = [Mine(rng) for _ in range(3)]

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_a_block_of_a_users_own_in_ten_lines_works_with_all_of_it():
    model = Listed()
    x = Tensor(np.random.default_rng(1).standard_normal((2, 5, 5, 4)).astype("float32"))
    a, b, c = model.blocks
    with minires.intervene(model, {"blocks.1": "drop"}) as done:
        assert close(model(x), c(ops.tanh(a(x))))
    assert str(done) == "blocks.1: dropped: its shortcut + 0 x its branch"
    with minires.intervene(model, {"blocks.1.branch": 0.5, "blocks.1.shortcut[2]": 0}):
        h = a(x)
        keep = Tensor(np.array([1, 1, 0, 1], "f4"))
        assert close(model(x), c(ops.tanh(b.conv(h) * 0.5 + h * keep)))
    right = b(a(c(x)))
    with minires.intervene(model, {"order": ["blocks.2", "blocks.0", "blocks.1"]}):
        assert close(model(x), right)
    kept = minires.activations(model, x, ["blocks.1", "blocks.2.branch"])
    assert close(kept["blocks.2.branch"], c.conv(b(a(x))))
    with minires.intervene(model, {"blocks.1": kept["blocks.1"]}):
        y = model(Tensor(0 * x.data))
    assert close(y, model(x))
    with minires.intervene(model, {"blocks.0.conv": "drop"}):
        assert close(model(x), c(b(ops.tanh(x + x))))
    s = minires.step(model_with_loss(model), x, changes={"0.blocks.1": "drop"})
    assert s.recording.changes == ("0.blocks.1: dropped: its shortcut + 0 x its branch",)


def model_with_loss(model):
    return nn.Sequential(model, nn.GlobalAvgPool2d())


# --------------------------------------------------------------------------- left as it was, nested, refused


def test_the_model_is_as_before_also_after_an_exception():
    model, x, block, _ = made("resnet20")
    y, before, attributes = model(x), states(model), [dict(vars(m)).keys() for m in model.modules()]
    with pytest.raises(RuntimeError), minires.intervene(model, {block: "drop", "conv1": 0.5}):
        raise RuntimeError
    with pytest.raises(ShapeError), minires.intervene(model, {"avg_pool": "drop"}):
        model(x)
    assert (model(x).data == y.data).all()
    assert all(np.array_equal(model.state_dict()[name], a) for name, a in before.items())
    assert [dict(vars(m)).keys() for m in model.modules()] == attributes


def test_nested_changes_multiply_and_what_cannot_be_both_is_refused():
    model, x, block, _ = made("resnet20")
    y = model(x)
    outer, inner = minires.intervene(model, {block: 0.5}), minires.intervene(model, {block: 3.0, "conv1": 2})
    with outer:
        with inner:
            assert len(changes_of(model)) == 3
            with_all = model(x)
        only_outer = model(x)
    hand = {block: lambda m, x: m(x) * 1.5, "conv1": lambda m, x: m(x) * 2.0}
    assert close(with_all, by_hand(model, x, hand))
    assert close(by_hand(model, x, {block: lambda m, x: m(x) * 0.5}), only_outer)
    assert (model(x).data == y.data).all()
    with outer, inner:
        assert close(model(x), with_all)
    assert not close(with_all, only_outer)
    for before, then in (
        ({block: "drop"}, {block: 0.5}), ({block: 0.5}, {block: "drop"}), ({block: "drop"}, {block: "drop"}),
        ({block: "drop"}, {f"{block}.branch": 2}), ({f"{block}.branch": "drop"}, {f"{block}.branch": 2}),
        ({"swap": ("res2b", "res2c")}, {"swap": ("res2a", "res2b")}), ({block: x.data}, {block: 0.5}),
        ({"res4a": np.zeros((3, 8, 8, 64), "f4")}, {block: 0.5}),
    ):  # fmt: skip
        with minires.intervene(model, before), pytest.raises(ConfigError, match="cannot be beside"):
            with minires.intervene(model, then):
                pass
        assert not any("_around" in vars(m) for m in model.modules())
    with outer, pytest.raises(MiniresError, match="already"), outer:
        pass


def test_ends_in_any_order_take_away_their_own_changes_alone():
    model, x, block, _ = made("resnet20")
    one, two = minires.intervene(model, {block: 0.5}), minires.intervene(model, {block: 2.0})
    one.__enter__()
    two.__enter__()
    handle = model.res3b.register_forward_hook(lambda module, inputs, y: y * 0)
    one.__exit__()
    handle.remove()
    assert close(model(x), by_hand(model, x, {block: lambda m, x: m.join(*m.parts(x)) * 2.0}))
    two.__exit__()
    assert not any("_around" in vars(m) for m in model.modules())


def test_a_module_held_twice_is_changed_at_both_places_under_either_name():
    twice = nn.Linear(2, 2)
    model = nn.Sequential(a=twice, b=nn.ReLU(), c=twice)
    x = Tensor([[1.0, 2.0]])
    for name in ("a", "c"):
        with minires.intervene(model, {name: 0.5}):
            assert close(model(x), twice.forward(relu(twice.forward(x) * 0.5)) * 0.5)
    with pytest.raises(ConfigError, match="several places"):
        minires.intervene(model, {"swap": ("a", "b")})
    with pytest.raises(ConfigError, match="cannot be beside"):
        with minires.intervene(model, {"a": "drop", "c": 0.5}):
            pass


class Branchless(nn.Module):
    def forward(self, x):
        return x, x


WRONG = {
    "an unknown path": ({"res3x": "drop"}, "no module 'res3x'; the nearest"),
    "an unknown word": ({"res3b": "drpo"}, "unknown change 'drpo'. Did you mean 'drop'"),
    "a truth value": ({"res3b": True}, "not True"),
    "nothing": ({"res3b": None}, "not None"),
    "no number": ({"res3b": float("nan")}, "finite number"),
    "a class": ({"res3b": nn.ReLU}, "not <class"),
    "a place that is no text": ({3: "drop"}, "as text"),
    "no dict": (["res3b"], "are a dict"),
    "a branch of a convolution": ({"conv1.branch": 0}, "conv1 .* has no branch"),
    "a way of an unknown block": ({"res3x.branch": 0}, "no module 'res3x.branch'"),
    "channels that are none": ({"res3b[a]": 0}, "channels are written"),
    "no channels": ({"res3b[]": 0}, "channels are written"),
    "an open bracket": ({"res3b[3": 0}, "in brackets"),
    "dropped channels": ({"res3b[3]": "drop"}, "silenced by 0"),
    "stored channels": ({"res3b[3]": np.ones(3)}, "not stored"),
    "a function of channels": ({"res3b[3]": abs}, "scaled by a number"),
    "drop and scale": ({"res3b": "drop", "res3b.shortcut": 0.5}, "cannot be beside"),
    "before a stored one": ({"res3b": np.zeros((3, 16, 16, 32), "f4"), "res2a": 0.5}, "res2a is not run"),
    "inside of one before a stored one": (
        {"res3b": np.zeros((3, 16, 16, 32), "f4"), "bn2a_branch2a": "drop"}, "bn2a_branch2a is not run"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_in_words(changes, said):
    model = build("resnet20_cifar", initializer="zeros")
    with pytest.raises(ConfigError, match=said):
        with minires.intervene(model, changes):
            pass
    assert not any("_around" in vars(m) for m in model.modules())


@pytest.mark.parametrize("channels", ["32", "-33", "0:33", "5:5", "40:50", "1,32", "-40:2"])
def test_a_channel_that_is_not_there_is_refused(channels):
    model, x, block, _ = made("resnet20")
    with minires.intervene(model, {f"{block}[{channels}]": 0}), pytest.raises(ShapeError, match="0 to 31"):
        model(x)


def test_no_model_and_no_tensor_are_refused():
    with pytest.raises(ConfigError, match="a Module"):
        minires.intervene(lambda x: x, {})
    for value in (0.5, abs):
        pair = nn.Sequential(a=Branchless())
        with minires.intervene(pair, {"a": value}), pytest.raises(ConfigError, match="tuple"):
            pair(Tensor([1.0]))


def test_what_has_not_run_is_said():
    model, x, *_ = made("resnet20")
    with minires.intervene(model, {"res3b": 0.5}) as done:
        assert str(done) == "res3b: 0.5 x its output (has not run yet)"
        model(x)
        assert str(done) == "res3b: 0.5 x its output" and done.words[0].chinese == "res3b：输出 × 0.5"
    assert changes_of(model) == ()


# --------------------------------------------------------------------------------------------------- hooks


def test_a_hook_sees_module_inputs_and_output_and_may_give_another():
    model, x, block, _ = made("resnet20")
    plain, seen = model(x), []
    with model.res3b.register_forward_hook(lambda module, inputs, y: seen.append((module, inputs, y))):
        assert (model(x).data == plain.data).all()
    (module, inputs, y), = seen  # fmt: skip
    assert module is model.res3b and len(inputs) == 1 and close(model.res3b(inputs[0]), y)
    one = model.res3b.register_forward_hook(lambda module, inputs, y: y * 2.0)
    two = model.res3b.register_forward_hook(lambda module, inputs, y: y + 1.0)
    assert close(model(x), by_hand(model, x, {block: lambda m, x: m.forward(x) * 2.0 + 1.0}))
    one.remove()
    one.remove()
    assert close(model(x), by_hand(model, x, {block: lambda m, x: m.forward(x) + 1.0}))
    two.remove()
    assert (model(x).data == plain.data).all()
    with pytest.raises(ConfigError, match="takes a function"):
        model.res3b.register_forward_hook(None)
    three = model.res3b.register_forward_hook(lambda *given: 3)
    with three, pytest.raises(ConfigError, match="None, or a tensor"):
        model(x)


def test_the_gradient_flows_through_a_hook():
    model, x, block, _ = made("resnet20", training=True)
    before = states(model)
    right = gradients(model, loss_of(by_hand(model, x, {block: lambda m, x: m.forward(x) * 3.0})))
    model.load_state_dict(before)
    with model.res3b.register_forward_hook(lambda module, inputs, y: y * 3.0):
        same_gradients(gradients(model, loss_of(model(x))), right)


def test_copies_and_pickles_are_those_of_the_model_itself():
    model, x, block, _ = made("resnet20")
    plain = model(x)
    names = list(model.state_dict())
    with minires.intervene(model, {block: "drop"}):
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model.res3b)]
        assert list(model.state_dict()) == names
        assert all((one(x).data == plain.data).all() for one in others[:2])
        assert "_around" not in vars(others[2]) and not close(model(x), plain)


def test_while_a_shape_is_found_out_in_one_thread_the_changes_hold_in_others():
    model = nn.Sequential(a=nn.ReLU(), b=nn.Identity())
    x = Tensor([1.0, 2.0])
    found = []

    class Slow(nn.Module):
        def forward(self, x):
            if not minires.tensor.is_recording():  # the pass in which the shape is found out
                thread = threading.Thread(target=lambda: found.append(model(x).tolist()))
                thread.start()
                thread.join()
            return x

    slow = nn.Sequential(slow=Slow())
    with minires.intervene(model, {"a": 0.5}), minires.intervene(slow, {"slow": "drop"}):
        slow(x)
        slow(x)
    assert found == [[0.5]]  # of one picture, and once: the shape is known then


# ------------------------------------------------------------------------- what runs a model in another way


def test_fuse_refuses_a_hook_and_a_change():
    model, x, block, _ = made("resnet20")
    with minires.intervene(model, {block: "drop"}):
        with pytest.raises(ConfigError, match="fuse: minires.intervene changes res3b: dropped"):
            minires.fuse(model)
    with model.res3b.res3b_branch2a.register_forward_hook(lambda *given: None):
        with pytest.raises(ConfigError, match="fuse: res3b_branch2a has a forward hook"):
            minires.fuse(model)
    folded = minires.fuse(model)
    with minires.intervene(folded, {"bn3b_branch2b": "drop"}):  # what is left of a folded one: add and ReLU
        assert close(folded(x), model(x), 1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", ["intervention", "hook"])
def test_a_plan_refuses_a_change_whether_it_was_made_before_or_is_to_be_made(training, change):
    model = nn.Sequential(
        conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4, relu=True), pool=nn.GlobalAvgPool2d(),
        fc=nn.Linear(4, 2),
    ).train(training)  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("float32")
    plan = minires.compile(model, x.shape, training=training)
    right = np.asarray(plan(x))

    def changed():
        if change == "hook":
            return model.conv.register_forward_hook(lambda module, inputs, y: y * 0)
        return minires.intervene(model, {"conv": 0})

    for _ in range(2):
        with changed():
            with pytest.raises(ConfigError, match="a plan would not know of it"):
                plan(x)
            with pytest.raises(ConfigError, match="compile: .*a plan would not know of it"):
                minires.compile(model, x.shape, training=training)
        assert np.allclose(np.asarray(plan(x)), right)


def test_a_run_goes_on_by_its_plan_when_the_change_is_over():
    from minires.train.planned import Forward

    model = nn.Sequential(conv=nn.Conv2d(3, 4, 3), pool=nn.GlobalAvgPool2d(), fc=nn.Linear(4, 2)).train()
    forward = Forward(model, 1000, 2)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("float32"))
    assert forward(x).node.op == "plan"
    with minires.intervene(model, {"conv": 0}):
        y = forward(x)
    assert y.node.op != "plan" and close(y, np.broadcast_to(model.fc.bias.data, (2, 2)))
    assert forward(x).node.op == "plan"


def test_predict_and_evaluate_compute_what_is_changed_for_few_and_for_many_pictures():
    from minires.data import Dataset, Normalize
    from minires.train import evaluate, predict

    model = nn.Sequential(conv=nn.Conv2d(3, 4, 3), pool=nn.GlobalAvgPool2d(), fc=nn.Linear(4, 2)).eval()
    model.fc.bias.data[...] = [0.0, np.log(3)]
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    normalize = Normalize((0.5,) * 3, (0.25,) * 3)
    data = Dataset(images, np.ones(40, int), ("a", "b"), tuple(map(str, range(40))), "noise")
    with minires.intervene(model, {"conv": 0}):
        for some in (images[:3], images):
            assert np.allclose(predict(model, some, normalize, batch_size=4), [[0.25, 0.75]])
        assert np.isclose(evaluate(model, data, normalize, batch_size=4).loss, np.log(4 / 3))
    assert not np.allclose(predict(model, images, normalize, batch_size=4), [[0.25, 0.75]])


@pytest.mark.parametrize("inside", [True, False])
def test_a_recomputed_block_is_changed_in_both_runs_wherever_the_second_is(inside):
    model, x, block, _ = made("resnet20", training=True)
    before = states(model)
    h = np.random.default_rng(0).standard_normal((3, 16, 16, 32)).astype("float32")
    h = Tensor(h, requires_grad=True)
    changes = {"branch": 0.5, "bn3b_branch2a": "drop"}
    with minires.intervene(model.res3b, changes):
        right = gradients(model.res3b, loss_of(model.res3b(h)))
        wanted = h.grad.copy()
        model.load_state_dict(before)
        h.grad = None
        loss = loss_of(minires.recompute(model.res3b, h))
        ours = gradients(model.res3b, loss) if inside else None
    if not inside:
        ours = gradients(model.res3b, loss)
    same_gradients(ours, right)
    assert close(h.grad, wanted) and not any("_around" in vars(m) for m in model.modules())


def test_an_export_refuses_and_a_summary_too(tmp_path):
    pytest.importorskip("onnx")
    from minires.weights.onnx import export_onnx

    model, x, block, _ = made("resnet20")
    with minires.intervene(model, {block: "drop"}):
        with pytest.raises(ConfigError, match="export_onnx: minires.intervene changes res3b"):
            export_onnx(model, tmp_path / "a.onnx", (32, 32, 3))
        with pytest.raises(ConfigError, match="summary: the model is changed"):
            model.summary((32, 32, 3))
    with model.conv1.register_forward_hook(lambda *given: None):
        with pytest.raises(ConfigError, match="conv1 has a forward hook"):
            export_onnx(model, tmp_path / "a.onnx", (32, 32, 3))
        assert model.summary((32, 32, 3)).parameters > 0
    assert not list(tmp_path.iterdir())


def test_a_graph_of_a_gpu_is_not_captured_of_a_changed_model():
    from minires.optim import SGD
    from minires.train.captured import obstacle

    model, _, block, _ = made("resnet20")
    optimizer = SGD(list(model.parameters()), lr=0.1)
    assert obstacle(model, optimizer) is None
    with minires.intervene(model, {block: "drop"}):
        assert "res3b: dropped" in obstacle(model, optimizer)


def test_weights_that_are_saved_inside_are_those_of_the_model(tmp_path):
    from minires.train.int8 import packed

    model, x, block, _ = made("resnet20")
    right = packed(model.state_dict())
    with minires.intervene(model, {block: "drop", "swap": ("res2b", "res2c")}):
        ours = packed(model.state_dict())
    assert ours.keys() == right.keys() and all(np.array_equal(ours[n], right[n]) for n in right)


def test_a_function_keeps_the_shape_and_what_is_stored_are_numbers():
    model = nn.Sequential(a=nn.Linear(3, 4), b=nn.Linear(4, 4)).eval()
    said = r"the function for a must return the shape that it is given, \(2, 4\), not \(1, 4\)"
    with minires.intervene(model, {"a": lambda y: y[:1]}), pytest.raises(ConfigError, match=said):
        model(Tensor(np.ones((2, 3), np.float32)))
    for value in (np.array([["a"] * 4] * 2), np.array([[None] * 4] * 2), np.ones((2, 4), complex)):
        with pytest.raises(ConfigError, match="a: what is stored in its place is real numbers, not"):
            with minires.intervene(model, {"a": value}):
                pass


def test_a_change_inside_of_what_does_not_run_is_refused():
    inner = nn.Sequential(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    model = nn.Sequential(inner=inner, last=nn.Linear(3, 3)).eval()
    x = Tensor(np.ones((2, 3), np.float32))
    for value in (np.ones((2, 3), np.float32), "drop"):
        with pytest.raises(ConfigError, match="inner.a is not run, since inner, which holds it, is not"):
            with minires.intervene(model, {"inner": value, "inner.a": 0.5}):
                model(x)
    with minires.intervene(model, {"inner": 2.0, "inner.a": 0.5}):  # here both have an effect
        both = model(x).numpy()
    with minires.intervene(model, {"inner": 2.0}):
        assert not np.array_equal(both, model(x).numpy())
    block = build("resnet20_cifar", repeats=(1, 1, 1), shortcut="C", seed=0).eval()
    with minires.intervene(block, {"res3a": "drop", "res3a_branch1": 0.5}):  # its shortcut runs
        block(Tensor(np.ones((1, 8, 8, 3), np.float32)))
