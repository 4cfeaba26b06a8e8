"""A recorded pass: its values and gradients are those of plain code, and the model is left as it was."""

import copy
import threading

import numpy as np
import pytest

import minires
from minires.debug.recording import record_passes
from minires.debug.tape import RESULT, record_tape
from minires.errors import ConfigError, DataError, MiniresError, ShapeError
from minires.nn.layers import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool2d, Linear, ReLU, Sequential
from minires.nn.module import Module
from minires.ops.arithmetic import mul
from minires.ops.cases import all_cases
from minires.ops.cross_entropy import cross_entropy
from minires.ops.relu import relu
from minires.tape import reachable
from minires.tensor import Tensor, no_grad

EVERY_CASE = [pytest.param(case, id=str(case)) for cases in all_cases().values() for case in cases]


def batch(size, count=2, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((count, size, size, 3)).astype(dtype)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


class Loose(Module):
    """Operations between the layers, in no module; dropout; a layer that is used twice."""

    def __init__(self, recomputed=False):
        super().__init__()
        rng = np.random.default_rng(3)
        self.conv = Conv2d(3, 4, 3, padding=1, rng=rng)
        self.block = Sequential(
            Conv2d(4, 4, 3, padding=1, rng=rng), BatchNorm2d(4), ReLU(), Dropout(0.5, seed=0)
        )
        self.head = Sequential(GlobalAvgPool2d(), Linear(4, 5, rng=rng))
        self.recomputed = recomputed

    def forward(self, x):
        y = relu(self.conv(x) * 0.5)
        for _ in range(2):
            y = y + (minires.recompute(self.block, y) if self.recomputed else self.block(y))
        return self.head(y * y)


def plain(model, x, y):
    """Logits, loss, the gradients of the parameters and of x, by a plain pass without fused operations."""
    picture = Tensor(x, requires_grad=True)
    with minires.unfused():
        logits = model(picture)
        loss = cross_entropy(logits, y)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.data, loss.item(), gradients, picture.grad


# ------------------------------------------------------------------------------- values and gradients


def test_numbers_of_a_small_network_by_hand():
    x = np.array([[1.0, -2.0], [3.0, 0.5]])
    w = Tensor(np.array([[0.5, -1.0], [2.0, 1.0]]), requires_grad=True, name="w")
    recording = record_passes(lambda x: (relu(x @ w) + x).sum(), x)
    product = x @ w.data
    added = np.maximum(product, 0) + x
    ops = recording.operations
    assert [one.op for one in ops] == ["input", "matmul", "relu", "add", "sum"]
    assert [(s.kind, s.number, s.name) for s in ops[1].inputs] == [
        ("input", 0, None),
        ("parameter", None, "w"),
    ]
    assert [(s.kind, s.number) for s in ops[3].inputs] == [("operation", 2), ("input", 0)]
    for one, value in zip(ops, (x, product, np.maximum(product, 0), added, added.sum()), strict=True):
        assert np.allclose(one.output, value, rtol=1e-15, atol=0)
    assert recording.loss == pytest.approx(added.sum())
    assert recording.labels is None and recording.logits is None and recording.training is None
    # Backward: ones come to the addition, half of it through the ReLU.
    ones, gate = np.ones((2, 2)), (product > 0).astype(float)
    assert np.array_equal(ops[3].incoming, ones) and np.array_equal(ops[1].incoming, gate)
    assert np.allclose(ops[1].outgoing[0], gate @ w.data.T) and np.allclose(ops[1].outgoing[1], x.T @ gate)
    assert np.allclose(ops[0].incoming, ones + gate @ w.data.T)
    assert [number for number, _ in ops[0].contributions] == [3, 1]
    assert recording.order_back == (4, 3, 2, 1, 0)


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        ("resnet20_cifar", 32, 10), ("resnet50_signs", 64, 6), ("preresnet110_cifar", 16, 10),
        ("se_resnet56_cifar", 16, 10), ("densenet40_k12_cifar", 16, 10), ("bn_inception", 64, 4),
        ("resnext29_8x64d_cifar", 8, 5),
    ],
)  # fmt: skip
def test_values_and_gradients_are_those_of_a_plain_pass(name, size, classes):
    model = minires.models.build(name, classes=classes)
    x, y = batch(size), np.array([0, 3])
    twin = copy.deepcopy(model)
    recording = record_passes(model, x, y)
    logits, loss, gradients, dx = plain(twin, x, y)
    assert same(recording.logits, logits) and recording.loss == loss
    assert recording.gradients.keys() == gradients.keys()
    assert all(same(recording.gradients[name], gradients[name]) for name in gradients)
    assert same(recording.operations[0].incoming, dx) and same(recording.x, x)
    _check_order(recording)


