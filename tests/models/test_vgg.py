"""VGG: the layers of table 1, starts that train, and the same numbers as pytorchcv's and Keras's."""

import re

import numpy as np
import oracle
import pytest

from minires import ShapeError, nn
from minires.errors import ConfigError
from minires.models import build
from minires.ops.cross_entropy import cross_entropy
from minires.optim import Adam
from minires.tensor import Tensor

NARROW = {"widths": (8, 12, 16, 20, 24), "hidden": 28, "size": 64, "classes": 5}


def kinds(model):
    """The layers in a line: ``conv1_1 relu1_1 pool1 ...``."""
    return " ".join(name for name, _ in model.children())


# --------------------------------------------------------------------------------------------- layers


def test_layers_of_configuration_a_lrn():
    """Table 1: the normalisation stands between the first convolution (with its ReLU) and the first pool."""
    assert kinds(build("vgg11_lrn", **NARROW)) == (
        "conv1_1 relu1_1 lrn1 pool1 conv2_1 relu2_1 pool2 conv3_1 relu3_1 conv3_2 relu3_2 pool3 "
        "conv4_1 relu4_1 conv4_2 relu4_2 pool4 conv5_1 relu5_1 conv5_2 relu5_2 pool5 "
        "flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8"
    )


def test_layers_with_batch_norm():
    assert kinds(build("vgg13_bn", **NARROW)).startswith(
        "conv1_1 bn1_1 conv1_2 bn1_2 pool1 conv2_1 bn2_1 conv2_2 bn2_2 pool2 conv3_1"
    )
    assert kinds(build("vgg13_bn", head="linear", **NARROW)).endswith("conv5_2 bn5_2 pool5 avg_pool fc")


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("vgg11", "3|3|33|33|33"),
        ("vgg13", "33|33|33|33|33"),
        ("vgg16_c", "33|33|331|331|331"),
        ("vgg16", "33|33|333|333|333"),
        ("vgg19", "33|33|3333|3333|3333"),
    ],
)
def test_kernels_of_table_1(name, kernels):
    state = build(name, initializer="zeros").state_dict()
    blocks = [
        "".join(str(array.shape[0]) for key, array in state.items()
                if key.startswith(f"conv{block}_") and key.endswith("weight"))
        for block in range(1, 6)
    ]  # fmt: skip
    assert "|".join(blocks) == kernels
    assert [state[f"conv{block}_1.weight"].shape[3] for block in range(1, 6)] == [64, 128, 256, 512, 512]
    assert state["fc6.weight"].shape == (7 * 7 * 512, 4096) and state["fc8.weight"].shape == (4096, 1000)


@pytest.mark.parametrize(("size", "places"), [(32, 1), (63, 1), (64, 4), (100, 9)])
def test_the_first_dense_layer_fits_the_picture(size, places):
    model = build("vgg11", **{**NARROW, "size": size})
    assert model.fc6.weight.shape == (places * 24, 28)
    assert model(Tensor(np.zeros((2, size, size, 3), np.float32))).shape == (2, 5)


def test_a_picture_of_another_size():
    x = Tensor(np.zeros((2, 96, 96, 3), np.float32))
    with pytest.raises(ShapeError, match="^fc6: linear"):
        build("vgg11", **NARROW)(x)
    assert build("vgg11", head="linear", **NARROW)(x).shape == (2, 5)  # this one takes any size


def test_dropout_acts_on_both_hidden_layers_and_in_training_only():
    x = Tensor(np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32))
    for rate, dropped in ((0.5, 2), (0.25, 2), (0.0, 0)):
        model = build("vgg11", dropout=rate, **NARROW)
        assert model.drop6.rate == model.drop7.rate == rate
        loss = cross_entropy(model(x), np.array([0, 1]))
        assert sum(step.node.op == "dropout" for step in loss.backward_steps()) == dropped
        model.eval()
        loss = cross_entropy(model(x), np.array([0, 1]))
        assert not any(step.node.op == "dropout" for step in loss.backward_steps())
    model = build("vgg11", **NARROW)
    assert model.drop6.rng.random() != model.drop7.rng.random()  # two masks, not one twice


