"""stack and split."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor, ops
from minires.errors import ShapeError
from minires.ops.registry import Case


def _one_part(x, *, which, **options):
    return ops.split(x, **options)[which]


# It is made of other operations, so it is none of the registry.
SPLITS = [
    Case(f"{parts}, axis={axis}, part {which}", {"x": (4, 6)}, options, op="split", fn=_one_part)
    for parts, axis, which in [(2, 0, 1), (3, 1, 0), ([1], -1, 1), ([0, 4], 1, 1), ([2, 2], 0, 2)]
    for options in [{"parts": parts, "axis": axis, "which": which}]
]


@opcheck.on_devices
@opcheck.of("stack")
def test_case(case, device):
    opcheck.check(case, device)


@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_case_of_other_operations(case):
    opcheck.check(case)


@opcheck.of("stack")
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    opcheck.check_against_torch(case, lambda *tensors, axis: torch.stack(tensors, axis))


@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_split_against_torch(case):
    torch = pytest.importorskip("torch")

    def reference(x, parts, axis, which):
        return torch.tensor_split(x, tuple(parts) if isinstance(parts, list) else parts, axis)[which]

    opcheck.check_against_torch(case, reference)


def test_parts_of_a_split_are_those_of_numpy():
    x = np.arange(12.0).reshape(2, 6)
    for parts in (1, 2, 3, 6, [1, 4], [], [0], [6], np.int64(2), np.array([2, 3])):
        ours, theirs = Tensor(x).split(parts, axis=1), np.split(x, parts, axis=1)
        assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]


def test_tensors_are_called_by_their_number_from_one():
    x = Tensor([1.0], requires_grad=True)
    assert ops.stack([x, x, x]).node.names == ("x1", "x2", "x3")


def test_one_tensor_twice_gets_both_gradients():
    x = Tensor([1.0, 2.0], requires_grad=True)
    ops.stack([x, x]).backward([[1.0, 2.0], [10.0, 20.0]])
    assert x.grad.tolist() == [11, 22]


def test_what_does_not_fit():
    a = Tensor(np.ones((2, 3)))
    for text, wrong in {
        "stack: there is nothing to join": lambda: ops.stack([]),
        "stack: tensors[0] is (2, 3) but tensors[1] is (3,)": lambda: ops.stack([a, Tensor(np.ones(3))]),
        "stack: tensors[0] is float64 but tensors[1] is float32": lambda: ops.stack([a, a.astype("float32")]),
        "stack: axis=3 does not fit a tensor of 3 axes": lambda: ops.stack([a], axis=3),
        "split: an axis of 3 cannot be cut into 2 equal parts": lambda: a.split(2, axis=1),
        "split: an axis of 3 cannot be cut into 0 equal parts": lambda: a.split(0, axis=1),
        "split: the places [2, 1] must be in order": lambda: a.split([2, 1], axis=1),
        "split: the places [4] must be in order and at most the axis's size 3": lambda: a.split([4], axis=1),
        "split: a place where a part begins must be a whole number": lambda: a.split([0.5]),
    }.items():
        with pytest.raises(ShapeError, match=re.escape(text)):
            wrong()
