"""Plans: the same numbers as the folded model, from one array, on any number of threads."""

import dataclasses
import os
import pickle
import random
import threading

import numpy as np
import pytest
from oracle import shake
from plan.own import Own, dense, gated

import minires
import minires.plan as plan_module
from minires import Tensor, backend, models, nn, ops
from minires.errors import ConfigError, ShapeError
from minires.ops.dense_buffer import DenseBuffer
from minires.plan import planned, probes, steps
from minires.train import predict

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba")


def conv(c, o, kernel=3, **options):
    return nn.Conv2d(c, o, kernel, **{"padding": kernel // 2, **options})


MODELS = {
    "convolution": lambda: Own(lambda m, x: m.a(x), a=conv(3, 20)),
    "many channels": lambda: nn.Sequential(conv(3, 64), conv(64, 100, relu=True), conv(100, 130, 1)),
    "strides, a dilated one": lambda: nn.Sequential(
        conv(3, 9, 5, stride=(2, 1)), conv(9, 7, dilation=2, padding=2)
    ),
    "groups": lambda: nn.Sequential(conv(3, 32, 1), conv(32, 64, groups=4), conv(64, 64, groups=64)),
    "flattened": lambda: nn.Sequential(
        conv(3, 5), nn.Flatten(), nn.Linear(5 * 9 * 11, 30), nn.ReLU(), nn.Linear(30, 4)
    ),
    "residual": lambda: Own(
        lambda m, x: ops.relu(m.b(m.a(x)), add=m.c(x)), a=conv(3, 16), b=conv(16, 16), c=conv(3, 16, 1)
    ),
    "added, then ReLU": lambda: Own(
        lambda m, x: ops.relu(m.b(m.a(x)) + m.a(x)), a=conv(3, 16), b=conv(16, 16)
    ),
    "read twice": lambda: Own(
        lambda m, x: ops.relu(m.a(x)) + m.b(ops.relu(m.a(x))), a=conv(3, 16), b=conv(16, 16)
    ),
    "its input again": lambda: Own(lambda m, x: x + m.a(x), a=conv(3, 3)),
    "batch norms": lambda: Own(
        lambda m, x: m.n2(m.n(x), add=x), n=nn.BatchNorm2d(3, relu=True), n2=nn.BatchNorm2d(3, relu=True)
    ),
    "a batch norm of numbers": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm2d(297), nn.Linear(297, 4)),
    "folded": lambda: nn.Sequential(
        conv(3, 16, bias=False), nn.BatchNorm2d(16, relu=True), nn.Dropout(0.5), conv(16, 4)
    ),
    "maxima": lambda: nn.Sequential(
        conv(3, 16), nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(2, padding="ceil")
    ),
    "averages": lambda: Own(
        lambda m, x: ops.avg_pool2d(
            ops.avg_pool2d(x, 3, stride=1, padding=1), (2, 3), padding=1, count_padding=True
        )
    ),
    "narrow groups": lambda: Own(
        lambda m, x: ops.relu(m.d(m.c(y := m.b(m.a(x)))), add=m.e(y)), a=conv(3, 32),
        b=conv(32, 32, groups=32, stride=2, relu=True), c=conv(32, 32, 5, groups=8),
        d=conv(32, 32, groups=4, bias=False), e=conv(32, 32, groups=16),
    ),
    "a ReLU behind a reshape": lambda: nn.Sequential(conv(3, 6), nn.Flatten(), nn.ReLU(), nn.Linear(594, 4)),
    "an addition behind a reshape": lambda: Own(
        lambda m, x: m.a(x).reshape(len(x), -1) + m.b(m.a(x)).reshape(len(x), -1), a=conv(3, 32),
        b=conv(32, 32, groups=8),
    ),
    "more channels by a reshape": lambda: Own(
        lambda m, x: m.b(m.a(x).reshape(len(x), 3, 11, 72)), a=conv(3, 24), b=conv(72, 4)
    ),
    "side by side behind a reshape": lambda: Own(
        lambda m, x: ops.concat([m.a(x).reshape(len(x), 3, 33, 16), x.reshape(len(x), 3, 33, 3)], axis=-1),
        a=conv(3, 16),
    ),
    "gate": lambda: Own(gated, a=conv(3, 6), b=nn.Linear(6, 6)),
    "more channels": lambda: Own(
        lambda m, x: ops.pad_channels(ops.pad_channels(m.a(x), 9, stride=2), 20, both=True), a=conv(3, 4)
    ),
    "side by side": lambda: Own(
        lambda m, x: ops.relu(m.c(ops.concat([m.a(x), x, m.b(x)], axis=-1))),
        a=conv(3, 4), b=conv(3, 6), c=conv(13, 5),
    ),
    "history": lambda: Own(
        dense, a=conv(3, 16), b=conv(16, 16), n=nn.BatchNorm2d(16, relu=True), n2=nn.BatchNorm2d(32)
    ),
}  # fmt: skip


def pictures(*shape, dtype=np.float32):
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def folded(model, x):
    with minires.no_grad():
        return minires.fuse(model, x.shape[1:])(Tensor(x)).data


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = backend.threads()
    backend.set_threads(request.param)
    yield request.param
    backend.set_threads(before)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_gives_what_the_folded_model_gives(threads, ways, name, n):
    model = shake(MODELS[name]())
    x = pictures(n, 9, 11, 3)
    plan, expected = minires.compile(model, x.shape), folded(model, x)
    for _ in range(2):  # nothing that a run leaves behind may show in the next
        found = plan(x)
        assert found.shape == expected.shape and found.dtype == np.float32
        if name in ("averages", "gate", "history"):  # a global mean is added up in another order
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
        else:
            assert np.array_equal(found, expected)
        plan(pictures(n, 9, 11, 3) * 1e3)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50_signs", "resnet20_cifar", "preresnet18", "resnext29_32x4d_cifar",
     "densenet40_k12_cifar", "se_resnet50", "vgg11", "bn_inception"],
)  # fmt: skip
def test_the_family_is_planned(name):
    entry = models.entry(name)
    size = min(entry.size, 64) if name != "vgg11" else 32
    model = shake(models.build(name, **entry.fitted(size)))
    x = pictures(2, size, size, 3)
    plan = minires.compile(model, x.shape)
    expected = folded(model, x)
    assert np.linalg.norm(plan(x) - expected) < 1e-5 * np.linalg.norm(expected)


