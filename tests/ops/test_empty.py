"""Batches without pictures, pictures without pixels, no channels: in every operation and implementation."""

import cuda_emulator
import numpy as np
import pytest

from minires import Tensor, backend, models, ops
from minires.errors import ShapeError

PICTURES = [(0, 5, 4, 4), (2, 0, 4, 4), (2, 5, 0, 4), (2, 5, 4, 0), (0, 0, 0, 0)]
NO_PICTURE = PICTURES[0]


WAYS = ["fast", "reference", pytest.param("kernels", marks=pytest.mark.emulated)]


def name_of(op):
    return op.__name__.rpartition(".")[2]  # some operations are modules


@pytest.fixture(params=WAYS, autouse=True)
def implementation(request, monkeypatch):
    if request.param == "kernels":
        if cuda_emulator.compiler() is None:
            pytest.skip("there is no g++ here")
        cuda_emulator.emulate(monkeypatch)
    with backend.reference(request.param == "reference"):
        yield


class Leaves:
    """Makes tensors, and remembers them."""

    def __init__(self):
        self.made = []

    def __call__(self, *shape):
        self.made.append(Tensor(np.full(shape, 0.5, np.float32), requires_grad=True))
        return self.made[-1]

    def check(self, y, shape, value=0.5):
        """y has the shape; all numbers are ``value``; each leaf has a gradient of its shape."""
        assert y.shape == shape and y.dtype == np.float32
        assert (y.data == value).all()
        y.backward(np.ones(shape, np.float32))
        for leaf in self.made:
            assert leaf.grad is not None and leaf.grad.shape == leaf.shape and leaf.grad.dtype == np.float32
            if y.size == 0:
                assert not leaf.grad.any()
        return [leaf.grad for leaf in self.made]


