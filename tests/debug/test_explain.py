"""An explanation is the stored number again, from the numbers that it names."""

import numpy as np
import pytest

import minires
from minires.debug.explain import _EXPLAIN, explain
from minires.debug.recording import record_passes
from minires.debug.tape import record_tape
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.nn.layers import Conv2d, Linear
from minires.ops.arithmetic import mul
from minires.ops.cases import all_cases
from minires.ops.cross_entropy import cross_entropy
from minires.ops.relu import relu
from minires.tensor import Tensor

LETTERS = {0: "", 1: "n", 2: "nc", 3: "nic", 4: "nijc"}
LAST = {"conv2d": "o", "linear": "o", "softmax": "k", "log_softmax": "k"}


def recorded(case):
    """The operation of a case, in float64."""
    first, *others = case.arrays().values()
    tensors = [Tensor(array, requires_grad=True) for array in others]

    def network(x):
        y = case(x, *tensors)
        return mul(y, np.random.default_rng(1).uniform(0.5, 1.5, y.shape)).sum()

    return next(one for one in record_passes(network, first).operations if one.op == case.op)


def places(op, shape):
    letters = LETTERS[len(shape)].replace("c", LAST.get(op, "c"))
    for index in np.ndindex(shape):
        yield index, dict(zip(letters, index, strict=True))


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for op in _EXPLAIN for c in all_cases()[op]])
def test_every_number_of_every_small_case(case):
    one = recorded(case)
    if case.op == "cross_entropy":
        n = len(one.inputs[0].value)
        found = [explain(one, n=i) for i in range(n)]
        assert all(e.result == pytest.approx(e.stored, rel=1e-14) for e in found)
        assert found[0].stored == float(one.output)
        return
    for index, place in places(case.op, one.shape):
        found = explain(one, **place)
        assert found.place == place and found.stored == one.output[index]
        assert abs(found.result - found.stored) <= 1e-14 * _size(found), (place, str(found))
    assert str(found).startswith(case.op) and "difference" in str(found)


def _size(found):
    """How large the numbers are that were summed up: their rounding is to be expected."""
    numbers = [abs(value) for value in vars(found).values() if isinstance(value, float)]
    numbers += [abs(getattr(found, "products", np.zeros(1))).sum()]
    numbers += [np.abs(np.nan_to_num(getattr(found, "window", np.zeros(1)))).sum()]
    numbers += [found.count * abs(found.mean)] if hasattr(found, "gamma") else []
    return max(*numbers, 1.0)


def conv(x, w, b=None, **options):
    weights, bias = Tensor(w, requires_grad=True), None if b is None else Tensor(b, requires_grad=True)
    recording = record_passes(lambda x: minires.ops.conv2d.conv2d(x, weights, bias, **options).sum(), x)
    return recording.operations[1]


def test_a_convolution_by_hand():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 5, 6, 4)), rng.standard_normal((3, 2, 2, 6)), rng.standard_normal(6)
    found = explain(conv(x, w, b, stride=(2, 1), padding=((1, 0), (0, 1)), groups=2), n=1, i=0, j=5, o=4)
    # The window starts above the picture and ends right of it; output 4 is of the second group.
    window = np.zeros((3, 2, 2))
    window[1:, :1] = x[1, 0:2, 5:6, 2:4]
    assert np.array_equal(found.window, window) and np.array_equal(found.kernel, w[..., 4])
    assert found.corner == (-1, 5) and found.channel == 2
    assert np.array_equal(found.products, window * w[..., 4]) and found.bias == b[4]
    assert np.array_equal(found.row, window.ravel()) and np.array_equal(found.column, w[..., 4].ravel())
    assert found.sum == pytest.approx(found.row @ found.column, rel=1e-14)
    assert found.result == pytest.approx((window * w[..., 4]).sum() + b[4], rel=1e-14)


def test_a_long_list_of_products_is_shortened_in_print_only():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 4, 4, 20)), rng.standard_normal((3, 3, 20, 2))
    found = explain(conv(x, w, padding=1), i=2, j=1, o=1)
    assert found.products.shape == (3, 3, 20) and found.bias is None
    lines = str(found).splitlines()
    assert lines[0] == "conv2d at n=0, i=2, j=1, o=1"
    assert "  the window: rows 1 to 3, columns 0 to 2, channels 0 to 19" in lines
    assert "  180 products, row of im2col (180,) times column of the kernel" in lines
    start = lines.index("  the 8 largest products:")
    shown = [float(line.split()[-1]) for line in lines[start + 2 : start + 10]]
    largest = sorted(found.products.ravel(), key=abs, reverse=True)[:8]
    assert shown == pytest.approx(largest, rel=1e-5)
    rest = float(lines[start + 10].removeprefix("  the other 172 products sum to "))
    assert rest + sum(shown) == pytest.approx(found.sum, abs=1e-4)
    assert not any(line.startswith("  bias") for line in lines)
    assert "  sums over the channels, for each place of the window:" in lines
    assert float(lines[4].split()[0]) == pytest.approx(found.products[0, 0].sum(), rel=1e-5)


