"""Convolution: every geometry, the fast path in small blocks and on several threads, bad shapes."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, backend, reference
from minires.backend import simd, tile_products, tile_sums
from minires.errors import ShapeError
from minires.ops import cases
from minires.ops import conv2d as module
from minires.ops.conv2d import choose, conv2d, indirect, joined_groups, places, way, winograd
from minires.ops.window import window


@opcheck.on_devices
@opcheck.of("conv2d")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("conv2d")
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, w, b=None, stride=1, padding=0, dilation=1, groups=1, relu=False):
        sides = opcheck.four_sides(x.shape[1:3], w.shape[:2], stride, padding, dilation)
        (top, bottom), (left, right) = sides
        nchw = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
        kernel = w.permute(3, 2, 0, 1)  # (KH, KW, C/groups, O) -> (O, C/groups, KH, KW)
        y = torch.nn.functional.conv2d(nchw, kernel, b, stride=stride, dilation=dilation, groups=groups)
        y = torch.relu(y) if relu else y
        return y.permute(0, 2, 3, 1)

    opcheck.check_against_torch(case, reference)


@opcheck.of("conv2d")
def test_the_definition_written_out(case):
    """Every output place by itself: no im2col, no matrix product over the batch."""
    arrays, options = case.arrays(), dict(case.options)
    x, w, b = arrays["x"], arrays["w"], arrays.get("b", 0)
    stride, padding, groups = (options.get("stride", 1), options.get("padding", 0), options.get("groups", 1))
    dilation = options.get("dilation", 1)
    sides = opcheck.four_sides(x.shape[1:3], w.shape[:2], stride, padding, dilation)
    x, (sh, sw), (dh, dw) = np.pad(x, ((0, 0), *sides, (0, 0))), opcheck.pair(stride), opcheck.pair(dilation)
    high, wide = (w.shape[0] - 1) * dh + 1, (w.shape[1] - 1) * dw + 1
    got = case(*map(Tensor, arrays.values())).numpy()
    depth, width = w.shape[2], w.shape[3] // groups
    for n, i, j, o in np.ndindex(got.shape):
        group = o // width
        patch = x[n, i * sh : i * sh + high : dh, j * sw : j * sw + wide : dw]
        patch = patch[..., group * depth : (group + 1) * depth]
        expected = (patch * w[..., o]).sum() + (b[o] if "b" in arrays else 0)
        expected = max(expected, 0) if options.get("relu") else expected
        assert abs(got[n, i, j, o] - expected) < 1e-12, (n, i, j, o)
    places = [(x.shape[1] - high) // sh + 1, (x.shape[2] - wide) // sw + 1]
    assert list(got.shape[1:3]) == places


@pytest.fixture
def three_threads():
    before = backend.threads()
    backend.set_threads(3)
    yield
    backend.set_threads(before)


@pytest.mark.parametrize("small", [False, True], ids=["as they are", "cut small"])
@pytest.mark.parametrize("worth", [True, False], ids=["Winograd", "indirect"])
@pytest.mark.parametrize("joined", [1, 4, 64], ids=["groups apart", "few groups joined", "groups joined"])
@pytest.mark.parametrize("pictures", [1, 7])
def test_small_blocks_on_three_threads(monkeypatch, three_threads, pictures, joined, worth, small):
    """The sizes at which the fast path cuts its work are far above those of the cases: bring them down."""
    monkeypatch.setattr(joined_groups, "MOST", joined)
    monkeypatch.setattr(choose, "_is_worth", lambda *given: worth)
    if small:  # tables and blocks are kept: none of those below must be found by another test
        monkeypatch.setattr(winograd, "_BLOCK", 256)
        monkeypatch.setattr(winograd, "_LEAST", 1)
        monkeypatch.setattr(tile_products, "PANELS", 1)
        monkeypatch.setattr(tile_products, "GRAIN", 1)
        monkeypatch.setattr(tile_sums, "GRAIN", 1)
        monkeypatch.setattr(tile_sums, "PLACES", 5)
        monkeypatch.setattr(tile_sums, "_SUMMED", 4)
        monkeypatch.setattr(places, "_PLACES", 24)
        for kept in (places.forward, places.backward, places.blocks, tile_sums.rows_of, winograd.cut):
            monkeypatch.setattr(kept.__module__ + "." + kept.__name__, kept.__wrapped__)
    for case in cases.all_cases()["conv2d"]:
        arrays = case.arrays()
        # Seven pictures, or the lines of one, for three threads: chunks and blocks of unequal sizes.
        arrays["x"] = np.random.default_rng(1).standard_normal((pictures, *arrays["x"].shape[1:]))
        fast = opcheck.run(case, arrays)
        with reference():
            expected = opcheck.run(case, arrays)
        opcheck.assert_all_close(fast, expected, 1e-12, str(case))


@pytest.mark.parametrize(
    ("size", "stride", "sides"), [(8, 1, (1, 1)), (8, 2, (0, 1)), (7, 2, (1, 1)), (5, 4, (1, 1))]
)
def test_same_pads_as_tensorflow_does(size, stride, sides):
    x = np.random.default_rng(0).standard_normal((1, size, size, 1))
    w = np.random.default_rng(1).standard_normal((3, 3, 1, 2))
    same = conv2d(Tensor(x), Tensor(w), stride=stride, padding="same").numpy()
    by_hand = conv2d(Tensor(x), Tensor(w), stride=stride, padding=(sides, sides)).numpy()
    assert same.shape[1] == -(-size // stride)
    assert np.array_equal(same, by_hand)


@pytest.mark.parametrize(
    ("file", "x", "w", "groups"),
    [
        (indirect, (2, 4, 3, 600), (1, 1, 600, 20), 1),
        (indirect, (2, 5, 4, 200), (3, 3, 200, 70), 1),
        (indirect, (1, 3, 3, 1030), (3, 3, 515, 6), 2),
        (winograd, (2, 5, 4, 528), (3, 3, 528, 48), 1),
        (winograd, (2, 5, 4, 48), (3, 3, 48, 1040), 1),
    ],
)
def test_long_sums_are_taken_in_parts(file, x, w, groups):
    """More products than are summed by themselves, within a tap and over several; bias and ReLU come once."""
    rng = np.random.default_rng(0)
    win = window("conv2d", x[1:3], w[:2], 1, w[0] // 2)
    x, w, b = rng.standard_normal(x), rng.standard_normal(w), 20 * rng.standard_normal(w[-1])
    dy = rng.standard_normal((*x.shape[:3], w.shape[-1]))
    for ours, exact in (
        (file.forward(x, w, b, True, win, groups), module._forward(np, x, w, b, True, win, groups)),
        (
            file.backward_x(dy, w, x.shape, win, groups),
            module._backward_x(np, dy, w, x.shape, win, groups),
        ),
        (
            file.backward_w(dy, x, w.shape, win, groups),
            module._backward_w(np, dy, x, w.shape, win, groups),
        ),
    ):
        np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("file", [winograd, indirect], ids=["Winograd", "indirect"])
@pytest.mark.parametrize(
    "shape", [(8, 32, 16, 16), (4, 15, 64, 64), (32, 8, 256, 256), (4, 14, 512, 512)], ids=str
)
def test_float32_rounds_little(shape, file):
    n, size, c, o = shape
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((n, size, size, c)), rng.standard_normal((n, size, size, o))
    w = rng.standard_normal((3, 3, c, o)) * 0.1
    win = window("conv2d", (size, size), 3, 1, 1)
    exact = (
        module._forward(np, x, w, None, False, win, 1),
        module._backward_x(np, dy, w, x.shape, win, 1),
        module._backward_w(np, dy, x, w.shape, win, 1),
    )
    x, dy, w = (array.astype(np.float32) for array in (x, dy, w))
    rounded = (
        file.forward(x, w, None, False, win, 1),
        file.backward_x(dy, w, x.shape, win, 1),
        file.backward_w(dy, x, w.shape, win, 1),
    )
    for limit, one, other in zip((1e-6, 1e-6, 2e-6), exact, rounded, strict=True):
        assert other.dtype == np.float32
        assert np.linalg.norm(other - one) < limit * np.linalg.norm(one)


@pytest.fixture
def taken(monkeypatch):
    """What really ran: for each product the name of the file, and the groups it was given."""
    ran, products = {}, ("forward", "backward_x", "backward_w")

    def spy(home, attribute, name, product):
        run = getattr(home, attribute)

        def spying(*arguments):
            if not inside:
                ran[product] = (name, arguments[-1])
            inside.append(name)  # what a way calls of another one is part of it
            try:
                return run(*arguments)
            finally:
                inside.pop()

        monkeypatch.setattr(home, attribute, spying)

    inside = []
    for product in products:
        spy(module, f"_{product}", "reference", product)
        for name, file in choose._FILES.items():
            if hasattr(file, product):
                spy(file, product, name, product)
    return ran


def run_and_ask(x, w, options):
    """Run a convolution forward and backward, and ask for its ways."""
    pictures, kernel = (Tensor(np.ones(shape, np.float32), requires_grad=True) for shape in (x, w))
    y = conv2d(pictures, kernel, **options)
    y.backward(np.ones(y.shape, np.float32))
    return way(x, w, **options)._asdict()


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="without Numba there is one way")
@pytest.mark.parametrize(
    ("ways", "x", "w", "options"),
    [
        ("winograd winograd indirect", (128, 32, 32, 16), (3, 3, 16, 16), {"padding": 1}),
        ("indirect indirect indirect", (8, 32, 32, 16), (3, 3, 16, 16), {"padding": 1}),
        ("indirect indirect indirect", (8, 56, 56, 118), (3, 3, 118, 128), {"padding": 1}),
        ("indirect indirect indirect", (8, 56, 56, 64), (3, 3, 64, 64), {"padding": 1, "stride": 2}),
        ("winograd winograd winograd", (2, 56, 56, 128), (3, 3, 128, 128), {"padding": 1}),
        ("indirect indirect indirect", (2, 56, 56, 128), (3, 3, 128, 128), {"padding": 2, "dilation": 2}),
        ("indirect indirect indirect", (2, 56, 56, 256), (3, 3, 128, 256), {"padding": 1, "groups": 2}),
        ("indirect indirect indirect", (8, 7, 7, 512), (3, 3, 512, 512), {"padding": 1}),
        ("indirect indirect indirect", (32, 15, 15, 64), (1, 1, 64, 256), {}),
        ("winograd indirect winograd", (2, 28, 28, 128), (3, 3, 128, 128), {"padding": ((1, 3), (1, 1))}),
        ("winograd indirect winograd", (2, 28, 28, 128), (3, 3, 128, 128), {"padding": ((1, 1), (1, 3))}),
        ("indirect indirect indirect", (1, 64, 64, 3), (7, 7, 3, 64), {"padding": 3, "stride": 2}),
    ],
)
def test_the_way_that_is_faster_is_taken_and_told(three_threads, taken, ways, x, w, options):
    backend.set_threads(2)
    told = run_and_ask(x, w, options)
    assert [name for name, _ in told.values()] == ways.split()
    assert taken == told and list(told) == ["forward", "backward_x", "backward_w"]


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="without Numba no groups are joined")
@pytest.mark.parametrize(("groups", "left"), [(1, 1), (4, 1), (32, 8), (31, 31)])
def test_groups_that_are_joined_are_told(taken, groups, left):
    """Those with as many outputs as inputs are not joined; these have fewer outputs."""
    told = run_and_ask((32, 16, 16, 4 * groups), (3, 3, 4, 3 * groups), {"padding": 1, "groups": groups})
    assert taken == told and {found.groups for found in told.values()} == {left}


@pytest.mark.parametrize("worth", [True, False], ids=["Winograd", "indirect"])
@pytest.mark.parametrize("groups", [1, 16], ids=["one group", "depthwise"])
def test_arrays_with_gaps(monkeypatch, groups, worth):
    monkeypatch.setattr(choose, "_is_worth", lambda *given: worth)
    rng = np.random.default_rng(0)
    shapes = (2, 6, 5, 32), (3, 3, 16 // groups, 32), (32,)
    x, w, b = (rng.standard_normal(shape)[..., ::2] for shape in shapes)
    found, expected = [], []
    for arrays, results in (((x, w, b), found), ((x.copy(), w.copy(), b.copy()), expected)):
        leaves = [Tensor(array, requires_grad=True) for array in arrays]
        y = conv2d(*leaves, padding=1, groups=groups)
        y.backward(np.ones(y.shape))
        results += [y.data, *(leaf.grad for leaf in leaves)]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="without Numba there is one way")
@pytest.mark.parametrize(
    ("group", "channels", "names"),
    [(1, 64, "narrow narrow narrow"), (4, 64, "narrow narrow narrow"), (8, 64, "narrow narrow narrow"),
     (16, 64, "indirect indirect indirect"), (3, 48, "indirect indirect indirect"),
     (4, 36, "indirect indirect indirect")],
)  # fmt: skip
def test_narrow_groups_have_tiles_of_their_own(monkeypatch, taken, group, channels, names):
    monkeypatch.setattr(choose, "_is_worth", lambda *given: False)
    if channels == 36 and simd.lanes(np.float32) == 4:
        names = "narrow narrow narrow"
    groups = channels // group
    told = run_and_ask((2, 6, 6, channels), (3, 3, group, channels), {"padding": 1, "groups": groups})
    assert taken == told and [found.name for found in told.values()] == names.split()


@opcheck.of("conv2d")
def test_what_is_told_of_every_case_is_what_ran(taken, case):
    shapes = {name: array.shape for name, array in case.arrays().items()}
    options = {name: value for name, value in case.options.items() if name != "relu"}
    told = run_and_ask(shapes["x"], shapes["w"], options)
    assert taken == told
    with reference():
        told = run_and_ask(shapes["x"], shapes["w"], options)
    assert taken == told
    assert {name for name, _ in told.values()} == {"reference"}


def test_a_way_is_asked_for_with_shapes_that_fit():
    with pytest.raises(ShapeError, match=re.escape("conv2d: x must be (N, H, W, C), 4 axes, but its shape")):
        way((8, 8, 3), (3, 3, 3, 4))
    with pytest.raises(ShapeError, match="conv2d: the kernel 3x3 is larger than the padded picture 2x2"):
        way((1, 2, 2, 3), (3, 3, 3, 4))


@pytest.mark.parametrize("size", range(2, 12))
@pytest.mark.parametrize("kernel, stride", [(3, 2), (2, 2), (2, 1), (2, 3), (1, 2), (4, 3)])
def test_ceil_rounds_up_as_torch_and_caffe_do(size, kernel, stride):
    torch = pytest.importorskip("torch")
    picture = torch.zeros(1, 1, size, size)
    theirs = torch.nn.functional.max_pool2d(picture, kernel, stride, ceil_mode=True)
    ours = window("max_pool2d", (size, size), kernel, stride, "ceil")
    assert ours.out == tuple(theirs.shape[2:])
    assert (ours.top, ours.left) == (0, 0) and (ours.out[0] - 1) * stride < size


X, W = (2, 5, 6, 4), (3, 3, 4, 8)


@pytest.mark.parametrize(
    ("x", "w", "options", "text"),
    [
        ((5, 6, 4), W, {}, "conv2d: x must be (N, H, W, C), 4 axes, but its shape is (5, 6, 4)"),
        (X, (3, 3, 4), {}, "conv2d: w must be (KH, KW, C/groups, O), 4 axes, but its shape is (3, 3, 4)"),
        ((2, 4, 5, 6), W, {}, "expects 4 input channels (with groups=1), but x (2, 4, 5, 6) has 6"),
        (X, W, {"groups": 3}, "groups=3 must divide the 4 input channels of x (2, 5, 6, 4) and the 8 output"),
        (X, (3, 3, 2, 9), {"groups": 2}, "conv2d: groups=2 must divide the 4 input channels"),
        (X, W, {"groups": 0}, "conv2d: groups=0 must divide"),
        (X, W, {"groups": 2}, "conv2d: w (3, 3, 4, 8) expects 8 input channels (with groups=2)"),
        ((1, 2, 6, 4), W, {}, "conv2d: the kernel 3x3 is larger than the padded picture 2x6 (picture 2x6)"),
        ((1, 1, 1, 4), (5, 5, 4, 1), {"padding": 1}, "the kernel 5x5 is larger than the padded picture 3x3"),
        (X, W, {"b": (4,)}, "conv2d: b must have shape (8,), one per output channel, not (4,)"),
        (X, W, {"stride": 0}, "stride must be a whole number of at least 1, or a pair of them, not 0"),
        (X, W, {"stride": (1, 2, 3)}, "conv2d: stride must be a whole number of at least 1"),
        (X, W, {"stride": True}, "conv2d: stride must be a whole number of at least 1, or a pair"),
        (X, W, {"dilation": 0}, "conv2d: dilation must be a whole number of at least 1, or a pair of them"),
        (X, W, {"dilation": (1, 2.0)}, "conv2d: dilation must be a whole number of at least 1, or a pair"),
        (X, W, {"dilation": (1, 3)}, "the kernel 3x3, dilated to 3x7, is larger than the padded picture 5x6"),
        (X, W, {"groups": True}, "conv2d: groups=True must divide"),
        (X, W, {"groups": 2.0}, "conv2d: groups=2.0 must divide"),
        (X, W, {"padding": -1}, "conv2d: padding must be a whole number of at least 0"),
        (X, W, {"padding": 0.5}, "conv2d: padding must be a whole number of at least 0"),
        (X, W, {"padding": "valid"}, "four sides, 'same', 'same_lower' or 'ceil', not 'valid'"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(x, w, options, text):
    options = dict(options)
    b = Tensor(np.ones(options.pop("b"))) if "b" in options else None
    with pytest.raises(ShapeError, match=re.escape(text)):
        conv2d(Tensor(np.ones(x)), Tensor(np.ones(w)), b, **options)


def test_integer_pictures_are_not_converted_silently():
    text = "conv2d: x is uint8, but float32 or float64 is needed. Convert it first, pictures for example with"
    with pytest.raises(ShapeError, match=re.escape(text)):
        conv2d(Tensor(np.ones(X, np.uint8)), Tensor(np.ones(W, np.float32)))


def test_dtypes_are_never_mixed():
    with pytest.raises(ShapeError, match="conv2d: w is float32 but x is float64"):
        conv2d(Tensor(np.ones(X)), Tensor(np.ones(W, np.float32)))


@pytest.mark.parametrize("implementation", ["fast", "reference"])
def test_nan_is_not_hidden(implementation):
    x = np.zeros((1, 3, 3, 1))
    x[0, 0, 0, 0] = np.nan
    w = Tensor(np.ones((2, 2, 1, 1)))
    if implementation == "fast":
        y = conv2d(Tensor(x), w)
    else:
        with reference():
            y = conv2d(Tensor(x), w)
    assert np.isnan(y.numpy()[0, :, :, 0]).tolist() == [[True, False], [False, False]]


def test_no_picture_gives_no_picture():
    x = Tensor(np.zeros((0, 8, 8, 3), np.float32), requires_grad=True)
    w = Tensor(np.ones((3, 3, 3, 2), np.float32), requires_grad=True)
    y = conv2d(x, w, padding=1)
    assert y.shape == (0, 8, 8, 2)
    y.sum().backward()
    assert x.grad.shape == x.shape and not w.grad.any()
