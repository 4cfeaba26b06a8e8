"""The CUDA kernels of softmax, cross entropy and dropout on the CPU: sizes beyond the table of cases, numbers
that are not finite, labels that make no sense, the generator of dropout; and kernels that are wrong."""

import dataclasses

import cuda_emulator
import numpy as np
import opcheck
import pytest

import minires
from minires import Tensor
from minires.backend import cuda
from minires.errors import DataError
from minires.modes import share_of_batch
from minires.nn import Dropout
from minires.ops import cases, cross_entropy, dropout, softmax
from minires.ops import labels as labels_module
from minires.ops.nll_loss import nll_loss

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]

# Rows and classes: one, a warp and its neighbours, all sizes of a block, more classes than threads.
SIZES = [(1, 1), (3, 1), (1, 2), (2, 31), (2, 33), (3, 128), (2, 129), (2, 1000), (1, 2049), (1, 100_000)]
on_sizes = pytest.mark.parametrize("size", SIZES, ids=str)
in_dtypes = pytest.mark.parametrize("dtype", opcheck.DTYPES)


@pytest.fixture
def emulator(monkeypatch):
    return cuda_emulator.emulate(monkeypatch)


def normal(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rewrite(monkeypatch, module, piece, wrong):
    """Let the operation have kernels in which ``wrong`` stands for ``piece``."""
    code = module._CUDA.code.removeprefix(cuda.PRELUDE)
    assert piece in code
    source = cuda.Source(code.replace(piece, wrong))
    cuda_emulator.library(source.text("float64"))  # that it can be compiled is no failure to be expected
    monkeypatch.setattr(module, "_CUDA", source)


# ---------------------------------------------------------------------------------------------- softmax

SOFTMAXES = {
    "softmax": (softmax._forward, softmax._backward),
    "log_softmax": (softmax._forward_log, softmax._backward_log),
}
in_both = pytest.mark.parametrize("op", SOFTMAXES)


def check_softmax(op, x):
    """Forward and backward against the reference implementation, each in one launch."""
    forward, backward = SOFTMAXES[op]
    dy, close = normal(x.shape, x.dtype, 1), opcheck.CLOSE[str(x.dtype)]
    y = softmax._rows_cuda(np, op, x)
    opcheck.assert_close(y, forward(np, x), close, op)
    dx = softmax._rows_cuda(np, f"{op}_gradient", dy, y)
    opcheck.assert_close(dx, backward(np, dy, forward(np, x)), close, f"gradient of {op}")


@in_both
@in_dtypes
@on_sizes
def test_softmax_of_many_sizes(op, size, dtype, emulator):
    check_softmax(op, normal(size, dtype))
    assert emulator.launches == {op: 1, f"{op}_gradient": 1}


@in_both
@in_dtypes
def test_softmax_of_large_scores(op, dtype, emulator):
    check_softmax(op, normal((2, 200), dtype) * 1e4 - 1e5)


@in_both
def test_softmax_without_rows(op, emulator):
    for shape in ((0, 3), (2, 0, 3)):
        x = Tensor(np.empty(shape), requires_grad=True)
        y = getattr(softmax, op)(x)
        y.backward(np.empty(shape))
        assert y.shape == x.grad.shape == shape and not emulator.launches


@in_both
@pytest.mark.parametrize("classes", [3, 200])
def test_softmax_of_numbers_that_are_not_finite(op, classes, emulator):
    x = normal((8, classes))
    x[0] = -np.inf
    x[1, 0] = x[2, -1] = np.nan
    x[3, 0] = x[4, -1] = np.inf
    x[5, :-1] = -np.inf
    x[6] = np.nan
    forward, backward = SOFTMAXES[op]
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = forward(np, x)
        y, dy = softmax._rows_cuda(np, op, x), normal(x.shape, seed=1)
        np.testing.assert_allclose(y, expected, rtol=1e-12)
        dx = softmax._rows_cuda(np, f"{op}_gradient", dy, y)
        np.testing.assert_allclose(dx, backward(np, dy, expected), rtol=1e-12, atol=1e-12)
    assert np.isnan(y[[0, 1, 2, 3, 4, 6]]).all() and not np.isnan(y[[5, 7]]).any()


@in_both
@pytest.mark.parametrize(
    ("piece", "wrong"),
    [
        ("int by = 16", "int by = 8"),
        ("    __syncthreads();\n    value", "    value"),
        ("warp < blockDim.x / 32", "warp < blockDim.x / 64"),
        ("int warp = 1", "int warp = 0"),
        ("k += blockDim.x", "k += 32"),
        ("b > a ? b : a", "b < a ? b : a"),
        ("T mine = x[0]", "T mine = 0"),
        ("int row = blockIdx.x * classes", "int row = blockIdx.x"),
    ],
)
def test_a_softmax_that_is_wrong_is_found(op, piece, wrong, emulator, monkeypatch):
    rewrite(monkeypatch, softmax, piece, wrong)
    with pytest.raises(AssertionError):
        check_softmax(op, normal((2, 200)))
        check_softmax(op, normal((2, 200)) * 1e4 - 1e5)


# ---------------------------------------------------------------------------------------- cross entropy


def labels_of(kind, rows, classes):
    rng = np.random.default_rng(2)
    if kind == "labels":
        return rng.integers(0, classes, rows, dtype=np.int32)
    given = rng.uniform(0, 1, (rows, classes))
    return given / given.sum(axis=1, keepdims=True)


def check_cross_entropy(size, dtype, kind, smoothing, first=None, **options):
    logits, labels = normal(size, dtype), labels_of(kind, *size)
    if first is not None:
        labels[0] = first
    found = labels_module.labels_of("", Tensor(logits), labels, smoothing=smoothing, **options)
    expected, expected_log_p, u, by = cross_entropy._forward(np, logits, found)
    dloss, close = normal(expected.shape, dtype, 4) + np.asarray(2, dtype), opcheck.CLOSE[dtype]
    placed = cross_entropy._labels_cuda(np, found, logits)
    loss, log_p, divisor = cross_entropy._forward_cuda(np, logits, found, placed)
    opcheck.assert_close(loss, expected, close, "loss")
    opcheck.assert_close(log_p, expected_log_p, close, "log p")
    dlogits = cross_entropy._backward_cuda(np, dloss, log_p, placed, divisor)
    # Far smaller than one: not held to the size of one, as other results are.
    larger = np.asarray(by, dtype)
    expected = cross_entropy._backward(np, dloss, expected_log_p, u, by, found.reduction) * larger
    opcheck.assert_close(dlogits * larger, expected, close, "gradient")


on_kinds = pytest.mark.parametrize("kind", ["labels", "probabilities"])


@on_kinds
@in_dtypes
@pytest.mark.parametrize("size", [*SIZES, (127, 3), (700, 2)], ids=str)
def test_cross_entropy_of_many_sizes(size, dtype, kind, emulator):
    check_cross_entropy(size, dtype, kind, 0.1)
    check_cross_entropy(size, dtype, kind, 0.0)
    names = "cross_entropy", "cross_entropy_sum", "cross_entropy_gradient"
    assert emulator.launches == dict.fromkeys(names, 2)


@on_kinds
@in_dtypes
@pytest.mark.parametrize("size", [(1, 2), (5, 33), (2, 1000), (40, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_with_weights_and_ignored_rows(reduction, size, dtype, kind, emulator):
    weight = np.random.default_rng(5).uniform(0.5, 2, size[1])
    options = {"weight": weight, "reduction": reduction}
    for smoothing in (0.0, 0.1):
        check_cross_entropy(size, dtype, kind, smoothing, **options)
        if kind == "labels":
            check_cross_entropy(size, dtype, kind, smoothing, ignore_index=1, **options)
            check_cross_entropy(size, dtype, kind, smoothing, -7, ignore_index=-7, reduction=reduction)
    # where losses are asked for one by one, nothing is launched to bring them together
    assert ("cross_entropy_sum" in emulator.launches) == (reduction != "none")


def test_the_mean_over_many_rows(emulator):
    losses, loss, by = normal(5000), np.empty(()), np.empty(())
    counts = np.random.default_rng(1).uniform(0, 1, 5000)
    for given, expected in ((None, losses.mean()), (counts, losses.sum() / counts.sum())):
        grid = softmax.row_grid(1, 5000)
        cross_entropy._CUDA("cross_entropy_sum", grid, losses, given, loss, by, 5000, True)
        opcheck.assert_close(loss, 2 * expected, opcheck.CLOSE["float64"], "mean of halves")
        opcheck.assert_close(by, np.asarray(5000 if given is None else counts.sum()), 1e-12, "counts")


def test_sums_over_many_rows_and_classes_lose_no_digits(emulator):
    many = 1_000_000
    loss, by = np.empty((), np.float32), np.empty((), np.float32)
    counts = np.random.default_rng(1).random(many, np.float32)
    losses, exact = np.full(many, 0.1, np.float32), counts.astype(np.float64).sum()
    grid = softmax.row_grid(1, many)
    cross_entropy._CUDA("cross_entropy_sum", grid, losses, counts, loss, by, many, True)
    np.testing.assert_allclose(by, exact, rtol=1e-7)
    np.testing.assert_allclose(loss, 2 * many * np.float64(np.float32(0.1)) / exact, rtol=1e-7)
    x = np.random.default_rng(0).random((1, many), np.float32)
    e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(softmax._rows_cuda(np, "softmax", x), e / e.sum(), rtol=3e-7)
    np.testing.assert_allclose(softmax._rows_cuda(np, "log_softmax", x), np.log(e / e.sum()), rtol=2e-7)


def test_cross_entropy_of_logits_that_are_not_finite(emulator):
    logits = normal((6, 5))
    logits[0] = -np.inf
    logits[1, 2] = np.nan
    logits[2, 4] = np.inf
    logits[3, 1] = -np.inf  # which is not asked for
    logits[4, 4] = -np.inf  # which is
    found = labels_module.labels_of("", Tensor(logits), np.array([0, 1, 2, 3, 4, 0]), reduction="none")
    placed = cross_entropy._labels_cuda(np, found, logits)
    losses, log_p, by = cross_entropy._forward_cuda(np, logits, found, placed)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected, expected_log_p, u, _ = cross_entropy._forward(np, logits, found)
    np.testing.assert_allclose(log_p, expected_log_p, rtol=1e-12)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    assert np.isnan(losses).tolist() == [True, True, True, False, False, False] and np.isinf(losses[4])
    dlogits = cross_entropy._backward_cuda(np, np.ones(6), log_p, placed, by)
    with np.errstate(invalid="ignore"):
        expected = cross_entropy._backward(np, np.ones(6), expected_log_p, u, 1.0, "none")
    np.testing.assert_allclose(dlogits, expected, rtol=1e-12, atol=1e-12)


def check_labels_that_make_no_sense():
    """Their rows are NaN on the way back, the others as ever."""
    logits, dloss = normal((4, 3)), np.ones(())
    labels = np.array([2, 3, -1, 0], np.int32)
    given = np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.2], [-0.5, 1, 0.5], [0, 0, 1]])
    for array, smoothing in ((labels, 0.1), (labels, 0.0), (given, 0.1), (given, 0.0)):
        some = labels_module.labels_of("", Tensor(logits[[0, 3]]), array[[0, 3]], smoothing=smoothing)
        every = dataclasses.replace(some, array=array)
        placed = cross_entropy._labels_cuda(np, every, logits)
        loss, log_p, by = cross_entropy._forward_cuda(np, logits, every, placed)
        dlogits = cross_entropy._backward_cuda(np, dloss, log_p, placed, by)
        assert np.isnan(loss) and np.isnan(dlogits[[1, 2]]).all()
        _, expected_log_p, u, _ = cross_entropy._forward(np, logits[[0, 3]], some)
        expected = cross_entropy._backward(np, dloss, expected_log_p, u, 4.0, "mean")  # of four rows, not two
        opcheck.assert_close(dlogits[[0, 3]], expected, 1e-12, "gradient")
        weighted = dataclasses.replace(every, weight=np.array([0.5, 2.0, 1.0]), reduction="none")
        placed = cross_entropy._labels_cuda(np, weighted, logits)
        losses, _, _ = cross_entropy._forward_cuda(np, logits, weighted, placed)
        assert np.isnan(losses).tolist() == [False, True, True, False]


def test_labels_that_make_no_sense(emulator):
    check_labels_that_make_no_sense()


def test_array_code_on_a_gpu_makes_them_nan_too(monkeypatch):
    """As it runs with the reference implementation, and in nll_loss."""
    monkeypatch.setattr(minires.backend, "device_of", lambda array: "cuda:0")
    monkeypatch.setattr(minires.backend, "to_device", lambda array, device: array)
    monkeypatch.setattr(minires.backend, "own", lambda array, device: array)
    logits = Tensor(normal((4, 3)), requires_grad=True)
    for labels, options in (
        (np.array([2, 3, -1, 0]), {}),
        (np.array([2, 3, -1, 1]), {"ignore_index": 1, "weight": np.array([0.5, 2.0, 1.0])}),
        (np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.2], [-0.5, 1, 0.5], [0, 0, 1]]), {}),
    ):
        losses = [cross_entropy.cross_entropy(logits, labels, reduction="none", **options)]
        losses += [nll_loss(logits, labels, reduction="none", **options)] if labels.ndim == 1 else []
        for loss in losses:
            logits.grad = None
            loss.backward(np.ones(4))
            assert np.isnan(loss.data).tolist() == [False, True, True, False]
            assert np.isnan(logits.grad).any(axis=1).tolist() == [False, True, True, False]