def test_a_short_list_is_printed_whole():
    lines = str(
        explain(conv(np.full((1, 2, 2, 2), 3.0), np.full((1, 1, 2, 1), 0.5), np.ones(1)))
    ).splitlines()
    assert lines == [
        "conv2d at n=0, i=0, j=0, o=0",
        "  the window: rows 0, columns 0, channels 0 to 1",
        "  2 products, row of im2col (2,) times column of the kernel",
        "    kh  kw  c  x    w  x * w",
        "     0   0  0  3  0.5    1.5",
        "     0   0  1  3  0.5    1.5",
        "  sum 3",
        "  bias 1",
        "  result            4",
        "  stored            4",
        "  difference  0.0e+00",
    ]


def test_batch_norm_in_both_modes():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 2, 2, 2))
    gamma, beta = Tensor([2.0, 3.0]), Tensor([0.5, -1.0])
    gamma, beta = Tensor(gamma.data.astype(float)), Tensor(beta.data.astype(float))
    mean, var = np.array([0.1, 0.2]), np.array([1.5, 2.5])

    def network(x, training):
        y = minires.ops.batch_norm.batch_norm(
            x, gamma, beta, training=training, running_mean=mean.copy(), running_var=var.copy(), eps=0.1
        )
        return (y * y).sum()

    channel = x[..., 1]
    for training, m, v in [(True, channel.mean(), channel.var()), (False, mean[1], var[1])]:
        one = record_passes(lambda x, training=training: network(x, training), x).operations[1]
        found = explain(one, n=2, i=1, j=0, c=1)
        assert found.training is training and found.count == 12
        assert found.mean == pytest.approx(m) and found.var == pytest.approx(v) and found.eps == 0.1
        assert found.inv == pytest.approx(1 / np.sqrt(v + 0.1))
        assert found.normalised == pytest.approx((x[2, 1, 0, 1] - m) / np.sqrt(v + 0.1))
        assert found.result == pytest.approx(3 * found.normalised - 1) == pytest.approx(found.stored)
        assert ("of the batch, 12 values" if training else "running") in str(found)


def test_pools():
    x = np.zeros((1, 3, 3, 2))
    x[0, :, :, 1] = [[-1, -2, -3], [-4, -5, -6], [-7, -8, -0.5]]
    options = {"stride": 2, "padding": 1}
    one = record_passes(lambda x: minires.ops.max_pool2d.max_pool2d(x, 3, **options).sum(), x).operations[1]
    found = explain(one, i=1, j=1, c=1)
    assert found.winner == (1, 1) and found.result == found.stored == -0.5 and found.corner == (1, 1)
    assert found.inside.tolist() == [[True, True, False], [True, True, False], [False] * 3]
    assert "the largest (*) is at row 2, column 2 of the picture" in str(found)
    assert "-0.5*" in str(found) and "border" in str(found)
    for counted, count in [(False, 4), (True, 9)]:
        one = record_passes(
            lambda x, counted=counted: minires.ops.avg_pool2d.avg_pool2d(
                x, 3, **options, count_padding=counted
            ).sum(),
            x,
        ).operations[1]
        found = explain(one, i=1, j=1, c=1)
        assert found.count == count and found.winner is None
        assert found.result == pytest.approx(-19.5 / count) == pytest.approx(found.stored)


def test_softmax_and_loss():
    scores = np.array([[1.0, 3.0, -2.0], [0.0, 0.0, 5.0]])
    labels = np.array([2, 0])
    one = record_passes(lambda x: x, scores, labels).operations[1]
    found = explain(one, n=1)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert found.p == pytest.approx(p[1]) and found.target.tolist() == [1, 0, 0]
    assert found.losses == pytest.approx(-np.log(p[[0, 1], labels]))
    assert found.result == pytest.approx(found.losses.mean()) == pytest.approx(found.stored)
    assert "loss of picture 1" in str(found)
    soft = record_passes(lambda x: (minires.ops.softmax.softmax(x) ** 2).sum(), scores).operations[1]
    found = explain(soft, n=1, k=2)
    assert found.shift == 5 and found.exponentials == pytest.approx(np.exp([-5, -5, 0]))
    assert found.result == pytest.approx(p[1, 2])


