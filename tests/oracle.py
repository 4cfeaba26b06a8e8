"""One of our models beside an independent implementation with the same weights: outputs and gradients.

    theirs = Torch(oracle_model, names)                     # or Keras(...)
    assert_equal(ours, theirs, (batch, height, width, 3))

``names(ours)`` gives the name that a parameter or buffer of ours has in the other model. Every weight starts
at random, gamma, beta and running statistics too, so that no two of them could be exchanged unseen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from minires.nn import Module
from minires.tensor import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]


def leaf_for_torch(name: str) -> str:
    """``bn_conv1.gamma`` -> ``bn_conv1.weight``: the last part of a name as PyTorch has it."""
    from torch_peer import RENAMED  # it needs PyTorch, and some who import this file have none

    module, leaf = name.rsplit(".", 1)
    return f"{module}.{RENAMED.get(leaf, leaf)}"


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread as long as this block lasts: on a busy machine two of them wait for each other,
    and small networks take ten times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Torch:
    """A ``torch.nn.Module`` as the oracle; ``names`` maps each of our names to its own."""

    def __init__(self, model: Any, names: Callable[[str], str]) -> None:
        self.model, self.names = model, names

    def load(self, state: Arrays, dtype: str) -> None:
        import torch
        from torch_peer import to_torch

        self.model.to(getattr(torch, dtype))
        renamed = {self.names(name): to_torch(name, array) for name, array in state.items()}
        assert len(renamed) == len(state), "two of our names have one name there"
        missing = self.model.load_state_dict(renamed, strict=False)
        assert not missing.unexpected_keys, missing.unexpected_keys
        rest = [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]
        assert not rest, f"these of the oracle's weights stand for none of ours: {rest}"

    @one_thread()
    def run(self, x: Any, dy: Any, *, training: bool, state: Arrays) -> Arrays:
        """The output, dx, the gradient of every parameter and, in training, the new running statistics."""
        import torch
        from torch_peer import from_torch

        self.model.train(training)
        for module in self.model.modules():  # what is random cannot be compared
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.model.zero_grad()
        pictures = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        y = self.model(pictures)
        y.backward(torch.tensor(dy))
        found = {"y": y.detach().numpy(), "dx": pictures.grad.numpy().transpose(0, 2, 3, 1)}
        theirs = dict(self.model.named_parameters())
        buffers = dict(self.model.named_buffers())
        for name in state:
            there = self.names(name)
            if there in theirs:
                assert theirs[there].grad is not None, f"{there} got no gradient"
                found[f"d {name}"] = from_torch(theirs[there].grad)
            elif training:
                found[name] = from_torch(buffers[there])
        return found


class Keras:
    """A Keras model on the PyTorch backend as the oracle; ``names`` maps ours to ``layer/variable``."""

    def __init__(self, model: Any, names: Callable[[str], str]) -> None:
        self.model, self.names = model, names
        self.variables = {
            f"{layer.name}/{variable.name}": variable
            for layer in model.layers
            for variable in layer.variables
            if variable.name != "seed_generator_state"
        }

    def load(self, state: Arrays, dtype: str) -> None:
        assert dtype == "float32"
        renamed = {self.names(name): array for name, array in state.items()}
        assert renamed.keys() == self.variables.keys(), sorted(renamed.keys() ^ self.variables.keys())
        for name, array in renamed.items():
            self.variables[name].assign(array)

    @one_thread()
    def run(self, x: Any, dy: Any, *, training: bool, state: Arrays) -> Arrays:
        """See :meth:`Torch.run`."""
        import torch

        for variable in self.variables.values():
            variable.value.grad = None
        pictures = torch.tensor(x, requires_grad=True)
        y = self.model(pictures, training=training)
        y.backward(torch.tensor(dy))
        found = {"y": y.detach().numpy(), "dx": pictures.grad.numpy()}
        for name in state:
            value = self.variables[self.names(name)].value
            if value.requires_grad:
                assert value.grad is not None, f"{self.names(name)} got no gradient"
                found[f"d {name}"] = value.grad.numpy()
            elif training:
                found[name] = value.detach().numpy().copy()
        return found


def keras() -> Any:
    """Keras on its PyTorch backend, or skip the test."""
    pytest.importorskip("torch")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = pytest.importorskip("keras")
    if module.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend than PyTorch; set KERAS_BACKEND=torch")
    return module


def shake(model: Module, seed: int = 0) -> Module:
    """Give every parameter and buffer a random value; networks stay well-behaved. Returns the model."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        leaf, data = name.rsplit(".", 1)[1], parameter.data
        if leaf == "gamma":
            data[...] = rng.uniform(0.5, 1.0, data.shape)
        elif leaf != "weight":  # weights are random already
            data[...] = rng.normal(0, 0.1, data.shape)
    for name, buffer in model.named_buffers():
        low, high = (0.5, 1.5) if name.endswith("running_var") else (-0.1, 0.1)
        buffer[...] = rng.uniform(low, high, buffer.shape)
    return model


