"""Batch normalisation in training and inference, fused and not, and its running statistics."""

import re
import tracemalloc
from contextlib import nullcontext

import numpy as np
import opcheck
import pytest

from minires import Tensor, backend, distributed, reference, unfused
from minires.errors import ShapeError
from minires.modes import synchronised
from minires.ops import cases
from minires.ops.batch_norm import arguments, batch_norm, numba_kernels
from minires.ops.batch_norm.cases import running_statistics


@opcheck.on_devices
@opcheck.of("batch_norm")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("batch_norm")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, gamma, beta, add=None, *, training, relu=False, eps=None, convention="keras"):
        statistics = running_statistics(Tensor(x.detach().numpy()))
        mean, var = (torch.tensor(array) for array in statistics.values())
        eps = {"keras": 1e-3, "torch": 1e-5}[convention] if eps is None else eps
        rows = x.reshape(-1, x.shape[-1])
        y = torch.nn.functional.batch_norm(rows, mean, var, gamma, beta, training, 0.1, eps).reshape(x.shape)
        y = y if add is None else y + add
        return torch.relu(y) if relu else y

    opcheck.check_against_torch(case, reference)


@opcheck.of("batch_norm")
def test_unfused_is_the_same_in_separate_steps(case):
    for dtype in opcheck.DTYPES:
        arrays = case.arrays(dtype)
        fused = opcheck.run(case, arrays)
        with unfused():
            separate = opcheck.run(case, arrays)
            y = case(*(Tensor(array, requires_grad=True) for array in arrays.values()))
        opcheck.assert_all_close(separate, fused, opcheck.CLOSE[dtype], f"{case}, {dtype}")
        ops, node = [], y.node
        while node is not None and node.op != "leaf":
            ops.append(node.op)
            node = node.parents[0]
        expected = ["relu"] * case.options.get("relu", False) + ["add"] * ("add" in case.inputs)
        assert ops == [*expected, "batch_norm"]


def _tensors(x, dtype="float64"):
    c = x.shape[-1]
    gamma, beta = np.linspace(0.5, 2, c, dtype=dtype), np.linspace(-1, 1, c, dtype=dtype)
    return [Tensor(array, requires_grad=True) for array in (x.astype(dtype), gamma, beta)]


def test_all_ones_is_a_trap():
    """With an upstream gradient of ones the true gradients of x and gamma are zero; see the module's head."""
    x, gamma, beta = _tensors(np.random.default_rng(0).standard_normal((6, 3)))
    batch_norm(x, gamma, beta, training=True).sum().backward()
    assert abs(x.grad).max() < 1e-14 and abs(gamma.grad).max() < 1e-14
    assert beta.grad.tolist() == [6, 6, 6]


@pytest.mark.parametrize("convention", ["keras", "torch"])
@pytest.mark.parametrize("fast", [True, False])
def test_running_statistics(convention, fast):
    rng = np.random.default_rng(0)
    mean, var = rng.standard_normal(3), rng.uniform(1, 2, 3)
    running_mean, running_var = mean.copy(), var.copy()
    momentum = 0.9 if convention == "keras" else 0.1
    kept = 0.9
    for _ in range(3):
        x = 2 + 3 * rng.standard_normal((2, 2, 3, 3))
        options = {"running_mean": running_mean, "running_var": running_var, "convention": convention}
        if fast:
            batch_norm(*_tensors(x), training=True, momentum=momentum, **options)
        else:
            with reference():
                batch_norm(*_tensors(x), training=True, momentum=momentum, **options)
        rows = x.reshape(-1, 3)
        mean = kept * mean + (1 - kept) * rows.mean(0)
        var = kept * var + (1 - kept) * rows.var(0, ddof=int(convention == "torch"))
        assert np.allclose(running_mean, mean, rtol=1e-13) and np.allclose(running_var, var, rtol=1e-13)


def test_running_statistics_as_in_torch():
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    running_mean, running_var = np.zeros(3), np.ones(3)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal((5, 3))
        layer(torch.tensor(x))
        ones, zeros = Tensor(np.ones(3)), Tensor(np.zeros(3))
        batch_norm(
            Tensor(x), ones, zeros, training=True, convention="torch",
            running_mean=running_mean, running_var=running_var,
        )  # fmt: skip
    assert np.allclose(running_mean, layer.running_mean.numpy(), rtol=1e-13)
    assert np.allclose(running_var, layer.running_var.numpy(), rtol=1e-13)


