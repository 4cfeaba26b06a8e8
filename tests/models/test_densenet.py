"""DenseNet beside independent implementations; the shared history beside plain concatenation; bad options."""

import re
import tracemalloc
from functools import partial

import numpy as np
import oracle
import pytest

from minires import Tensor, reference, unfused
from minires.errors import ConfigError
from minires.models import build
from minires.models.densenet import DenseBlock
from minires.nn.layers import BatchNorm2d, Conv2d, Dropout, Sequential

SMALL = {"blocks": (2, 3, 2), "growth": 4, "init_channels": 6}


def small(**options):
    return build("densenet40_k12_cifar", **{**SMALL, **options})


# ------------------------------------------------------------------------------------- beside pytorchcv


def pytorchcv_names(name, *, stem=True, bottleneck=True):
    """block1.layer2.bn1.gamma -> features.stage1.unit2.conv1.bn.weight, and so on."""
    name = oracle.leaf_for_torch(name)
    unit = r"features.stage\1.unit\2.conv\4.\3." if bottleneck else r"features.stage\1.unit\2.conv.\3."
    name = re.sub(r"^block(\d)\.layer(\d+)\.(bn|conv)(\d)\.", unit, name)
    if found := re.match(r"transition(\d)\.(.*)", name):
        number = int(found[1]) + 1
        return f"features.stage{number}.trans{number}.conv.{found[2]}"
    first = "features.init_block.conv." if stem else "features.init_block."
    for ours, theirs in (
        ("conv1.", first), ("bn_conv1.", "features.init_block.bn."),
        ("bn_last.", "features.post_activ.bn."), ("fc.", "output."),
    ):  # fmt: skip
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


cifar_names = partial(pytorchcv_names, stem=False)
basic_names = partial(pytorchcv_names, stem=False, bottleneck=False)


def any_size(net):
    """Their last pool is 7x7 or 8x8; the mean of the picture is the same and takes pictures of any size."""
    import torch

    net.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)
    return net


def channels(blocks, growth, first, theta=0.5):
    """The channels after each unit of each stage, as pytorchcv's classes want them."""
    stages = []
    for layers in blocks:
        stages.append([first + growth * (i + 1) for i in range(layers)])
        first = int(stages[-1][-1] * theta)
    return stages


