"""What a plan would do otherwise than the model is refused, on whatever it hangs."""

import numpy as np
import pytest
from plan.own import Own

import minires
from minires import Tensor, backend, nn, ops
from minires.errors import ConfigError, DataError, MiniresError
from minires.ops.registry import OPERATIONS, Formula, operation
from minires.plan import planned

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba")

RNG = np.random.default_rng(0)  # as a user's file has one


def conv(c, o, kernel=3, **options):
    return nn.Conv2d(c, o, kernel, **{"padding": kernel // 2, "rng": np.random.default_rng(c + o), **options})


@pytest.fixture(autouse=True, scope="module")
def described_here():
    operation(arithmetic=Formula("y = x; dx = dy"), unchecked="a test's own")(divided_in_plans)
    yield
    del OPERATIONS["divided_in_plans"]


def divided_in_plans(x, eps=1e-3):
    """It does not record eps."""
    a = x.data
    y = a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + eps)
    return minires.record("divided_in_plans", y, inputs={"x": x}, backward=lambda dy: (dy,))


def scaled_above(limit):
    return lambda m, x: m.a(x * (1 / 255)) if x.data.max() > limit else m.a(x)


def dark_but_not_black(m, x):
    if not x.data.any():
        raise ValueError("a black picture")
    return scaled_above(0.5)(m, x)


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
    "an if, and no black pictures": (later(dark_but_not_black), "on an if|of other values|for one picture"),
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
    "calls are counted": (later(counted, calls=0), "the model changes calls of the model when"),
    "statistics of its own": (
        later(averaged, mean=np.zeros(1, np.float32)), "the model changes mean of the model when",
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
    assert np.array_equal(plan(x).data, model(Tensor(x)).data)


def test_a_constant_array_is_one():
    """As a mean that is subtracted: a tensor is made of it in each call."""
    model = later(lambda m, x: m.a(x - m.mean) * m.gain, mean=np.float32([0.1, 0.2, 0.3]), gain=[2.0])
    x = np.ones((2, 8, 8, 3), np.float32)
    plan = minires.compile(model, x.shape, training=True)
    assert np.array_equal(plan(x).data, model(Tensor(x)).data)


def test_a_gradient_that_is_none_stays_none(registries_as_before):
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


def rebound(m, x):
    m.mean = 0.9 * m.mean + 0.1 * x.data.mean()
    return m.a(x)


def remembered(m, x):
    m.features = m.a(x)
    return m.features


def listed(m, x):
    m.seen.append(len(x))
    return m.a(x)


def lazy(m, x):
    if m.rng is None:
        m.rng = np.random.default_rng(0)
    return m.a(x)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (rebound, "mean", np.zeros(1, np.float32)),
        (remembered, "features", None),
        (listed, "seen", [1]),
        (lazy, "rng", None),
    ],
)
def test_what_a_model_keeps_of_a_call_is_told_and_as_it_was(function, name, value):
    model = later(function, **{name: value})
    if name == "features":
        del model.features
    with pytest.raises(ConfigError, match=f"the model changes {name} of|the model draws from rng"):
        minires.compile(model, (2, 8, 8, 3), training=True)
    assert "features" not in vars(model)
    assert name == "features" or vars(model)[name] == value


def shaped(m, x):
    m.size = x.shape[1:3]
    return m.a(x) * m.gains[0]


def test_equal_attributes_are_no_change():
    """Also a NaN, and what a model cannot be given by itself."""

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.rate = conv(3, 4), 2
            self.closed = True

        def __setattr__(self, name, value):
            if vars(self).get("closed") and name not in ("training", "path"):
                raise AttributeError("it is closed")
            super().__setattr__(name, value)

        def forward(self, x):
            return self.a(x)

    x = np.ones((2, 8, 8, 3), np.float32)
    for model in later(shaped, size=(8, 8), gains=[2.0], best=float("nan")), Closed():
        plan = minires.compile(model, x.shape, training=True)
        assert np.array_equal(plan(x).data, model(Tensor(x)).data)


def test_a_number_in_a_list_is_seen():
    model = later(shaped, size=(8, 8), gains=[2.0])
    plan = minires.compile(model, (2, 8, 8, 3), training=True)
    model.gains[0] = 3.0
    with pytest.raises(ConfigError, match="gains of the model was changed"):
        plan(np.ones((2, 8, 8, 3), np.float32))


def too_bright(kind):
    def function(m, x):
        if abs(x.data).max() > 50 or not x.data.any():
            raise kind("scale your pictures")
        return m.a(x)

    return function


@pytest.mark.parametrize("kind", [DataError, ValueError])
@pytest.mark.parametrize("training", [False, True])
def test_a_model_need_not_take_black_and_bright_pictures(kind, training):
    model, x = later(too_bright(kind)).train(training), np.ones((2, 8, 8, 3), np.float32)
    if not training:  # where it is probed with one picture of zeros
        model.function = lambda m, x: m.a(x) if abs(x.data).max() < 50 else too_bright(kind)(m, x)
    plan = minires.compile(model, x.shape, training=training)
    assert np.allclose(plan(x), model(Tensor(x)).data, atol=1e-6)


def test_a_model_that_fails_when_it_is_checked_goes_on_by_itself(registries_as_before):
    def one(x):
        def backward(dy):
            if dy.min() < 0:
                raise ValueError("only gradients of my loss")
            return (dy,)

        return minires.record("one_in_plans", x.data * 1, inputs={"x": x}, backward=backward)

    described = operation(math="y = x", backward="dx = dy", unchecked="a test's own", name="one_in_plans")(
        one
    )
    model = later(lambda m, x: described(m.a(x)))
    with pytest.raises(
        ConfigError, match="the model fails when a plan of it is checked, with ValueError: only"
    ):
        minires.compile(model, (2, 8, 8, 3), training=True)


def test_a_frozen_batch_norm_is_called():
    model, x = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, relu=True)), np.ones((2, 8, 8, 3), np.float32)
    model[1].frozen = True
    model[1].running_mean[:] = 0.3
    plan = minires.compile(model, x.shape, training=True)
    found = []
    for forward in model, plan:
        model.zero_grad()
        y = forward(Tensor(x))
        y.sum().backward()
        found.append([y.data, *(one.grad for one in model.parameters())])
    assert plan.calls == 1 and all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
