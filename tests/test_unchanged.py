"""What gradients are computed from must stay as it was in the forward pass: a change in place is noticed."""

from __future__ import annotations

import numpy as np
import opcheck
import pytest

import minires
from minires import nn, ops
from minires.errors import MiniresError
from minires.nn import Parameter
from minires.ops import cases
from minires.optim import SGD
from minires.tape import reachable
from minires.tensor import Tensor
from minires.train.ema import EMA


@pytest.mark.parametrize("op", cases.all_cases())
def test_a_change_of_any_array_that_an_operation_saved_is_noticed(op):
    """In every case."""
    for case in cases.all_cases()[op]:
        arrays = opcheck.arrays_of(case, "float64")
        places = 1
        for place in range(100):
            if place == places:
                break
            leaves = [Tensor(array.copy(), requires_grad=True) for array in arrays.values()]
            y = case(*leaves)
            saved = [
                (node, name)
                for node in sorted(reachable(y.node), key=lambda node: node.number)
                for name in node.saved
                if node.saved[name].size and node.saved[name].flags.writeable
            ]
            places = len(saved)
            if not saved:
                break
            node, name = saved[place]
            array = node.saved[name]
            # Of a larger one not every number is looked at.
            number = np.unravel_index(place % array.size, array.shape) if array.size <= 256 else ()
            array[number] = not array[number] if array.dtype == bool else array[number] + 1
            whose = f"its input {name}" if name in node.names else f"what it saved as {name}"
            with pytest.raises(MiniresError, match=f"{whose} .* was changed in place after the forward pass"):
                y.backward(opcheck.upstream(y))


@pytest.mark.parametrize("size", [1, 256, 257, 1000, 10**6])
@pytest.mark.parametrize("change", ["all", "half", "scaled", "NaN"])
def test_a_change_of_a_large_array_is_noticed(size, change):
    x = Tensor(np.linspace(1, 2, size), requires_grad=True)
    loss = (x * x).sum()
    if change == "all":
        x.data[...] = 100
    elif change == "half":
        x.data[: (size + 1) // 2] = 0
    elif change == "scaled":
        x.data *= 1.001
    else:
        x.data[...] = np.nan
    with pytest.raises(MiniresError, match="^mul: its input a .* was changed in place after the"):
        loss.backward()


@pytest.mark.parametrize("channels", [2, 3, 9, 16, 64, 75, 128, 256])
@pytest.mark.parametrize("batch", [8, 256])
def test_a_change_of_one_channel_is_noticed(channels, batch):
    for channel in {0, 1, channels // 2, channels - 1}:
        x = Tensor(np.ones((batch, 15, 15, channels), np.float32), requires_grad=True)
        y = ops.relu(x) * x
        x.data[..., channel] = 5
        with pytest.raises(MiniresError, match="was changed in place"):
            y.sum().backward()


def _averaged(model):
    """The model with other weights than its own; the block must be kept, as it ends when it is forgotten."""
    average = EMA(model)
    for array in average.averages.values():
        array += 1
    block = average.swap()
    block.__enter__()
    return block


@pytest.mark.parametrize(
    "change",
    [
        lambda model, optimizer: optimizer.step(),
        lambda model, optimizer: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
        lambda model, optimizer: _averaged(model),
        lambda model, optimizer: model[2].weight.data.fill(100),
    ],
    ids=["a step", "a state dict", "an average", "by hand"],
)
def test_parameters_that_are_changed_between_forward_and_backward_are_noticed(change):
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.ReLU(), nn.Linear(4, 2, rng=rng))
    optimizer = SGD(model.parameters(), lr=0.1)
    x = Tensor(rng.standard_normal((5, 3)).astype("float32"), requires_grad=True)
    labels = [0, 1, 0, 1, 0]
    ops.cross_entropy(model(x), labels).backward()
    loss = ops.cross_entropy(model(x), labels)
    kept = change(model, optimizer)
    with pytest.raises(MiniresError, match="linear: its input w .* after a step of the optimiser run the"):
        loss.backward()
    del kept


def test_the_layer_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x)

    net = Net()
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    y = net(x).sum()
    net.fc.weight.data[...] = 0
    with pytest.raises(MiniresError, match="^fc: linear: its input w .2, 2. was changed in place"):
        y.backward()


def test_a_change_after_the_backward_or_of_what_no_gradient_needs_is_allowed():
    w = Parameter([1.0, 2.0])
    loss = (w * 3.0).sum()
    w.data[...] = 7  # the gradient is 3, whatever w is
    loss.backward()
    assert w.grad.tolist() == [3, 3]
    for _ in range(3):
        w.grad = None
        (w * w).sum().backward()
        assert w.grad.tolist() == (2 * w.data).tolist()
        w.data -= 1


def test_a_graph_that_is_kept_may_be_used_again_as_long_as_nothing_changes():
    w = Parameter([1.0, 2.0])
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    assert w.grad.tolist() == [4, 8]
    w.data += 1
    with pytest.raises(MiniresError, match="was changed in place"):
        loss.backward()


def _chosen(condition):
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    return x, ops.where(condition, x, x * 2)


def _gathered(index):
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    return x, x[index]


def _labelled(labels):
    x = Tensor([[1.0, 2.0], [0.5, 0.1]], requires_grad=True)
    return x, ops.cross_entropy(x, labels)


def _weighted(weight):
    x = Tensor([[1.0, 2.0], [0.5, 0.1]], requires_grad=True)
    return x, ops.nll_loss(ops.log_softmax(x), [0, 1], weight=weight)


@pytest.mark.parametrize(
    ("make", "given", "other"),
    [
        (_chosen, np.array([True, False, True]), [False, True, False]),
        (lambda c: (lambda x: (x, np.where(c, x, 0)))(_chosen(c)[0]), np.array([True, False, True]), False),
        (_gathered, np.array([0, 0, 2]), [1, 1, 1]),
        (_gathered, [0, 0, 2], [1, 1, 1]),
        (_gathered, np.array([True, False, True]), [False, True, True]),
        (_gathered, Tensor(np.array([0, 0, 2])), [1, 1, 1]),
        (_labelled, np.array([0, 1]), [1, 0]),
        (_labelled, [0, 1], [1, 0]),
        (_labelled, np.array([[0.5, 0.5], [1.0, 0.0]]), [[0.0, 1.0], [0.0, 1.0]]),
        (_labelled, Tensor(np.array([0, 1])), [1, 0]),
        (_weighted, np.array([1.0, 2.0]), [5.0, 7.0]),
    ],
)
def test_conditions_indices_and_labels_may_be_changed_as_soon_as_they_were_used(make, given, other):
    """They are the caller's arrays, often a buffer that the next batch is written to."""
    gradients = []
    for changes in (False, True):
        argument = Tensor(given.data.copy()) if isinstance(given, Tensor) else given.copy()
        x, y = make(argument)
        if changes:
            target = argument.data if isinstance(argument, Tensor) else argument
            target[:] = other
        y.sum().backward()
        gradients.append(x.grad.tolist())
    assert gradients[0] == gradients[1]


def test_in_place_changes_under_no_grad_are_noticed_as_well():
    w = Parameter([1.0, 2.0])
    loss = (w * w).sum()
    with minires.no_grad():
        w -= 0.1
    with pytest.raises(MiniresError, match="was changed in place"):
        loss.backward()
