"""Paths through residual networks: each of the 2^n followed by itself, and what is said by length."""

from __future__ import annotations

import copy
from itertools import combinations
from math import comb

import numpy as np
import pytest

from minires import Tensor, nn, no_grad, ops, recompute
from minires.errors import ConfigError, ShapeError
from minires.inspect import PathLengths, path_lengths
from minires.models import build
from minires.nn import restored
from minires.nn.blocks import Residual, basic
from minires.nn.intervene import intervene
from minires.ops.cross_entropy import cross_entropy

RNG = np.random.default_rng(0)


class Doubled(nn.Module):
    """A block of a user's own: something stands before the split, and on the shortcut."""

    def __init__(self, width, out):
        super().__init__()
        self.before = nn.Linear(width, width, rng=RNG)
        self.inner = nn.Linear(width, out, rng=RNG)
        self.around = nn.Linear(width, out, rng=RNG)

    def parts(self, x):
        x = ops.sigmoid(self.before(x))
        return ops.relu(self.inner(x)), self.around(x)

    def join(self, branch, shortcut):
        return ops.sigmoid(branch * 2 + shortcut)

    def forward(self, x):
        return self.join(*self.parts(x))


class Own(nn.Module):
    """Units in a list, one of them called twice, and layers between them."""

    def __init__(self):
        super().__init__()
        self.units = [Doubled(5, 5), Doubled(5, 3)]
        self.head = nn.Linear(3, 3, rng=RNG)

    def forward(self, x):
        x = ops.sigmoid(self.units[0](x))
        return self.head(self.units[1](self.units[0](x) * 3))


CIFAR = {"classes": 3, "seed": 0}
MODELS = {
    "V1, option A": ("resnet20_cifar", {"repeats": (1, 2, 1)}),
    "V1, projections": ("resnet20_cifar", {"repeats": (1, 1, 1), "shortcut": "C"}),
    "V2": ("preresnet110_cifar", {"repeats": (2, 1, 1), "shortcut": "B"}),
    "V2, gates": ("preresnet110_cifar", {"repeats": (1, 1, 1), "order": "original", "gating": "exclusive"}),
    "bottlenecks": ("preresnet164_cifar", {"repeats": (1, 1, 1)}),
    "SE": ("se_resnet56_cifar", {"repeats": (1, 1, 1)}),
    "SE behind the addition": ("se_resnet56_cifar", {"repeats": (1, 1, 1), "placement": "post"}),
    "ResNeXt": ("resnext29_8x64d_cifar", {"repeats": (1, 1, 1), "cardinality": 2, "width": 4}),
    "own": (None, {}),
}


