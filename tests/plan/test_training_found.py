"""Plans of training: what once went wrong. The model itself says what is right."""

import copy
import ctypes
import os
import platform

import numpy as np
import pytest
from plan.own import Own

import minires
from minires import Tensor, backend, nn, ops
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.ops.dense_buffer import DenseBuffer
from minires.train.planned import WORTH, Forward

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba")

SHAPE = (4, 6, 5, 3)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, relu=True), nn.Conv2d(8, 8, 1),
        nn.GlobalAvgPool2d(), nn.Linear(8, 4),
    )  # fmt: skip


def plan_of(model):
    return minires.compile(model, SHAPE, training=True)


def pictures(seed=0):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def found(forward, model, x):
    """Scores, gradients and buffers after a step."""
    model.train().zero_grad()
    y = forward(x)
    y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"y": y.data, **gradients, **dict(model.named_buffers())}


def assert_same(model, plan, x=None, rtol=0.0):
    """The plan does to its model what that model does to itself."""
    x, right = pictures() if x is None else x, copy.deepcopy(model)
    expected = found(lambda x: right(Tensor(x)), right, x)
    for name, array in found(plan, model, x).items():
        if expected[name] is None:
            assert array is None, name
        else:
            np.testing.assert_allclose(array, expected[name], rtol=rtol, atol=rtol, err_msg=name)


# ------------------------------------------------------------------------------------ models


def unused_branch(m, x):
    m.drop(m.norm(x))
    return m.last(m.drop(m.first(x)))


def unused_end(m, x):
    history = DenseBuffer(m.first(x), 9)
    begin = history.latest
    history.append(m.more(m.norm(begin)))
    return ops.global_avg_pool2d(m.last(begin))


def flattened(m, x):
    together = ops.concat([m.first(x), m.more(x)], axis=-1)
    return m.last(m.norm(together.reshape(len(x), -1))) + m.other(ops.global_avg_pool2d(m.channels(together)))


def history_of_a_history(m, x):
    history = DenseBuffer(x, 8)
    part = history.append(m.first(x))
    history.append(m.more(m.norm(part)))
    other = DenseBuffer(part, 9)
    other.append(m.again(x))
    return ops.global_avg_pool2d(m.last(other.latest)) + m.end(ops.global_avg_pool2d(history.latest))


def frozen(layer):
    for parameter in layer.parameters():
        parameter.requires_grad = False
    return layer


MODELS = {
    "a branch that leads nowhere": lambda: Own(
        unused_branch, norm=nn.BatchNorm2d(3), drop=nn.Dropout(0.5, seed=3), first=nn.Conv2d(3, 4, 1),
        last=nn.BatchNorm2d(4),
    ),
    "a history whose end nobody reads": lambda: Own(
        unused_end, first=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), more=nn.Conv2d(4, 5, 1),
        last=nn.BatchNorm2d(4, relu=True),
    ),
    "channels put together, then flattened": lambda: Own(
        flattened, first=nn.Conv2d(3, 2, 1), more=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(150),
        channels=nn.BatchNorm2d(5), last=nn.Linear(150, 3), other=nn.Linear(5, 3),
    ),
    "a part of a history that begins another": lambda: Own(
        history_of_a_history, first=frozen(nn.Conv2d(3, 2, 1)), more=frozen(nn.Conv2d(5, 3, 1)),
        norm=frozen(nn.BatchNorm2d(5)), again=nn.Conv2d(3, 4, 1), last=nn.BatchNorm2d(9),
        end=nn.Linear(8, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    model = MODELS[name]()
    plan = plan_of(model)
    for seed in range(2):  # rounding: sums of a history's channels are taken once
        assert_same(model, plan, pictures(seed), rtol=2e-6)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(nn.Flatten()), "no parameter that is trained"),
        (
            lambda: Own(lambda m, x: m.n(x, add=Tensor(np.ones(x.shape, np.float32))), n=nn.BatchNorm2d(3)),
            r"no plan knows 'batch_norm' as n calls it, .*add",
        ),
    ],
)
def test_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        plan_of(make())


# ---------------------------------------------------------------- models that change after their plan


def test_replaced_parameters_are_found_after_one_was_refused():
    model = net()
    plan, (first, second) = plan_of(model), (model[1].gamma, model[2].weight)
    plan(pictures())
    before = second.data
    first.data, second.data = first.data * 3, before.astype(np.float64)
    with pytest.raises(ShapeError, match="2.weight is float64"):
        plan(pictures())
    second.data = np.asfortranarray(np.broadcast_to(before, before.shape))
    with pytest.raises(ShapeError, match="2.weight has gaps"):
        plan(pictures())
    second.data = before
    assert_same(model, plan)


@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="asks for low memory so"
)
def test_parameters_at_low_addresses():
    """As a program has them whose heap is low: an offset of the plan may be as large a number."""
    libc, size, (can_write, private_low) = ctypes.CDLL(None), 1 << 16, (3, 0x22 | 0x40)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    at = libc.mmap(None, size, can_write, private_low, -1, 0)
    assert at < 1 << 32
    memory = np.frombuffer((ctypes.c_char * size).from_address(at), np.float32)
    model = net()
    plan, first = plan_of(model), 0
    for parameter in model.parameters():
        low = memory[first : first + parameter.size].reshape(parameter.shape)
        low[...] = parameter.data
        parameter.data, first = low, first + parameter.size
    assert_same(model, plan)