def ours_run(model: Module, x: Any, dy: Any, *, training: bool) -> Arrays:
    """The same of our own model; see :meth:`Torch.run`."""
    model.train(training)
    for _, module in model.named_modules():
        if hasattr(module, "rate"):  # dropout
            module.rate = 0.0
    model.zero_grad()
    pictures = Tensor(x, requires_grad=True)
    y = model(pictures)
    y.backward(dy)
    found: Arrays = {"y": y.numpy(), "dx": np.asarray(pictures.grad)}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        found[f"d {name}"] = np.asarray(parameter.grad)
    if training:
        found.update({name: np.asarray(buffer) for name, buffer in model.named_buffers()})
    return found


def distances(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """The relative distance |ours - theirs| / |theirs| (Euclidean) of every array.

    A gradient that is zero in exact arithmetic (a bias before a batch norm in training) is rounding alone;
    it is held against the largest gradient of the network instead of against itself.
    """
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    largest = max(np.linalg.norm(array) for name, array in theirs.items() if name.startswith("d "))
    found = {}
    for name, array in theirs.items():
        assert ours[name].shape == array.shape, (name, ours[name].shape, array.shape)
        norm = np.linalg.norm(array)
        if name.startswith("d ") and norm < 1e-5 * largest:
            norm = largest
        found[name] = float(np.linalg.norm(ours[name] - array) / norm)
    return found


def assert_equal(
    ours: Module,
    theirs: Torch | Keras,
    shape: tuple[int, int, int, int],
    *,
    training: bool = False,
    dtype: str = "float32",
    tolerance: float = 1e-4,
) -> None:
    """Outputs, gradients and, in training, running statistics of both differ by at most ``tolerance``.

    ``shape`` is that of the pictures, (N, H, W, 3). The weights of ``ours`` are shaken first; see
    :func:`shake`.

    In float32 one of a million numbers may lie so near zero that it rounds to the other side of a ReLU in
    one of the two; then a gradient jumps by more than rounding. That is a matter of these pictures, while a
    mistake in a formula shows with all pictures: so another draw of them is tried, up to five.
    """
    shake(ours).astype(dtype)
    state = ours.state_dict()
    for seed in range(1, 6 if dtype == "float32" else 2):
        ours.load_state_dict(state)
        theirs.load(state, dtype)
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(shape).astype(dtype)
        dy = rng.standard_normal(ours.eval()(Tensor(x)).shape).astype(dtype)
        mine = ours_run(ours, x, dy, training=training)
        found = distances(mine, theirs.run(x, dy, training=training, state=state))
        assert found["y"] <= tolerance, found["y"]
        worst = sorted(found.items(), key=lambda item: -item[1])[:5]
        if worst[0][1] <= tolerance:
            return
    raise AssertionError(worst)
