"""Folding batch norms into convolutions, for inference.

In inference a batch norm multiplies each channel by a number and adds another. Behind a convolution, which
does the same in its kernel and its bias, both can be put there once and for all:

    scale = gamma / sqrt(var + eps)                       (O,), one number per output channel
    w' = w * scale                                        (KH, KW, C/groups, O)
    b' = beta + (b - mean) * scale                        (O,)

A ReLU alone behind it goes into the convolution, too, which applies it while its result is in cache. Where a
shortcut is added before, both are left: see :class:`AddReLU`.

Which batch norm reads the result of which convolution is seen on the tape of one forward pass. So it does not
matter how a model is put together, and a convolution whose result is read elsewhere too keeps its own.

Source: Jacob et al. 2017, Quantization and training of neural networks for efficient integer-arithmetic-only
inference, arXiv:1712.05877, section 3.2, equation 14.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from minires import backend
from minires.errors import ConfigError, ShapeError
from minires.nn import hooks
from minires.nn.layers import BatchNorm2d, Conv2d, add_and_relu
from minires.nn.module import Module, Parameter
from minires.tape import Node, reachable
from minires.tensor import Tensor, with_settings

SIZES = (32, 64, 224)  # of the pictures that are tried where no input is given


class AddReLU(Module):
    """What is left of a folded batch norm: the addition of a shortcut if called with one, and ReLU after it.

    Shapes: x any; add and the result as x.

    >>> AddReLU(relu=True)(Tensor([1.0, -1.0]), add=Tensor([2.0, 0.5])).numpy()
    array([3., 0.], dtype=float32)
    """

    def __init__(self, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, x: Tensor, *, add: Tensor | None = None, relu: bool | None = None) -> Tensor:
        return add_and_relu(x, add=add, is_relu=self.relu if relu is None else relu)

    left_out = forward


def fuse(model: Module, input: tuple[int, int, int] | None = None) -> Module:
    """Make a new model for inference in which batch norms are folded into the convolutions before them.

    A batch norm is folded where it is the only reader of a convolution's result and both are called once. It
    is folded with its running statistics, whether it was in training, frozen or neither. The parts of the
    model given are copied and it is left as it is; one picture of zeros passes through such a copy.

    The new model is in inference mode, under the names of the old one: ``conv1.weight``, now always with a
    ``conv1.bias``, and nothing of ``bn_conv1``. It can be trained: gradients reach the folded weights (unless
    the convolution's were frozen), and ``train()`` switches on dropout and the batch norms that are left, but
    what is folded stays folded: statistics are not collected there any more.

    Math: scale = gamma / sqrt(var + eps);  w' = w * scale;  b' = beta + (b - mean) * scale.
    Shapes: input (H, W, C), a picture that the model takes; if left out, 32x32, 64x64 and 224x224 are tried.
    Raises: ShapeError if such a picture does not fit the model; ConfigError if it gives no single tensor, has
    forward hooks, or is changed by ``minires.intervene``: the new model would not know of it.
    Source: arXiv:1712.05877.

    >>> from minires.nn import Sequential
    >>> fuse(Sequential(conv=Conv2d(3, 8, 3, bias=False), bn=BatchNorm2d(8, relu=True)))
    Sequential, 224 parameters
      conv: Conv2d(3, 8, 3, relu=True)  weight (3, 3, 3, 8), bias (8,)  224
      bn: AddReLU(relu=False)
    """
    hooks.refuse(model, "fuse", "and the new model would not know of it")
    memo: dict[int, Any] = {}
    for conv, bn, adds in _pairs(model, input):
        memo |= {
            id(conv): _folded(conv, bn, relu=bn.relu and not adds),
            id(bn): AddReLU(relu=bn.relu and adds),
        }
    # deepcopy takes what is in its memo for the copy, wherever in the model, and however often, it is held.
    return copy.deepcopy(model, memo).eval()


def _folded(conv: Conv2d, bn: BatchNorm2d, *, relu: bool) -> Conv2d:
    """The convolution with the batch norm in its weight and bias, and its ReLU."""
    xp, dtype = backend.array_module(conv.weight.data), conv.weight.dtype
    gamma, beta, mean, var = (
        xp.asarray(array, np.float64)
        for array in (bn.gamma.data, bn.beta.data, bn.running_mean, bn.running_var)
    )
    scale = gamma / xp.sqrt(var + bn.eps)
    bias = 0.0 if conv.bias is None else conv.bias.data
    both = copy.copy(conv)
    both.relu = relu
    both.weight = Parameter((conv.weight.data * scale).astype(dtype))
    both.bias = Parameter((beta + (bias - mean) * scale).astype(dtype))
    both.weight.requires_grad = both.bias.requires_grad = conv.weight.requires_grad
    return both


def _pairs(model: Module, input: tuple[int, int, int] | None) -> Iterator[tuple[Conv2d, BatchNorm2d, bool]]:
    """Yield each convolution whose result one batch norm reads and nothing else, with this batch norm, and
    whether that adds a shortcut."""
    # On this copy's tape stands every parameter, frozen ones too. It shares the arrays of the weights.
    shared: dict[int, Any] = {id(parameter): Parameter(parameter.data) for parameter in model.parameters()}
    probe = copy.deepcopy(model, shared).eval()
    # Whose weight or gamma a leaf is: of two modules where they share it.
    owners: dict[Node | None, set[Module]] = {}
    for (_, module), (_, original) in zip(probe.named_modules(), model.named_modules(), strict=True):
        # What a subclass of these does with its weights is its own affair.
        if type(module) is Conv2d:
            owners.setdefault(module.weight.node, set()).add(original)
        elif type(module) is BatchNorm2d:
            owners.setdefault(module.gamma.node, set()).add(original)
    root = _scores(probe, input).node
    uses = {} if root is None else reachable(root)
    for node in uses:
        if node.op != "batch_norm":
            continue
        x, gamma = node.parents[:2]
        weight = x.parents[1] if x is not None and x.op == "conv2d" else None
        if x is None or weight is None or gamma is None or uses[x] > 1:
            continue
        if all(len(owners.get(leaf, ())) == uses[leaf] == 1 for leaf in (weight, gamma)):
            (conv,), (bn,) = owners[weight], owners[gamma]
            assert isinstance(conv, Conv2d) and isinstance(bn, BatchNorm2d)
            if not conv.relu:
                yield conv, bn, len(node.parents) > 3


def _tensor(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    raise ConfigError(f"the model must return one tensor, not a {type(result).__name__}")


def _scores(model: Module, input: tuple[int, int, int] | None) -> Tensor:
    """What the model makes of one picture of zeros, on the tape."""
    convs = [module for _, module in model.named_modules() if isinstance(module, Conv2d)]
    if not convs:  # nothing to fold
        return Tensor(0.0)
    first = convs[0]
    channels = first.weight.shape[2] * first.groups
    sizes = [(size, size, channels) for size in SIZES] if input is None else [tuple(input)]
    for size in sizes:
        picture = Tensor(np.zeros((1, *size), first.weight.dtype)).to(first.weight.device)
        try:
            with with_settings(recording=True, fused=True), np.errstate(all="ignore"):  # of zeros
                return _tensor(model(picture))
        except ShapeError as error:
            last = error
    tried = ", ".join("x".join(map(str, size)) for size in sizes)
    hint = " Give the size of one that does, (H, W, C), as input=." if input is None else ""
    raise ShapeError(f"a picture of {tried} does not fit the model.{hint} The last said: {last}") from last