def test_labels_on_a_gpu_are_not_looked_at_and_never_spread_out(emulator, monkeypatch):
    def fail(*arguments):
        raise AssertionError("the labels were looked at")

    logits, labels = Tensor(normal((3, 4)), requires_grad=True), np.array([0, 4, 1])
    with pytest.raises(DataError, match="labels\\[1\\] is 4"):
        cross_entropy.cross_entropy(logits, labels)
    monkeypatch.setattr(cross_entropy, "spread_out", fail)
    monkeypatch.setattr(labels_module, "_look", fail)
    device_of = minires.backend.device_of
    monkeypatch.setattr(minires.backend, "device_of", lambda a: "cuda:0" if a is labels else device_of(a))
    monkeypatch.setattr(minires.backend, "own", lambda array, device: array)
    loss = cross_entropy.cross_entropy(logits, labels)
    loss.backward()
    assert np.isnan(loss.item()) and np.isnan(logits.grad).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("piece", "wrong"),
    [
        ("times * (given", "(given"),
        ("weights ? weights[k] * target", "weights ? weights[0] * target"),
        ("if (u != 0) mine", "mine"),
        ("kept ? half_of", "true ? half_of"),
        ("log_p[k] = 2 * half", "log_p[k] = half"),
        ("*loss = 2 * sum", "*loss = sum"),
        ("(mine) * scale", "(mine)"),
        ("!ignores || ", ""),
        ("losses[blockIdx.x] = !kept ? T(0) : ", "losses[blockIdx.x] = "),
        ("good ? loss : NOT_A_NUMBER", "loss"),
        ("counts[blockIdx.x] = !kept ? T(0) : ", "counts[blockIdx.x] = "),
        ("weights && good ? weights[label] : T(1)", "T(1)"),
        ("counts ? counts[row] : T(1)", "T(1)"),
        ("if (is_mean) ", "if (true) "),
        ("if (count == 0) count = 1;", ""),
        ("losses[row] / count;", "losses[row];"),
        ("*by = count", "*by = 1"),
        ("if (ignores && label == ignored) share = 0;", ""),
        ("if (ignores && label == ignored) share", "if (label == ignored) share"),
        ("exp(log_p[k]) * sum", "exp(log_p[k])"),
        ("dloss[blockIdx.x]", "dloss[0]"),
        ("*dloss / *by", "*dloss"),
        ("+ plus", ""),
        ("T(k == label)", "T(k <= label)"),
        ("labels[blockIdx.x] : 0", "labels[0] : 0"),
        ("given ? given + row", "given ? given"),
        ("label < classes", "label <= classes"),
        ("0 <= label && ", ""),
        ("given[k] < 0 ? NOT_A_NUMBER : given[k]", "given[k]"),
        ("*dloss / *by", "T(1) / *by"),
        ("mine -= u", "mine += u"),
        ("T loss = over_block<SUM>(mine)", "T loss = mine"),
        ("    __syncthreads();\n    value", "    value"),
        ("int by = 16", "int by = 8"),
    ],
)
def test_a_cross_entropy_that_is_wrong_is_found(piece, wrong, emulator, monkeypatch):
    rewrite(monkeypatch, cross_entropy, piece, wrong)
    with pytest.raises(AssertionError):
        weight, no_class = np.linspace(0.5, 1.5, 200), {"ignore_index": -5, "weight": np.zeros(200)}
        for reduction in ("mean", "sum", "none"):
            for kind in ("labels", "probabilities"):
                check_cross_entropy((3, 200), "float64", kind, 0.1, reduction=reduction)
                check_cross_entropy((3, 200), "float64", kind, 0.1, reduction=reduction, weight=weight)
            ignored = {"ignore_index": labels_of("labels", 3, 200)[1], "reduction": reduction}
            check_cross_entropy((3, 200), "float64", "labels", 0.0, weight=weight, **ignored)
            check_cross_entropy((3, 200), "float64", "labels", 0.1, **ignored)
            check_cross_entropy((3, 200), "float64", "labels", 0.1, -7, ignore_index=-7, reduction=reduction)
        check_cross_entropy((3, 200), "float64", "labels", 0.1, **no_class)
        check_labels_that_make_no_sense()
        test_cross_entropy_of_logits_that_are_not_finite(None)


