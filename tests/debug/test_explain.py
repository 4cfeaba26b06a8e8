"""An explanation is the stored number again, from the numbers that it names."""

import numpy as np
import pytest

import minires
from minires.debug.explain import explain
from minires.debug.recording import record_passes
from minires.debug.tape import record_tape
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.nn.layers import Conv2d, Linear
from minires.ops.arithmetic import mul
from minires.ops.cases import all_cases
from minires.ops.cross_entropy import cross_entropy
from minires.ops.registry import describe
from minires.ops.relu import relu
from minires.tensor import Tensor, record

LETTERS = {0: "", 1: "n", 2: "nc", 3: "nic", 4: "nijc", 5: "nijkc"}
EVERY_CASE = [
    pytest.param(case, id=str(case)) for op, table in all_cases().items() for case in table
    if describe(op).arithmetic is not None
]  # fmt: skip


def recorded(case):
    """The last operation of a case, in float64; None where it does nothing (a dropout at inference)."""
    first, *others = case.arrays().values()
    tensors = [Tensor(array, requires_grad=True) for array in others]

    def network(x):
        y = case(x, *tensors)
        return mul(y, np.random.default_rng(1).uniform(0.5, 1.5, y.shape)).sum()

    operations = record_passes(network, first).operations[:-2]
    return next((one for one in reversed(operations) if one.op == case.op), None)


def places(op, shape):
    letters = LETTERS[len(shape)].replace("c", describe(op).arithmetic.last)
    for index in np.ndindex(shape):
        yield index, dict(zip(letters, index, strict=True))


@pytest.mark.parametrize("case", EVERY_CASE)
def test_every_number_of_every_small_case(case):
    one = recorded(case)
    if one is None:
        return
    for index, place in places(case.op, one.shape):
        explained = explain(one, **place)
        assert place.items() <= explained.place.items() and explained.stored == one.output[index]
        assert abs(explained.result - explained.stored) <= 1e-14 * _size(explained), (place, str(explained))
    assert str(explained).startswith(case.op) and "difference" in str(explained)


def _size(explained):
    """How large the numbers are that were summed up: their rounding is to be expected."""
    found = explained.found
    numbers = [abs(explained.result)]
    numbers += [abs(line.value) for line in getattr(found, "lines", ())]
    numbers += [np.abs(column).sum() for row in getattr(found, "rows", ()) for column in row.columns.values()]
    numbers += [np.abs(getattr(found, "products", np.zeros(1))).sum()]
    numbers += [np.abs(np.nan_to_num(getattr(found, "window", np.zeros(1)))).sum()]
    if getattr(describe(explained.operation.op).arithmetic, "axes", ()):  # summed up without being listed
        numbers.append(np.abs(explained.operation.inputs[0].value).sum())
    return max(*numbers, 1.0)


def conv(x, w, b=None, **options):
    weights, bias = Tensor(w, requires_grad=True), None if b is None else Tensor(b, requires_grad=True)
    recording = record_passes(lambda x: minires.ops.conv2d.conv2d(x, weights, bias, **options).sum(), x)
    return recording.operations[1]


def test_a_convolution_by_hand():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 5, 6, 4)), rng.standard_normal((3, 2, 2, 6)), rng.standard_normal(6)
    explained = explain(conv(x, w, b, stride=(2, 1), padding=((1, 0), (0, 1)), groups=2), n=1, i=0, j=5, o=4)
    found = explained.found
    # The window starts above the picture and ends right of it; output 4 is of the second group.
    window = np.zeros((3, 2, 2))
    window[1:, :1] = x[1, 0:2, 5:6, 2:4]
    assert np.array_equal(found.window, window) and np.array_equal(found.kernel, w[..., 4])
    assert found.corner == (-1, 5) and found.channel == 2
    assert np.array_equal(found.products, window * w[..., 4]) and found.bias == b[4]
    assert np.array_equal(found.row, window.ravel()) and np.array_equal(found.column, w[..., 4].ravel())
    assert found.sum == pytest.approx(found.row @ found.column, rel=1e-14)
    assert explained.result == pytest.approx((window * w[..., 4]).sum() + b[4], rel=1e-14)


