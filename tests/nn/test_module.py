"""Paths of parameters, state that fits or is refused whole, and errors that name the layer."""

import numpy as np
import pytest

from minires.errors import CheckpointError, ConfigError, ShapeError
from minires.inspect import summarize
from minires.nn import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, Module, ReLU, Sequential, identity_block
from minires.tensor import Tensor


def small(seed=0):
    rng = np.random.default_rng(seed)
    return Sequential(
        conv=Conv2d(2, 4, 3, rng=rng),
        norm=BatchNorm2d(4),
        relu=ReLU(),
        block=identity_block(4, (3, 3, 4), stage=2, block="b", rng=rng),
        drop=Dropout(0.5, seed=3),
        flat=Flatten(),
        inner=Sequential(Linear(4 * 3 * 3, 5, rng=rng), ReLU()),
    )


def picture(n=2, seed=1):
    return Tensor(np.random.default_rng(seed).standard_normal((n, 5, 5, 2)).astype(np.float32))


def test_paths_are_stable_and_a_block_adds_nothing_to_them():
    names = [name for name, _ in small().named_parameters()]
    assert names[:4] == ["conv.weight", "conv.bias", "norm.gamma", "norm.beta"]
    assert names[4:8] == [
        "res2b_branch2a.weight",
        "res2b_branch2a.bias",
        "bn2b_branch2a.gamma",
        "bn2b_branch2a.beta",
    ]
    assert names[-2:] == ["inner.0.weight", "inner.0.bias"]
    assert names == [name for name, _ in small(1).named_parameters()]
    buffers = [name for name, _ in small().named_buffers()]
    assert buffers[:3] == ["norm.running_mean", "norm.running_var", "bn2b_branch2a.running_mean"]
    modules = [path for path, _ in small().named_modules()]
    assert modules[3:5] == ["block", "res2b_branch2a"]


def test_state_dict_makes_another_model_equal_and_is_a_copy():
    a, b = small(0), small(1)
    a.norm.running_mean += 2
    state = a.state_dict()
    b.load_state_dict(state)
    x = picture()
    assert np.array_equal(a.eval()(x).data, b.eval()(x).data)
    state["conv.weight"][:] = 7
    assert not np.any(a.conv.weight.data == 7)


def test_load_names_all_that_does_not_fit_and_changes_nothing():
    model = small()
    before = model.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    del state["conv.bias"]
    state["extra"] = np.zeros(3)
    state["norm.gamma"] = np.zeros(9)
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict(state)
    text = str(error.value)
    assert "missing: conv.bias (4,)" in text
    assert "unexpected: extra (3,)" in text
    assert "misshapen: norm.gamma is (9,), the model needs (4,)" in text
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_train_and_eval_reach_every_module():
    model = small()
    assert all(not module.training for _, module in model.eval().named_modules())
    x = picture()
    assert np.array_equal(model(x).data, model(x).data)  # no dropout, running statistics
    before = model.norm.running_mean.copy()
    model(x)
    assert np.array_equal(model.norm.running_mean, before)
    model.train()(x)
    assert not np.array_equal(model.norm.running_mean, before)


def test_a_frozen_batch_norm_keeps_its_statistics_in_training():
    norm = BatchNorm2d(2)
    norm.frozen = True
    norm.train()(picture())
    assert np.array_equal(norm.running_mean, np.zeros(2)) and np.array_equal(norm.running_var, np.ones(2))


def test_random_states_continue_dropout_where_it_was():
    a, b = small(), small()
    x = picture()
    a(x)
    b.load_random_states(a.random_states())
    b.load_state_dict(a.state_dict())
    assert np.array_equal(a(x).data, b(x).data)
    with pytest.raises(CheckpointError, match="drop.rng"):
        b.load_random_states({})


def test_an_error_names_the_layer_and_the_numbers():
    model = small()
    with pytest.raises(ShapeError, match=r"^conv: conv2d: w \(3, 3, 2, 4\) expects 2 input channels.*has 3"):
        model(Tensor(np.zeros((1, 5, 5, 3), np.float32)))
    with pytest.raises(ShapeError, match=r"^inner.0: linear"):
        model(Tensor(np.zeros((2, 6, 6, 2), np.float32)))