# ---------------------------------------------------------------------------------------------- dropout

# Counter, key and result of Philox 4x32-10, from kat_vectors of Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
on_known_answers = pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)

PHILOX_ALONE = r"""
extern "C" __global__ void philox_alone(const T* like, int* words, int key0, int key1) {
    unsigned word[4];
    for (int i = 0; i < 4; i++) word[i] = words[i];
    philox(word, key0, key1);
    for (int i = 0; i < 4; i++) words[i] = word[i];
}
"""


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


def check_philox(counter, key, answer):
    """The generator of the kernel, alone."""
    source = cuda.Source(dropout._CUDA.code.removeprefix(cuda.PRELUDE) + PHILOX_ALONE)
    word = words(counter).view(np.int32)
    source("philox_alone", (1, 1), np.zeros(1), word, *words(key).view(np.int32).tolist())
    assert word.view(np.uint32).tolist() == words(answer).tolist()


def philox(counter, key):
    """Philox 4x32-10 once more, in NumPy: counters (4, N), a key of two words -> words (4, N)."""
    word, key = [w.astype(np.uint64) for w in counter], [int(k) for k in key]
    lower = np.uint64(2**32 - 1)
    for i in range(10):
        first, second = word[0] * np.uint64(0xD2511F53), word[2] * np.uint64(0xCD9E8D57)
        now = [np.uint64((k + i * w) % 2**32) for k, w in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        word = [
            (second >> np.uint64(32)) ^ word[1] ^ now[0], second & lower,
            (first >> np.uint64(32)) ^ word[3] ^ now[1], first & lower,
        ]  # fmt: skip
    return np.array(word).astype(np.uint32)


def check_mask(n=1000, rate=0.3, first=0):
    """The mask of each number is the first word of its counter."""
    counter = np.zeros((4, n), np.uint32)
    counter[0] = (np.arange(n) + first).astype(np.uint32)
    key = -5, 2**31 - 7
    drawn = philox(counter, [k % 2**32 for k in key])[0] / 2**32
    expected = np.where(drawn < rate, 0, 1 / (1 - rate))
    assert np.array_equal(dropout._masked_cuda(np, np.ones(n), rate, key, first), expected)


def rng(seed=0):
    return np.random.default_rng(seed)


@on_known_answers
def test_known_answers_of_philox(counter, key, answer, emulator):
    check_philox(counter, key, answer)
    assert philox(words(counter)[:, None], words(key))[:, 0].tolist() == words(answer).tolist()


def test_the_mask_is_what_philox_draws(emulator):
    check_mask()
    assert emulator.launches == {"dropout": 1}
    for first in (5, 2**31 + 3, 2**32 - 500):  # where one of several processes has its part
        check_mask(first=first)


def test_those_who_share_a_batch_have_the_parts_of_one_mask(emulator):
    whole = dropout.dropout(Tensor(np.ones((6, 50))), 0.5, rng=rng()).numpy()
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        x = Tensor(np.ones((stop - start, 50)), requires_grad=True)
        with share_of_batch(start, stop, 6):
            y = dropout.dropout(x, 0.5, rng=rng())
        y.backward(np.ones(x.shape))  # outside of the block: its place was kept
        assert (y.numpy() == whole[start:stop]).all() and (x.grad == y.numpy()).all()


@opcheck.of("dropout")
def test_cases_of_dropout(case, emulator):
    """All but the comparison with the reference implementation, whose masks are others."""
    opcheck.check_layouts(case)
    opcheck.check_upstream_layouts(case)
    opcheck.check_memory(case)
    opcheck.check_single_gradients(case)
    cases.check(case, raise_on_fail=True)
    drops = case.options["rate"] > 0 and case.options.get("training", True)
    assert ("dropout" in emulator.launches) == drops


@in_dtypes
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.9])
def test_the_share_of_zeros_the_scale_and_the_mean(rate, dtype, emulator):
    n = 200_000
    y = dropout.dropout(Tensor(np.ones(n, dtype)), rate, rng=rng()).numpy()
    assert set(np.unique(y)) == {0, np.dtype(dtype).type(1 / (1 - rate))}
    deviation = (rate * (1 - rate) / n) ** 0.5
    assert abs((y == 0).mean() - rate) < 4 * deviation
    assert abs(y.mean(dtype=np.float64) - 1) < 4 * deviation / (1 - rate)