def _check_order(recording):
    ops = recording.operations
    assert [one.number for one in ops] == list(range(len(ops)))
    assert sorted(recording.order_back) == list(range(len(ops)))
    assert recording.order_back[0] == len(ops) - 1 and recording.order_back[-1] == 0
    sent = dict.fromkeys(range(len(ops)), 0)
    for one in ops:
        assert isinstance(one.output, np.ndarray) and one.shape == one.output.shape
        assert one.seconds >= 0 and one.backward_seconds >= 0
        for source, gradient in zip(one.inputs, one.outgoing, strict=True):
            if source.number is not None:
                assert source.number < one.number and source.value is ops[source.number].output
                sent[source.number] += gradient is not None
    for one in ops[:-1]:
        assert len(one.contributions) == sent[one.number] >= 1
        total = one.contributions[0][1]
        for number, part in one.contributions[1:]:
            assert number > one.number
            total = total + part
        assert same(total, one.incoming), one
    assert ops[-1].contributions == () and ops[-1].incoming == 1


def test_forks_of_a_residual_network_have_two_contributions():
    recording = record_passes(minires.models.build("resnet20_cifar"), batch(32), np.array([0, 1]))
    forks = [one for one in recording.operations if len(one.contributions) > 1]
    # Each of nine blocks begins with a fork; the first one's is the ReLU of bn_conv1.
    assert [one.path for one in forks][:3] == ["bn_conv1", "bn2a_branch2b", "bn2b_branch2b"]
    assert len(forks) == 9 and all(one.op == "relu" for one in forks)
    places = {one.path: (one.block, one.within, one.stage) for one in recording.operations}
    assert places["res3a_branch2b"] == ("res3a", ("res3a", "res3a_branch2b"), 2)
    assert places["conv1"] == ("conv1", ("conv1",), 1)
    assert recording.stages == ((32, 32), (16, 16), (8, 8), ())
    assert recording.operations[0].stage == 0 and recording.operations[-1].stage == 4


def test_loose_operations_dropout_and_a_block_used_twice():
    x, y = batch(6), np.array([1, 4])
    model = Loose()
    recording = record_passes(model, x, y)
    _, loss, gradients, dx = plain(copy.deepcopy(model), x, y)
    assert recording.loss == loss and same(recording.operations[0].incoming, dx)
    assert all(same(recording.gradients[name], gradients[name]) for name in gradients)
    _check_order(recording)
    assert {one.path for one in recording.operations if one.op == "mul"} == {""}
    squared = [one for one in recording.operations if one.op == "mul"][-1]
    assert [number for number, _ in recording.operations[squared.number - 1].contributions] == [
        squared.number
    ] * 2
    half = recording.operations[2].inputs[1]
    assert (half.kind, half.number, half.name, float(half.value)) == ("constant", None, None, 0.5)


def test_recomputed_blocks_are_seen_from_inside():
    x, y = batch(6), np.array([1, 4])
    one, other = (record_passes(Loose(recomputed), x, y) for recomputed in (False, True))
    assert [(a.op, a.path) for a in one.operations] == [(b.op, b.path) for b in other.operations]
    for a, b in zip(one.operations, other.operations, strict=True):
        assert same(a.output, b.output) and same(a.incoming, b.incoming)
    # Outside of a recording a recomputed block is one step, as before.
    loss = Loose(True)(Tensor(x)).sum()
    assert sum(node.op == "recompute" for node in reachable(loss.node)) == 2


def test_a_model_in_inference_with_frozen_layers_under_no_grad():
    model = minires.models.build("resnet20_cifar").eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("fc")
    with no_grad():
        recording = record_passes(model, batch(32))
    assert recording.guessed and recording.training is False
    assert np.array_equal(recording.labels, recording.logits.argmax(axis=1))
    assert set(recording.gradients) == {"fc.weight", "fc.bias"}
    assert recording.operations[0].incoming is not None and recording.operations[1].outgoing[1] is None
    source = recording.operations[1].inputs[1]
    assert (source.kind, source.name) == ("parameter", "conv1.weight")
    norms = [one for one in recording.operations if one.op == "batch_norm"]
    assert all(one.options["training"] is False for one in norms)
    assert all(
        not parameter.requires_grad for name, parameter in model.named_parameters() if "fc" not in name
    )


def test_what_was_computed_before_is_not_recorded():
    w = Tensor(np.ones((2, 2)), requires_grad=True)
    doubled = w * 2
    recording = record_passes(lambda x: (x @ doubled).sum(), np.ones((1, 2)))
    assert [one.op for one in recording.operations] == ["input", "matmul", "sum"]
    assert recording.operations[1].inputs[1].kind == "parameter" and w.grad is None
    assert recording.order_back == (2, 1, 0)