def test_frozen_after_the_plan():
    model = net()
    plan = plan_of(model)
    for layer in model[0], model[4]:
        frozen(layer)
    assert_same(model, plan)


@pytest.mark.parametrize("number", [0, 4])
def test_trained_after_the_plan(number):
    model = net()
    frozen(model[number])
    plan = plan_of(model)
    model[number].weight.requires_grad = True
    with pytest.raises(ConfigError, match="is trained now that was not when this plan was made"):
        plan(pictures())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_that_are_zero_but_for_rounding(dtype):
    """What is the same in all pictures a batch norm takes away: that is no reason to refuse a model."""
    blind = nn.Conv2d(1, 32, 1, stride=3, padding=2, dilation=(1, 2), relu=True)  # sees the border only
    model = nn.Sequential(blind, nn.BatchNorm2d(32)).astype(dtype)
    frozen(model[1])
    model[0].bias.data[...] = np.linspace(-1, 1, 32)
    shape = (2, 24, 1, 1)
    plan = minires.compile(model, shape, training=True, dtype=dtype)
    assert plan(np.ones(shape, dtype)).shape == (2, 10, 2, 32)


CHANGES = {
    "what is learned": lambda m: setattr(m[0].weight, "requires_grad", True),
    "a parameter": lambda m: setattr(m[2], "weight", nn.Parameter(m[2].weight.data * 2)),
    "a number": lambda m: setattr(m[1], "momentum", 0.5),
    "a rate": lambda m: setattr(m[5], "rate", 0.75),
    "a generator": lambda m: setattr(m[5], "rng", np.random.default_rng(9)),
    "a batch norm's mode": lambda m: setattr(m[1], "frozen", True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_wants_a_new_plan(name):
    model = nn.Sequential(*[part for _, part in net().children()], nn.Dropout(0.5, seed=2))
    frozen(model[0])
    plan, forward = plan_of(model), Forward(model, WORTH, SHAPE[0])
    assert_same(model, lambda x: forward(Tensor(x)))
    model[1].eps, model[5].rate = float("1e-3"), float("0.5")  # as they were
    assert_same(model, plan)
    CHANGES[name](model)
    with pytest.raises(ConfigError, match="when this plan was made|after this plan was made"):
        plan(pictures())
    assert_same(model, lambda x: forward(Tensor(x)))  # a run goes on


# ------------------------------------------------------------------------- between forward and backward


@pytest.mark.parametrize("name", ["1.gamma", "1.beta", "2.weight", "4.weight"])
def test_changed_before_the_way_back(name):
    """As the model says it: gradients of numbers that are not there any more are refused."""
    for make in plan_of, lambda model: lambda x: model(Tensor(x)):
        model = net().train()
        forward = make(model)
        loss = forward(pictures()).sum()
        dict(model.named_parameters())[name].data[...] = 7
        with pytest.raises(MiniresError, match="was changed in place after the forward pass"):
            loss.backward()


def test_replaced_before_the_way_back():
    model = net()
    right = copy.deepcopy(model).train()
    plan = plan_of(model)
    pairs = [(forward(Tensor(pictures())), one) for forward, one in ((plan, model), (right, right))]
    for y, one in pairs:
        for parameter in one.parameters():
            parameter.data = np.asfortranarray(parameter.data * 0)
        y.backward(np.ones(y.shape, np.float32))
    for ours, theirs in zip(model.parameters(), right.parameters(), strict=True):
        np.testing.assert_array_equal(ours.grad, theirs.grad)


# ------------------------------------------------------------------------------------------- the rest


def test_compile_calls_no_hook():
    model, seen = net(), []
    model[0].weight.register_hook(seen.append)
    model[0].weight.grad = before = np.ones(model[0].weight.shape, np.float32)
    plan = plan_of(model)
    assert not seen
    assert model[0].weight.grad is before
    assert_same(model, plan)
    assert seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_while_a_thread_is_in_the_plan():
    plan = plan_of(net())
    with plan._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if plan._lock.acquire(timeout=5) else 1)
        assert os.waitpid(child, 0)[1] == 0


# ------------------------------------------------------------------------------------ the last bit


def three_times(m, x):
    y = m.first(x)
    return ops.concat([y, ops.relu(y), y, y], axis=-1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Own(three_times, first=nn.Conv2d(3, 7, 3)), (4, 5, 5, 3)),
        # More numbers than are worth a piece of their own in a plan, but not in an operation.
        (lambda: nn.Sequential(nn.BatchNorm2d(33, relu=True), nn.BatchNorm2d(33)), (6, 21, 21, 33)),
        (lambda: nn.Conv2d(1, 1, 1), (16, 64, 64, 1)),
    ],
    ids=[
        "a value put together with itself",
        "sums over rows that four do not divide",
        "a kernel of one number",
    ],
)
def test_the_last_bit(make, shape):
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        model = make()
        assert_same(model, minires.compile(model, shape, training=True), x)
