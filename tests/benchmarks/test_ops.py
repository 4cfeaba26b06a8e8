"""ops.py: it sees every operation of a step, counts its work rightly and leaves everything as it was."""

import numpy as np
import ops
import pytest

from minires import backend, models
from minires.backend import kernels, simd
from minires.inspect import summarize
from minires.nn import layers
from minires.ops.conv2d import conv2d
from minires.ops.dense_buffer import DenseBuffer
from minires.tensor import Tensor, unfused


@pytest.fixture(scope="module")
def report():
    threads = backend.threads()
    yield ops.measure("resnet20_cifar", batch=2, size=16, threads=1, rounds=1)
    backend.set_threads(threads)


def times(report, op):
    return sum(row["count"] for row in report["rows"] if row["op"] == op)


def test_every_call_is_seen_and_alike_calls_once(report):
    counts = {row["op"]: times(report, row["op"]) for row in report["rows"]}
    assert counts == {
        "conv2d": 19, "batch_norm": 19, "pad_channels": 2, "global_avg_pool2d": 1, "linear": 1,
        "cross_entropy": 1,
    }  # fmt: skip
    convs = {row["what"]: row["count"] for row in report["rows"] if row["op"] == "conv2d"}
    assert len(convs) == 6 and convs["2x16x16x16, 3x3x16x16 stride=1 padding=1 groups=1"] == 6
    assert (
        sum(row["count"] for row in report["rows"] if ", 2x16x16x16 relu" in row["what"]) == 3
    )  # + shortcut


def test_the_work_is_that_of_the_summary(report):
    macs = summarize(models.build("resnet20_cifar"), (16, 16, 3)).macs
    flop = sum(row["count"] * row["forward_gflop"] for row in report["rows"]) * 1e9
    assert flop == pytest.approx(2 * 2 * macs)


def test_rates_follow_from_work_and_time(report):
    stem = next(row for row in report["rows"] if "3x3x3x16" in row["what"])  # its input needs no gradient
    seconds = (stem["forward_ms"] + stem["backward_ms"]) / 1e3
    assert stem["gflop_per_s"] == pytest.approx(2 * stem["forward_gflop"] / seconds)
    inner = next(row for row in report["rows"] if "3x3x16x32" in row["what"])
    seconds = (inner["forward_ms"] + inner["backward_ms"]) / 1e3
    assert inner["gflop_per_s"] == pytest.approx(3 * inner["forward_gflop"] / seconds)
    pool = next(row for row in report["rows"] if row["op"] == "global_avg_pool2d")
    x, y = 4 * 2 * 4 * 4 * 64, 4 * 2 * 64  # bytes: x -> y forward; x, dy -> dx backward
    moved = pool["gb_per_s"] * 1e6 * (pool["forward_ms"] + pool["backward_ms"])
    assert moved == pytest.approx((x + y) + (x + y + x)) and pool["gflop_per_s"] == 0
    totals = [row["total_ms"] for row in report["rows"]]
    assert totals == sorted(totals, reverse=True)
    for row in report["rows"]:
        assert row["total_ms"] == pytest.approx(row["count"] * (row["forward_ms"] + row["backward_ms"]))
        assert row["reference forward_ms"] > 0
        assert row["share_of_gemm"] == row["gflop_per_s"] / report["peaks"]["gemm_gflop_per_s"]


def test_each_product_of_a_convolution_is_held_against_the_tiles(report):
    peak = report["peaks"]["tile_gflop_per_s"]
    for row in report["rows"]:
        assert row["share_of_tile"] == row["gflop_per_s"] / peak
        assert ("ways" in row) == (row["op"] == "conv2d")
        for one in row.get("ways", []):
            assert one["gflop_per_s"] == pytest.approx(1e3 * row["forward_gflop"] / one["ms"])
            assert one["share_of_tile"] == one["gflop_per_s"] / peak
    convolutions = [row for row in report["rows"] if "ways" in row]
    found = {row["what"]: {one["to"]: one["way"] for one in row["ways"]} for row in convolutions}
    for what, x, w, products in (
        ("2x16x16x3, 3x3x3x16", (2, 16, 16, 3), (3, 3, 3, 16), ("y", "dw")),  # pictures need no gradient
        ("2x8x8x32, 3x3x32x32", (2, 8, 8, 32), (3, 3, 32, 32), ("y", "dx", "dw")),
    ):
        ways = dict(zip(("y", "dx", "dw"), ops.way(x, w, padding=1), strict=True))
        right = {to: ways[to].name for to in products}
        assert found[f"{what} stride=1 padding=1 groups=1"] == right


def test_the_tiles_whose_peak_is_measured_add_up_all_their_products():
    grow, rng = kernels.numba().njit(ops._grow), np.random.default_rng(0)
    rows, columns = simd.shapes()[0]
    width = simd.width((rows, columns), np.float32)
    a, b = rng.random((len(rows), ops.DEPTH), np.float32), rng.random((ops.DEPTH, width), np.float32)
    right = b[0] + a @ b
    for one in (ops._grow, grow):
        y = np.zeros(right.size, np.float32)
        one(rows, columns, width, a.reshape(-1), b.reshape(-1), y, 2)
        np.testing.assert_allclose(y.reshape(right.shape), right, rtol=1e-5)


def test_nothing_is_left_behind():
    append, add = DenseBuffer.append, Tensor.__add__
    with ops.observed() as calls:
        assert layers.conv2d is not conv2d
        x = Tensor([1.0], requires_grad=True) + 1.0
        x.mean()
        with unfused():  # batch_norm calls batch_norm and relu
            layers.BatchNorm2d(2, relu=True)(Tensor(np.ones((4, 2), np.float32)))
    assert layers.conv2d is conv2d and DenseBuffer.append is append and Tensor.__add__ is add
    assert [call.op for call in calls] == ["add", "mean", "batch_norm"]


def test_a_dense_blocks_history_can_be_written_again():
    model = models.build("densenet_bc100_k12_cifar", blocks=(2, 1))
    x = Tensor(np.random.default_rng(0).standard_normal((1, 8, 8, 3), np.float32))
    with ops.observed() as calls:
        model(x)
    appends = [call for call in ops.distinct(calls) if call.op == "dense_buffer"]
    assert [call.count for call in appends] == [1, 1, 1]
    before = appends[0].args[2]._array.copy()
    row = ops.measure_call(appends[0], 1)
    assert row["forward_ms"] > 0 and row["backward_ms"] > 0
    assert (appends[0].args[2]._array == before).all()