def test_numbers_are_dropped_independently_of_their_neighbours(emulator):
    n, rate = 200_000, 0.5
    dropped = dropout.dropout(Tensor(np.ones(n)), rate, rng=rng()).numpy() == 0
    for distance in (1, 2, 4, 32, 256):
        both = (dropped[:-distance] & dropped[distance:]).mean()
        assert abs(both - rate**2) < 4 * (rate**2 * (1 - rate**2) / n) ** 0.5


def test_the_gradient_goes_through_the_same_mask_in_one_launch(emulator):
    x = Tensor(np.ones((50, 7)), requires_grad=True)
    y = dropout.dropout(x, 0.5, rng=rng())
    y.backward(np.full((50, 7), 3.0))
    assert np.array_equal(x.grad, 3 * y.numpy()) and 0 < (x.grad == 0).mean() < 1
    assert emulator.launches == {"dropout": 2}


def test_one_state_gives_one_mask_and_the_next_another(emulator):
    generator, masks = rng(), []
    state = generator.bit_generator.state
    for dtype in opcheck.DTYPES:
        generator.bit_generator.state = state
        masks += [dropout.dropout(Tensor(np.ones(99, dtype)), 0.4, rng=generator).numpy() == 0]
    assert np.array_equal(*masks)
    for other in (generator, rng(1)):
        assert not np.array_equal(dropout.dropout(Tensor(np.ones(99)), 0.4, rng=other).numpy() == 0, masks[0])


