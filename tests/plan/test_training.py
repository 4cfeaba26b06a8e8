"""Plans of training: the bits of the model, its gradients and running statistics, and the optimiser's."""

import copy
import functools
import itertools
import os
import pickle
import random
import threading
import tracemalloc

import numpy as np
import pytest
from plan.own import Own, dense, gated

import minires
from minires import Tensor, backend, models, nn, ops
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.ops.conv2d import choose
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD, Adam
from minires.plan import TrainingPlan, training
from minires.plan.training.walk import Do

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba")


def conv(c, o, kernel=3, **options):
    return nn.Conv2d(c, o, kernel, **{"padding": kernel // 2, "rng": np.random.default_rng(c + o), **options})


def norm(c, **options):
    return nn.BatchNorm2d(c, **options)


# Name: a model of pictures (9, 11, 3), and whether it gives the same bits; else it rounds otherwise.
def sometimes(m, x):
    return m.a(x) if m.dice.random() < 2 else x


def exchanged(m, x):
    """The same operations, in another order."""
    y, z = m.a(x), m.b(x)
    return ops.relu(y) + z if len(x) > 2 else ops.relu(z) + y


MODELS = {
    "convolution": (lambda: conv(3, 20), True),
    "with ReLU, many channels": (
        lambda: nn.Sequential(conv(3, 64, relu=True), conv(64, 100, relu=True), conv(100, 130, 1)), True,
    ),
    "strides, a dilated one": (
        lambda: nn.Sequential(conv(3, 9, 5, stride=(2, 1)), conv(9, 7, dilation=2, padding=2)), True,
    ),
    "1x1 with strides": (lambda: nn.Sequential(conv(3, 9), conv(9, 70, 1, stride=2)), True),
    "groups": (
        lambda: nn.Sequential(conv(3, 32, 1), conv(32, 64, groups=4), conv(64, 64, groups=64, bias=False)),
        True,
    ),
    "Winograd": (lambda: nn.Sequential(conv(3, 96, padding=3), conv(96, 96), conv(96, 3)), True),
    "flattened": (
        lambda: nn.Sequential(
            conv(3, 5), nn.Flatten(), nn.Linear(495, 30), nn.ReLU(), nn.Dropout(0.4, seed=3), nn.Linear(30, 4)
        ),
        True,
    ),
    "residual": (
        lambda: Own(
            lambda m, x: m.n(m.b(m.a(x)), add=m.c(x)), a=conv(3, 16), b=conv(16, 16), c=conv(3, 16, 1),
            n=norm(16, relu=True),
        ),
        True,
    ),
    "a block, twice": (
        lambda: Own(
            lambda m, x: m.n(m.b(y := m.n(m.b(z := m.a(x)), add=z)), add=y), a=conv(3, 16), b=conv(16, 16),
            n=norm(16),
        ),
        None,  # two layers share parameters
    ),
    "read three times": (
        lambda: Own(
            lambda m, x: m.c(y := m.n(m.a(x))) + m.b(ops.relu(y)) + y, a=conv(3, 16), b=conv(16, 16),
            c=conv(16, 16, 1, stride=1), n=norm(16, relu=True),
        ),
        True,
    ),
    "two strided readers": (
        lambda: Own(
            lambda m, x: m.b(y := m.a(x)) + m.c(y), a=conv(3, 16), b=conv(16, 6, 1, stride=2),
            c=conv(16, 6, 1, stride=2),
        ),
        True,
    ),
    "x + x": (lambda: Own(lambda m, x: (y := m.a(x)) + y, a=conv(3, 4)), True),
    "relu of relu": (lambda: Own(lambda m, x: ops.relu(ops.relu(m.a(x))), a=conv(3, 4)), True),
    "its output again": (
        lambda: Own(lambda m, x: m.b(ops.relu(y := m.a(x))) + y, a=conv(3, 4), b=conv(4, 4)), True,
    ),
    "its input again": (lambda: Own(lambda m, x: x + m.a(x), a=conv(3, 3)), True),
    "an unused branch": (
        lambda: Own(lambda m, x: (m.b(x), m.a(x))[1], a=conv(3, 3), b=conv(3, 5)), None,
    ),
    "batch norms": (
        lambda: Own(
            lambda m, x: m.n2(m.n(x), add=x), n=norm(3, relu=True), n2=norm(3, convention="torch", relu=True)
        ),
        True,
    ),
    "a batch norm without ReLU": (
        lambda: Own(lambda m, x: m.n(m.a(x), add=m.b(x)), a=conv(3, 70), b=conv(3, 70), n=norm(70)), True,
    ),
    "of numbers": (lambda: nn.Sequential(nn.Flatten(), norm(297), nn.Linear(297, 4)), True),
    "maxima": (
        lambda: nn.Sequential(conv(3, 6), nn.MaxPool2d(3, stride=2, padding=1), norm(6), conv(6, 6)), True,
    ),
    "means": (lambda: nn.Sequential(conv(3, 6), nn.AvgPool2d(2), norm(6), nn.GlobalAvgPool2d()), True),
    "a gate": (lambda: Own(gated, a=conv(3, 16), b=nn.Linear(16, 16)), True),
    "more channels by a reshape": (
        lambda: Own(lambda m, x: m.b(m.a(x).reshape(len(x), 3, 3, 176)), a=conv(3, 16), b=conv(176, 4)), True,
    ),
    "narrow groups": (
        lambda: Own(
            lambda m, x: ops.relu(m.d(m.c(y := m.b(m.a(x)))), add=m.e(y)), a=conv(3, 32),
            b=conv(32, 32, groups=32, stride=2, relu=True), c=conv(32, 32, 5, groups=8),
            d=conv(32, 32, groups=4, bias=False), e=conv(32, 32, groups=16),
        ),
        True,
    ),
    "gates, one used twice": (
        lambda: Own(
            lambda m, x: ops.relu(
                (y := m.a(x)) * (g := m.b(ops.global_avg_pool2d(y)).reshape(-1, 1, 1, 16)) * g, add=y
            ),
            a=conv(3, 16), b=nn.Linear(16, 16),
        ),
        True,
    ),
    "gated pictures": (
        lambda: Own(
            lambda m, x: m.a(x * ops.sigmoid(m.b(ops.global_avg_pool2d(x))).reshape(-1, 1, 1, 3)),
            a=conv(3, 16), b=nn.Linear(3, 3),
        ),
        True,
    ),
    "a value times itself": (
        lambda: Own(lambda m, x: (y := ops.avg_pool2d(m.a(x), (9, 11))) * y, a=conv(3, 16)), True,
    ),
    "means of what is read again": (
        lambda: Own(
            lambda m, x: ops.global_avg_pool2d(y := m.a(x)) + ops.global_avg_pool2d(m.b(y)), a=conv(3, 16),
            b=conv(16, 16),
        ),
        True,
    ),
    "channels of zeros": (
        lambda: Own(
            lambda m, x: m.n(m.b(y := m.a(x)), add=ops.pad_channels(y, 9, stride=2)), a=conv(3, 5),
            b=conv(5, 9, stride=2), n=norm(9, relu=True),
        ),
        True,
    ),
    "a history": (
        lambda: Own(dense, a=conv(3, 16), b=conv(16, 16), n=norm(16), n2=norm(32, relu=True)), False,
    ),
    "joined channels": (
        lambda: Own(
            lambda m, x: m.n(ops.concat([m.a(x), m.b(x)], axis=-1)), a=conv(3, 16), b=conv(3, 5), n=norm(21)
        ),
        False,
    ),
}  # fmt: skip


def step(model, forward, x, seed=0):
    """Logits, gradients, running statistics; the gradients are forgotten."""
    y = forward(Tensor(x))
    y.backward(np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype))
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    return {"y": y.data, **gradients, **{name: a.copy() for name, a in model.named_buffers()}}


def compare(make, shape, *, dtype=np.float32, same=True, rounds=3, bound=1e-5):
    model, other = (minires.manual_seed(3), make())[1], (minires.manual_seed(3), make())[1]
    for one in (model, other):
        one.astype(dtype).train()
    before = {name: array.copy() for name, array in other.state_dict().items()}
    plan = minires.compile(other, shape, training=True, dtype=dtype)
    for name, array in other.state_dict().items():
        assert np.array_equal(array, before[name]), name  # the model is left as it was
    rng = np.random.default_rng(5)
    for seed in range(rounds):
        x = rng.standard_normal(shape).astype(dtype)
        right, ours = step(model, model, x, seed), step(other, plan, x, seed)
        assert right.keys() == ours.keys()
        for name, array in right.items():
            if array is None:
                assert ours[name] is None, name
            elif same:
                assert np.array_equal(array, ours[name]), name
            else:
                # 1 is for gradients that are truly zero, of biases before a batch norm
                assert np.linalg.norm(array - ours[name]) <= bound * (1 + np.linalg.norm(array)), name


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name, (_, same) in MODELS.items() if same is not None])
def test_it_gives_what_the_model_gives(name, threads, ways):
    make, same = MODELS[name]
    before = backend.threads()
    backend.set_threads(threads)
    try:
        compare(make, (4, 9, 11, 3), same=same)
    finally:
        backend.set_threads(before)