def test_a_long_list_of_products_is_shortened_in_print_only():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 4, 4, 20)), rng.standard_normal((3, 3, 20, 2))
    explained = explain(conv(x, w, padding=1), i=2, j=1, o=1)
    found = explained.found
    assert found.products.shape == (3, 3, 20) and found.bias is None
    lines = str(explained).splitlines()
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
        explained = explain(one, n=2, i=1, j=0, c=1)
        found = explained.found
        assert found["mean"] == pytest.approx(m) and found["var"] == pytest.approx(v) and found["eps"] == 0.1
        assert found["inv"] == pytest.approx(1 / np.sqrt(v + 0.1))
        assert found["xhat"] == pytest.approx((x[2, 1, 0, 1] - m) / np.sqrt(v + 0.1))
        assert explained.result == pytest.approx(3 * found["xhat"] - 1) == pytest.approx(explained.stored)
        assert ("mean = mean(x, batch) = " if training else "mean = running_mean = ") in str(explained)
        assert f"xhat = (x - mean) * inv = ({x[2, 1, 0, 1]:.6g} - {m:.6g}) * " in str(explained)


def test_pools():
    x = np.zeros((1, 3, 3, 2))
    x[0, :, :, 1] = [[-1, -2, -3], [-4, -5, -6], [-7, -8, -0.5]]
    options = {"stride": 2, "padding": 1}
    one = record_passes(lambda x: minires.ops.max_pool2d.max_pool2d(x, 3, **options).sum(), x).operations[1]
    explained = explain(one, i=1, j=1, c=1)
    found = explained.found
    assert found.winner == (1, 1) and found.corner == (1, 1)
    assert explained.result == explained.stored == -0.5
    assert found.inside.tolist() == [[True, True, False], [True, True, False], [False] * 3]
    assert "the largest (*) is at row 2, column 2 of the picture" in str(explained)
    assert "-0.5*" in str(explained) and "border" in str(explained)
    for counted, count in [(False, 4), (True, 9)]:
        one = record_passes(
            lambda x, counted=counted: minires.ops.avg_pool2d.avg_pool2d(
                x, 3, **options, count_padding=counted
            ).sum(),
            x,
        ).operations[1]
        explained = explain(one, i=1, j=1, c=1)
        assert explained.found.count == count and explained.found.winner is None
        assert explained.result == pytest.approx(-19.5 / count) == pytest.approx(explained.stored)


def test_softmax_and_loss():
    scores = np.array([[1.0, 3.0, -2.0], [0.0, 0.0, 5.0]])
    labels = np.array([2, 0])
    one = record_passes(lambda x: x, scores, labels).operations[1]
    explained = explain(one, n=1, k=2)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    row, losses_of_all = explained.found.rows
    assert (row.axis, losses_of_all.axis) == ("classes", "rows")
    assert losses_of_all.columns["losses"] == pytest.approx(-np.log(p[[0, 1], labels]))
    assert row.columns["p"] == pytest.approx(p[1])
    assert row.columns["target"].tolist() == [1, 0, 0] and row.columns["logits"].tolist() == [0, 0, 5]
    assert explained.found["p"] == pytest.approx(p[1, 2]) and explained.place == {"n": 1, "k": 2}
    losses = -np.log(p[[0, 1], labels])
    assert explained.found["losses"] == pytest.approx(losses[1])
    assert explained.result == pytest.approx(losses.mean()) == pytest.approx(explained.stored)
    assert "losses = -sum(target * log_p if target != 0 else 0, classes) = " in str(explained)
    soft = record_passes(lambda x: (minires.ops.softmax.softmax(x) ** 2).sum(), scores).operations[1]
    explained = explain(soft, n=1, k=2)
    assert explained.found.rows[0].columns["e"] == pytest.approx(np.exp([-5, -5, 0]))
    assert explained.result == pytest.approx(p[1, 2])