@pytest.mark.parametrize(
    ("head", "biases"), [("dense", ["fc6.bias", "fc7.bias", "fc8.bias"]), ("linear", ["fc.bias"])]
)
def test_options_reach_every_layer(head, biases):
    options = {"head": head, "bias": False, "bn_momentum": 0.3, "bn_eps": 0.1, "initializer": "zeros"}
    model = build("vgg16_c_bn", **options, **NARROW)
    norms = [module for _, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 13
    assert {(bn.momentum, bn.eps, bn.convention) for bn in norms} == {(0.3, 0.1, "torch")}
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if name.endswith(".bias")] == biases
    assert not any(p.data.any() for name, p in model.named_parameters() if name.endswith(".weight"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"configuration": "F"}, "configuration must be one of 'A', 'A-LRN', 'B', 'C', 'D', 'E', not 'F'"),
        ({"head": "conv"}, "head must be one of 'dense', 'linear', not 'conv'"),
        ({"size": 31}, "size must be at least 32, as five pools halve the picture, not 31"),
        ({"widths": (8, 8, 8)}, "widths must be 5 numbers, one for each block, and hidden one, all at least"),
        ({"widths": (8, 8, 8, 8, 0)}, "not (8, 8, 8, 8, 0) and 28"),
        ({"hidden": 0}, "not (8, 12, 16, 20, 24) and 0"),
    ],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        build("vgg11", **{**NARROW, **options})