def test_float64():
    model = shake(MODELS["residual"]())
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    x = pictures(2, 9, 11, 3, dtype=np.float64)
    plan = minires.compile(model, x.shape, dtype=np.float64)
    assert np.allclose(plan(x), folded(model, x), rtol=1e-14, atol=1e-14)


def test_fewer_pictures_and_no_trace_of_others():
    model = shake(MODELS["many channels"]())
    plan = minires.compile(model, (4, 8, 8, 3))
    x = pictures(4, 8, 8, 3)
    whole = plan(x)
    assert (
        len(plan) == 4
        and np.array_equal(plan(x[:3]), whole[:3])
        and plan(x[:0]).shape == (0, *whole.shape[1:])
    )
    whole[...] = 0  # a result is the caller's own
    assert plan(x).any() and np.array_equal(plan(Tensor(x)), plan(x))


@pytest.mark.parametrize("name", MODELS)
def test_some_pictures_at_a_time(monkeypatch, ways, name):
    """Of 5 pictures 2, 2 and 1: each has what it has among all."""
    model = shake(MODELS[name]())
    x = pictures(5, 9, 11, 3)
    whole = minires.compile(model, x.shape)(x)
    monkeypatch.setattr(plan_module, "at_a_time", lambda traced: traced.of(2))
    some = minires.compile(model, x.shape)
    assert len(some) == 5 and np.array_equal(some(x), whole) and np.array_equal(some(x[1:4]), whole[1:4])


@pytest.mark.parametrize(
    ("cache", "weighs", "few"), [(1, True, 4), (5 * 2 * 9 * 11 * 8, False, 7), (1 << 30, True, 28)]
)
def test_how_many_pictures_at_a_time(monkeypatch, cache, weighs, few):
    """As many as the caches hold, but so many that weights count for little, and none for nothing."""
    traced = probes.watch(nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8)), pictures(28, 9, 11, 3))
    monkeypatch.setattr(steps, "_CACHE", cache)
    if not weighs:
        traced = dataclasses.replace(traced, steps=[dataclasses.replace(s, tensors={}) for s in traced.steps])
    assert steps.at_a_time(traced).input.shape[0] == few


