"""The optimisers against Keras's, in float64, and a step of the exercise's network in Keras and here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import oracle
import pytest
from blog_resnet import blog_resnet50

from minires import optim
from minires.errors import ConfigError
from minires.models import build
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD, Adam, AdamW
from minires.tensor import Tensor
from minires.train import Config

STEPS = 60
SHAPES = {"conv.weight": (3, 3, 5, 7), "bn.gamma": (7,), "fc.weight": (40, 6), "fc.bias": (6,)}
KERAS = {"convention": "keras"}
DECAY = {"weight_decay": 0.1, "decay_vectors": True}  # Keras's is decoupled, and of all parameters
CASES = {
    "adam": (Adam, KERAS, "Adam", {}),
    "adam eps betas": (
        Adam, {**KERAS, "eps": 1e-2, "betas": (0.7, 0.9)},
        "Adam", {"epsilon": 1e-2, "beta_1": 0.7, "beta_2": 0.9},
    ),
    "adam decay": (Adam, {**KERAS, **DECAY, "decoupled": True}, "Adam", {"weight_decay": 0.1}),
    "adamw": (AdamW, {**KERAS, **DECAY, "eps": 1e-3}, "AdamW", {"weight_decay": 0.1, "epsilon": 1e-3}),
    "sgd": (SGD, {}, "SGD", {}),
    "sgd decay": (SGD, {**DECAY, "decoupled": True, "momentum": 0.9}, "SGD",
                  {"weight_decay": 0.1, "momentum": 0.9}),
    "sgd nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, "SGD", {"momentum": 0.9, "nesterov": True}),
}  # fmt: skip


@contextmanager
def keras_in_float64() -> Iterator:
    keras = oracle.keras()
    from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE as narrowed  # on TensorFlow it is not

    before = keras.config.floatx(), keras.config.dtype_policy(), narrowed["float64"]
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    narrowed["float64"] = "float64"
    try:
        with oracle.one_thread():
            yield keras
    finally:
        narrowed["float64"] = before[2]
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize("case", CASES)
def test_equals_keras_in_float64(case):
    kind, options, name, theirs = CASES[case]
    rng = np.random.default_rng(0)
    start = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
    parameters = {path: Tensor(array.copy(), requires_grad=True) for path, array in start.items()}
    optimizer = kind(parameters.items(), lr=0.01, **options)
    with keras_in_float64() as keras:
        import torch

        variables = [keras.Variable(array, dtype="float64") for array in start.values()]
        other = getattr(keras.optimizers, name)(learning_rate=0.01, **theirs)
        for step in range(STEPS):
            for parameter in parameters.values():
                # Small gradients, too: there eps decides.
                parameter.grad = rng.normal(size=parameter.shape) * 10.0 ** (-3 * (step % 3))
            optimizer.step()
            other.apply([torch.tensor(one.grad) for one in parameters.values()], variables)
        for (path, ours), variable in zip(parameters.items(), variables, strict=True):
            found = variable.value.detach().numpy()
            assert found.dtype == np.float64
            np.testing.assert_allclose(ours.data, found, rtol=1e-12, atol=1e-14, err_msg=path)


def test_the_two_conventions_differ_by_where_eps_is_and_share_a_state():
    def after(steps, gradient, **options):
        w = Tensor(np.zeros(1), requires_grad=True)
        optimizer = Adam([w], lr=1.0, eps=1e-2, **options)
        for _ in range(steps):
            w.grad = np.full(1, gradient)
            optimizer.step()
        return w.data[0], optimizer

    gradient = 1e-2
    torch, _ = after(1, gradient)
    keras, optimizer = after(1, gradient, convention="keras")
    np.testing.assert_allclose(torch, -gradient / (gradient + 1e-2), rtol=1e-12)
    np.testing.assert_allclose(keras, -gradient / (gradient + 1e-2 / np.sqrt(0.001)), rtol=1e-12)
    other = Adam([Tensor(np.zeros(1), requires_grad=True)], convention="torch")
    other.load_state_dict(optimizer.state_dict())
    assert (other.eps, Adam(other.parameters, convention="keras").eps) == (1e-8, 1e-7)
    with pytest.raises(ConfigError, match="convention must be one of 'torch', 'keras', not 'tensorflow'"):
        Adam(other.parameters, convention="tensorflow")
    assert Config.of("blog").optimizer == {"name": "adam", "lr": 1e-3, "convention": "keras"}


KERAS_LEAVES = {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}


def name_in_keras(ours: str) -> str:
    """``res2a.bn2a_branch2c.gamma`` -> ``bn2a_branch2c/gamma``."""
    *_, layer, leaf = ours.split(".")
    return f"{layer}/{KERAS_LEAVES.get(leaf, leaf)}"


def test_the_exercise_in_keras_and_here_has_the_same_weights_after_a_step_of_adam():
    """ZeroPadding2D, Conv2D, BatchNormalization, the two kinds of blocks, AveragePooling2D, softmax,
    categorical_crossentropy and Adam with its defaults: the whole ResNet-50 of the exercise, in float64."""
    rng = np.random.default_rng(3)
    x, labels = rng.uniform(size=(3, 64, 64, 3)), np.array([0, 5, 2])
    ours = build("resnet50_signs").astype("float64")
    start = ours.state_dict()
    with keras_in_float64() as keras:
        logits = blog_resnet50(keras, size=64, classes=6, signs=True)
        theirs = keras.Model(logits.inputs[0], keras.layers.Softmax()(logits.outputs[0]))
        variables = {f"{layer.name}/{one.name}": one for layer in theirs.layers for one in layer.variables}
        assert {name_in_keras(name) for name in start} == variables.keys()
        for name, array in start.items():
            variables[name_in_keras(name)].assign(array)
        theirs.compile(optimizer=keras.optimizers.Adam(), loss="categorical_crossentropy")
        loss = theirs.train_on_batch(x, np.eye(6)[labels])
        found = {name: variables[name_in_keras(name)].value.detach().numpy() for name in start}

    optimizer = optim.build(Config.of("blog").optimizer, ours.named_parameters())
    value = cross_entropy(ours.train()(Tensor(x)), labels)
    value.backward()
    optimizer.step()
    np.testing.assert_allclose(value.item(), loss, rtol=1e-12)
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, found[name], rtol=1e-9, atol=1e-9, err_msg=name)
        if not name.endswith(".bias") or name.startswith("fc"):  # the others stand before a batch norm
            assert np.abs(array - start[name]).max() > 2e-4, name