def test_operations_are_watched_in_this_thread_and_block_only():
    calls = []
    x = Tensor(np.ones((1, 3), np.float32))
    with minires.tensor.watching(calls.append):
        y = relu(x)  # nothing is recorded on the tape, as nothing needs a gradient
        thread = threading.Thread(target=lambda: relu(x))
        thread.start()
        thread.join()
        assert minires.tensor.is_watched()
    relu(x)
    assert not minires.tensor.is_watched()
    (call,) = calls
    assert call.op == "relu" and call.y is y and call.inputs == {"x": x} and call.saved["y"] is y.data


def test_labels_may_be_probabilities():
    labels = np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.25, 0.75]], np.float32)
    model = Loose()
    recording = record_passes(model, batch(6), labels)
    assert recording.loss == plain(copy.deepcopy(model), batch(6), labels)[1]
    assert np.array_equal(recording.labels, labels) and not recording.guessed


def test_the_recording_does_not_change_when_training_goes_on():
    model, x = Loose(), batch(6)
    recording = record_passes(model, x, np.array([0, 1]))
    kept = recording.operations[1]
    before = [np.array(array) for array in (kept.inputs[0].value, kept.inputs[1].value, kept.output)]
    model.conv.weight.data += 1
    x += 1
    after = (kept.inputs[0].value, kept.inputs[1].value, kept.output)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


# ------------------------------------------------------------------------------------- left as it was


def test_nothing_of_the_model_is_changed():
    model = Loose()
    model.block.eval()  # one part in another mode than the others
    called = []
    for parameter in model.parameters():
        parameter.grad = np.full(parameter.shape, 7, np.float32)
        parameter.register_hook(lambda gradient: called.append(1))
    state, nodes = model.state_dict(), [parameter.node for parameter in model.parameters()]
    random = model.random_states()
    hooks = [list(node.hooks) for node in nodes]
    modes = [module.training for _, module in model.named_modules()]
    settings = minires.tensor.settings()
    for train in (True, False):
        if train:
            model.block.train()
            modes = [module.training for _, module in model.named_modules()]
        record_passes(model, batch(6), np.array([0, 1]))
        assert all(np.array_equal(state[name], value) for name, value in model.state_dict().items())
        assert all((parameter.grad == 7).all() for parameter in model.parameters())
        assert [parameter.node for parameter in model.parameters()] == nodes and not called
        assert [node.hooks for node in nodes] == hooks and all(node.retain for node in nodes)
        assert model.random_states() == random
        assert [module.training for _, module in model.named_modules()] == modes
        assert minires.tensor.settings() == settings


def test_an_error_leaves_everything_as_it_was_too():
    model = Loose()
    state, settings = model.state_dict(), minires.tensor.settings()
    with pytest.raises(DataError, match="labels\\[1\\] is 5"):
        record_passes(model, batch(6), np.array([0, 5]))
    assert minires.tensor.settings() == settings
    assert all(np.array_equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "x", "y", "error", "text"),
    [
        (lambda x: x, np.zeros((2, 3, 3)), None, ShapeError, r"returns \(2, 3, 3\); .*scores \(N, K\)"),
        (lambda x: x.sum(), np.zeros((2, 3)), np.array([0, 1]), ConfigError, "leave the labels out"),
        (lambda x: Tensor(0.0), np.zeros((2, 3)), None, MiniresError, "nothing leads from the input"),
        (lambda x: x, np.zeros((2, 3), int), None, ShapeError, "tensors have gradients, not int64"),
    ],
)
def test_what_cannot_be_recorded(model, x, y, error, text):
    with pytest.raises(error, match=text):
        record_passes(model, x, y)


# ------------------------------------------------------------------------------------ every operation


def record_case(case):
    """The recording of a case with a weighted sum behind it, and its inputs."""
    arrays = list(case.arrays().values())
    others = [Tensor(array, requires_grad=True) for array in arrays[1:]]

    def network(x):
        y = case(x, *others)
        return mul(y, np.random.default_rng(1).uniform(0.5, 1.5, y.shape)).sum()

    return record_passes(network, arrays[0]), arrays


@pytest.mark.parametrize("case", EVERY_CASE)
def test_every_operation_is_recorded(case):
    recording, arrays = record_case(case)
    found = [one for one in recording.operations if one.op == case.op]
    if case.op == "dropout" and (case.options["rate"] == 0 or not case.options.get("training", True)):
        return  # it is x itself
    if case.op == "recompute":
        return  # what it does is recorded, as if it were done without it
    assert found and np.array_equal(recording.operations[0].output, arrays[0])
    _check_order(recording)
    assert all(isinstance(name, str) and name for one in found for name in one.names)
    if case.op.endswith("softmax"):  # along the last axis always, of an x that is transposed for it
        return
    for name in ("stride", "kernel", "padding", "groups", "eps", "axis", "rate", "size", "exponent"):
        if name in case.options and case.options[name] is not None:
            assert name in found[0].options, name
    if case.op == "pow":
        assert found[0].options["exponent"] == case.options["exponent"]
    if case.op == "conv2d":
        assert found[0].options["kernel"] == arrays[1].shape[:2]
        assert found[0].names == ("x", "w", "b")[: len(arrays)]


