"""abs, maximum, minimum, clip, where: gradients, kinks, NaN, and bounds or conditions that make no sense."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, ops
from minires.errors import MiniresError

OPS = ("abs", "maximum", "minimum", "clip", "where")


@opcheck.on_devices
@opcheck.of(*OPS)
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of(*OPS)
def test_against_torch(case):
    torch = pytest.importorskip("torch")

    def where(a, b, condition):
        return torch.where(torch.tensor(condition), a, b)

    def extreme(a, b=None, number=None):
        b = torch.as_tensor(number, dtype=a.dtype) if b is None else b
        return getattr(torch, case.op)(a, b)

    references = {
        "abs": torch.abs,
        "maximum": extreme,
        "minimum": extreme,
        "clip": lambda x, low, high: torch.clip(x, low, high),
        "where": where,
    }
    opcheck.check_against_torch(case, references[case.op])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ops.abs, lambda torch, x: torch.abs(x)),
        (lambda x: ops.maximum(x, 1.0), lambda torch, x: torch.maximum(x, torch.ones(()))),
        (lambda x: ops.minimum(1.0, x), lambda torch, x: torch.minimum(torch.ones(()), x)),
        (lambda x: ops.clip(x, 0, 1), lambda torch, x: torch.clip(x, 0, 1)),
    ],
)
def test_the_gradient_at_a_kink_is_that_of_torch(ours, theirs):
    torch = pytest.importorskip("torch")
    values = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
    x, u = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    ours(x).backward(np.arange(1.0, 6.0))
    theirs(torch, u).backward(torch.arange(1.0, 6.0))
    assert x.grad.tolist() == u.grad.tolist()


def test_nan_stays_nan():
    x = Tensor([float("nan")])
    for y in (ops.abs(x), ops.maximum(x, 0), ops.minimum(0, x), ops.clip(x, 0, 1)):
        assert np.isnan(y.item())


def test_what_is_not_chosen_has_no_gradient_even_where_it_is_infinite():
    x = Tensor([0.0, 4.0], requires_grad=True)
    with np.errstate(divide="ignore"):
        y = ops.where(x > 0, x, 1 / (x + 1))
        y.backward([np.inf, 2.0])
    assert x.grad.tolist() == [-np.inf, 2]
    assert ops.where(Tensor(np.array([True, False])), 1.0, x).tolist() == [1, 4]


def test_what_makes_no_sense():
    x = Tensor([1.0, 2.0])
    for text, wrong in {
        "clip: give low, high, or both": lambda: ops.clip(x),
        "clip: low must be a number, not 'a'": lambda: ops.clip(x, "a"),
        "clip: high must be a number, not True": lambda: x.clip(0, True),
        "clip: low=2 is above high=1": lambda: ops.clip(x, 2, 1),
        "where: the condition must be of bool, as x > 0 gives, not of float32": lambda: ops.where(x, x, x),
        "where: shapes (3,) and (2,) and () cannot be broadcast": lambda: ops.where([True] * 3, x, 0),
        "maximum: shapes (2,) and (3,) cannot be broadcast": lambda: ops.maximum(x, [1, 2, 3]),
        "minimum: a is float32 but b is float64": lambda: ops.minimum(x, np.ones(2)),
    }.items():
        with pytest.raises(MiniresError, match=re.escape(text)):
            wrong()