def made(name):
    """A model with statistics and biases that are not trivial, in float64, in training mode."""
    kind, options = MODELS[name]
    model = Own() if kind is None else build(kind, **CIFAR, **options)
    rng = np.random.default_rng(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[...] = rng.normal(0, 0.3, module.running_mean.shape)
            module.running_var[...] = rng.uniform(0.5, 2, module.running_var.shape)
            module.gamma.data[...] = rng.uniform(0.5, 1.5, module.gamma.shape)
    shape = (2, 5) if kind is None else (2, 8, 8, 3)
    return model.astype("float64"), rng.standard_normal(shape), [0, 2]


def gradient(model, x, y):
    pixels = Tensor(x, requires_grad=True)
    with restored.modes(model, training=False):
        cross_entropy(model(pixels), y, reduction="sum").backward()
    return pixels.grad


def calls(model, x):
    """How often units are called."""
    count = []
    over(model, x, [0] * len(x), lambda: count.append(1) or True)
    return len(count)


def over(model, x, y, through):
    """The gradient over one path: at each call of a unit ``through()`` says whether it leads through the
    branch; what the other way gives is a constant there."""
    model = copy.deepcopy(model)

    def forward(unit):
        def run(x):
            branch, shortcut = unit.parts(x)
            if through():
                return unit.join(branch, shortcut.detach())
            return unit.join(branch.detach(), shortcut)

        return run

    for module in model.modules():
        if isinstance(module, Residual):
            vars(module)["forward"] = forward(module)
    return gradient(model, x, y)


def every_path(model, x, y):
    """The gradients over all paths, in a list for each length."""
    n = calls(model, x)
    found = []
    for k in range(n + 1):
        chosen = [[place in taken for place in range(n)] for taken in combinations(range(n), k)]
        found.append([over(model, x, y, iter(one).__next__) for one in chosen])
    return found


def norm(gradient):
    return np.sqrt((gradient.reshape(len(gradient), -1) ** 2).sum(axis=1)).mean()


@pytest.mark.parametrize("name", MODELS)
def test_every_path_followed_by_itself_gives_the_same(name):
    model, x, y = made(name)
    paths = every_path(model, x, y)
    n = len(paths) - 1
    assert n >= 3
    together = [sum(of_a_length) for of_a_length in paths]
    assert np.allclose(sum(together), gradient(model, x, y), rtol=1e-10, atol=1e-14)
    found = path_lengths(model, x, y, samples=comb(n, n // 2))
    assert found.count.tolist() == [len(one) for one in paths] == found.paths_tried.tolist()
    assert np.allclose(found.measured, [norm(one) for one in together], rtol=1e-9)
    singles = [np.mean([norm(path) for path in one]) for one in paths]
    assert np.allclose(found.one_path, singles, rtol=1e-9)
    assert len({f"{one:.6g}" for one in found.measured}) == n + 1  # no trivial case


def test_units_are_named_in_the_order_in_which_a_picture_passes_them():
    model, x, y = made("V1, option A")
    assert path_lengths(model, x, y).units == ("res2a", "res3a", "res3b", "res4a")
    model, x, y = made("own")
    assert path_lengths(model, x, y).units == ("units.0", "units.0", "units.1")


def test_a_few_paths_are_drawn_for_each_picture_by_itself():
    model, x, y = made("V1, option A")
    pictures = 40
    x = np.repeat(x[:1], pictures, axis=0)
    singles = np.array([norm(path) for path in every_path(model, x[:1], [1])[2]])
    assert len(singles) == 6
    found = path_lengths(model, x, [1] * pictures, samples=5)
    assert found.paths_tried.tolist() == [1, 4, 5 * pictures, 4, 1]
    error = singles.std() / np.sqrt(5 * pictures)
    assert error > 0.01 * singles.mean()  # so many different ones
    assert abs(found.one_path[2] - singles.mean()) < 4 * error
    again, other = (path_lengths(model, x, [1] * pictures, samples=5, seed=seed) for seed in (0, 1))
    assert again.one_path[2] == found.one_path[2] != other.one_path[2]
    # One drawing of one picture is one of the six, and nothing between them.
    drawn = {path_lengths(model, x[:1], [1], samples=1, seed=seed).one_path[2] for seed in range(12)}
    assert 3 <= len(drawn) <= 6
    assert all(np.isclose(one, singles, rtol=1e-9).any() for one in drawn)


class Mixed(nn.Module):
    """y = s * x + b * (x in another order)."""

    def __init__(self, order, s, b):
        super().__init__()
        self.order, self.s, self.b = order, s, b

    def parts(self, x):
        return x[:, self.order] * self.b, x * self.s

    def join(self, branch, shortcut):
        return branch + shortcut

    def forward(self, x):
        return self.join(*self.parts(x))


def in_a_row(*units):
    head = nn.Linear(4, 2, rng=RNG)
    head.weight.data[1:] = 0  # all of the gradient begins in one number
    return nn.Sequential(*units, head).astype("float64")


def test_gains_of_units_say_what_paths_carry_where_each_unit_has_one():
    x = RNG.standard_normal((3, 4))
    same = [0, 1, 2, 3]
    model = in_a_row(Mixed(same, 0.5, 2.0), Mixed(same, 3.0, 0.25))
    found = path_lengths(model, x, [0, 1, 0], samples=2)
    coefficients = np.array([1.5, 0.5 * 0.25 + 2 * 3, 2 * 0.25])
    assert np.allclose(found.analytic / found.analytic[0], coefficients / 1.5)
    for one in (found.effective, found.measured):  # all of one direction
        assert np.allclose(one, found.analytic)
    assert np.allclose(found.branch_gains, [2, 0.25]) and np.allclose(found.shortcut_gains, [0.5, 3])
    assert np.allclose(found.gains, [2.5, 3.25])

    # Each path brings the gradient to a place of its own.
    turned = in_a_row(Mixed([1, 0, 3, 2], 0.5, 2.0), Mixed([2, 3, 0, 1], 3.0, 0.25))
    apart = path_lengths(turned, x, [0, 1, 0], samples=2)
    assert np.allclose(apart.effective / apart.effective[0], coefficients / 1.5)
    squares = np.sqrt([1.5**2, (0.5 * 0.25) ** 2 + (2 * 3) ** 2, 0.5**2])
    assert np.allclose(apart.analytic_unrelated / apart.analytic_unrelated[0], squares / 1.5)
    assert np.allclose(apart.measured, apart.analytic_unrelated)
    assert np.allclose(apart.gains, np.hypot([2, 0.25], [0.5, 3]))


def lengths_of(count, one_path, measured=None):
    none = np.zeros(len(count))
    return PathLengths(
        units=("a",) * (len(count) - 1), count=np.array(count, float), one_path=np.array(one_path, float),
        measured=none if measured is None else np.array(measured, float), analytic=none,
        analytic_unrelated=none, branch_gains=none, shortcut_gains=none, gains=none,
        paths_tried=none.astype(int),
    )  # fmt: skip


def test_means_and_the_shortest_interval():
    found = lengths_of([1, 4, 6, 4, 1], [16, 8, 4, 2, 1], measured=[0, 1, 0, 1, 2])
    assert found.mean_length == 2
    assert found.effective_length == pytest.approx((32 + 48 + 24 + 4) / 81)
    assert found.measured_length == pytest.approx((1 + 3 + 8) / 4)
    assert found.interval(0.7) == (0, 2)  # 72 of 81, where 1 to 2 are 56
    assert found.interval(56 / 81 - 1e-9) == (1, 2)
    assert found.interval(0.3) == (1, 1)
    assert found.interval(1) == (0, 4)
    assert lengths_of([1, 2, 1], [0, 0, 0]).interval() == (0, 0)
    with pytest.raises(ConfigError, match="share is 1.5"):
        found.interval(1.5)


def test_in_a_table_is_a_line_for_each_length():
    text = repr(lengths_of([1, 2, 1], [4, 2, 1], measured=[1, 1, 1])).splitlines()
    assert text[0].split() == "length paths one path paths x one measured analytic".split()
    assert text[2].split() == ["1", "2", "2", "4", "1", "0"]
    means = "mean length 1.0; weighted by the gradient of one path 0.7, by what they carry together 1.0"
    assert text[-2] == f"2 units: 2^2 paths, {means}"
    assert text[-1] == "95% of paths x one: lengths 0 to 2"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure(tmp_path, ending):
    found = lengths_of([1, 2, 1], [4, 0, 1], measured=[1, 1, 1])
    for name in ("one", "two"):
        found.draw(tmp_path / f"{name}.{ending}")
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
    assert one == two and len(one) > 5000
    with pytest.raises(ConfigError, match="a figure is written as .png or .svg"):
        found.draw(tmp_path / "figure.gif")


def test_the_model_is_left_as_it_is():
    model, x, y = made("V2")
    model.res2a.bn2a_branch2b.eval()
    model.conv1.weight.requires_grad = False
    before = model.state_dict()
    modes = [module.training for module in model.modules()]
    pixels = Tensor(x, requires_grad=True)
    with no_grad():
        inside = path_lengths(model, pixels, y)
    assert np.array_equal(inside.measured, path_lengths(model, x, y).measured)
    assert pixels.grad is None and all(one.grad is None for one in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert [one.requires_grad for one in model.parameters()].count(False) == 1


def test_what_has_no_shortcut_is_on_every_path():
    x, y = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("float32"), [0, 1]
    plain = build("plain20_cifar", **CIFAR, repeats=(1, 1, 1))
    found = path_lengths(plain, x, y)
    assert found.units == () and found.count.tolist() == [1] and found.interval() == (0, 0)
    assert found.measured == pytest.approx([norm(gradient(plain, x, y))], rel=1e-4)
    residual = build("resnet20_cifar", **CIFAR, repeats=(1, 2, 1))
    residual.res3b = nn.ResidualBlock(32, basic(32), stage=3, block="b", shortcut="none")
    residual.astype("float64")
    found = path_lengths(residual, x.astype("float64"), y)
    assert found.units == ("res2a", "res3a", "res4a")
    longest = gradient_without_shortcuts(residual, x, y)
    assert found.measured[3] == pytest.approx(norm(longest), rel=1e-9)


def gradient_without_shortcuts(model, x, y):
    """Over the path through all branches."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Residual):

            def run(x, unit=module):
                branch, shortcut = unit.parts(x)
                return unit.join(branch, None if shortcut is None else shortcut.detach())

            vars(module)["forward"] = run
    return gradient(model, x.astype("float64"), y)


class Nested(Doubled):
    """Its branch is a unit."""

    def __init__(self, width):
        super().__init__(width, width)
        self.deep = Doubled(width, width)

    def parts(self, x):
        return self.deep(x), x


def test_a_unit_inside_another_is_a_part_of_its_branch():
    model = nn.Sequential(Nested(4), nn.Linear(4, 2, rng=RNG)).astype("float64")
    found = path_lengths(model, RNG.standard_normal((3, 4)), [0, 1, 1])
    assert found.units == ("0",) and found.count.tolist() == [1, 1]


def test_a_recomputed_unit_is_a_unit():
    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit, self.head = Doubled(4, 4), nn.Linear(4, 2, rng=RNG)

        def forward(self, x):
            return self.head(recompute(self.unit, x))

    model = Saving()
    plain = nn.Sequential(model.unit, model.head)
    x = RNG.standard_normal((3, 4)).astype("float32")
    found, expected = (path_lengths(one, x, [0, 1, 1]) for one in (model, plain))
    assert np.allclose(found.measured, expected.measured) and (found.measured > 0).all()


def test_small_gradients_do_not_vanish_in_a_square():
    model, x, y = made("V2")
    model, x = model.astype("float32"), x.astype("float32")
    usual = path_lengths(model, x, y)
    model.fc.weight.data *= 1e-24
    model.fc.bias.data[...] = 0
    small = path_lengths(model, x, y)
    assert (small.measured > 0).all() and small.measured[0] < 1e-22
    # With logits of about 0 the loss has another gradient; the shares of lengths are nearly as before.
    assert np.allclose(small.measured / small.measured.sum(), usual.measured / usual.measured.sum(), atol=0.1)


class Chain(nn.Module):
    """No unit: its parts are layers."""

    def __init__(self):
        super().__init__()
        self.parts, self.join = [nn.Linear(4, 2)], "no method"

    def forward(self, x):
        return self.parts[0](x)


class Around(nn.Module):
    """A unit with a way around it."""

    def __init__(self):
        super().__init__()
        self.unit, self.head = Doubled(4, 4), nn.Linear(4, 2, rng=RNG)

    def forward(self, x):
        return self.head(self.unit(x) + x)


class Beside(Around):
    """Two units beside each other."""

    def __init__(self):
        super().__init__()
        self.other = Doubled(4, 4)

    def forward(self, x):
        return self.head(self.unit(x) + self.other(x))


class Otherwise(Doubled):
    """Its forward is not what its parts joined are."""

    def forward(self, x):
        return self.join(*self.parts(x)) * 1.1


class Turned(Doubled):
    """Makes one row of all pictures."""

    def join(self, branch, shortcut):
        return ops.reshape(branch + shortcut, (1, -1))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Around(), "Around: over the paths through its 1 unit comes another gradient than over the whole"),
        (Beside(), "its 2 units comes another gradient"),
        (nn.Sequential(Otherwise(4, 4), nn.Linear(4, 2)), r"must give what forward\(x\) gives"),
        (nn.Sequential(Turned(4, 4), nn.Linear(12, 2)), r"of 3 pictures the unit makes an array \(1, 12\)"),
        (nn.Sequential(nn.Linear(4, 2)), "Sequential has no residual units: none of its modules has the"),
        (Chain(), "Chain has no residual units"),
        ("resnet20_cifar", "path_lengths takes a model, a minires.nn.Module, not a str"),
    ],
)
def test_what_has_no_such_paths_is_refused_in_words(model, said):
    y = [0] if "Turned" in repr(model) else [0, 1, 1]
    with pytest.raises((ConfigError, ShapeError), match=said):
        path_lengths(model, RNG.standard_normal((3, 4)).astype("float32"), y)


def test_a_model_that_is_changed_or_has_hooks_is_refused():
    model, x, y = made("own")
    name = next(name for name, one in model.named_modules() if isinstance(one, Residual))
    with intervene(model, {f"{name}.branch": 0.5}), pytest.raises(ConfigError, match=f"changes {name}"):
        path_lengths(model, x, y)
    with model.register_forward_hook(lambda module, inputs, y: None):
        with pytest.raises(ConfigError, match="has a forward hook, and the copy"):
            path_lengths(model, x, y)
    path_lengths(model, x, y)


def test_wrong_arguments_are_refused_in_words():
    model, x, y = made("own")
    for wrong in (np.zeros((2, 5), np.uint8), np.zeros((0, 5))):
        with pytest.raises(ShapeError, match=r"x must be at least one picture as the model takes it, floats"):
            path_lengths(model, wrong, y)
    with pytest.raises(ConfigError, match="samples must be a whole number of at least 1, not 0"):
        path_lengths(model, x, y, samples=0)
    with pytest.raises(ConfigError, match="seed"):
        path_lengths(model, x, y, seed=-1)