@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-8)]
)
def test_densenet121_is_pytorchcvs(training, dtype, tolerance):
    densenet = pytest.importorskip("pytorchcv.models.densenet")
    theirs = oracle.Torch(any_size(densenet.densenet121(num_classes=10)), pytorchcv_names)
    ours = build("densenet121", classes=10)
    oracle.assert_equal(ours, theirs, (2, 64, 64, 3), training=training, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-8)]
)
@pytest.mark.parametrize("options", [{}, {"blocks": (1, 3, 2), "growth": 5, "init_channels": 7}])
def test_a_small_bottlenecked_densenet_is_pytorchcvs(options, training, dtype, tolerance):
    """Odd pictures and odd channels too: the transition's pool and its share of the channels round down.

    In training not in float32: every reader of bn_conv1 is a batch norm, so the true gradient of its gamma is
    nearly zero, and what arrives in float32 is rounding (5e-4 of it here, in both frameworks). Training in
    float32 is compared below, behind the CIFAR stem.
    """
    densenet = pytest.importorskip("pytorchcv.models.densenet")
    options = {"blocks": (2, 2, 2), "growth": 8, "init_channels": 16} | options
    parts = channels(options["blocks"], options["growth"], options["init_channels"])
    theirs = any_size(densenet.DenseNet(parts, options["init_channels"], num_classes=5))
    ours = build("densenet121", classes=5, **options)
    oracle.assert_equal(
        ours, oracle.Torch(theirs, pytorchcv_names), (4, 75, 75, 3), training=training, dtype=dtype,
        tolerance=tolerance,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "theirs", "names"),
    [
        # Their densenet40_k12 starts with 2k channels and halves them: two options away from the paper's.
        ("densenet40_k12_cifar", {"init_channels": 24, "theta": 0.5}, "densenet40_k12_cifar10", basic_names),
        ("densenet_bc100_k12_cifar", {}, "densenet100_k12_bc_cifar10", cifar_names),
    ],
)
def test_the_cifar_networks_are_pytorchcvs(name, options, theirs, names):
    module = pytest.importorskip("pytorchcv.models.densenet_cifar")
    net = any_size(getattr(module, theirs)())
    ours = build(name, classes=10, **options)
    oracle.assert_equal(ours, oracle.Torch(net, names), (2, 16, 16, 3))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("theta", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("init_channels", [6, None])
def test_every_theta_with_and_without_bottlenecks(bottleneck, theta, init_channels):
    """pytorchcv's networks halve the channels always, so its parts are put together here."""
    torch = pytest.importorskip("torch")
    cifar = pytest.importorskip("pytorchcv.models.densenet_cifar")
    unit = cifar.DenseUnit if bottleneck else cifar.DenseSimpleUnit
    # The paper's first convolution: 16 channels, but 2k where there are bottlenecks and compression.
    before = init_channels or (2 * SMALL["growth"] if bottleneck and theta < 1 else 16)
    features = torch.nn.Sequential()
    features.add_module("init_block", torch.nn.Conv2d(3, before, 3, padding=1, bias=False))
    for number, outputs in enumerate(channels(SMALL["blocks"], SMALL["growth"], before, theta), 1):
        stage, first = torch.nn.Sequential(), outputs[0] - SMALL["growth"]
        if number > 1:
            stage.add_module(f"trans{number}", cifar.TransitionBlock(before, first))
        for i, (inputs, after) in enumerate(zip([first, *outputs], outputs, strict=False), 1):
            stage.add_module(f"unit{i}", unit(inputs, after, 0.0))
        features.add_module(f"stage{number}", stage)
        before = outputs[-1]
    features.add_module("post_activ", cifar.PreResActivation(before))
    net = torch.nn.Sequential()
    net.add_module("features", features)
    net.add_module("final_pool", torch.nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", torch.nn.Flatten())
    net.add_module("output", torch.nn.Linear(before, 3))
    names = cifar_names if bottleneck else basic_names
    for training in (False, True):
        ours = small(classes=3, theta=theta, bottleneck=bottleneck, init_channels=init_channels)
        oracle.assert_equal(ours, oracle.Torch(net, names), (4, 17, 17, 3), training=training)


# ----------------------------------------------------------------------------------------- beside Keras


def keras_names(name):
    """block1.layer2.bn1.gamma -> conv2_block2_0_bn/gamma: Keras counts stages from conv1 on."""
    layer, leaf = name.rsplit(".", 1)
    leaf = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}.get(
        leaf, leaf
    )
    if found := re.match(r"block(\d)\.layer(\d+)\.(bn|conv)(\d)", layer):
        number = int(found[4]) - (found[3] == "bn")
        layer = f"conv{int(found[1]) + 1}_block{found[2]}_{number}_{found[3]}"
    elif found := re.match(r"transition(\d)\.(bn|conv)", layer):
        layer = f"pool{int(found[1]) + 1}_{found[2]}"
    else:
        rest = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "bn_last": "bn", "fc": "predictions"}
        layer = rest[layer]
    return f"{layer}/{leaf}"


def test_densenet121_is_keras_applications():
    densenet = oracle.keras().applications.DenseNet121
    net = densenet(weights=None, input_shape=(64, 64, 3), classes=7, classifier_activation=None)
    ours = build("densenet121", classes=7, bn_eps=1.001e-5)
    oracle.assert_equal(ours, oracle.Keras(net, keras_names), (2, 64, 64, 3))


# ----------------------------------------------------------- the shared history beside concatenation