def test_inference_and_rate_zero_leave_the_generator_alone(emulator):
    generator, x = rng(), Tensor(np.ones(3))
    before = generator.bit_generator.state
    assert dropout.dropout(x, 0.5, rng=generator, training=False) is x
    assert dropout.dropout(x, 0.0, rng=generator) is x
    assert generator.bit_generator.state == before and not emulator.launches


def test_a_checkpoint_draws_the_same_mask(emulator):
    masks = []
    for run in (lambda layer, x: layer(x), minires.recompute):
        layer, x = Dropout(0.5, seed=4), Tensor(np.ones(1000), requires_grad=True)
        y = run(layer, x)
        between = layer(x).numpy()  # drawn between the two runs
        y.backward(np.ones(1000))
        assert np.array_equal(x.grad, y.numpy())
        masks.append((y.numpy(), between, layer(x).numpy()))
    assert all(np.array_equal(a, b) for a, b in zip(*masks, strict=True))
    assert not np.array_equal(masks[0][0], masks[0][2])


def test_rates_next_to_one_and_numbers_that_are_not_finite(emulator):
    assert not dropout.dropout(Tensor(np.ones(1000)), 1 - 2**-53, rng=rng()).numpy().any()
    x = np.array([np.nan, np.inf] * 50)
    with np.errstate(invalid="ignore"):
        y = dropout.dropout(Tensor(x), 0.5, rng=rng()).numpy()
    assert np.isnan(y[::2]).all()  # zero times NaN, or infinity, is NaN
    assert np.isnan(y[1::2]).any() and np.isinf(y[1::2]).any()
    assert dropout.dropout(Tensor(np.empty((0, 3))), 0.5, rng=rng()).shape == (0, 3)