@pytest.mark.parametrize("outputs", [0, 3, 16])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (1, {}),
        (3, {}),
        (3, {"padding": 1}),
        (3, {"stride": 2, "padding": "same"}),
        (3, {"padding": 3, "dilation": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_convolutions(shape, kernel, options, outputs):
    """Of no pictures nothing; of no channels, or of pictures that are border alone, the bias."""
    n, h, w, c = shape
    size = [
        -(-side // 2) if options.get("padding") == "same"
        else side + 2 * options.get("padding", 0) - (kernel - 1) * options.get("dilation", 1)
        for side in (h, w)
    ]  # fmt: skip
    make = Leaves()
    x, weights, b = make(*shape), make(kernel, kernel, c, outputs), make(outputs)
    if min(size) < 1:
        with pytest.raises(ShapeError, match="conv2d: the kernel"):
            ops.conv2d(x, weights, b, **options)
        return
    _, dw, db = make.check(ops.conv2d(x, weights, b, **options), (n, *size, outputs))
    assert not dw.any() and (db == n * size[0] * size[1]).all()


@pytest.mark.parametrize("outputs", [0, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_transposed_convolutions(shape, kernel, outputs):
    n, h, w, c = shape
    make = Leaves()
    x, weights, b = make(*shape), make(kernel, kernel, outputs, c), make(outputs)
    if h * w == 0:
        with pytest.raises(ShapeError, match=r"conv_transpose2d: the pictures of x \(.*\) have no pixels"):
            ops.conv_transpose2d(x, weights, b)
        return
    make.check(ops.conv_transpose2d(x, weights, b), (n, h + kernel - 1, w + kernel - 1, outputs))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("op", [ops.conv2d, ops.conv_transpose2d])
def test_groups_of_no_pictures(op, groups):
    make = Leaves()
    shape = (3, 3, 4 // groups, 4)
    make.check(op(make(*NO_PICTURE), make(*shape), make(4), padding=1, groups=groups), NO_PICTURE)


@pytest.mark.parametrize("padding", [0, 1, "same", "same_lower", "ceil"])
@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_pools(shape, pool, padding):
    make = Leaves()
    x = make(*shape)
    if shape[1] * shape[2] == 0:
        with pytest.raises(ShapeError, match=f"{name_of(pool)}: "):
            pool(x, 2, stride=1, padding=padding)
        return
    expected = pool(Tensor(np.ones((1, *shape[1:3], 1))), 2, stride=1, padding=padding).shape[1:3]
    make.check(pool(x, 2, stride=1, padding=padding), (shape[0], *expected, shape[3]))


@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_the_global_pool(shape):
    make = Leaves()
    if shape[1] * shape[2] == 0:
        with pytest.raises(ShapeError, match="global_avg_pool2d: the pictures of x .* have no pixels"):
            ops.global_avg_pool2d(make(*shape))
    else:
        make.check(ops.global_avg_pool2d(make(*shape)), (shape[0], shape[3]))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [*PICTURES, (0, 3), (2, 0), (0, 0)], ids=str)
def test_batch_norm(shape, training, fused):
    make, c = Leaves(), shape[-1]
    means, variances = np.full(c, 0.25, np.float32), np.ones(c, np.float32)
    more = {"add": make(*shape), "relu": True} if fused else {}
    arguments = make(*shape), make(c), make(c)
    options = {"training": training, "running_mean": means, "running_var": variances, **more}
    if training and np.prod(shape[:-1]) < 2:
        with pytest.raises(ShapeError, match="batch_norm: training needs at least two values per channel"):
            ops.batch_norm(*arguments, **options)
    else:
        make.check(ops.batch_norm(*arguments, **options), shape)
    assert (means == 0.25).all() and (variances == 1).all()


@pytest.mark.parametrize(("rows", "channels", "outputs"), [(0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0)])
def test_linear(rows, channels, outputs):
    for front in ((), (3,)):
        make = Leaves()
        y = ops.linear(make(*front, rows, channels), make(channels, outputs), make(outputs))
        make.check(y, (*front, rows, outputs))  # without inputs y is the bias
    make = Leaves()
    make.check(ops.matmul(make(rows, channels), make(channels, outputs)), (rows, outputs), value=0)


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax])
def test_softmax(op):
    make = Leaves()
    make.check(op(make(0, 3)), (0, 3))
    make.check(op(make(3, 0), axis=0), (3, 0))
    for shape, axis in (((3, 0), -1), ((0, 3), 0)):
        with pytest.raises(ShapeError, match=f"{name_of(op)}: x must be .* with at least one class"):
            op(make(*shape), axis=axis)


@pytest.mark.parametrize("loss", [ops.cross_entropy, ops.nll_loss])
@pytest.mark.parametrize("rows", [(0,), (0, 2, 2), (2, 0)], ids=str)
def test_losses_of_no_rows_have_a_sum_but_no_mean(loss, rows):
    labels = np.zeros(rows, np.int64)
    for options in ({}, {"weight": [1.0, 2.0, 3.0]}, {"ignore_index": 7}):
        make = Leaves()
        make.check(loss(make(*rows, 3), labels, reduction="none", **options), rows)
        make = Leaves()
        make.check(loss(make(*rows, 3), labels, reduction="sum", **options), (), value=0)
        with pytest.raises(ShapeError, match=f"{name_of(loss)}: .* nothing to compare"):
            loss(make(*rows, 3), labels, **options)
    with pytest.raises(ShapeError, match=f"{name_of(loss)}: .* nothing to compare"):
        loss(Leaves()(2, 0), np.zeros(2, np.int64), reduction="sum")


@pytest.mark.parametrize("op", [ops.sum, ops.mean, ops.max, ops.min, ops.var, ops.std])
def test_reductions(op):
    make = Leaves()
    if op is ops.sum:
        make.check(op(make(0, 3), axis=0), (3,), value=0)
        make.check(op(make(0, 3)), (), value=0)
    else:
        for axis in (0, None):
            with pytest.raises(ShapeError, match=f"{name_of(op)}: "):
                op(make(0, 3), axis=axis)
    make = Leaves()
    make.check(op(make(0, 3), axis=1), (0,))
    make.check(op(make(0, 3), axis=1, keepdims=True), (0, 1))


@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_what_moves_or_changes_single_numbers(shape):
    n, h, w, c = shape
    for op in (ops.relu, ops.leaky_relu, ops.sigmoid, ops.tanh, ops.exp, ops.neg, ops.abs, ops.sqrt):
        make = Leaves()
        make.check(op(make(*shape)), shape)
    for op in (ops.add, ops.mul, ops.div, ops.maximum):
        for other in (shape, (c,), (n, 1, 1, c), ()):
            make = Leaves()
            make.check(op(make(*shape), make(*other)), shape)
    rng = np.random.default_rng(0)
    results = [
        (lambda x: ops.dropout(x, 0.5, training=True, rng=rng), shape),
        (lambda x: ops.pad_channels(x, c + 2, stride=2), (n, -(-h // 2), -(-w // 2), c + 2)),
        (lambda x: ops.flatten(x), (n, h * w * c)),
        (lambda x: ops.reshape(x, (w, h * n, c)), (w, h * n, c)),
        (lambda x: ops.transpose(x), shape[::-1]),
        (lambda x: ops.concat([x, x], axis=-1), (n, h, w, 2 * c)),
        (lambda x: ops.concat([x, x], axis=0), (2 * n, h, w, c)),
        (lambda x: ops.stack([x, x]), (2, *shape)),
        (lambda x: ops.repeat(x, 2, axis=1), (n, 2 * h, w, c)),
        (lambda x: ops.broadcast_to(x, (3, *shape)), (3, *shape)),
        (lambda x: x[:, ::-2], (n, -(-h // 2), w, c)),
        (lambda x: x[np.zeros(0, int)], (0, h, w, c)),
    ]
    for op, expected in results:
        make = Leaves()
        y = op(make(*shape))
        make.check(y, expected, value=0 if y.size else 0.5)  # pad_channels adds channels of zeros
    make = Leaves()
    y = ops.pad(make(*shape), 1)
    make.check(y, (n, h + 2, w + 2, c), value=0)


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_borders_that_copy_pixels_need_some(mode):
    make = Leaves()
    make.check(ops.pad(make(0, 3, 3, 2), 1, mode=mode), (0, 5, 5, 2))
    with pytest.raises(ShapeError, match="pad: of 0 rows"):
        ops.pad(make(1, 0, 3, 2), 1, mode=mode)


@pytest.mark.parametrize(
    "name",
    ["resnet20_cifar", "resnet50_signs", "vgg11_lrn", "resnext29_32x4d_cifar", "densenet_bc100_k12_cifar",
     "bn_inception", "se_resnet56_cifar", "preresnet18"],
)  # fmt: skip
def test_networks_of_no_pictures(name):
    """Scores for nobody, zeros for the parameters; in training batch norm says what is wrong."""
    net, size = models.build(name), models.entry(name).size
    x = Tensor(np.zeros((0, size, size, 3), np.float32))
    y = net.eval()(x)
    assert y.shape[0] == 0 and y.ndim == 2
    y.backward(np.zeros(y.shape, np.float32))
    for path, parameter in net.named_parameters():
        assert parameter.grad.shape == parameter.shape and not parameter.grad.any(), path
    if name != "vgg11_lrn":
        with pytest.raises(ShapeError, match="batch_norm: training needs at least two values per channel"):
            net.train()(x)