@pytest.mark.parametrize("fast", [True, False])
def test_inference_uses_the_running_statistics_and_keeps_them(fast):
    x, gamma, beta = _tensors(np.random.default_rng(0).standard_normal((4, 2)), "float32")
    mean, var = np.array([1.0, 2.0]), np.array([4.0, 9.0])  # float64: the dtype of x counts
    before = mean.copy(), var.copy()

    def run():
        return batch_norm(x, gamma, beta, training=False, running_mean=mean, running_var=var, eps=0.0)

    if fast:
        y = run()
    else:
        with reference():
            y = run()
    expected = gamma.data * (x.data - mean) / np.sqrt(var) + beta.data
    assert y.dtype == np.float32 and np.allclose(y.numpy(), expected, atol=1e-6)
    assert np.array_equal(mean, before[0]) and np.array_equal(var, before[1])


def test_statistics_that_move_before_the_backward_do_not_change_it():
    x, gamma, beta = _tensors(np.random.default_rng(0).standard_normal((4, 2)))
    mean, var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    y = batch_norm(x, gamma, beta, training=False, running_mean=mean, running_var=var, eps=0.0)
    mean += 100
    var *= 100
    y.sum().backward()
    assert np.allclose(gamma.grad, ((x.data - [1, 2]) / [2, 3]).sum(0), rtol=1e-12)


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="the plain code sums in float32")
def test_a_large_common_mean_does_not_eat_the_variance():
    x = (1e4 + np.random.default_rng(0).standard_normal((2000, 3))).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(0)) / exact.std(0)
    ones, zeros = Tensor(np.ones(3, np.float32)), Tensor(np.zeros(3, np.float32))
    y = batch_norm(Tensor(x), ones, zeros, training=True, eps=0.0).numpy()
    assert abs(y - exact).max() < 2e-3


def test_a_constant_channel_stays_finite():
    for implementation in (reference, unfused):
        with implementation():
            x, gamma, beta = _tensors(np.full((5, 2), 3.0))
            y = batch_norm(x, gamma, beta, training=True)
            y.backward(np.random.default_rng(0).standard_normal((5, 2)))
        assert np.array_equal(y.numpy(), np.tile(beta.data, (5, 1)))
        assert np.isfinite(x.grad).all() and not gamma.grad.any()


@pytest.mark.parametrize("fast", [True, False])
def test_nan_is_not_hidden_by_relu(fast):
    x = Tensor(np.array([[np.nan, 1.0], [1.0, 2.0]]))
    ones, zeros = Tensor(np.ones(2)), Tensor(np.zeros(2))
    if fast:
        y = batch_norm(x, ones, zeros, training=True, relu=True)
    else:
        with reference():
            y = batch_norm(x, ones, zeros, training=True, relu=True)
    assert np.isnan(y.numpy()).tolist() == [[True, False], [True, False]]


def test_a_negative_zero_is_the_same_fused_and_unfused():
    """It is the number at which ReLU does not decide: it is not below zero, and so it stays."""
    x, gamma, beta = Tensor([[2.0]]), Tensor([-1.0]), Tensor([-0.0])
    running = {"running_mean": np.float32([2.0]), "running_var": np.float32([1.0])}
    signs = []
    for implementation in (nullcontext, unfused):
        with implementation():
            y = batch_norm(x, gamma, beta, training=False, relu=True, **running).numpy()
        assert y.tolist() == [[0.0]]
        signs.append(bool(np.signbit(y[0, 0])))
    assert signs[0] == signs[1]