def results(model, *, training, x=None):
    rng = np.random.default_rng(3)
    dtype = next(model.parameters()).dtype
    x = rng.standard_normal((3, 17, 17, 3)).astype(dtype) if x is None else x
    dy = rng.standard_normal((len(x), 10)).astype(dtype)
    return oracle.ours_run(model, x, dy, training=training)


def assert_same(first, second, tolerance):
    """Up to ``tolerance`` of each array's largest number; 0 means to the last bit."""
    assert first.keys() == second.keys()
    for name, array in first.items():
        off = abs(array - second[name]).max()
        assert off <= tolerance * abs(array).max(), (name, off)


@pytest.mark.parametrize("options", [{}, {"bottleneck": True, "theta": 0.5}])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shared_and_plain_concatenation_are_one_network(options, training, dtype):
    """Outputs, all gradients and the running statistics, to the last bit."""
    shared, plain = (
        results(oracle.shake(small(shared=shared, **options)).astype(dtype), training=training)
        for shared in (True, False)
    )
    assert_same(shared, plain, 0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("implementation", [unfused, reference])
def test_fused_is_unfused_is_the_reference(shared, implementation):
    model = oracle.shake(small(shared=shared, bottleneck=True)).astype("float64")
    state = model.state_dict()
    fused = results(model, training=True)
    fused = {name: array.copy() for name, array in fused.items()}
    model.load_state_dict(state)
    with implementation():
        assert_same(fused, results(model, training=True), 1e-11)


def _block(shared, *, layers=8, growth=16, first=16):
    """A dense block of BN, ReLU and 3x3 convolutions, and what each of its layers reads."""
    rng = np.random.default_rng(0)
    members = [
        Sequential(
            bn1=BatchNorm2d(first + i * growth, relu=True),
            conv1=Conv2d(first + i * growth, growth, 3, padding=1, bias=False, rng=rng),
        )
        for i in range(layers)
    ]
    block, read = DenseBlock(first, members, growth=growth, shared=shared), []
    for member in members:
        forward = member.forward
        member.forward = lambda x, forward=forward: (read.append(x), forward(x))[1]
    return block, read


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_reads_the_same_memory(training):
    block, read = _block(True)
    y = block.train(training)(Tensor(np.ones((2, 5, 5, 16), np.float32)))
    assert [x.shape[-1] for x in read] == list(range(16, 144, 16))
    assert all(np.shares_memory(x.numpy(), y.numpy()) for x in read)
    assert len({x.numpy().__array_interface__["data"][0] for x in read}) == 1


def test_the_tape_keeps_one_history_instead_of_one_per_layer():
    """Counted, not timed: what is alive after the forward pass differs by exactly the copies."""
    x = np.random.default_rng(0).standard_normal((4, 16, 16, 16)).astype(np.float32)
    alive = {}
    for shared in (True, False):
        block, _ = _block(shared)
        for _, module in block.named_modules():
            vars(module).pop("forward", None)
        block(Tensor(x, requires_grad=True))  # compile the kernels
        tracemalloc.start()
        try:
            y = block(Tensor(x, requires_grad=True))
            alive[shared] = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert y.shape == (4, 16, 16, 144)
    number = x.nbytes / 16  # bytes of one channel
    # Plain concatenation: 32, 48, ..., 144 channels, and each layer's own 16 are freed. Shared: 144 in all.
    copies = (sum(range(32, 145, 16)) - 144) * number
    assert abs(alive[False] - alive[True] - copies) < 0.05 * copies


# --------------------------------------------------------------------------------------------- dropout


def test_dropout_is_after_every_convolution_but_the_first():
    model = small(bottleneck=True, dropout=0.2)
    order = [path for path, module in model.named_modules() if isinstance(module, Conv2d | Dropout)]
    convolutions = [path for path in order if "dropout" not in path]
    expected = [convolutions[0]]
    for path in convolutions[1:]:
        expected += [path, path.replace("conv", "dropout")]
    assert order == expected and len(convolutions) == 1 + 2 * 7 + 2
    rates = [module.rate for _, module in model.named_modules() if isinstance(module, Dropout)]
    assert rates == [0.2] * (2 * 7 + 2)
    assert not any(isinstance(module, Dropout) for _, module in small(dropout=0.0).named_modules())


@pytest.mark.parametrize("shared", [True, False])
def test_dropout_works_in_training_only(shared):
    x = Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32))
    models = [oracle.shake(small(dropout=rate, shared=shared)) for rate in (0.0, 0.5)]
    models[1].load_state_dict(models[0].state_dict())
    without, some = (model.eval()(x).numpy() for model in models)
    assert np.array_equal(without, some)
    without, some, again = (model.train()(x).numpy() for model in (*models, models[1]))
    assert abs(without - some).max() > 0.01 and abs(some - again).max() > 0.01
    zeros = models[1].block1.layer1(models[1].conv1(x)).numpy() == 0
    assert 0.4 < zeros.mean() < 0.6