@pytest.mark.parametrize("name", ["residual", "a history", "groups", "maxima", "channels of zeros"])
def test_in_float64(name):
    compare(MODELS[name][0], (3, 9, 11, 3), dtype=np.float64, same=False, bound=1e-12)


@pytest.mark.parametrize(
    ("name", "size", "same"),
    [
        ("resnet20_cifar", 32, True), ("resnet18", 64, True), ("resnet50_signs", 64, True),
        ("resnet50v2_keras", 64, True), ("se_resnext50_32x4d", 64, True), ("vgg16", 32, True),
    ],
)  # fmt: skip
def test_the_family(name, size, same):
    options = models.entry(name).fitted(size)
    compare(lambda: models.build(name, seed=0, **options), (2, size, size, 3), same=same, rounds=2)


def test_a_deep_dense_net():
    """In float64, as a hundred batch norms behind each other make a thousandth of a rounding in float32."""
    entry = models.entry("densenet_bc100_k12_cifar")
    options = entry.fitted(32)
    make = functools.partial(models.build, "densenet_bc100_k12_cifar", seed=0, **options)
    compare(make, (2, 32, 32, 3), dtype=np.float64, same=False, rounds=2, bound=1e-8)


@pytest.mark.parametrize("name", [name for name, (_, same) in MODELS.items() if same is None])
def test_what_no_plan_knows_is_refused(name):
    """Shared parameters, and parameters that no gradient reaches."""
    model = MODELS[name][0]()
    if name == "an unused branch":
        plan = minires.compile(model, (2, 9, 11, 3), training=True)
        assert step(model, plan, np.ones((2, 9, 11, 3), np.float32))["b.weight"] is None
        return
    with pytest.raises(ConfigError, match="two layers share a parameter"):
        minires.compile(model, (2, 9, 11, 3), training=True)


