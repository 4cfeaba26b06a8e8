"""reshape, flatten, squeeze, expand_dims, transpose and indexing."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops.reshape import flatten

OPS = ("reshape", "flatten", "squeeze", "expand_dims", "transpose", "getitem")


@opcheck.on_devices
@opcheck.of(*OPS)
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of("reshape", "flatten", "squeeze", "expand_dims", "transpose")
def test_against_torch(case):
    references = {
        "reshape": lambda x, shape: x.reshape(shape),
        "flatten": lambda x: x.reshape(x.shape[0], -1),
        "squeeze": lambda x, axis: x.squeeze() if axis is None else x.squeeze(axis),
        "expand_dims": lambda x, axis: x.reshape(np.expand_dims(np.empty(x.shape), axis).shape),
        "transpose": lambda x, axes: x.permute(axes if axes else tuple(reversed(range(x.ndim)))),
    }
    opcheck.check_against_torch(case, references[case.op])


@opcheck.of("getitem")
def test_indexing_against_torch(case):
    def reference(x, index):
        # Which element goes where is NumPy's word (torch has no negative steps); the gradient is torch's.
        places = np.arange(x.numel()).reshape(x.shape)[index]
        return x.reshape(-1)[pytest.importorskip("torch").tensor(places.copy())]

    opcheck.check_against_torch(case, reference)


def test_methods_take_numbers_or_a_tuple():
    x = Tensor(np.arange(24.0).reshape(2, 3, 4))
    assert x.reshape(4, 6).shape == x.reshape((4, 6)).shape == x.reshape([4, -1]).shape == (4, 6)
    assert x.transpose(2, 0, 1).shape == x.transpose((2, 0, 1)).shape == (4, 2, 3)
    assert x.transpose().shape == (4, 3, 2)
    assert x[1, ::2].shape == (2, 4)
    assert x.T.shape == (4, 3, 2) and x.flatten().shape == (2, 12) and x[:, None].squeeze(1).shape == x.shape


def test_a_tensor_can_be_iterated():
    rows = [row.numpy().tolist() for row in Tensor([[1.0, 2.0], [3.0, 4.0]])]
    assert rows == [[1, 2], [3, 4]]


def test_an_element_read_twice_gets_both_gradients():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    x[Tensor(np.array([2, 0, 2]))].backward([1.0, 10.0, 100.0])
    assert x.grad.tolist() == [10, 0, 101]


def test_shapes_that_do_not_fit():
    x = Tensor(np.ones((2, 3)))
    for shape in ((4,), (2, 2), (-1, -1), (-1, 4), ("a",)):
        text = f"reshape: 6 numbers of shape (2, 3) do not fit in {shape}"
        with pytest.raises(ShapeError, match=re.escape(text)):
            x.reshape(shape)
    for axes in ((0, 0), (0,), (0, 2), (1, 0, 2)):
        with pytest.raises(ShapeError, match="^transpose: ax"):
            x.transpose(axes)
    with pytest.raises(ShapeError, match="flatten: x is a single value"):
        flatten(Tensor(1.0))
    with pytest.raises(ShapeError, match=re.escape("squeeze: axis=1 of shape (2, 3) is not of size 1")):
        x.squeeze(1)
    for axis in (3, -4, (0, 0), None, 0.5):
        with pytest.raises(ShapeError, match="expand_dims: axis="):
            x.expand_dims(axis)
    with pytest.raises(IndexError, match="index 2 is out of bounds for axis 0 with size 2"):
        x[2]