def test_every_dropout_has_a_mask_of_its_own():
    model = small(dropout=0.5)
    states = [str(state) for state in model.random_states().values()]
    assert len(states) == len(set(states)) == 7 + 2
    assert states == [str(state) for state in small(dropout=0.5).random_states().values()]


# ------------------------------------------------------------------------------------------- the rest


def test_names_and_places():
    model = build("densenet121", classes=3, blocks=(1, 1, 1, 1), initializer="zeros")
    assert [name for name, _ in model.children()] == [
        "conv1", "bn_conv1", "pool1", "block1", "transition1", "block2", "transition2", "block3",
        "transition3", "block4", "bn_last", "avg_pool", "fc",
    ]  # fmt: skip
    state = model.state_dict()
    assert [name for name in state if name.startswith("block2") and "running" not in name] == [
        f"block2.layer1.{name}" for name in ("bn1.gamma", "bn1.beta", "conv1.weight", "bn2.gamma", "bn2.beta",
                                              "conv2.weight")
    ]  # fmt: skip
    assert state["block1.layer1.conv1.weight"].shape == (1, 1, 64, 128)
    assert state["block1.layer1.conv2.weight"].shape == (3, 3, 128, 32)
    assert state["transition1.conv.weight"].shape == (1, 1, 96, 48)
    assert not any(array.any() for name, array in state.items() if name.endswith("weight"))


def test_conventions_of_batch_norm():
    norms = [m for _, m in small().named_modules() if isinstance(m, BatchNorm2d)]
    assert {(m.convention, m.momentum, m.eps, m.relu) for m in norms} == {("torch", 0.1, 1e-5, True)}
    norms = [m for _, m in small(bn_momentum=0.3, bn_eps=0.01).named_modules() if isinstance(m, BatchNorm2d)]
    assert {(m.convention, m.momentum, m.eps, m.relu) for m in norms} == {("torch", 0.3, 0.01, True)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"blocks": ()}, "blocks must give each block at least one layer, not ()"),
        ({"blocks": (2, 0)}, "blocks must give each block at least one layer, not (2, 0)"),
        ({"growth": 0}, "growth must be at least 1 channel, not 0"),
        ({"theta": 0.0}, "theta is the share of channels that a transition keeps, above 0 to 1, not 0.0"),
        ({"theta": 1.5}, "theta is the share of channels that a transition keeps, above 0 to 1, not 1.5"),
        ({"theta": 0.05}, "theta=0.05 leaves none of the 14 channels of block1"),
        ({"stem": "mnist"}, "stem must be one of 'imagenet', 'cifar', not 'mnist'"),
        ({"init_channels": 0}, "init_channels must be at least 1, or None, not 0"),
        ({"dropout": 1.0}, "from 0 to below 1, not 1.0"),
        ({"dropout": -0.1}, "from 0 to below 1, not -0.1"),
    ],
)
def test_options_that_cannot_be(options, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        small(**options)