def small():
    return nn.Sequential(
        conv1=conv(3, 6, bias=False), bn=norm(6, relu=True), pool=nn.GlobalAvgPool2d(), fc=nn.Linear(6, 4)
    )


def test_it_trains_as_the_model_does():
    """Many steps of two optimisers, with parameters that are given other arrays between them."""
    results = []
    for planned in (False, True):
        minires.manual_seed(3)
        model = small().train()
        forward = minires.compile(model, (8, 9, 9, 3), training=True) if planned else model
        rng = np.random.default_rng(1)
        for optimizer in (SGD(model.parameters(), 0.1), Adam(model.parameters(), 0.01, clip_norm=0.5)):
            for _ in range(5):
                x, labels = rng.standard_normal((8, 9, 9, 3)).astype(np.float32), rng.integers(0, 4, 8)
                cross_entropy(forward(Tensor(x)), labels, label_smoothing=0.1).backward()
                optimizer.step()
                optimizer.zero_grad()
            model.fc.weight.data = model.fc.weight.data.copy()
            model.bn.running_mean = model.bn.running_mean.copy()
            model.load_state_dict(model.state_dict())
        results.append(model.state_dict())
    for name, array in results[0].items():
        assert np.array_equal(array, results[1][name]), name


def test_gradients_are_added_up_and_kept():
    model, x = small().train(), np.ones((2, 9, 9, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    plan(x).sum().backward()
    first = model.fc.bias.grad
    assert first.tolist() == [2.0] * 4
    plan(x).sum().backward()
    assert model.fc.bias.grad.tolist() == [4.0] * 4
    model.fc.bias.grad = None
    plan(x).sum().backward()
    assert first.tolist() == [2.0] * 4  # nobody writes over what was given


def test_frozen_parameters_get_none():
    model = small().train()
    model.conv1.weight.requires_grad = model.fc.bias.requires_grad = False
    plan = minires.compile(model, (2, 9, 9, 3), training=True)
    ours = step(model, plan, np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype(np.float32))
    assert {name for name, array in ours.items() if array is None} == {"conv1.weight", "fc.bias"}


def test_one_backward_a_call():
    model, x = small().train(), np.ones((2, 9, 9, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    first, second = plan(x), plan(x)
    with pytest.raises(MiniresError, match="its last call only"):
        first.sum().backward()
    second.sum().backward(retain_graph=True)
    with pytest.raises(MiniresError, match="its last call only"):
        second.sum().backward()
    with minires.no_grad():
        assert not plan(x).requires_grad


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 9, 9, 3), np.float32), r"made for pictures \(2, 9, 9, 3\), not for \(3, 9"),
        (np.ones((1, 9, 9, 3), np.float32), r"made for pictures \(2, 9, 9, 3\), not for \(1, 9"),
        (np.ones((2, 9, 9, 3)), "with float32, not with float64"),
        (Tensor(np.ones((2, 9, 9, 3), np.float32), requires_grad=True), "no gradient for its pictures"),
    ],
)
def test_other_pictures_are_refused(x, message):
    plan = minires.compile(small(), (2, 9, 9, 3), training=True)
    with pytest.raises(ShapeError, match=message):
        plan(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.ReLU(), "no parameter that is trained"),
        (lambda: Own(lambda m, x: ops.where(True, m.a(x), x), a=conv(3, 3)), "no plan knows 'where'"),
        (
            lambda: Own(lambda m, x: ops.conv2d(x, m.a.weight * 2.0), a=conv(3, 3)),
            "w of conv2d in the model is computed from parameters",
        ),
        (lambda: Own(lambda m, x: m.a(x.reshape(len(x) // 2, -1, *x.shape[2:])), a=conv(3, 3)), "a row for"),
        (
            lambda: Own(
                lambda m, x: m.a(x) if next(m.turn) else m.a(x) + x, a=conv(3, 3),
                turn=itertools.cycle([0, 1]),
            ),
            "on an if",
        ),
        (lambda: Own(lambda m, x: m.a(x) if len(x) > 2 else m.b(x), a=conv(3, 3), b=conv(3, 3)), "on an if"),
        (lambda: Own(lambda m, x: m.a(x) if x.data.mean() > 0 else m.a(m.a(x)), a=conv(3, 3)), "on an if"),
        (lambda: Own(exchanged, a=conv(3, 3), b=conv(3, 3)), "relu in the model of other values"),
        (lambda: Own(lambda m, x: m.a(x) if x.data.max() < 50 else m.b(x), a=conv(3, 3), b=conv(3, 3)), "if"),
        (
            lambda: Own(lambda m, x: m.a(ops.conv2d(x, Tensor(m.a.weight.data * 2))), a=conv(3, 3)),
            "w of conv2d in the model has other numbers",
        ),
        (lambda: Own(sometimes, a=conv(3, 3), dice=np.random.default_rng(0)), "draws from dice"),
        (lambda: Own(sometimes, a=conv(3, 3), dice=np.random.RandomState(0)), "draws from dice"),
        (lambda: Own(sometimes, a=conv(3, 3), dice=random.Random(0)), "draws from dice"),
        (lambda: Own(sometimes, a=conv(3, 3), dice=np.random), "draws from numpy.random"),
        (lambda: nn.Sequential(Own(sometimes, a=conv(3, 3), dice=random)), "draws from random"),
        (lambda: nn.Sequential(conv(3, 3), norm(3).eval()), "1 is in inference mode"),
        (lambda: nn.Sequential(conv(3, 3), norm(3)).eval(), "the model is in inference mode"),
    ],
)
def test_models_that_are_refused(model, message):
    """With the reason; the model itself still trains."""
    with pytest.raises(ConfigError, match=message):
        minires.compile(model(), (4, 8, 8, 3), training=True)


def test_what_the_check_took_is_given_back():
    """Before the plan itself is made."""
    model = nn.Sequential(conv(3, 16), conv(16, 16), conv(16, 16))
    minires.compile(model, (2, 32, 32, 3), training=True)  # what is imported and compiled once
    tracemalloc.start()
    plan = minires.compile(model, (4, 64, 64, 3), training=True)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.2 * plan.nbytes and most < 1.6 * plan.nbytes


def test_the_gradient_of_a_dense_layer_has_room_once():
    """Its operation is called, and brings the gradient: no other room waits for it."""
    model = nn.Sequential(conv(3, 16), nn.Flatten(), nn.Linear(8 * 8 * 16, 2000))
    x, size = np.ones((2, 8, 8, 3), np.float32), 8 * 8 * 16 * 2000 * 4
    plan = minires.compile(model, x.shape, training=True)
    plan(x).sum().backward()
    model.zero_grad()
    y = plan(x).sum()
    tracemalloc.start()
    y.backward()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < most < 1.5 * size


def test_a_model_that_was_changed_is_refused():
    """A new layer, and a layer that does not train any more."""
    x = np.ones((2, 9, 9, 3), np.float32)
    model = Own(lambda m, x: m.n(m.a(x)), a=conv(3, 3), n=norm(3))
    plan = minires.compile(model, x.shape, training=True)
    before = model.n.running_mean.copy()
    for part, name in (model.n, "n"), (model, "the model"):
        part.eval()
        with pytest.raises(ConfigError, match=f"{name} is in inference mode"):
            plan(x)
        model.train()
    assert np.array_equal(model.n.running_mean, before)
    plan(x)
    model.a = conv(3, 3)
    with pytest.raises(ConfigError, match="a of the model was changed after this plan was made"):
        plan(x)


def test_a_parameter_of_another_shape_is_refused():
    model, x = small().train(), np.ones((2, 9, 9, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    model.astype(np.float64)
    with pytest.raises(ShapeError, match="conv1.weight is float64"):
        plan(x)


def test_several_threads_take_turns():
    model, x = small().train(), np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype(np.float32)
    plan = minires.compile(model, x.shape, training=True)
    with minires.no_grad():
        expected, found = plan(x).data, []
        threads = [threading.Thread(target=lambda: found.append(plan(x).data)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 and all(np.array_equal(expected, one) for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_child_trains_on():
    model, x = small().train(), np.ones((2, 9, 9, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    plan(x).sum().backward()
    child = os.fork()
    if not child:
        plan(x).sum().backward()
        os._exit(0 if model.fc.bias.grad.tolist() == [4.0] * 4 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_it_is_neither_pickled_nor_copied():
    plan = minires.compile(small(), (2, 9, 9, 3), training=True)
    assert isinstance(plan, TrainingPlan) and len(plan) == 2 and plan.nbytes > 10_000
    for act in (pickle.dumps, copy.deepcopy):
        with pytest.raises(MiniresError, match="neither pickled nor copied"):
            act(plan)


def test_what_is_held_against_the_model_takes_the_ways_of_all_pictures(monkeypatch):
    """Of two pictures, where it would take others."""
    plans = []
    monkeypatch.setattr(choose, "_is_worth", lambda win, x, w, costs: x[0] > 2)
    monkeypatch.setattr(training, "_check", lambda model, plan, x: plans.append(plan))
    plans.append(minires.compile(conv(16, 16), (5, 9, 11, 16), training=True))
    assert [len(plan) for plan in plans] == [2, 2, 5]
    for plan in plans:
        assert {Do.WINOGRAD, Do.CORRELATE} <= set(plan._program.lines[:, 0])


@pytest.mark.parametrize("pieces", [1, 4, 100])
@pytest.mark.parametrize("name", ["resnet20_cifar", "densenet_bc100_k12_cifar"])
def test_gradients_are_told_as_soon_as_they_are_complete(name, pieces):
    narrow = {"widths": [4, 8, 8]} if name == "resnet20_cifar" else {}
    model = models.build(name, classes=3, seed=0, **narrow)
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((4, 32, 32, 3)).astype("float32"), np.arange(4) % 3
    plan = minires.compile(model, x.shape, training=True)

    def gradients():
        for parameter in model.parameters():
            parameter.grad = None
        cross_entropy(plan(x), labels).backward()
        return [parameter.grad for parameter in model.parameters()]

    before, told = gradients(), []
    plan.tell(lambda parameter, gradient: told.append((parameter, gradient, gradient.copy())), pieces)
    after = gradients()
    assert [id(parameter) for parameter, _, _ in told] != [id(one) for one in model.parameters()]
    assert {id(parameter) for parameter, _, _ in told} == {id(one) for one in model.parameters()}
    assert len(told) == len(before)  # each once
    for one, other in zip(before, after, strict=True):
        assert (one == other).all()
    for parameter, gradient, then in told:
        assert (then == gradient).all() and (parameter.grad == then).all()  # nobody has written to it since
    first = [id(parameter) for parameter, _, _ in told[: len(told) // 4]]
    assert pieces == 1 or id(next(iter(model.parameters()))) not in first  # the stem's comes late
