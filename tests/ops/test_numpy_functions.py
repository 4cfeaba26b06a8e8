"""What NumPy's functions give of a tensor: our operation with its gradient, NumPy's answer, or a refusal."""

import math
import re

import numpy as np
import pytest

from minires import Tensor, gradcheck
from minires.errors import MiniresError
from minires.ops import numpy_functions

X = np.array([[1.5, -0.5, 2.0], [0.25, 3.0, -1.0]])
P = np.abs(X) + 0.5  # positive numbers
ROW = np.array([2.0, -1.0, 0.5])

# Each is called with arrays, with tensors, and with both, and must give the same numbers.
OPERATIONS = {
    "add": (lambda x: np.add(x, ROW), X),
    "add, array first": (lambda x: ROW + x, X),
    "subtract": (lambda x: np.subtract(ROW, x), X),
    "multiply": (lambda x: np.multiply(x, 3), X),
    "true_divide": (lambda x: np.true_divide(1, x), P),
    "divide, array first": (lambda x: ROW / x, P),
    "power": (lambda x: np.power(x, 2.5), P),
    "power, array first": (lambda x: np.array([2.0, 1.0, 0.5]) ** x, X),
    "negative": (np.negative, X),
    "positive": (lambda x: np.positive(x) * 1, X),
    "square": (np.square, X),
    "reciprocal": (np.reciprocal, P),
    "exp": (np.exp, X),
    "log": (np.log, P),
    "sqrt": (np.sqrt, P),
    "tanh": (np.tanh, X),
    "absolute": (np.abs, X),
    "fabs": (np.fabs, X),
    "maximum": (lambda x: np.maximum(x, ROW), X),
    "minimum": (lambda x: np.minimum(0.75, x), X),
    "matmul": (lambda x: np.matmul(x, ROW), X),
    "matmul, array first": (lambda x: ROW @ x.T, X),
    "sum": (lambda x: np.sum(x, axis=0, keepdims=True), X),
    "mean": (lambda x: np.mean(x, 1), X),
    "max": (lambda x: np.max(x, axis=1), X),
    "amax": (np.amax, X),
    "min": (lambda x: np.min(x, axis=0), X),
    "amin": (np.amin, X),
    "var": (lambda x: np.var(x, axis=1, ddof=1), X),
    "std": (np.std, X),
    "clip": (lambda x: np.clip(x, -0.75, 1.75), X),
    "clip by names": (lambda x: np.clip(x, a_min=None, a_max=1.75), X),
    "clip from below": (lambda x: np.clip(x, -0.75, None), X),
    "clip, bounds that are arrays": (lambda x: np.clip(x, ROW - 2, ROW), X),
    "clip, a lower bound that is an array": (lambda x: np.clip(x, ROW - 2, None), X),
    "clip, an upper bound that is an array": (lambda x: np.clip(x, None, ROW), X),
    "where": (lambda x: np.where(np.array([True, False, True]), x, 0), X),
    "dot": (lambda x: np.dot(x, ROW), X),
    "dot with a number": (lambda x: np.dot(x, 2.0), X),
    "reshape": (lambda x: np.reshape(x, (3, 2)), X),
    "ravel": (np.ravel, X),
    "transpose": (np.transpose, X),
    "swapaxes": (lambda x: np.swapaxes(x, 0, -1), X),
    "squeeze": (lambda x: np.squeeze(x[None], axis=0), X),
    "expand_dims": (lambda x: np.expand_dims(x, 1), X),
    "broadcast_to": (lambda x: np.broadcast_to(x, (2, 2, 3)), X),
    "broadcast_arrays": (lambda x: np.broadcast_arrays(x[0], ROW, X)[0], X),
    "tile": (lambda x: np.tile(x, (2, 1)), X),
    "repeat": (lambda x: np.repeat(x, 2, axis=1), X),
    "repeat of all": (lambda x: np.repeat(x, 2), X),
    "concatenate": (lambda x: np.concatenate([x, X], axis=1), X),
    "concatenate of all": (lambda x: np.concatenate([X, x], axis=None), X),
    "stack": (lambda x: np.stack([x, X], axis=-1), X),
    "split": (lambda x: np.split(x, [1], axis=1)[1], X),
}  # fmt: skip
ANSWERS = {
    "less": lambda x: np.less(x, ROW), "less_equal": lambda x: np.less_equal(x, 2.0),
    "greater": lambda x: np.greater(ROW, x), "greater_equal": lambda x: ROW >= x,
    "equal": lambda x: ROW == x, "not_equal": lambda x: np.not_equal(x, 2),
    "isnan": np.isnan, "isfinite": np.isfinite, "isinf": np.isinf, "signbit": np.signbit, "sign": np.sign,
    "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint,
    "logical_not": np.logical_not, "logical_and": lambda x: np.logical_and(x, ROW > 0),
    "logical_or": lambda x: np.logical_or(x, x), "logical_xor": lambda x: np.logical_xor(x, 0),
    "argmax": lambda x: np.argmax(x, axis=1), "argmin": np.argmin, "any": np.any,
    "all": lambda x: np.all(x, axis=0, keepdims=True), "where alone": lambda x: np.where(x > 0),
    "shape": np.shape, "ndim": np.ndim, "size": np.size, "iscomplexobj": np.iscomplexobj,
    "isrealobj": np.isrealobj, "result_type": lambda x: np.result_type(x),
    "can_cast": lambda x: np.can_cast(np.asarray(x).dtype, np.float64),
    "array_equal": lambda x: np.array_equal(x, X), "array_equiv": lambda x: np.array_equiv(X, x),
    "allclose": lambda x: np.allclose(x, X + 1e-9), "isclose": lambda x: np.isclose(X, x),
    "isin": lambda x: np.isin(x, [2.0, 3.0]), "argsort": np.argsort,
    "argpartition": lambda x: np.argpartition(x, 1), "nonzero": np.nonzero, "flatnonzero": np.flatnonzero,
    "argwhere": np.argwhere, "count_nonzero": np.count_nonzero,
    "searchsorted": lambda x: np.searchsorted(np.sort(X[0]), x), "round": np.round, "around": np.around,
    "digitize": lambda x: np.digitize(x, [0.0, 1.0]), "histogram": lambda x: np.histogram(x, 3)[0],
    "bincount": lambda x: np.bincount(x[0] > 0), "zeros_like": np.zeros_like, "ones_like": np.ones_like,
    "empty_like": lambda x: np.empty_like(x).shape, "full_like": lambda x: np.full_like(x, 7),
    "array_repr": np.array_repr, "array_str": np.array_str, "array2string": np.array2string,
    "may_share_memory": lambda x: np.may_share_memory(x, X),
    "shares_memory": lambda x: np.shares_memory(x, X),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_the_same_numbers_and_a_gradient(name):
    function, values = OPERATIONS[name]
    y = function(Tensor(values, requires_grad=True))
    assert isinstance(y, Tensor) and y.requires_grad
    assert np.allclose(y.numpy(), function(values), rtol=1e-14, atol=0)
    assert y.shape == function(values).shape
    assert gradcheck(function, [values]).ok


@pytest.mark.parametrize("bounds", [(-0.75, 1.75), (None, 1.75), (-0.75, None)], ids=str)
def test_the_gradient_at_both_ends_of_a_clip_is_that_of_clip(bounds):
    numbers = np.array([-1.0, -0.75, 0.0, 1.75, 2.0])
    ours, theirs = (Tensor(numbers, requires_grad=True) for _ in range(2))
    np.clip(ours, *bounds).sum().backward()
    theirs.clip(*bounds).sum().backward()
    assert np.array_equal(ours.grad, theirs.grad) and ours.grad[1:4].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_question_has_the_answer_of_numpy(name):
    answer, right = ANSWERS[name](Tensor(X, requires_grad=True)), ANSWERS[name](X)
    assert type(answer) is type(right) or isinstance(answer, np.ndarray)
    assert np.array_equal(answer, right)


def test_every_function_of_the_tables_is_tried_above():
    tried = {name.partition(",")[0].partition(" ")[0] for name in (*OPERATIONS, *ANSWERS)}
    known = {
        function.__name__
        for table in (
            numpy_functions._UFUNCS, numpy_functions._UFUNC_QUESTIONS, numpy_functions._FUNCTIONS,
            numpy_functions._QUESTIONS,
        )
        for function in table
    }  # fmt: skip
    assert known - tried == {"copyto", "save", "savez", "savez_compressed", "savetxt"}


def test_arrays_of_numpy_take_the_numbers(tmp_path):
    x, there = Tensor(X), np.zeros_like(X)
    np.copyto(there, x)
    assert np.array_equal(there, X)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", one=x)
    np.savez_compressed(tmp_path / "small.npz", x)
    np.savetxt(tmp_path / "x.txt", x)
    assert np.array_equal(np.load(tmp_path / "x.npy"), X)
    assert np.array_equal(np.load(tmp_path / "x.npz")["one"], X)
    assert np.array_equal(np.load(tmp_path / "small.npz")["arr_0"], X)
    assert np.allclose(np.loadtxt(tmp_path / "x.txt"), X)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("numpy.sin is no operation of minires: no gradient would flow through its result. Write it with the "
         "operations of minires.ops, or numpy.sin of x.numpy() for the numbers alone", np.sin),
        ("numpy.log1p is no operation of minires: no gradient would flow through its result. "
         "Write np.log(1 + x) instead, or numpy.log1p of x.numpy()", np.log1p),
        ("numpy.median is no operation", np.median),
        ("numpy.linalg.norm is no operation of minires: no gradient would flow through its result. "
         "Write np.sqrt((x * x).sum(axis)) instead", np.linalg.norm),
        ("numpy.add.reduce is no operation of minires: no gradient would flow through its result. "
         "Write x.sum(axis) instead", np.add.reduce),
        ("numpy.multiply.outer is no operation", lambda x: np.multiply.outer(ROW, x)),
        ("numpy.dot is no operation", lambda x: np.dot(X, x.reshape(1, 3, 2))),
        ("numpy.sum of a tensor: got an unexpected keyword argument 'dtype'; those it can take are x, axis, "
         "keepdims", lambda x: np.sum(x, dtype=np.float64)),
        ("numpy.exp of a tensor takes no where=", lambda x: np.exp(x, where=X > 0)),
        ("numpy.add: no tape follows numbers that are written into an array",
         lambda x: np.add(x, 1, out=np.empty((2, 3)))),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(text, wrong):
    with pytest.raises(MiniresError, match=re.escape(text)):
        wrong(Tensor(X, requires_grad=True))


def test_an_array_cannot_be_changed_by_a_tensor_but_by_its_numbers():
    array = X.copy()
    with pytest.raises(MiniresError, match=re.escape("array += tensor.numpy() for the numbers alone")):
        array += Tensor(X)
    array += Tensor(X).numpy()
    assert np.array_equal(array, 2 * X)


def test_what_is_no_number_is_refused_by_numpy_itself():
    with pytest.raises(TypeError):
        np.less(Tensor(X), "x")
    with pytest.raises(TypeError, match="add: an operand must be a tensor, an array or a number"):
        np.add(Tensor(X), "x")


def test_advice_names_functions_that_are_refused_and_works():
    """Each line of advice, written out, has the numbers of the function that it stands for."""
    x, y = Tensor(P), Tensor(P[::-1].copy())
    for name, ours, theirs in [
        ("log1p", np.log(1 + x), np.log1p(P)),
        ("log2", np.log(x) / np.log(2), np.log2(P)),
        ("expm1", np.exp(x) - 1, np.expm1(P)),
        ("exp2", 2**x, np.exp2(P)),
        ("hypot", np.sqrt(x * x + y * y), np.hypot(P, P[::-1])),
        ("linalg.norm", np.sqrt((x * x).sum()), np.linalg.norm(P)),
        ("ptp", x.max(1) - x.min(1), np.ptp(P, 1)),
        ("diff", x[..., 1:] - x[..., :-1], np.diff(P)),
        ("flipud", x[::-1], np.flipud(P)),
        ("fliplr", x[:, ::-1], np.fliplr(P)),
        ("cumsum", x[0] @ np.triu(np.ones((3, 3))), np.cumsum(P[0])),
        ("multiply.outer", x[0][:, None] * y[1], np.multiply.outer(P[0], P[0])),
    ]:
        assert name in numpy_functions._INSTEAD
        assert np.allclose(ours.numpy(), theirs, rtol=1e-14, atol=0), name
    known = {function.__name__ for function in (*numpy_functions._UFUNCS, *numpy_functions._FUNCTIONS)}
    assert not (known - {"dot"}) & set(numpy_functions._INSTEAD)


@pytest.mark.parametrize("x", [np.array([3.0, -1.0, 2.0]), np.array([[1.0, -2.0], [4.0, 3.5], [-1.0, 0.5]])])
@pytest.mark.parametrize(
    "name", ["log1p", "log2", "log10", "expm1", "exp2", "diff", "ptp", "copy", "flipud", "nan_to_num"]
)
def test_what_is_advised_gives_the_numbers_of_numpy(name, x):
    x = x + 5 if "log" in name else x
    wanted = getattr(np, name)(x, axis=0) if name == "ptp" else getattr(np, name)(x)
    advice = numpy_functions._INSTEAD[name].replace("axis", "0")
    got = eval(advice, {"np": np, "math": math, "x": Tensor(x)})
    assert np.allclose(np.asarray(got), wanted, rtol=1e-12)
