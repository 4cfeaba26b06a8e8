"""What no kernel of plans knows is called, on both ways: the same numbers as the model's own."""

import copy

import numpy as np
import pytest
from plan.own import Own

import minires
from minires import Tensor, backend, nn, ops
from minires.errors import ConfigError
from minires.ops.registry import OPERATIONS, Formula, describe, described, operation
from minires.optim import SGD
from minires.plan import planned, trace
from minires.tensor import watching

pytestmark = pytest.mark.skipif(not backend.HAS_NUMBA, reason="a plan needs Numba")


def conv(c, o, kernel=3, **options):
    return nn.Conv2d(c, o, kernel, **{"padding": kernel // 2, "rng": np.random.default_rng(c + o), **options})


@pytest.fixture(autouse=True, scope="module")
def described_here():
    operation(arithmetic=Formula("y = x * x * x; dx = 3 * x * x * dy"), unchecked="a test's own")(
        cubed_in_plans
    )
    yield
    del OPERATIONS["cubed_in_plans"]


def cubed_in_plans(x):
    a = x.data
    return minires.record(
        "cubed_in_plans", a**3, inputs={"x": x}, saved={"x": a}, backward=lambda dy: (3 * a * a * dy,)
    )


def normalized(x):
    """As a layer norm."""
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / (centered * centered).mean(axis=-1, keepdims=True).sqrt()


def attention(m, x):
    rows = m.a(x).reshape(len(x), -1, 8)
    weights = ops.softmax(rows @ rows.transpose(0, 2, 1) * 0.1)
    return m.l((weights @ rows).mean(axis=1))


class Scaled(nn.Module):
    """A branch times a number for each channel that is learned."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)
        self.scale = nn.Parameter(np.linspace(0.1, 0.9, 8, dtype=np.float32))

    def forward(self, x):
        y = self.a(x)
        return y + self.b(y) * self.scale


MODELS = {
    "swish": lambda: Own(lambda m, x: m.b((y := m.a(x)) * ops.sigmoid(y)), a=conv(3, 8), b=conv(8, 4)),
    "a scale": Scaled,
    "half": lambda: Own(lambda m, x: x * 0.5 + 1.0 - 2 * m.a(x) / 4, a=conv(3, 3)),
    "leaky": lambda: nn.Sequential(conv(3, 8), nn.LeakyReLU(), nn.BatchNorm2d(8), conv(8, 4)),
    "a layer norm": lambda: Own(lambda m, x: m.b(normalized(m.a(x))), a=conv(3, 8), b=conv(8, 4)),
    "attention": lambda: Own(attention, a=conv(3, 8), l=nn.Linear(8, 5)),
    "turned": lambda: Own(
        lambda m, x: m.a(x.transpose(0, 2, 1, 3)) + m.b(x)[:, ::-1], a=conv(3, 6), b=conv(3, 6)
    ),
    "a part": lambda: Own(lambda m, x: m.b(m.a(x)[:, 1:-1, ::2, :4]), a=conv(3, 8), b=conv(4, 4)),
    "maxima": lambda: Own(
        lambda m, x: ops.maximum(m.a(x).max(axis=(1, 2)), ops.clip(m.b(x), -1.0, 1.0).std(axis=(1, 2))),
        a=conv(3, 8), b=conv(3, 8),
    ),
    "padded": lambda: Own(lambda m, x: ops.tanh(ops.pad(m.a(x), ((1, 0), (0, 2)))), a=conv(3, 8)),
    "own": lambda: nn.Sequential(conv(3, 8), Own(lambda m, x: cubed_in_plans(x * 0.3)), conv(8, 3)),
    "scores": lambda: nn.Sequential(
        conv(3, 8), nn.GlobalAvgPool2d(), nn.Linear(8, 5), Own(lambda m, x: ops.log_softmax(x))
    ),
    "twice as high": lambda: Own(lambda m, x: m.b(ops.repeat(m.a(x), 2, axis=1)), a=conv(3, 6), b=conv(6, 4)),
    "a broadcast mean": lambda: Own(
        lambda m, x: m.a(x) + ops.broadcast_to(x.mean(axis=(1, 2, 3), keepdims=True), x.shape), a=conv(3, 3)
    ),
    "dense over pixels": lambda: Own(lambda m, x: ops.tanh(m.l(m.a(x))), a=conv(3, 6), l=nn.Linear(6, 5)),
    "twice the same": lambda: Own(lambda m, x: (y := m.a(x)) * y * y, a=conv(3, 8)),
    "an axis more": lambda: Own(
        lambda m, x: ops.squeeze(ops.expand_dims(ops.tanh(m.a(x)), 1), 1) + 1.0, a=conv(3, 8)
    ),
}  # fmt: skip


@pytest.fixture
def x():
    return np.random.default_rng(5).standard_normal((4, 8, 8, 3), np.float32)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_inference(model, x):
    """Also of fewer pictures, and of one alone."""
    model.eval()
    plan = minires.compile(model, x.shape)
    with minires.no_grad():
        expected = model(Tensor(x)).data
    assert plan.calls > 0
    for many in 4, 3, 1:
        assert np.allclose(plan(x[:many]), expected[:many], rtol=1e-5, atol=2e-6)


def test_training_gives_the_bits_of_the_model(model, x):
    other = copy.deepcopy(model)
    plan = minires.compile(model, x.shape, training=True)
    losses = []
    for trained, forward in (model, plan), (other, other):
        optimizer = SGD(trained.named_parameters(), 0.05, momentum=0.9)
        losses.append([])
        for number in range(3):
            y = forward(Tensor(x + np.float32(number)))
            loss = (y * y).mean()
            loss.backward()
            losses[-1].append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0] == losses[1]
    for name, array in model.state_dict().items():
        assert np.array_equal(array, other.state_dict()[name]), name


def test_weights_are_copied(x):
    model = Scaled().eval()
    plan = minires.compile(model, x.shape)
    before = plan(x)
    model.scale.data[...] = 0
    assert np.array_equal(plan(x), before)


@pytest.mark.parametrize(
    "function",
    [lambda m, x: ops.softmax(m.a(x), axis=0), lambda m, x: m.a(x) - m.a(x).mean(axis=0, keepdims=True)],
)
def test_what_looks_at_all_pictures_together_is_refused(function, x):
    """A plan takes fewer pictures, too."""
    with pytest.raises(ConfigError, match="of a picture on those beside it"):
        minires.compile(Own(function, a=conv(3, 4)), x.shape)


@pytest.mark.filterwarnings("error")
def test_pictures_that_are_missing_divide_by_no_zero(x):
    plan = minires.compile(Own(lambda m, x: m.a(x / x.sum(axis=-1, keepdims=True)), a=conv(3, 4)), x.shape)
    assert np.isfinite(plan(np.abs(x[:2]) + 1)).all()


def test_an_operation_that_does_not_say_all_is_refused(x):
    """The model goes on by itself."""
    power = 3

    def hidden(m, x):
        a = m.a(x).data
        return minires.record("hidden_power", a**power, inputs={"x": x}, backward=lambda dy: (dy,))

    model = Own(hidden, a=conv(3, 4))
    with pytest.raises(ConfigError, match=r"no plan knows 'hidden_power' .*minires\.ops\.registry"):
        minires.compile(model, x.shape)
    assert planned(model, x.shape) is model


def test_pictures_need_not_be_pictures():
    rows = np.random.default_rng(0).standard_normal((6, 20), np.float32)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
    assert np.allclose(minires.compile(model, rows.shape)(rows), model(Tensor(rows)).data, atol=1e-6)
    model.train()
    step = minires.compile(model, rows.shape, training=True)
    assert np.array_equal(step(rows).data, model(Tensor(rows)).data)


CASES = [case for one in described() if one.function is not None for case in one.bound_cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_called_anew_gives_the_same(case):
    """All operations whose records a plan takes for complete."""
    calls = []
    with watching(calls.append):
        case(*map(Tensor, case.arrays("float32").values()))
    for call in calls:
        function, _ = trace.function_of(call)
        if function is not None:
            again = function(**call.inputs, **call.options)
            assert np.array_equal(again.data, call.y.data, equal_nan=True)


def test_most_operations_are_called():
    """So that the test above has something to look at; the others need more than they declare."""
    called = {"mul", "exp", "softmax", "leaky_relu", "mean", "transpose", "getitem", "matmul", "tanh", "clip"}
    assert all(describe(name).function is not None for name in called)
