"""Values of a wrong kind are refused in words, where they are given: tensors, tape, optimisers, layers."""

from __future__ import annotations

import numpy as np
import pytest

import minires
from minires import nn, optim
from minires.errors import MiniresError
from minires.nn import Parameter
from minires.optim import SGD, Adam
from minires.tensor import Tensor, record
from minires.train.ema import EMA


def with_gradient():
    return Tensor([1.0, 2.0], requires_grad=True)


def recorded(*, op="c", data=None, options=None, saved=None):
    x = with_gradient()
    return record(
        op, x.data * 2 if data is None else data, inputs={"x": x}, backward=lambda dy: (2 * dy,),
        **({} if options is None else {"options": options}), **({} if saved is None else {"saved": saved}),
    )  # fmt: skip


def stepped(**attributes):
    w = Parameter([1.0])
    optimizer = SGD([w], lr=0.1, clip_norm=1.0)
    vars(optimizer).update(attributes)
    w.grad = np.ones(1, np.float32)
    optimizer.step()


class OneSlot(optim.Optimizer):
    slots = "average"

    @staticmethod
    def plain(w, g, average, lr):
        w -= lr * g


WRONG = {
    "a hook that is no function": (lambda: with_gradient().register_hook(None), "takes a function"),
    "requires_grad as text": (lambda: Tensor([1.0], requires_grad="no"), "requires_grad must be True or"),
    "requires_grad set to text": (lambda: setattr(with_gradient(), "requires_grad", "a"), "True or False"),
    "reference of text": (lambda: minires.reference("a"), "reference must be True or False"),
    "an operation without a name": (lambda: recorded(op=None), "the name of the operation first"),
    "an operation named by a number": (lambda: recorded(op=3), "the name of the operation first"),
    "options in a list": (lambda: recorded(options=[1]), "options and saved by name"),
    "saved in a list": (lambda: recorded(saved=[np.ones(2)]), "options and saved by name"),
    "a saved tensor": (lambda: recorded(saved={"x": Tensor([1.0])}), "saves arrays, such as x.data; x is"),
    "a result of whole numbers": (lambda: recorded(data=np.array([1, 2])), "c: its result is int64, but a"),
    "float16 on the tape": (lambda: with_gradient().astype("float16"), "astype: its result is float16, but"),
    "a rate below 0 later": (lambda: stepped(lr=-1), "lr is -1; it must be at least 0"),
    "a rate that is NaN later": (lambda: stepped(lr=float("nan")), "lr is nan"),
    "a rate as text later": (lambda: stepped(lr="a"), "lr must be a number, not 'a'"),
    "a rate that is a truth value": (lambda: stepped(lr=True), "lr must be a number, not True"),
    "a norm as text": (
        lambda: SGD([with_gradient()], lr=0.1, clip_norm=1.0).step(norm="a"), "norm is the gradient_norm"
    ),
    "no state": (lambda: Adam([with_gradient()]).load_state_dict(None), "state of an optimiser is a dict"),
    "no recipe": (lambda: optim.build(None, [with_gradient()]), "an optimizer must be a dict of options"),
    "slots as text": (lambda: OneSlot([with_gradient()], lr=0.1), "slots of OneSlot must be a tuple"),
    "an average of nothing": (lambda: EMA(None), "ema: the model must be a module, not a NoneType"),
    "no averages": (lambda: EMA(nn.Linear(2, 2)).load_state_dict(None), "averaged weights are a dict"),
    "gradcheck of a number": (lambda: minires.gradcheck(lambda x: x, 3), "gradcheck takes a function"),
    "gradcheck of no function": (lambda: minires.gradcheck(None, [1.0]), "gradcheck takes a function"),
    "a start as text": (lambda: nn.BatchNorm2d(2, start="a"), "start must be a number, not 'a'"),
    "a start that is NaN": (lambda: nn.BatchNorm2d(2, start=float("nan")), "start is nan"),
    "a border as text": (lambda: nn.Pad2d("1"), "Pad2d: padding must be"),
    "an unknown reduction": (lambda: nn.CrossEntropyLoss(reduction="avg"), "reduction must be one of"),
    "smoothing above 1": (lambda: nn.CrossEntropyLoss(label_smoothing=2), "label_smoothing is 2"),
    "an ignored class as text": (lambda: nn.CrossEntropyLoss(ignore_index="1"), "ignore_index must be a"),
    "a negative weight": (lambda: nn.CrossEntropyLoss(weight=[1, -1]), r"weight\[1\] is -1"),
    "a misspelt padding": (lambda: nn.Conv2d(1, 1, 3, padding="sam"), "Conv2d: padding must be one of"),
    "a padding of truth values": (
        lambda: minires.ops.conv_transpose2d(
            Tensor(np.ones((1, 3, 3, 1))), Tensor(np.ones((2, 2, 1, 1))), padding=np.array([True, False])
        ),
        "conv_transpose2d: padding must be",
    ),
    "a single place to cut": (lambda: with_gradient().split(np.array(0.5)), "split: parts must be"),
    "a bias as text": (lambda: nn.Conv2d(1, 1, 3, bias="yes"), "bias must be True or False, not 'yes'"),
    "a correction that is NaN": (lambda: with_gradient().var(correction=float("nan")), "must be a number"),
    "a bound that is NaN": (lambda: with_gradient().clip(float("nan"), 1), "clip: low must be a number"),
    "keepdims as a number": (lambda: with_gradient().sum(keepdims=1), "keepdims must be True or False"),
    "a device that is a number": (lambda: with_gradient().to(0), "unknown device 0"),
    "a dtype that is none": (lambda: with_gradient().astype("same"), "'same' is no dtype"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_it_is_refused_in_words(call, message):
    with pytest.raises(MiniresError, match=message):
        call()


def test_the_running_statistics_are_those_of_the_batch_where_all_is_replaced():
    """However small they are beside those of before."""
    x = (np.random.default_rng(0).standard_normal((4096, 1)) * 1e-4).astype("f4")
    for convention, momentum in (("torch", 1.0), ("keras", 0.0)):
        for reference in (False, True):
            norm = nn.BatchNorm2d(1, convention=convention, momentum=momentum)
            with minires.reference(reference):
                norm(Tensor(x))
            wide = x.astype("f8")
            expected = wide.var(ddof=1) if convention == "torch" else wide.var()
            np.testing.assert_allclose(norm.running_var, expected, rtol=1e-5)
            np.testing.assert_allclose(norm.running_mean, wide.mean(), rtol=1e-4)
