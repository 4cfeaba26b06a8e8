"""add, sub, mul, div, neg, pow, power, exp, log, sqrt: gradients, broadcasting, dtypes, bad operands."""

import re

import numpy as np
import opcheck
import pytest

from minires import Tensor
from minires.errors import ShapeError
from minires.ops import arithmetic

OPS = ("add", "sub", "mul", "div", "neg", "pow", "power", "exp", "log", "sqrt")


@opcheck.on_devices
@opcheck.of(*OPS)
def test_case(case, device):
    opcheck.check(case, device)


@opcheck.of(*OPS)
def test_against_torch(case):
    torch = pytest.importorskip("torch")
    plain = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "neg": lambda x: -x,
        "pow": lambda x, exponent: x**exponent,
        "power": lambda a, b: a**b,
        "exp": torch.exp,
        "log": torch.log,
        "sqrt": torch.sqrt,
    }

    def reference(*tensors, number=None, first=False, **options):
        if number is not None:
            tensors = (number, *tensors) if first else (*tensors, number)
        return plain[case.op](*tensors, **options)

    opcheck.check_against_torch(case, reference)


def test_operators_are_the_functions():
    a, b = Tensor([1.0, 2.0]), Tensor([3.0, 5.0])
    values = {
        "a + b": (a + b, [4, 7]), "a - b": (a - b, [-2, -3]), "a * b": (a * b, [3, 10]),
        "b / a": (b / a, [3, 2.5]), "-a": (-a, [-1, -2]), "a ** 2": (a**2, [1, 4]), "2 / a": (2 / a, [2, 1]),
        "1 + a": (1 + a, [2, 3]), "1 - a": (1 - a, [0, -1]), "2 * a": (2 * a, [2, 4]), "+a": (+a, [1, 2]),
        "a ** b": (a**b, [1, 32]), "2 ** a": (2**a, [2, 4]), "abs(-a)": (abs(-a), [1, 2]),
        "a + [1, 2]": (a + [1, 2], [2, 4]), "sum([a, b])": (sum([a, b]), [4, 7]),
    }  # fmt: skip
    for text, (got, expected) in values.items():
        assert got.numpy().tolist() == expected, text
        assert got.dtype == np.float32, text


@pytest.mark.parametrize("number", [2, 0.5, True, np.float32(0.5), np.float64(0.5), np.int64(2), np.True_])
@pytest.mark.parametrize("dtype", opcheck.DTYPES)
def test_a_number_takes_the_dtype_of_the_tensor(number, dtype):
    x = Tensor(np.ones((2, 2), dtype))
    for y in (x + number, number - x, x * number, number / x):
        assert isinstance(y, Tensor) and y.dtype == dtype and y.shape == (2, 2)
    assert (number * x).numpy()[0, 0] == float(number)
    assert (x**number).dtype == dtype and (number**x).dtype == dtype
    assert (x + [number, number]).dtype == dtype


def test_truth_values_are_one_and_zero():
    x = Tensor([-2.0, 3.0], requires_grad=True)
    y = x * (x > 0)
    y.sum().backward()
    assert y.tolist() == [0, 3] and x.grad.tolist() == [0, 1]
    assert (Tensor(np.array([True, False])) - x).tolist() == [3, -3]


def test_an_array_on_the_left_asks_the_tensor():
    x = Tensor(np.full((2, 2), 3.0), requires_grad=True)
    y = np.array([1.0, 2.0]) * x
    assert isinstance(y, Tensor) and y.numpy().tolist() == [[3, 6], [3, 6]]
    y.sum().backward()
    assert x.grad.tolist() == [[1, 2], [1, 2]]


def test_dtypes_are_never_mixed():
    with pytest.raises(ShapeError, match=re.escape("add: a is float32 but b is float64")):
        Tensor(np.ones(2, np.float32)) + Tensor(np.ones(2))
    with pytest.raises(ShapeError, match=re.escape("mul: a is int64, but float32 or float64 is needed")):
        Tensor(np.ones(2, np.int64)) * 2.0


def test_shapes_that_cannot_be_broadcast():
    with pytest.raises(ShapeError, match=re.escape("div: shapes (2, 3) and (2,) cannot be broadcast")):
        Tensor(np.ones((2, 3))) / Tensor(np.ones(2))


@pytest.mark.parametrize("operand", ["two", None, object()])
def test_operands_that_are_no_arrays(operand):
    with pytest.raises(TypeError, match="sub: an operand must be a tensor, an array or a number"):
        Tensor([1.0]) - operand


def test_an_exponent_must_be_a_number_or_an_array():
    with pytest.raises(
        TypeError, match="power: an operand must be a tensor, an array or a number, not 'two'"
    ):
        Tensor([1.0]) ** "two"


def test_gradients_of_a_power_at_its_edges_are_those_of_torch():
    torch = pytest.importorskip("torch")
    base, exponent = [0.0, 0.0, 0.0, 2.0, -2.0, -2.0], [0.0, 2.0, 1.0, 0.0, 3.0, 2.0]
    a, b = (Tensor(np.array(numbers), requires_grad=True) for numbers in (base, exponent))
    u, v = (torch.tensor(numbers, dtype=torch.float64, requires_grad=True) for numbers in (base, exponent))
    with np.errstate(invalid="ignore"):  # the logarithm of a negative base
        (a**b).backward(np.ones(6))
    (u**v).backward(torch.ones(6))
    assert np.array_equal(a.grad, u.grad.numpy())
    assert np.array_equal(b.grad, v.grad.numpy(), equal_nan=True) and np.isfinite(b.grad[:4]).all()


def test_the_power_zero_has_no_gradient_even_at_zero():
    x = Tensor([0.0, 2.0], requires_grad=True)
    arithmetic.pow(x, 0).sum().backward()
    assert x.grad.tolist() == [0, 0]


def test_the_sum_keeps_no_operand_alive():
    a = Tensor(np.ones(3), requires_grad=True)
    y = a + Tensor(np.ones(3))
    held = [cell.cell_contents for cell in y.node.backward.__closure__]
    assert not any(isinstance(content, np.ndarray) for content in held)