@pytest.mark.parametrize("name", ["vgg11_lrn", "vgg16_c", "vgg19", "vgg19_bn"])
def test_it_trains_from_its_start(name):
    """The paper needed a trained vgg11 to start the deeper ones from. About 20 steps
    do it; but the way of 19 narrow layers without batch norm hangs on rounding, so there is room for more."""
    rng = np.random.default_rng(0)
    x, labels = Tensor(rng.standard_normal((8, 32, 32, 3)).astype(np.float32)), np.arange(8) % 4
    model = build(name, **{**NARROW, "size": 32, "classes": 4}, dropout=0.0)
    optimizer = Adam(model.named_parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = cross_entropy(model(x), labels)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.1:
            break
    assert losses[-1] < 0.1 < 0.5 < losses[0], losses


# ---------------------------------------------------------------------------- against pytorchcv, Keras


def pytorchcv_names(name):
    """Ours -> pytorchcv's: ``conv3_2`` is ``features.stage3.unit2.conv``, ``fc6`` is ``output.fc1.fc``."""
    layer, leaf = oracle.leaf_for_torch(name).split(".")
    if layer.startswith("fc"):
        dense = {"fc6": "fc1.fc", "fc7": "fc2.fc", "fc8": "fc3", "fc": "fc3"}[layer]
        return f"output.{dense}.{leaf}"
    kind, block, number = re.fullmatch(r"(conv|bn)(\d)_(\d)", layer).groups()
    return f"features.stage{block}.unit{number}.{kind}.{leaf}"


@pytest.fixture
def pytorchcv_of(monkeypatch):
    """pytorchcv's VGG with any widths, and a head for small pictures in place of that for 224x224.

    Our arrays are channels last, so that our fc6 reads its inputs in the order (H, W, C); theirs get that
    order before the head. What pytorchcv lacks is put in: the normalisation of A-LRN into A, the 1x1
    convolutions of C into D.
    """
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("pytorchcv.models.vgg")
    common = pytest.importorskip("pytorchcv.models.common")

    class ChannelsLast(torch.nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1).contiguous()

    def make(name, *, widths, hidden, size, classes, bias=True, head="dense"):
        bn = name.endswith("_bn")
        network = name.removesuffix("_bn")
        blocks = {"11": (1, 1, 2, 2, 2), "13": (2,) * 5, "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
        counts = blocks[network[3:5]]
        output = torch.nn.Sequential()
        if head == "dense":
            output.add_module("fc1", module.VGGDense(widths[-1] * (size // 32) ** 2, hidden))
            output.add_module("fc2", module.VGGDense(hidden, hidden))
        output.add_module("fc3", torch.nn.Linear(hidden if head == "dense" else widths[-1], classes))
        monkeypatch.setattr(module, "VGGOutputBlock", lambda in_channels, classes: output)
        channels = [[width] * count for width, count in zip(widths, counts, strict=True)]
        theirs = module.VGG(channels, bias=bias, use_bn=bn)
        last = torch.nn.AdaptiveAvgPool2d(1) if head == "linear" else ChannelsLast()
        theirs.features.add_module("last", last)
        if network == "vgg11_lrn":
            conv, pool = theirs.features.stage1
            # PyTorch divides alpha by the size
            norm = torch.nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
            theirs.features.stage1 = torch.nn.Sequential()
            for part, layer in (("unit1", conv), ("norm", norm), ("pool1", pool)):
                theirs.features.stage1.add_module(part, layer)
        if network == "vgg16_c":
            for stage in (3, 4, 5):
                wide = widths[stage - 1]
                unit = common.conv1x1_block(wide, wide, bias=bias, use_bn=bn)
                getattr(theirs.features, f"stage{stage}").unit3 = unit
        return oracle.Torch(theirs, pytorchcv_names)

    return make


PRECISIONS = pytest.mark.parametrize(
    ("training", "dtype", "tolerance"),
    [(False, "float32", 1e-4), (True, "float32", 1e-4), (True, "float64", 1e-8)],
)


@PRECISIONS
@pytest.mark.parametrize(
    "name",
    ["vgg11", "vgg11_lrn", "vgg13", "vgg16_c", "vgg16", "vgg19",
     "vgg11_bn", "vgg11_lrn_bn", "vgg13_bn", "vgg16_c_bn", "vgg16_bn", "vgg19_bn"],
)  # fmt: skip
def test_narrow_networks_equal_pytorchcv(pytorchcv_of, name, training, dtype, tolerance):
    ours, theirs = build(name, **NARROW), pytorchcv_of(name, **NARROW)
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3), training=training, dtype=dtype, tolerance=tolerance)


@PRECISIONS
@pytest.mark.parametrize("options", [{"bias": False}, {"head": "linear"}], ids=str)
def test_options_equal_pytorchcv(pytorchcv_of, options, training, dtype, tolerance):
    ours, theirs = build("vgg13_bn", **options, **NARROW), pytorchcv_of("vgg13_bn", **options, **NARROW)
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3), training=training, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(("name", "bias"), [("vgg19", True), ("vgg16_bn", True), ("vgg16_bn", False)])
def test_full_widths_equal_pytorchcv(pytorchcv_of, name, bias):
    shape = {"widths": (64, 128, 256, 512, 512), "hidden": 64, "size": 64, "classes": 5, "bias": bias}
    oracle.assert_equal(build(name, **shape), pytorchcv_of(name, **shape), (1, 64, 64, 3))


@pytest.mark.parametrize("depth", [16, 19])
def test_equals_keras(depth):
    """The whole network of Keras with its 4096-wide head, for pictures of 64x64."""
    keras = oracle.keras()
    make = {16: keras.applications.VGG16, 19: keras.applications.VGG19}[depth]
    model = make(weights=None, input_shape=(64, 64, 3), classes=5, classifier_activation=None)

    def names(name):
        layer, leaf = name.split(".")
        leaf = {"weight": "kernel", "bias": "bias"}[leaf]
        if layer.startswith("fc"):
            return {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}[layer] + f"/{leaf}"
        return f"block{layer[4]}_conv{layer[6]}/{leaf}"

    ours = build(f"vgg{depth}", classes=5, size=64)
    oracle.assert_equal(ours, oracle.Keras(model, names), (1, 64, 64, 3))