@pytest.mark.parametrize("channels", [1, 7, 64])
def test_many_rows_on_three_threads(channels):
    """Enough numbers that the sums are cut into chunks."""
    before = backend.threads()
    case = cases.all_cases()["batch_norm"][6]
    assert case.options == {"training": True, "relu": True} and "add" in case.inputs
    rng = np.random.default_rng(0)
    shape = (100_000 // channels, channels)
    arrays = {name: rng.standard_normal(shape if name in ("x", "add") else channels) for name in case.inputs}
    backend.set_threads(3)
    try:
        fast = opcheck.run(case, arrays)
    finally:
        backend.set_threads(before)
    with reference():
        opcheck.assert_all_close(fast, opcheck.run(case, arrays), 1e-11, "three threads")


# Views of an array (3, 4, 5, 8): what each is, and whether it is read where it lies.
VIEWS = {
    "the first channels": (np.s_[..., :5], True),
    "channels from the middle to the end": (np.s_[..., 2:], True),
    "one channel": (np.s_[..., :1], False),
    "every second channel": (np.s_[..., ::2], False),
    "channels backwards": (np.s_[..., ::-1], False),
    "pictures backwards": (np.s_[::-1, ..., :5], False),
    "every second picture": (np.s_[::2, ..., :5], False),
    "one row of places": (np.s_[1, 1, :, :5], True),
    "places backwards": (np.s_[1, 1, ::-1, :5], False),
    "half the pictures": (np.s_[1:, ..., :5], True),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", opcheck.DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_a_view_is_as_good_as_a_copy_of_it(name, dtype, training):
    """The history of a dense block is a view of an array with room for more channels."""
    whole = np.random.default_rng(0).standard_normal((3, 4, 5, 8)).astype(dtype)
    view = whole[VIEWS[name][0]]
    statistics = running_statistics(Tensor(view))
    for implementation in (nullcontext, reference):
        found = []
        for array in (view, view.copy()):
            x, gamma, beta = _tensors(array, dtype)
            x = Tensor(array, requires_grad=True)
            running = {key: value.copy() for key, value in statistics.items()}
            with implementation():
                y = batch_norm(x, gamma, beta, training=training, relu=True, add=x, **running)
                y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(dtype))
            found.append({"y": y.numpy(), "x": x.grad, "gamma": gamma.grad, "beta": beta.grad, **running})
        opcheck.assert_all_close(*found, {"float32": 1e-6, "float64": 1e-14}[dtype], name)
    assert np.array_equal(whole, np.random.default_rng(0).standard_normal(whole.shape).astype(dtype))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_not_copied(name):
    whole = np.zeros((3, 4, 5, 8), np.float32)
    view = whole[VIEWS[name][0]]
    rows = arguments.rows(np, view)
    assert rows.shape == (view.size // view.shape[-1], view.shape[-1])
    assert np.shares_memory(rows, whole) == VIEWS[name][1]
    wide = numba_kernels._wide(rows)
    assert wide.flags.c_contiguous and np.shares_memory(wide, rows)


def test_the_other_channels_of_a_wider_array_are_not_looked_at():
    whole = np.full((3, 4, 5, 8), np.nan)
    whole[..., 2:6] = np.random.default_rng(0).standard_normal((3, 4, 5, 4))
    x, gamma, beta = _tensors(whole[..., 2:6])
    x = Tensor(whole[..., 2:6], requires_grad=True)
    y = batch_norm(x, gamma, beta, training=True)
    y.backward(np.ones(y.shape))
    assert np.isfinite(y.numpy()).all() and np.isfinite(x.grad).all() and np.isfinite(gamma.grad).all()


@pytest.mark.parametrize("fast", [True, False])
def test_the_tape_keeps_no_copy_of_a_view(fast):
    """Forward and backward on the first half of an array's channels take the memory of y and dx, not of x."""
    whole = np.random.default_rng(0).standard_normal((64, 16, 16, 32)).astype(np.float32)
    x, gamma, beta = _tensors(whole[..., :16], "float32")
    x = Tensor(whole[..., :16], requires_grad=True)
    with nullcontext() if fast else reference():
        batch_norm(x, gamma, beta, training=True)  # compile the kernels
        tracemalloc.start()
        try:
            y = batch_norm(x, gamma, beta, training=True)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert x.data.nbytes <= kept < 1.1 * y.data.nbytes


ONES = np.ones(3)


@pytest.mark.parametrize(
    ("x", "options", "text"),
    [
        ((3,), {}, "batch_norm: x must have a batch axis and channels last, but its shape is (3,)"),
        ((1, 3), {}, "batch_norm: training needs at least two values per channel, but x has shape (1, 3)"),
        ((2, 4), {}, "batch_norm: gamma has shape (3,), but x (2, 4) has 4 channels"),
        ((2, 3), {"running_mean": np.ones(2)}, "batch_norm: running_mean has shape (2,), but x (2, 3) has 3"),
        ((2, 3), {"training": False}, "batch_norm: inference needs running_mean and running_var"),
        ((2, 3), {"convention": "caffe"}, "batch_norm: convention must be 'keras' or 'torch', not 'caffe'"),
        ((2, 3), {"add": Tensor(ONES)}, "add has shape (3,), but x has (2, 3); they must be equal"),
    ],
)
def test_shapes_that_do_not_fit(x, options, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        batch_norm(Tensor(np.ones(x)), Tensor(ONES), Tensor(ONES), **{"training": True, **options})


def test_dtypes_are_never_mixed():
    with pytest.raises(ShapeError, match="batch_norm: x is float32 but gamma is float64"):
        batch_norm(Tensor(np.ones((2, 3), np.float32)), Tensor(ONES), Tensor(ONES), training=True)


def test_the_backward_sees_the_same_signs_as_the_forward():
    """The kernels find the sign of y a second time, from x: to the last bit, also where y is nearly zero."""
    rng = np.random.default_rng(3)
    x = Tensor((1 + 1e-6 * rng.standard_normal((5000, 24))).astype(np.float32), requires_grad=True)
    gamma, beta = (Tensor(array.astype(np.float32)) for array in (1 + rng.random(24), 1e-6 * rng.random(24)))
    mean, var = np.ones(24, np.float32), np.full(24, 0.7, np.float32)
    y = batch_norm(x, gamma, beta, training=False, running_mean=mean, running_var=var, relu=True)
    y.backward(np.ones(y.shape, np.float32))
    assert 0.1 < (y.data > 0).mean() < 0.9
    assert np.array_equal(x.grad > 0, y.data > 0)


def test_running_statistics_are_arrays_of_floats_that_training_can_change():
    x, gamma, beta = (Tensor(np.ones(shape)) for shape in ((2, 3), 3, 3))

    def run(mean, var, training):
        return batch_norm(x, gamma, beta, training=training, running_mean=mean, running_var=var)

    good, single, read_only = np.ones(3), np.ones(3, np.float32), np.ones(3)
    read_only.flags.writeable = False
    for training in (True, False):
        assert run(single, good.copy(), training).shape == run(good.copy(), single, training).shape == (2, 3)
        for wrong, text in (
            ([1.0, 1.0, 1.0], "must be an array, not a list"),
            (np.ones(3, int), "is int64 on cpu, but beside x, float64 on cpu, it must be float32 or float64"),
            (np.ones(3, np.float16), "is float16 on cpu"),
        ):
            with pytest.raises(ShapeError, match=f"batch_norm: running_mean {text}"):
                run(wrong, good, training)
            with pytest.raises(ShapeError, match=f"batch_norm: running_var {text}"):
                run(good, wrong, training)
    assert run(read_only, read_only, False).shape == (2, 3)
    with pytest.raises(ShapeError, match="batch_norm: running_var is read-only, but training changes it"):
        run(good, read_only, True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("convention", ["keras", "torch"])
def test_over_ranks_it_is_that_of_their_batches_together(convention, fast, dtype):
    """Of other sizes, far from zero, with an addition and a ReLU."""
    rng, cuts = np.random.default_rng(0), [0, 1, 9, 16]
    x, add, dy = (rng.standard_normal((16, 3, 5)) for _ in range(3))
    x = 3 * x + 40
    arrays = [array.astype(dtype) for array in (x, add, dy)]
    gamma, beta = rng.standard_normal((2, 5)).astype(dtype)

    def normalised(here, running):
        tensors = [Tensor(array[here], requires_grad=True) for array in arrays[:2]]
        learned = [Tensor(array.copy(), requires_grad=True) for array in (gamma, beta)]
        with nullcontext() if fast else reference():
            y = batch_norm(
                tensors[0], *learned, training=True, convention=convention, running_mean=running[0],
                running_var=running[1], add=tensors[1], relu=True,
            )  # fmt: skip
            y.backward(arrays[2][here])
        return y.numpy(), [one.grad for one in tensors], [one.grad for one in learned]

    def running():
        return np.full(5, 20, dtype), np.ones(5, dtype)

    of_one = running()
    y, moving, learned = normalised(slice(None), of_one)

    def work(comm):
        own = running()
        with synchronised(comm):
            return *normalised(slice(cuts[comm.rank], cuts[comm.rank + 1]), own), own

    found = distributed.run(3, work)
    close = {"rtol": 1e-11, "atol": 1e-11} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-4}
    np.testing.assert_allclose(np.concatenate([one[0] for one in found]), y, **close)
    for which in range(2):
        np.testing.assert_allclose(np.concatenate([one[1][which] for one in found]), moving[which], **close)
        np.testing.assert_allclose(sum(one[2][which] for one in found), learned[which], **close)
        for one in found:
            np.testing.assert_allclose(one[3][which], of_one[which], **close)
            assert one[3][which].dtype == dtype


def test_over_ranks_one_picture_each_is_enough():
    def work(comm):
        x = Tensor(np.full((1, 2), float(comm.rank)))
        with synchronised(comm):
            y = batch_norm(x, Tensor(np.ones(2)), Tensor(np.zeros(2)), training=True, eps=0.0)
        with pytest.raises(ShapeError, match="at least two values"):
            batch_norm(x, Tensor(np.ones(2)), Tensor(np.zeros(2)), training=True)
        return y.numpy().tolist()

    assert distributed.run(2, work) == [[[-1.0, -1.0]], [[1.0, 1.0]]]