def test_many_classes_are_shortened_in_print_only():
    scores = np.linspace(0, 1, 40)[None]
    explained = explain(record_passes(lambda x: x, scores, np.array([3])).operations[1])
    lines = str(explained).splitlines()
    start = next(place for place, line in enumerate(lines) if line.split()[0] == "classes")
    shown = [int(line.split()[0]) for line in lines[start + 1 : start + 9]]
    assert shown == [3, *range(39, 32, -1)]  # the label first, then the most probable
    assert lines[start + 9].strip() == "and 32 with smaller shares of the sums"


def test_additions_name_their_summands():
    one = record_passes(lambda x: (relu(x) + x).sum(), np.array([[2.0, -3.0]])).operations[2]
    explained = explain(one, c=1)
    assert str(explained).splitlines() == [
        "add at n=0, c=1",
        "  a = 0  (operation 1)",
        "  b = -3  (operation 0)",
        "  y = a + b = 0 + -3 = -3",
        "  result           -3",
        "  stored           -3",
        "  difference  0.0e+00",
    ]


def test_a_real_resnet_50():
    model = minires.models.build("resnet50_signs")
    x = np.random.default_rng(0).random((2, 64, 64, 3), dtype=np.float32)
    recording = record_passes(model, x, np.array([1, 5]))
    rng, seen = np.random.default_rng(1), set()
    for one in recording.operations:
        if describe(one.op).arithmetic is None:
            continue
        seen.add(one.op)
        for _ in range(3):
            index = [int(rng.integers(size)) for size in one.shape]
            letters = LETTERS[len(index)].replace("c", describe(one.op).arithmetic.last)
            explained = explain(one, **dict(zip(letters, index, strict=True)))
            scale = np.abs(getattr(explained.found, "products", np.ones(1))).sum()
            assert explained.result == pytest.approx(explained.stored, rel=2e-5, abs=2e-6 * scale)
    assert seen == {
        "conv2d",
        "batch_norm",
        "relu",
        "add",
        "max_pool2d",
        "avg_pool2d",
        "flatten",
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
    seven = record_passes(lambda x: relu(x).sum(), np.zeros((1,) * 7)).operations[1]
    with pytest.raises(ShapeError, match="results of 7 axes"):
        explain(seven)


def test_what_nobody_described_is_refused():
    def mine(x):
        return record("mine", x.data + 1, inputs={"x": x}, backward=lambda dy: (dy,))

    for one in record_passes(lambda x: mine(x).sum(), np.zeros((2, 2))).operations[:2]:
        with pytest.raises(ConfigError, match=f"{one.op} cannot be explained number by number: it does not"):
            explain(one)


def test_a_fused_relu_on_a_tape():
    layer = Conv2d(3, 8, 3, relu=True, rng=np.random.default_rng(0))
    y = layer(Tensor(np.random.default_rng(1).standard_normal((1, 3, 3, 3), dtype=np.float32)))
    one = record_tape(y.sum()).operations[0]
    explained = [explain(one, o=o) for o in range(8)]
    assert [e.result for e in explained] == pytest.approx(y.data.ravel().tolist(), rel=1e-5)
    assert any(e.result == 0 > e.found.sum for e in explained) and "then ReLU" in str(explained[0])


def test_from_a_tape_alone():
    layer = Linear(3, 2, rng=np.random.default_rng(0))
    logits = layer(Tensor(np.ones((1, 3), np.float32), requires_grad=True))
    ops = record_tape(cross_entropy(logits, np.array([1]))).operations
    explained = explain(ops[1], o=1)
    assert explained.result == pytest.approx(logits.data[0, 1], rel=1e-6)
    assert explained.found.products.shape == (3,)
    loss = explain(ops[2], k=1)
    assert loss.stored == pytest.approx(loss.result, rel=1e-6)
    assert loss.result == pytest.approx(-np.log(loss.found["p"]))
    del logits
    loss = cross_entropy(layer(Tensor(np.ones((1, 3), np.float32), requires_grad=True)), np.array([1]))
    with pytest.raises(MiniresError, match="not kept on the tape; give step"):
        explain(record_tape(loss).operations[1])