@pytest.mark.parametrize(
    ("piece", "wrong"),
    [
        ("round < 10", "round < 9"),
        ("key1 += 0xBB67AE85", "key1 += 0x9E3779B9"),
        ("__umulhi(0xCD9E8D57", "__umulhi(0xD2511F53"),
        ("upper0 ^ word[3] ^ key1", "upper0 ^ word[3] ^ key0"),
    ],
)
def test_a_generator_that_is_wrong_is_found(piece, wrong, emulator, monkeypatch):
    rewrite(monkeypatch, dropout, piece, wrong)
    for known in KNOWN_ANSWERS:
        with pytest.raises(AssertionError):
            check_philox(*known)


@pytest.mark.parametrize(
    ("piece", "wrong"),
    [
        ("unsigned(i) + unsigned(first)", "unsigned(i / 2) + unsigned(first)"),
        ("philox(word, key0, key1)", "philox(word, key1, key0)"),
        (">= dropped", "< dropped"),
        ("word[0] >> 1", "word[0] >> 2"),
        ("(kept ? scale : A(0))", "A(kept)"),
    ],
)
def test_a_dropout_that_is_wrong_is_found(piece, wrong, emulator, monkeypatch):
    rewrite(monkeypatch, dropout, piece, wrong)
    with pytest.raises(AssertionError):
        check_mask()