# ------------------------------------------------------------------------------- from the tape alone


@pytest.mark.parametrize("fused", [True, False])
def test_a_tape_alone_has_the_gradients_and_most_of_the_values(fused):
    model, x, y = minires.models.build("resnet20_cifar", shortcut="B"), batch(32), np.array([0, 1])
    whole = record_passes(model, x, y)
    with minires.tensor.with_settings(fused=fused):
        loss = cross_entropy(model(Tensor(x, requires_grad=True)), y)
    recording = record_tape(loss)
    assert recording.loss == whole.loss if not fused else recording.loss == pytest.approx(whole.loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    ops = recording.operations
    assert [one.op for one in ops if one.output is None] == ["linear"]  # the scores: nobody has kept them
    if not fused:
        assert [(one.op, one.path) for one in ops] == [(one.op, one.path) for one in whole.operations]
        for one, twin in zip(ops, whole.operations, strict=True):
            assert one.output is None or same(one.output, twin.output)
            assert same(one.incoming, twin.incoming)
            for source, other in zip(one.inputs, twin.inputs, strict=True):
                assert source.kind == other.kind and source.number == other.number
                assert source.value is None or same(source.value, other.value)
    loss.backward()  # the tape is still there
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_tape_knows_the_tensors_that_are_alive():
    x, w = Tensor([[1.0, 2.0]], requires_grad=True), Tensor([[3.0], [4.0]], requires_grad=True)
    y = x @ w
    loss = (y * y).sum()
    x.grad = np.ones((1, 2), np.float32)
    ops = record_tape(loss).operations
    assert [one.op for one in ops] == ["input", "input", "matmul", "mul", "sum"]
    assert ops[2].output.tolist() == [[11.0]] and ops[3].output.tolist() == [[121.0]]
    assert ops[0].incoming.tolist() == [[66.0, 88.0]] and ops[1].incoming.tolist() == [[22.0], [44.0]]
    assert x.grad.tolist() == [[1.0, 1.0]] and w.grad is None


AFTER_A_CONVOLUTION = {
    "sum": lambda y: y.sum((1, 2)), "mean": lambda y: y.mean((1, 2)), "global_avg_pool2d": GlobalAvgPool2d(),
    "matmul": lambda y: y @ np.ones((3, 2), np.float32), "add": lambda y: y + 1,
    "cross_entropy": lambda y: cross_entropy(y, np.zeros((2, 4, 4), int)),
}  # fmt: skip


@pytest.mark.parametrize("op", AFTER_A_CONVOLUTION)
def test_a_value_that_nobody_has_kept_and_nothing_gives_is_none(op):
    x, w = (Tensor(array, requires_grad=True) for array in (batch(4), np.ones((1, 1, 3, 3), np.float32)))
    y = AFTER_A_CONVOLUTION[op](minires.ops.conv2d(x, w))
    expected = np.full(y.shape, 2.0)
    loss = (y * 2).sum()
    del y  # so that nobody has it, nor the result of the convolution
    *_, conv, one, _, _ = record_tape(loss).operations
    assert (conv.op, conv.output, one.op, one.output) == ("conv2d", None, op, None)
    assert np.array_equal(one.incoming, expected) and conv.incoming.shape == (2, 4, 4, 3)


def test_a_freed_tape_and_a_loss_of_many_values_are_refused():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ShapeError, match="single value"):
        record_tape(x * 2)
    loss = (x * 2).sum()
    loss.backward()
    with pytest.raises(MiniresError, match="freed"):
        record_tape(loss)
    with pytest.raises(MiniresError, match="no gradient"):
        record_tape(loss.detach())


@pytest.mark.parametrize("case", EVERY_CASE)
def test_what_is_saved_under_the_name_of_an_input_is_that_input(case):
    tensors = [Tensor(array, requires_grad=True) for array in case.arrays().values()]
    y = case(*tensors)
    if y.node is None or y.node.op == "leaf":
        return
    parents = dict(zip(y.node.names, y.node.parents, strict=True))
    for name in {RESULT, *parents} & set(y.node.saved):
        array, parent = y.node.saved[name], parents.get(name)
        if name != RESULT and parent is None:
            assert array == case.options["number"]
        else:
            whose = y if parent is None else next(tensor for tensor in tensors if tensor.node is parent)
            assert np.array_equal(array.reshape(whose.shape), whose.data)