def test_many_threads_call_one_plan():
    model = shake(MODELS["residual"]())
    plan = minires.compile(model, (2, 9, 11, 3))
    batches = [pictures(2, 9, 11, 3) * factor for factor in range(1, 5)]
    expected, found = [plan(x) for x in batches], [None] * 4

    def caller(number):
        for _ in range(50):
            found[number] = plan(batches[number])
            assert np.array_equal(found[number], expected[number])

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(timeout=60)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_plan_runs_on_more_and_on_fewer_threads_than_it_was_made_for():
    model, before = shake(MODELS["residual"]()), backend.threads()
    x = pictures(2, 9, 11, 3)
    try:
        backend.set_threads(2)
        plan = minires.compile(model, x.shape)
        found = [plan(x)]
        for count in (1, 4):
            backend.set_threads(count)
            found.append(plan(x))
    finally:
        backend.set_threads(before)
    assert all(np.array_equal(one, found[0]) for one in found)


def test_the_weights_are_those_of_then_and_the_model_stays_as_it_was():
    model = shake(MODELS["folded"]())
    model.train()
    x = pictures(2, 8, 8, 3)
    plan = minires.compile(model, x.shape)
    assert model.training
    before = plan(x)
    for parameter in model.parameters():
        parameter.data *= 2
    assert np.array_equal(plan(x), before) and not np.array_equal(minires.compile(model, x.shape)(x), before)


def test_values_share_their_memory():
    layers = [conv(16, 16) for _ in range(12)]
    model = nn.Sequential(conv(3, 16), *layers)
    deep = minires.compile(model, (4, 32, 32, 3)).nbytes
    shallow = minires.compile(nn.Sequential(conv(3, 16), *layers[:2]), (4, 32, 32, 3)).nbytes
    assert deep - shallow < 4 * 32 * 32 * 8 * 4, "ten more layers take no more memory than one value"


def test_predict_takes_a_plan_and_makes_one_for_many_pictures():
    model = shake(nn.Sequential(conv(3, 16, relu=True), nn.GlobalAvgPool2d(), nn.Linear(16, 5)))
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)

    def normalize(pixels):
        return pixels.astype(np.float32) / 255

    plain = predict(model, images, normalize, batch_size=50)
    assert np.allclose(predict(minires.compile(model, (7, 8, 8, 3)), images, normalize), plain, atol=1e-6)
    assert np.allclose(predict(model, images, normalize, batch_size=3), plain, atol=1e-6)


def test_what_cannot_be_planned_is_told():
    odd = Own(lambda m, x: m.a(ops.where(True, x, x + 1.0)), a=conv(3, 4))
    with pytest.raises(ConfigError, match=r"no plan knows 'where' as the model calls it, with a \(1, 4"):
        minires.compile(odd, (1, 4, 4, 3))
    assert planned(odd, (1, 4, 4, 3)) is odd
    model = MODELS["convolution"]()
    with pytest.raises(ShapeError, match="4x4 does not fit the model. The last said: a: conv2d"):
        minires.compile(model, (1, 4, 4))
    for shape in [(1,), (0, 4, 4, 3), 4, (1, 4, 4.5, 3)]:
        with pytest.raises(ShapeError, match="compile: shape must be"):
            minires.compile(model, shape)
    with pytest.raises(ShapeError, match="has 5"):
        minires.compile(model, (1, 4, 4, 5))
    constant = Own(lambda m, x: m.a(Tensor(np.ones((1, 4, 4, 3), np.float32))), a=conv(3, 4))
    with pytest.raises(ConfigError, match="does not depend on its input"):
        minires.compile(constant, (1, 4, 4, 3))
    pair = Own(lambda m, x: (m.a(x), x), a=conv(3, 4))
    for make in (lambda: minires.compile(pair, (1, 4, 4, 3)), lambda: minires.fuse(pair, (4, 4, 3))):
        with pytest.raises(ConfigError, match="must return one tensor, not a tuple"):
            make()
    with minires.reference(), pytest.raises(ConfigError, match="for the CPU with Numba"):
        minires.compile(model, (1, 4, 4, 3))


def unread(m, x):
    y = m.a(x)
    ops.concat([y, x])  # nobody reads it
    return ops.concat([m.b(y), m.b(ops.relu(y))])