def test_nodes_on_the_tape_carry_the_layer():
    paths = {(step.node.op, step.node.path) for step in small()(picture()).backward_steps(np.ones((2, 5)))}
    assert ("conv2d", "res2b_branch2b") in paths and ("linear", "inner.0") in paths


def test_two_things_of_one_name_are_refused():
    rng = np.random.default_rng(0)
    model = Module()
    model.a = identity_block(4, (3, 3, 4), stage=2, block="b", rng=rng)
    model.b = identity_block(4, (3, 3, 4), stage=2, block="b", rng=rng)
    model.forward = lambda x: model.b(model.a(x))
    for use in (model.state_dict, lambda: model(Tensor(np.zeros((1, 2, 2, 4), np.float32)))):
        with pytest.raises(ConfigError, match="stand for two things each: .*bn2b_branch2a.gamma"):
            use()


def test_astype_and_device():
    model = small().astype(np.float64)
    assert all(p.dtype == np.float64 for p in model.parameters())
    assert all(buffer.dtype == np.float64 for _, buffer in model.named_buffers())
    assert model.to("cpu") is model
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        model.to("gpu")


def test_a_summary_is_that_of_the_room_inspect_and_counts_memory_only_where_it_is_asked_for():
    model = small()
    assert str(model.summary((5, 5, 2))) == str(summarize(model, (5, 5, 2)))
    with_memory = str(model.summary((5, 5, 2), memory=True))
    assert with_memory == str(summarize(model, (5, 5, 2), memory=True)) != str(model.summary((5, 5, 2)))


def test_an_array_of_floats_becomes_a_tensor_where_a_model_is_called():
    class Net(Module):
        def __init__(self, forward):
            super().__init__()
            self.function = forward

        def forward(self, *inputs):
            return self.function(*inputs)

    x = picture().numpy()
    for forward in (lambda x: x.relu(), lambda x: x.flatten(), lambda x: x):
        found, want = Net(forward)(x), Net(forward)(Tensor(x))
        assert type(found) is Tensor and found.shape == want.shape
        np.testing.assert_array_equal(found.numpy(), want.numpy())
    assert type(Sequential()(x)) is Tensor
    labels = np.array([1, 2])
    assert Net(lambda x, labels: labels)(x, labels) is labels
    inner = Net(lambda x: x)
    assert Net(lambda x: inner(x.data))(x) is not None


def test_a_state_of_lists_is_loaded_and_what_holds_no_numbers_is_named():
    layer = Linear(2, 1)
    layer.load_state_dict({"weight": [[1.0], [2.0]], "bias": [3]})
    assert layer.weight.tolist() == [[1.0], [2.0]] and layer.bias.tolist() == [3.0]
    layer.load_state_dict({"weight": layer.weight, "bias": Tensor([4.0])})
    assert layer.bias.tolist() == [4.0]
    with pytest.raises(CheckpointError, match=r"misshapen: bias is \(\)"):
        layer.load_state_dict({"weight": [[1.0], [2.0]], "bias": 3})
    with pytest.raises(CheckpointError, match="bias: .*numbers"):
        layer.load_state_dict({"weight": [[1.0], [2.0]], "bias": "three"})
    for array in (np.array([["a"], ["b"]]), np.array([[1j], [2j]])):
        with pytest.raises(CheckpointError, match=f"weight: {array.dtype} is no dtype of weights; nothing"):
            layer.load_state_dict({"bias": [7.0], "weight": array})
        assert layer.bias.tolist() == [4.0]
    with pytest.raises(CheckpointError, match="a dict of arrays by path.* not a list"):
        layer.load_state_dict([1.0])
    with pytest.raises(CheckpointError, match=r"unexpected: wieght \(2, 1\); the nearest is weight"):
        layer.load_state_dict({"wieght": [[1.0], [2.0]], "bias": [3]})
