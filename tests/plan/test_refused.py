"""What a plan would do otherwise than the model is refused, on whatever it hangs."""

import numpy as np
import pytest
from plan.own import Own

import minires
from minires import Tensor, backend, nn, ops
from minires.errors import ConfigError, MiniresError
from minires.ops.registry import Formula, operation
from minires.plan import planned

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba")

RNG = np.random.default_rng(0)  # as a user's file has one


def conv(c, o, kernel=3, **options):
    return nn.Conv2d(c, o, kernel, **{"padding": kernel // 2, "rng": np.random.default_rng(c + o), **options})


@operation(arithmetic=Formula("y = x; dx = dy"), unchecked="a test's own", role="box")
def divided_in_plans(x, eps=1e-3):
    """It does not record eps."""
    a = x.data
    y = a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + eps)
    return minires.record("divided_in_plans", y, inputs={"x": x}, backward=lambda dy: (dy,))


def scaled_above(limit):
    return lambda m, x: m.a(x * (1 / 255)) if x.data.max() > limit else m.a(x)


def bright(m, x):
    return m.a(ops.sqrt(x)) * (2.0 if x.data.mean() > 3 else 1.0)


def skipped(m, x):
    return m.a(x) if RNG.random() < 2 else x


def without_gradient(m, x):
    y = m.a(x)
    with minires.no_grad():
        mean = y.mean(axis=-1, keepdims=True)
    return y - mean * 0.1


def counted(m, x):
    m.calls += 1
    return m.a(x)


def averaged(m, x):
    m.mean[...] = 0.9 * m.mean + 0.1 * x.data.mean()
    return m.a(x)


def with_half(m, x):
    return m.a(x) - m.b(x).mean(axis=0)


def later(function, **values):
    model = Own(function, a=conv(3, 4), b=conv(3, 4))
    for name, value in values.items():
        setattr(model, name, value)
    return model


BOTH = {
    **{
        f"an if above {limit}": (later(scaled_above(limit)), "on an if|of other values")
        for limit in (0.5, 1, 2, 4, 100)
    },
    "brightness": (later(bright), "b of mul in the model has other numbers for other pictures"),
    "the dice of a file": (later(skipped), "draws from RNG"),
    "an option that is not recorded": (
        later(lambda m, x: divided_in_plans(m.a(x), eps=1e-5)), "'divided_in_plans' does not record its eps",
    ),
}  # fmt: skip
INFERENCE = {
    "a mean of all, behind what is not finite": later(
        lambda m, x: (y := m.a(ops.sqrt(x))) - y.mean(axis=0, keepdims=True)
    ),
    "a product with a number of the pictures": later(lambda m, x: m.a(ops.log(x)) * float(x.data.mean())),
    "pictures on top of each other": later(
        lambda m, x: m.a(x.reshape(1, -1, 8, 3)).reshape(len(x), 8, 8, -1)
    ),
    "the number of pictures": later(lambda m, x: ops.conv2d(x, m.a.weight * (1 / len(x)), padding=1)),
    "a small part of the mean of all": later(
        lambda m, x: (y := m.a(x)) + 1e-3 * y.mean(axis=0, keepdims=True)
    ),
}
TRAINING = {
    "no_grad": (later(without_gradient), "under no_grad"),
    "calls are counted": (later(counted, calls=0), "the model changes calls of a Own when it is called"),
    "statistics of its own": (
        later(averaged, mean=np.zeros(1, np.float32)), "the model changes mean when it is called",
    ),
    "an axis as long as there are pictures": (later(with_half), "the first axis must be that of the pict"),
}  # fmt: skip


@pytest.mark.parametrize("many", [1, 4, 8])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_both(name, training, many):
    model, message = BOTH[name]
    with pytest.raises(ConfigError, match=message):
        minires.compile(model.train(training), (many, 8, 8, 3), training=training)


@pytest.mark.parametrize("name", INFERENCE)
def test_inference(name):
    with pytest.raises(ConfigError, match="has other numbers|of a picture on those beside it"):
        minires.compile(INFERENCE[name].eval(), (4, 8, 8, 3))


@pytest.mark.parametrize("name", TRAINING)
def test_training(name):
    model, message = TRAINING[name]
    with pytest.raises(ConfigError, match=message):
        minires.compile(model.train(), (8, 8, 8, 3), training=True)
    assert getattr(model, "calls", 0) == 0 and getattr(model, "mean", 0) == 0, "it is left as it was"


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, x: m.c(ops.tanh(m.a(x)).transpose(1, 0, 2, 3)).transpose(1, 0, 2, 3), (8, 8, 1200, 3)),
        (lambda m, x: m.a(x)[np.array([1, 0])], (2, 8, 8, 3)),
        (lambda m, x: m.n(m.a(x)) - m.n.running_mean, (2, 8, 8, 3)),
    ],
    ids=["axes that change places", "two pictures only", "running statistics"],
)
def test_what_fails_for_other_pictures_goes_on_by_itself(function, shape):
    model = later(function)
    model.c, model.n = conv(4, 4, 1), nn.BatchNorm2d(4)
    model.eval()
    x = np.random.default_rng(1).random(shape, np.float32)
    found, expected = planned(model, shape), model(Tensor(x)).data
    if found is not model:
        assert np.allclose(found(x), expected, atol=1e-5)


def test_an_array_that_is_an_option_is_the_one_of_the_plan():
    model, x = later(lambda m, x: m.a(x)[..., m.order], order=np.arange(4)), np.ones((2, 8, 8, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    assert np.array_equal(plan(x).data, model(Tensor(x)).data)
    model.order[:] = model.order[::-1].copy()
    with pytest.raises(ConfigError, match="order of the model was changed"):
        plan(x)
    model.order = np.arange(4)
    with pytest.raises(ConfigError, match="order of the model was changed"):
        plan(x)


def test_a_constant_array_is_one():
    """As a mean that is subtracted: a tensor is made of it in each call."""
    model = later(lambda m, x: m.a(x - m.mean) * m.gain, mean=np.float32([0.1, 0.2, 0.3]), gain=[2.0])
    x = np.ones((2, 8, 8, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    assert np.array_equal(plan(x).data, model(Tensor(x)).data)


def test_a_gradient_that_is_none_stays_none():
    def scaled_in_plans(x, w):
        b = w.data
        return minires.record(
            "scaled_in_plans", x.data * b, inputs={"x": x, "w": w}, backward=lambda dy: (dy * b, None)
        )

    scaled_in_plans = operation(
        math="y = x * w", backward="dx = dy * w", unchecked="a test's own", role="box"
    )(scaled_in_plans)
    model = later(lambda m, x: scaled_in_plans(m.a(x), m.w), w=nn.Parameter(np.ones(4, np.float32)))
    plan = minires.compile(model, (2, 8, 8, 3), training=True)
    plan(np.ones((2, 8, 8, 3), np.float32)).sum().backward()
    assert model.w.grad is None and model.a.weight.grad is not None


def test_a_step_that_fails_leaves_no_gradient_of_the_one_before():
    model, x = later(lambda m, x: m.a(ops.exp(x))), np.ones((2, 8, 8, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    y = plan(x)
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        plan(x * 1e4)
    with pytest.raises(MiniresError, match="its last call only"):
        y.sum().backward()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("training", [False, True])
def test_noise_that_overflows_is_not_told(training):
    with np.errstate(all="raise"):
        minires.compile(later(lambda m, x: m.a(ops.exp(x))), (2, 8, 8, 3), training=training)