def test_many_classes_are_shortened_in_print_only():
    scores = np.linspace(0, 1, 40)[None]
    found = explain(record_passes(lambda x: x, scores, np.array([39])).operations[1])
    assert found.scores.shape == (40,) and "and 32 classes with lower scores" in str(found)


def test_additions_name_their_summands():
    one = record_passes(lambda x: (relu(x) + x).sum(), np.array([[2.0, -3.0]])).operations[2]
    found = explain(one, c=1)
    assert found.summands == (0.0, -3.0) and found.result == found.stored == -3
    assert "a = 0  (operation 1)" in str(found) and "b = -3  (operation 0)" in str(found)


def test_a_real_resnet_50():
    model = minires.models.build("resnet50_signs")
    x = np.random.default_rng(0).random((2, 64, 64, 3), dtype=np.float32)
    recording = record_passes(model, x, np.array([1, 5]))
    rng, seen = np.random.default_rng(1), set()
    for one in recording.operations:
        if one.op not in _EXPLAIN:
            continue
        seen.add(one.op)
        for _ in range(3):
            shape = one.shape if one.op != "cross_entropy" else (2,)
            index = [int(rng.integers(size)) for size in shape]
            letters = LETTERS[len(shape)].replace("c", LAST.get(one.op, "c"))
            found = explain(one, **dict(zip(letters, index, strict=True)))
            assert abs(found.result - found.stored) <= 2e-6 * _size(found), str(found)
    assert seen == {
        "conv2d",
        "batch_norm",
        "relu",
        "add",
        "max_pool2d",
        "avg_pool2d",
        "linear",
        "cross_entropy",
    }


# -------------------------------------------------------------------------------------- what is refused


def test_places_that_are_not_there():
    one = conv(np.zeros((2, 4, 5, 1)), np.zeros((1, 1, 1, 3)))
    for place in ({"i": 4}, {"n": -1}, {"c": 0}, {"o": 3}, {"j": 1.5}):
        with pytest.raises(ShapeError) as caught:
            explain(one, **place)
        ((name, value),) = place.items()
        assert str(caught.value) == (
            f"explain conv2d: there is no {name}={value}; it has n 0 to 1, i 0 to 3, j 0 to 4, o 0 to 2"
        )
    two = record_passes(lambda x: (x + x).sum() + 1.0, np.zeros((1, 2))).operations
    with pytest.raises(ShapeError, match="there is no n=0; it has a single value"):
        explain(two[3], n=0)
    five = record_passes(lambda x: relu(x).sum(), np.zeros((1,) * 5)).operations[1]
    with pytest.raises(ShapeError, match="results of 5 axes"):
        explain(five)


def test_other_operations_are_refused_with_a_list():
    ops = record_passes(lambda x: x.reshape(4).sum(), np.zeros((2, 2))).operations
    for one in ops[:2]:
        with pytest.raises(ConfigError, match=f"{one.op} cannot be explained .*these can: conv2d, linear, "):
            explain(one)


def test_a_fused_relu_on_a_tape():
    layer = Conv2d(3, 8, 3, relu=True, rng=np.random.default_rng(0))
    y = layer(Tensor(np.random.default_rng(1).standard_normal((1, 3, 3, 3), dtype=np.float32)))
    one = record_tape(y.sum()).operations[0]
    found = [explain(one, o=o) for o in range(8)]
    assert [e.result for e in found] == pytest.approx(y.data.ravel().tolist(), rel=1e-5)
    assert any(e.result == 0 > e.sum for e in found) and "then ReLU" in str(found[0])


def test_from_a_tape_alone():
    layer = Linear(3, 2, rng=np.random.default_rng(0))
    logits = layer(Tensor(np.ones((1, 3), np.float32), requires_grad=True))
    ops = record_tape(cross_entropy(logits, np.array([1]))).operations
    found = explain(ops[1], o=1)
    assert found.result == pytest.approx(logits.data[0, 1], rel=1e-6) and found.products.shape == (3,)
    loss = explain(ops[2])
    assert loss.stored == pytest.approx(loss.result, rel=1e-6) and loss.result == -np.log(loss.p[1])
    del logits
    loss = cross_entropy(layer(Tensor(np.ones((1, 3), np.float32), requires_grad=True)), np.array([1]))
    with pytest.raises(MiniresError, match="not kept on the tape; give step"):
        explain(record_tape(loss).operations[1])
