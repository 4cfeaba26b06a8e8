"""Rectified linear unit."""

import re
from contextlib import nullcontext

import numpy as np
import opcheck
import pytest

import minires
from minires import Tensor
from minires.errors import ShapeError
from minires.ops import relu as relu_module
from minires.ops.relu import relu


@opcheck.on_devices
@opcheck.of("relu")
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("relu")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, lambda *summands: torch.relu(sum(summands)))


def test_at_zero_the_gradient_is_zero():
    x = Tensor([-1.0, -0.0, 0.0, 1e-30], requires_grad=True)
    y = relu(x)
    y.backward([1.0, 1.0, 1.0, 1.0])
    assert y.numpy().tolist() == [0, 0, 0, np.float32(1e-30)]
    assert x.grad.tolist() == [0, 0, 0, 1]


def test_nan_is_not_hidden():
    assert np.isnan(relu(Tensor([np.nan, 1.0])).numpy()).tolist() == [True, False]


def test_integers_are_refused():
    with pytest.raises(ShapeError, match="relu: x is int32"):
        relu(Tensor(np.ones(3, np.int32)))


def test_several_threads_do_all_of_a_large_array(monkeypatch):
    monkeypatch.setattr(relu_module, "_GRAIN", 5)
    rng = np.random.default_rng(0)
    x, shortcut, dy = rng.standard_normal((3, 1001)).astype(np.float32)
    a, b = Tensor(x, requires_grad=True), Tensor(shortcut, requires_grad=True)
    y = relu(a, add=b)
    y.backward(dy)
    expected = np.maximum(x + shortcut, 0)
    assert np.array_equal(y.numpy(), expected)
    assert np.array_equal(a.grad, dy * (expected > 0)) and np.array_equal(a.grad, b.grad)


def test_unfused_the_addition_is_a_step_of_its_own():
    steps = []
    for mode in (nullcontext, minires.unfused):
        x, shortcut = (Tensor([1.0, -2.0, 3.0], requires_grad=True) for _ in range(2))
        with mode():
            y = relu(x, add=shortcut)
        steps.append([step.node.op for step in y.backward_steps([1.0, 1.0, 2.0])])
        assert y.numpy().tolist() == [2, 0, 6]
        assert x.grad.tolist() == shortcut.grad.tolist() == [1, 0, 2]
    assert steps == [["relu"], ["relu", "add"]]


def test_what_is_added_must_fit():
    with pytest.raises(ShapeError, match=re.escape("relu: add has shape (3,), but x has (2, 3); they must")):
        relu(Tensor(np.ones((2, 3), np.float32)), add=Tensor(np.ones(3, np.float32)))
    with pytest.raises(ShapeError, match="float64"):
        relu(Tensor([1.0]), add=Tensor(np.ones(1)))