def appended_last(m, x):
    history = DenseBuffer(m.a(x), 22)
    y = m.c(history.append(x))
    history.append(x)  # behind all that is read
    return ops.sigmoid(y) + y


def with_room(m, x):
    return DenseBuffer(m.a(x), 24).append(x)


def a_part_is_added(m, x):
    history = DenseBuffer(m.a(x), 24)
    first = history.latest
    history.append(x)
    return m.n(m.a(x), add=first)


@pytest.mark.parametrize("function", [unread, appended_last, with_room, a_part_is_added])
def test_histories_and_what_nobody_reads(ways, function):
    layers = {"a": conv(3, 16), "b": conv(16, 16), "c": conv(19, 9), "n": nn.BatchNorm2d(16)}
    model, x = shake(Own(function, **layers)), pictures(2, 6, 6, 3)
    expected = folded(model, x)
    assert np.allclose(minires.compile(model, x.shape)(x), expected, rtol=1e-6, atol=1e-6)


def test_models_that_compute_nothing_and_those_that_mix_pictures():
    x = pictures(2, 4, 4, 3)
    for model in (nn.Sequential(nn.Flatten()), Own(lambda m, x: x)):
        plan = minires.compile(model, x.shape)
        assert np.array_equal(plan(x).reshape(-1), x.reshape(-1))
    mixed = Own(lambda m, x: ops.linear(x.reshape(-1, 3), m.a.weight), a=nn.Linear(3, 5))
    with pytest.raises(ConfigError, match=r"a row for each picture; for 2 this gives \(32, 5\)"):
        minires.compile(mixed, x.shape)
    for dtype in ("float16", "int32", "banana"):
        with pytest.raises(ConfigError, match="dtype"):
            minires.compile(MODELS["convolution"](), x.shape, dtype=dtype)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_uses_a_plan_that_another_thread_was_using():
    plan, x = minires.compile(MODELS["convolution"](), (1, 8, 8, 3)), pictures(1, 8, 8, 3)
    plan._lock.acquire()  # as the other thread has it
    child = os.fork()
    if child == 0:
        os._exit(0 if plan(x).shape == (1, 8, 8, 20) else 1)
    plan._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(minires.MiniresError, match="neither pickled nor copied"):
        pickle.dumps(plan)


def test_what_the_operations_do_not_show_is_refused():
    aside = Own(lambda m, x: ops.conv2d(x, Tensor(m.a.weight.data * x.data.max())), a=conv(3, 4))
    brightness = Own(lambda m, x: m.a(x) if x.data[0, 0, 0, 0] > 1 else m.b(x), a=conv(3, 4), b=conv(3, 4))
    extremes = Own(lambda m, x: m.a(x) if x.data.max() < 50 else m.b(x), a=conv(3, 4), b=conv(3, 4))
    many = Own(lambda m, x: m.a(x) if len(x) > 4 else m.b(x), a=conv(3, 4), b=conv(3, 4))
    for model in (aside, brightness, extremes, many):
        with pytest.raises(ConfigError, match="has other numbers|What it computes hangs"):
            minires.compile(model, (8, 4, 4, 3))
    dice = Own(lambda m, x: m.a(x) if random.random() < 2 else m.b(x), a=conv(3, 4), b=conv(3, 4))
    with pytest.raises(ConfigError, match="draws from random"):
        minires.compile(dice, (1, 4, 4, 3))
    with pytest.raises(ConfigError, match="made of a model, a Module, not of <function"):
        minires.compile(lambda x: x, (1, 4, 4, 3))


@pytest.mark.parametrize(
    "x", [pictures(3, 4, 4, 3), pictures(2, 4, 5, 3), pictures(4, 4, 3), np.float32(1)]
)
def test_pictures_of_another_shape_are_refused(x):
    plan = minires.compile(MODELS["convolution"](), (2, 4, 4, 3))
    with pytest.raises(ShapeError, match=r"made for pictures \(2, 4, 4, 3\), or fewer of them, not for"):
        plan(x)


def test_pictures_of_another_dtype_are_refused():
    plan = minires.compile(MODELS["convolution"](), (2, 4, 4, 3))
    assert repr(plan) == "<Plan for (2, 4, 4, 3) float32, 0 MiB>"
    with pytest.raises(ShapeError, match=r"with float32, not with uint8: give it x\.astype\('float32'\)"):
        plan(np.ones((2, 4, 4, 3), np.uint8))
