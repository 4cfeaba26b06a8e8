"""The tensor and the tape: where gradients go, in which order, and what is said when they cannot; what Python
and NumPy ask of a tensor."""

import ast
import copy
import gc
import importlib
import inspect
import math
import operator
import re
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import minires
from minires import Tensor, no_grad, ops, tensor
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.nn import Parameter
from minires.ops.linear import linear
from minires.ops.relu import relu
from minires.tensor import is_recording, record, set_apart, with_settings


def leaf(*values, dtype=np.float64, name=None):
    return Tensor(np.array(values, dtype), requires_grad=True, name=name)


# ------------------------------------------------------------------------------------ what a tensor is


def test_numbers_and_lists_become_float32_and_arrays_keep_their_dtype():
    assert Tensor([1, 2]).dtype == Tensor(1.5).dtype == np.float32
    for dtype in (np.float32, np.float64, np.int64, np.uint8):
        assert Tensor(np.ones(2, dtype)).dtype == dtype
    scalar = Tensor(np.float64(2))
    assert isinstance(scalar.data, np.ndarray) and scalar.dtype == np.float64 and scalar.shape == ()


def test_shape_size_and_so_on():
    x = Tensor(np.ones((2, 3), np.float32), name="pictures")
    assert (x.shape, x.ndim, x.size, len(x), x.device, x.name) == ((2, 3), 2, 6, 2, "cpu", "pictures")
    assert x.grad is None and not x.requires_grad and x.node is None
    assert x.numpy() is x.data


def test_repr_says_what_it_is():
    x = leaf(1.0, name="w")
    assert repr(x) == "Tensor([1.], dtype=float64, requires_grad=True, name='w')"
    assert repr(x * 2) == "Tensor([2.], dtype=float64, requires_grad=True, op='mul')"


@pytest.mark.parametrize(
    ("shape", "whole"),
    [((100,), True), ((101,), False), ((12, 8), True), ((13, 7), False), ((10, 10), True), ((13, 1), False)],
)
def test_repr_shows_a_hundred_numbers_in_twelve_lines_at_most(shape, whole):
    x = Tensor(np.zeros(shape))
    shown = str(x.data) if whole else f"shape {shape}, from 0 to 0, mean 0"
    assert repr(x) == f"Tensor({shown}, dtype=float64)"


def test_item():
    assert Tensor([[2.5]]).item() == 2.5 and isinstance(Tensor(2.5).item(), float)
    with pytest.raises(ShapeError, match=re.escape("item() needs a tensor of one value, not of shape (2,)")):
        Tensor([1, 2]).item()
    with pytest.raises(ShapeError, match="item"):
        Tensor(np.ones(0)).item()


def test_what_holds_no_numbers_is_no_tensor():
    for wrong in (None, "a", [1, None], {}, object(), ["a"]):
        with pytest.raises(
            ShapeError, match="a tensor is made of numbers, lists of numbers, or arrays, not of"
        ):
            Tensor(wrong)
    with pytest.raises(ShapeError, match="lists of equal lengths"):
        Tensor([[1], [2, 3]])
    for array in (np.array(["a"]), np.array([None]), np.array(["2020-01-01"], "M8[D]")):
        with pytest.raises(ShapeError, match="a tensor holds numbers, but the array is of dtype"):
            Tensor(array)
    with pytest.raises(
        MiniresError, match="a list of tensors would be copied without their gradients; use ops.st"
    ):
        Tensor([leaf(1.0), leaf(2.0)])


def test_arrays_of_other_libraries_become_arrays():
    torch = pytest.importorskip("torch")
    x = Tensor(torch.ones(2, dtype=torch.float64))
    assert isinstance(x.data, np.ndarray) and x.dtype == np.float64


def test_arrays_of_other_classes_lose_the_rules_of_their_class(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2,))
    for special in (np.matrix([[1.0, 2.0]]), mapped):
        x = Tensor(special)
        assert type(x.data) is np.ndarray and x.dtype == special.dtype and x.shape == special.shape
        assert np.shares_memory(x.data, special)


def test_only_dtypes_that_operations_know_have_a_gradient():
    for dtype in (np.float16, np.longdouble, np.int32, bool):
        x = Tensor(np.ones(2, dtype))
        with pytest.raises(ShapeError, match=f"tensors have gradients, not {x.dtype}"):
            x.requires_grad = True
        assert not x.requires_grad


def test_integers_have_no_gradient():
    with pytest.raises(ShapeError, match="float32, float64 and bfloat16 tensors have gradients, not int64"):
        Tensor(np.arange(3), requires_grad=True)


def test_dtypes_are_never_mixed():
    with pytest.raises(ShapeError, match="float64 .*float32"):
        leaf(1.0) * leaf(1.0, dtype=np.float32)


def test_requires_grad_can_be_set_on_leaves_only():
    x = Tensor([1.0])
    x.requires_grad = True
    y = x * 2
    y.backward()
    assert x.grad.tolist() == [2]
    with pytest.raises(MiniresError, match="leaf tensors only"):
        y.requires_grad = False
    x.requires_grad = False
    assert not (x * 2).requires_grad


# ------------------------------------------------------------------------------------- Python and NumPy


def test_numpy_takes_the_numbers():
    x = leaf(1.0, 2.0)
    assert np.asarray(x) is x.data and np.array(x) is not x.data and np.array(x, copy=False) is x.data
    assert np.asarray(x, dtype=np.float32).dtype == np.float32 and np.asarray(x).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.array(x, dtype=np.float32, copy=False)
    assert np.array([x.sum(), x.mean()]).tolist() == [3, 1.5]
    assert np.asarray(x.astype("bfloat16")).tolist() == [1, 2]


def test_python_takes_a_single_value_as_a_number():
    loss = (leaf(1.5, 2.0) * 2).sum()
    assert float(loss) == 7.0 and int(loss) == 7 and math.sqrt(loss + 2) == 3.0
    assert f"{loss:.3f}" == "7.000" and f"{Tensor([[7.0]]):5.1f}" == "  7.0" and f"{loss}" == str(loss)
    assert loss and not Tensor(0.0) and not Tensor([[False]])
    three = Tensor(np.array(3))
    assert [10, 20, 30, 40][three] == 40 and list(range(three)) == [0, 1, 2] and operator.index(three) == 3


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (float, ShapeError, "float() needs a tensor of one value, not of shape (2,)"),
        (int, ShapeError, "int() needs a tensor of one value, not of shape (2,)"),
        (
            bool,
            ShapeError,
            "a tensor of shape (2,) is neither true nor false; say with .any() or .all() which",
        ),
        (lambda x: f"{x:.2f}", ShapeError, "the format '.2f' needs a tensor of one value, not of shape (2,)"),
        (operator.index, TypeError, "only tensors of whole numbers can be an index, not of float64"),
        (lambda x: operator.index(Tensor(np.arange(2))), ShapeError, "an index needs a tensor of one value"),
        (lambda x: len(x.sum()), TypeError, "a tensor of a single value, shape (), has no length"),
        (lambda x: list(x.sum()), TypeError, "a tensor of a single value, shape (), has no length"),
        (lambda x: x // 2, TypeError, "unsupported operand"),
    ],
)
def test_what_cannot_be_asked_of_many_values(ask, error, text):
    with pytest.raises(error, match=re.escape(text)):
        ask(leaf(1.0, 2.0))


def test_lists_and_members():
    x = leaf(1.0, 2.0)
    assert x.tolist() == [1, 2] and x.sum().tolist() == 3 and 2 in x and 3 not in x and None not in x
    first, second = x
    (first * 3 + second).backward()
    assert x.grad.tolist() == [3, 1] and max(x).item() == 2 and sum(x).item() == 3


def test_a_tensor_is_a_key_as_the_object_that_it_is():
    x, y = leaf(1.0, 2.0), leaf(1.0, 2.0)
    names = {x: "x", y: "y"}
    assert names[x] == "x" and names[y] == "y" and len({x, y, x}) == 2 and hash(x) != hash(y)
    assert (x == y).all() and x.detach() not in names


def test_the_package_never_asks_whether_tensors_are_equal_or_true(monkeypatch, tmp_path):
    def refuse(self, other=None):
        raise AssertionError("== or the truth of a tensor was asked for")

    for name in ("__eq__", "__ne__", "__bool__", "__contains__"):
        monkeypatch.setattr(Tensor, name, refuse)
    model = minires.models.build("resnet20_cifar")
    x, labels = np.zeros((2, 8, 8, 3), np.float32), np.array([1, 2])
    optimizer = minires.optim.Adam(model.named_parameters())
    loss = ops.cross_entropy(model(Tensor(x)), labels)
    assert minires.unused_parameters(loss, model) == []
    loss.backward()
    optimizer.step()
    copy.deepcopy(model).load_state_dict(model.state_dict())
    minires.fuse(model)
    minires.step(model, x, labels).goto("fc")
    model.summary(input=(8, 8, 3))
    if importlib.util.find_spec("onnx"):
        importlib.import_module("minires.weights.onnx").export_onnx(model, tmp_path / "model.onnx", (8, 8, 3))


def test_mypy_sees_the_methods_that_are_bound():
    """The block for mypy in the class names the same methods as the table of minires.ops, with the same
    arguments."""
    tree = ast.parse(inspect.getsource(Tensor))
    block = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {node.name: node for node in block.body if isinstance(node, ast.FunctionDef)}
    assert seen.keys() == ops._METHODS.keys()
    for name, node in seen.items():
        bound = ops._METHODS[name]
        if name.startswith("__") or isinstance(bound, property):
            continue
        taken = list(inspect.signature(bound).parameters.values())[1:]
        arguments = [
            *node.args.args[1:],
            *([node.args.vararg] if node.args.vararg else []),
            *node.args.kwonlyargs,
        ]
        assert [one.arg for one in arguments] == [one.name for one in taken], name
        assert len(node.args.kwonlyargs) == sum(one.kind is one.KEYWORD_ONLY for one in taken), name


def test_mypy_sees_what_a_user_does_wrong(tmp_path):
    pytest.importorskip("mypy")
    right = [
        "x + np.ones(1) + 2 + [1] + np.float32(2)",
        "2 ** x",
        "x.T @ x",
        "(x > 2).sum()",
        "x.sum((0, 1))",
        "w -= 0.1",
        "layer.weight *= 2",
    ]
    wrong = [
        "x + 'a'", "x * None", "x.sum(axis='rows')", "x.sum(0, True)", "x.reshape('a')", "x.dance()",
        "x.flatten(1)", "x.repeat()", "x.backward(retain=True)", "x.argmax(axis=(0, 1))", "ops.stack(x)",
        "ops.clip(x, 'low')", "ops.maximum(x, 'a')", "ops.conv2d(x)", "ops.relu(x, y)", "minires.no_gard()",
        "minires.Tensr(1)", "minires.optim.SDG",
    ]  # fmt: skip
    program = tmp_path / "program.py"
    head = (
        "import minires, numpy as np\nfrom minires import Tensor, nn, ops\n"
        "x, w = Tensor(1.0), nn.Parameter(1.0)\n"
        "layer = nn.Linear(2, 2)\n"
    )
    program.write_text(head + "\n".join(right + wrong) + "\nx[0] = 1\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path),
        str(program),
    ]
    answer = subprocess.run(command, capture_output=True, text=True).stdout
    lines = {int(line.split(":")[1]) for line in answer.splitlines() if ": error:" in line}
    first = 5 + len(right)
    assert lines == set(range(first, first + len(wrong) + 1)), answer


def test_what_other_libraries_call_a_method_is_named():
    x = Tensor([[1.0, 2.0]])
    hints = {"view": r"x\.reshape", "unsqueeze": "expand_dims", "cuda": "to..cuda", "clamp": "clip"}
    for name, hint in hints.items():
        with pytest.raises(AttributeError, match=f"a tensor has no '{name}'; write .*{hint}"):
            getattr(x, name)
    with pytest.raises(AttributeError, match="^'Tensor' object has no attribute 'reshap'$") as caught:
        _ = x.reshap
    assert (caught.value.name, caught.value.obj) == ("reshap", x)  # from which Python finds the nearest
    assert not [name for name in tensor._ELSEWHERE if hasattr(Tensor, name)]


def test_what_is_wrong_in_a_property_of_a_subclass_is_said():
    class Odd(Tensor):
        @property
        def bad(self):
            return self.nothing

    with pytest.raises(AttributeError, match="'Odd' object has no attribute 'nothing'"):
        _ = Odd([1.0]).bad


class OfAnotherLibrary:
    """An array that NumPy can have, or not."""

    dtype = "its own"

    def __init__(self, numbers):
        self.numbers = numbers

    def __array__(self, dtype=None, copy=None):
        if self.numbers is None:
            raise RuntimeError("it lies on another machine")
        return np.array(self.numbers, dtype)


def test_arrays_of_other_libraries_are_operands_or_say_why_not():
    theirs, x = OfAnotherLibrary([3.0, 4.0]), Tensor(np.array([1.0, 2.0]))
    for y in (x * theirs, theirs * x, ops.mul(theirs, x), ops.mul(x, theirs)):
        assert isinstance(y, Tensor) and y.tolist() == [3.0, 8.0]
    assert ops.relu(theirs).tolist() == ops.where([True, True], theirs, x).tolist() == [3.0, 4.0]
    assert (x < theirs).tolist() == [True, True]
    assert x[OfAnotherLibrary([1, 1])].tolist() == [2.0, 2.0]
    assert ops.where(OfAnotherLibrary([True, False]), x, -x).tolist() == [1.0, -2.0]
    row = Tensor([[0.0, 1.0]])
    ours = ops.cross_entropy(row, np.array([1]), weight=np.array([1.0, 2.0]))
    loss = ops.cross_entropy(row, OfAnotherLibrary([1]), weight=OfAnotherLibrary([1.0, 2.0]))
    assert loss.item() == ours.item()
    for use in (Tensor, lambda one: x + one, lambda one: one - x, ops.exp, lambda one: x > one):
        with pytest.raises(MiniresError, match=r"OfAnotherLibrary does not become a NumPy .* \(it lies"):
            use(OfAnotherLibrary(None))


def test_a_tensor_in_a_list_inside_a_list_is_not_taken_off_the_tape():
    x = leaf(1.0, 2.0)
    for made in ([[x], [x]], [(x, 1)], [[[1.0, x]]]):
        with pytest.raises(MiniresError, match="copied without their gradients; use ops.stack"):
            Tensor(made)


# ------------------------------------------------------------------------------------- where gradients go


def test_a_deep_copy_is_a_leaf_of_its_own():
    x, fixed = leaf(1.0, 2.0, name="w"), Parameter(np.ones(2))
    x.grad, fixed.requires_grad = np.ones(2), False
    x.register_hook(lambda gradient: gradient * 100)
    y, other = copy.deepcopy([x, fixed])
    assert (y.grad, y.name, y.requires_grad, other.requires_grad, type(other)) == (
        None, "w", True, False, Parameter,
    )  # fmt: skip
    (y * 3).sum().backward()
    assert y.grad.tolist() == [300, 300] and x.grad.tolist() == [1, 1]
    y.data[...] = 7
    assert x.numpy().tolist() == [1, 2]
    with pytest.raises(MiniresError, match="only leaf tensors can be copied; use detach()"):
        copy.deepcopy(x * 2)


def test_leaves_set_apart_get_their_gradients_back_afterwards():
    x, hooked = leaf(1.0, 2.0), []
    (x * 2).sum().backward()
    x.register_hook(hooked.append)
    y = x * 5
    with set_apart([x]):
        assert x.grad is None
        (x * 3).sum().backward()
        assert x.grad.tolist() == [3, 3] and not hooked
    assert x.grad.tolist() == [2, 2]
    y.sum().backward()
    assert x.grad.tolist() == [7, 7] and len(hooked) == 1


def test_a_tensor_used_twice_gets_the_sum():
    x = leaf(3.0)
    (x * x + x).backward()
    assert x.grad.tolist() == [7]


def test_a_tensor_used_early_and_late_gets_the_sum():
    x, w = leaf(2.0), leaf(5.0)
    y = x * w
    for _ in range(3):
        y = y * x  # in the end w * x ** 4
    (y + x).backward()
    assert x.grad.tolist() == [4 * 5 * 8 + 1] and w.grad.tolist() == [16]


def test_many_paths_are_walked_once_each():
    """Sixty doublings: 2 ** 60 paths, 60 steps."""
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    steps = list(y.backward_steps())
    assert len(steps) == 60 and x.grad.tolist() == [2.0**60]


def test_a_chain_of_a_hundred_thousand_additions():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + x
    y.backward()
    assert x.grad.tolist() == [100_001]


def test_a_chain_that_is_dropped_without_a_backward():
    y = leaf(1.0)
    for _ in range(100_000):
        y = y + 1
    del y  # freeing it must not recurse either


def test_a_network_of_a_thousand_and_one_layers():
    factors = np.random.default_rng(0).uniform(0.9, 1.1, 1001)
    weights = [leaf([factor]) for factor in factors]
    y = Tensor(np.ones((1, 1)))
    for w in weights:
        y = relu(linear(y, w))
    y.backward()
    expected = np.prod(factors) / factors
    assert np.allclose([w.grad.item() for w in weights], expected, rtol=1e-11)


def test_gradients_add_up_over_backwards():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    first = x.grad
    (x * 4).sum().backward()
    assert x.grad.tolist() == [7, 7]
    assert first.tolist() == [3, 3], "an array that was handed out is not changed later"


def test_no_two_gradients_are_one_array():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    dy = np.array([1.0, 1.0])
    (a + b).backward(dy)
    a.grad *= 10
    assert b.grad.tolist() == [1, 1] and dy.tolist() == [1, 1]


def test_the_gradient_has_the_shape_and_dtype_of_the_tensor():
    for dtype in (np.float32, np.float64):
        for shape in ((), (3,), (2, 1)):
            x = Tensor(np.ones(shape, dtype), requires_grad=True)
            (x * 2).sum().backward()
            assert isinstance(x.grad, np.ndarray) and x.grad.shape == shape and x.grad.dtype == dtype


def test_a_gradient_that_is_set_becomes_one_of_the_tensor():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True, name="w")
    fitting = np.full((2, 3), 0.5, np.float32)
    x.grad = fitting
    assert x.grad is fitting
    for wider in (fitting.astype(np.float64), fitting.astype(np.float16)):
        x.grad = wider
        assert x.grad.dtype == np.float32 and np.array_equal(x.grad, fitting)
    for wrong, text in (
        (np.ones((3, 2), np.float32), "the gradient of w is of shape (3, 2), but the tensor is of shape (2,"),
        (np.ones((2, 3), int), "an array of floats of shape (2, 3), or None, not an array of int64"),
        (1.0, "an array of floats of shape (2, 3), or None, not a float"),
    ):
        with pytest.raises(ShapeError, match=re.escape(text)):
            x.grad = wrong
    x.grad = None
    assert x.grad is None


def test_what_was_not_given_or_not_saved_does_not_stand_on_the_tape():
    x = leaf(1.0, 2.0)
    inputs, saved = {"x": x, "b": None}, {"x": x.data, "b": None}
    y = record("own", 2 * x.data, inputs=inputs, saved=saved, backward=lambda dy: (2 * dy, None))
    assert y.node.names == ("x",) and y.node.parents == (x.node,)
    assert y.node.saved.keys() == {"x"} and y.node.saved["x"] is x.data
    y.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_backward_with_an_upstream_gradient():
    x = leaf(1.0, 2.0)
    (x * x).backward([1, 10])
    assert x.grad.tolist() == [2, 40]
    x.grad = None
    (x * x).backward(Tensor(np.array([1.0, 0.0])))
    assert x.grad.tolist() == [2, 0]


def test_an_upstream_gradient_may_be_of_whole_numbers_but_not_of_others():
    x = leaf(1.0, 2.0)
    for upstream in (np.array([1, 3]), [1, 3], np.array([1, 3], np.float32)):
        x.grad = None
        (x * 2).backward(upstream)
        assert x.grad.tolist() == [2, 6] and x.grad.dtype == np.float64
    with pytest.raises(ShapeError, match="backward: the gradient must be of numbers, not of complex128"):
        (x * 2).backward(np.array([1j, 3]))


def test_a_leaf_is_its_own_gradient():
    x, dy = leaf(1.0, 2.0), np.array([5.0, 6.0])
    x.backward(dy)
    assert x.grad.tolist() == [5, 6] and x.grad is not dy


def test_backward_that_cannot_start():
    with pytest.raises(MiniresError, match=re.escape("backward: this tensor has no gradient")):
        Tensor([1.0]).backward()
    with pytest.raises(ShapeError, match=re.escape("starts from a single value; this tensor has shape (2,)")):
        (leaf(1.0, 2.0) * 2).backward()
    with pytest.raises(ShapeError, match=re.escape("backward: the gradient has shape (3,), the tensor (2,)")):
        (leaf(1.0, 2.0) * 2).backward([1, 2, 3])


# ------------------------------------------------------------------------------------ the tape is freed


def test_a_second_backward_says_that_the_graph_is_gone():
    x = leaf(1.0)
    y = x * 2
    y.backward()
    with pytest.raises(MiniresError, match="this graph was freed by an earlier backward.*retain_graph=True"):
        y.backward()
    assert x.grad.tolist() == [2]


def test_a_graph_that_shares_a_freed_part_says_so_before_it_changes_anything():
    x = leaf(1.0)
    shared = x * 2
    first, second = shared * 3, shared * 5
    first.backward()
    with pytest.raises(MiniresError, match="freed"):
        second.backward()
    assert x.grad.tolist() == [6]


def test_a_retained_graph_can_be_used_again():
    x = leaf(1.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    assert x.grad.tolist() == [4]
    y.backward()
    with pytest.raises(MiniresError, match="freed"):
        y.backward()


class _Held(np.ndarray):
    """An array that can be watched with a weak reference."""


def _watched(x):
    """An operation whose backward holds an array of its own, and a watch on that array."""
    held = np.ones(x.shape).view(_Held)
    y = record("watched", x.data * 2, inputs={"x": x}, backward=lambda dy: (np.asarray(dy * held),))
    return y, weakref.ref(held)


def test_backward_frees_what_the_operations_held():
    y, watch = _watched(leaf(1.0, 2.0))
    loss = y.sum()
    assert watch() is not None
    loss.backward()
    assert watch() is None, "though y and loss are still there"


def test_memory_is_freed_step_by_step():
    y, first = _watched(leaf(1.0, 2.0))
    z, second = _watched(y)
    steps = z.sum().backward_steps()
    next(steps), next(steps)  # the sum, the second operation
    assert next(steps).node is y.node
    assert second() is None


def test_a_graph_that_is_dropped_is_freed_at_once():
    gc.disable()
    try:
        y, watch = _watched(leaf(1.0, 2.0))
        loss = (y * y).sum()
        del y, loss
        assert watch() is None, "no circle of references waits for the garbage collector"
    finally:
        gc.enable()


def test_the_tape_keeps_no_result_alive():
    x = leaf(1.0, 2.0)
    y = x + 1
    watch = weakref.ref(y)
    z = y + 1
    del y
    assert watch() is None
    z.sum().backward()
    assert x.grad.tolist() == [1, 1]


# ------------------------------------------------------------------------------------ step by step


def test_steps_come_last_operation_first_with_their_gradients():
    x, w = leaf(2.0, name="x"), leaf(3.0)
    y = x * w
    loss = (y + y).exp() * 0.0 + y  # d loss / dy = 1
    steps = list(loss.backward_steps())
    ops = [step.node.op for step in steps]
    assert ops == ["add", "mul", "exp", "add", "mul"]
    numbers = [step.node.number for step in steps]
    assert numbers == sorted(numbers, reverse=True)
    last = steps[-1]
    assert last.node is y.node and last.incoming.tolist() == [1]
    assert [gradient.tolist() for gradient in last.outgoing] == [[3], [2]]
    assert steps[0].outgoing[0].tolist() == [1]
    assert repr(last) == "<backward of <mul (no module) (1,)>: (1,) -> (1,), (1,)>"
    assert repr(steps[1]) == "<backward of <mul (no module) (1,)>: (1,) -> (1,), none>"


def test_backward_is_its_steps():
    values = np.random.default_rng(0).standard_normal((2, 5))

    def gradients(run):
        a, b = leaf(*values[0]), leaf(*values[1])
        run((a * b + a.exp() / (b * b + 1)).sum())
        return a.grad, b.grad

    def by_steps(loss):
        for _ in loss.backward_steps():
            pass

    for one, other in zip(gradients(Tensor.backward), gradients(by_steps), strict=True):
        assert np.array_equal(one, other)


def test_the_gradient_of_a_leaf_is_there_as_soon_as_it_is_complete():
    x, w = leaf(2.0), leaf(3.0)
    y = x * 2
    steps = (y * w).backward_steps()
    next(steps)
    assert w.grad.tolist() == [4] and x.grad is None
    next(steps)
    assert x.grad.tolist() == [6]
    assert next(steps, None) is None


def test_what_no_gradient_reaches_is_no_step():
    x = leaf(1.0)
    y = record("stop", x.data * 2, inputs={"x": x}, backward=lambda dy: (None,))
    steps = list((y * 3 + x).backward_steps())
    assert [step.node.op for step in steps] == ["add", "mul", "stop"]
    assert x.grad.tolist() == [1]


def test_backward_steps_complains_at_once():
    with pytest.raises(MiniresError, match="backward: this tensor has no gradient"):
        Tensor([1.0]).backward_steps()


# ------------------------------------------------------------------------------------ looking in between


def test_retain_grad_keeps_the_gradient_of_a_result():
    x = leaf(2.0)
    y = (x * 3).retain_grad()
    z = y * y
    z.backward()
    assert y.grad.tolist() == [12] and z.grad is None and x.grad.tolist() == [36]
    y.grad *= 0
    assert x.grad.tolist() == [36]
    with pytest.raises(MiniresError, match="retain_grad: this tensor has no gradient"):
        Tensor([1.0]).retain_grad()


def test_a_hook_sees_the_complete_gradient_once_and_may_replace_it():
    x = leaf(2.0)
    y = x * 3
    seen = []
    y.register_hook(lambda gradient: seen.append(gradient.copy()))
    remove = y.register_hook(lambda gradient: gradient * 10)
    (y * 2 + y * 5).backward()
    assert [gradient.tolist() for gradient in seen] == [[7]]
    assert x.grad.tolist() == [210]

    x.grad = None
    y = x * 3
    remove = y.register_hook(lambda gradient: gradient * 10)
    remove()
    y.backward()
    assert x.grad.tolist() == [3]


def test_a_hook_that_returns_something_else_is_refused():
    for hook, message in (
        (lambda g: g[:1], "a hook returned a gradient float64 (1,) in the place of one float64 (2,)"),
        (lambda g: g.astype("float32"), "a gradient float32 (2,) in the place of one float64 (2,)"),
        (lambda g: "a", "leaf: a hook returned a str; it must return an array, or None"),
        (Tensor, "leaf: a hook returned a Tensor; it must return an array, or None"),
    ):
        x = leaf(1.0, 2.0)
        x.register_hook(hook)
        with pytest.raises(MiniresError, match=re.escape(message)):
            (x * x).sum().backward()
        assert x.grad is None


def test_an_own_operation_that_mixes_tensors_and_arrays_or_dtypes_is_told_so():
    def own(data, backward):
        return record("own", data, inputs={"x": x}, backward=backward)

    x = leaf(1.0, 2.0)
    with pytest.raises(MiniresError, match="own: record takes the result as an array; compute it from x"):
        own(x * 2, lambda dy: (dy,))
    with pytest.raises(MiniresError, match="own: record needs backward, a function of dy, not None"):
        own(x.data * 2, None)
    with pytest.raises(ShapeError, match="gives for the input x a Tensor, no array, .* such as x.data"):
        own(x.data**2, lambda dy: (2 * dy * x,)).sum().backward()
    with pytest.raises(ShapeError, match=r"the input x a gradient of float32, but x is float64; .*x\.dtype"):
        own(x.data * 2, lambda dy: (2 * dy.astype("float32"),)).sum().backward()


def test_a_hook_on_a_leaf():
    x = leaf(2.0)
    x.register_hook(lambda gradient: -gradient)
    (x * x).backward()
    assert x.grad.tolist() == [-4]
    with pytest.raises(MiniresError, match="register_hook: this tensor has no gradient"):
        Tensor([1.0]).register_hook(print)


def test_nodes_are_named_after_their_operation_and_module():
    x = leaf(1.0)
    with with_settings(path="res2a_branch2a"):
        y = x * 2
        with with_settings(path="inner"):
            z = y + 1
        w = z * 2
    assert (y.node.op, y.node.path) == ("mul", "res2a_branch2a")
    assert (z.node.op, z.node.path) == ("add", "inner") and w.node.path == "res2a_branch2a"
    assert (x.node.op, (w * 1).node.path) == ("leaf", "")
    assert repr(y.node) == "<mul res2a_branch2a (1,)>"
    assert y.node.parents == (x.node, None) and y.node.shape == (1,) and y.node.dtype == np.float64


# ------------------------------------------------------------------------------------ off the tape


def test_no_grad_records_nothing():
    x = leaf(1.0)
    with no_grad():
        assert not is_recording()
        y = x * 2
        with no_grad():
            pass
        assert not is_recording()
    assert is_recording() and not y.requires_grad and y.node is None
    with pytest.raises(RuntimeError), no_grad():
        raise RuntimeError
    assert is_recording(), "also after an error"


def test_no_grad_is_a_matter_of_one_thread():
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append(is_recording()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_cuts_the_path():
    x = leaf(3.0, name="x")
    y = x.detach()
    assert y.data is x.data and not y.requires_grad and y.name == "x"
    (x * y).backward()
    assert x.grad.tolist() == [3]


class _Model:
    def __init__(self, **parameters):
        self.parameters = parameters

    def named_parameters(self):
        return iter(self.parameters.items())


def test_unused_parameters_names_the_parameters_that_no_path_reaches():
    a, b, c, frozen = leaf(1.0), leaf(2.0), leaf(3.0), Tensor(np.array([4.0]))
    model = _Model(**{"a.weight": a, "b.weight": b, "c.weight": c, "frozen": frozen})
    loss = a * 2 + Tensor((b * 3).data) + c.detach() + frozen  # a sum over .data cuts the gradient
    assert minires.unused_parameters(loss, model) == ["b.weight", "c.weight", "frozen"]
    assert minires.unused_parameters(a * b * c * frozen, model) == ["frozen"]
    assert minires.unused_parameters(Tensor([1.0]), model) == list(model.parameters)
    loss.backward()
    with pytest.raises(MiniresError, match="freed"):
        minires.unused_parameters(loss, model)


# ------------------------------------------------------------------------------------ devices


def test_a_device_that_is_there_already_gives_the_tensor_itself():
    x = leaf(1.0)
    assert x.to("cpu") is x and Tensor([1.0], device="cpu").device == "cpu"


def test_a_device_that_does_not_exist():
    for device in ("tpu", "cuda:x", "CPU", ""):
        with pytest.raises(ConfigError, match=f"unknown device '{device}'; use 'cpu', 'cuda' or 'cuda:1'"):
            Tensor([1.0]).to(device)


def test_a_gpu_that_is_not_there_is_one_clear_sentence():
    try:
        minires.backend.cupy()
    except ConfigError as error:
        text = str(error)
    else:
        pytest.skip("this machine has a GPU")
    assert text.startswith("a GPU was asked for, but") and text.endswith("use device='cpu'")
    for ask in (lambda: Tensor([1.0]).to("cuda"), lambda: Tensor([1.0], device="cuda:0")):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert str(caught.value) == text


@pytest.mark.gpu
def test_the_gradient_finds_its_way_back_from_a_gpu():
    try:
        minires.backend.cupy()
    except ConfigError as error:
        pytest.skip(str(error))
    x = leaf(1.0, 2.0)
    y = x.to("cuda") * 3
    assert y.device == "cuda:0" and isinstance(y.numpy(), np.ndarray)
    y.sum().backward()
    assert isinstance(x.grad, np.ndarray) and x.grad.tolist() == [3, 3]
    with pytest.raises(ShapeError, match="use .to()"):
        x * y


class OwnOperation(minires.nn.Module):
    """An operation of one's own with a given backward, in a module with the path ``own``."""

    def __init__(self, backward, given=None):
        super().__init__()
        self.backward, self.given = backward, given

    def forward(self, x):
        inputs = {"x": x, "w": self.given} if self.given is not None else {"x": x, "w": x, "b": None}
        return minires.record("twice", 2 * x.data, inputs=inputs, backward=self.backward)


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("backward", "kind", "text"),
    [
        (lambda dy: dy, MiniresError, r"\(dx, dw,\), and None where none is needed, not ndarray \(2, 3\)"),
        (lambda dy: (dy,), MiniresError, "one gradient for each input, .* not 1 gradients"),
        (lambda dy: None, MiniresError, "one gradient for each input, .* not NoneType"),
        (lambda dy: (dy, dy.sum(0)), ShapeError, r"input w .* shape \(3,\), but w has the shape \(2, 3\)"),
        (lambda dy: (1.0, dy), ShapeError, r"the input x a float, no array, but x has the shape \(2, 3\)"),
    ],
)
def test_a_backward_that_gives_something_else_names_operation_module_and_input(backward, kind, text):
    x, w = Tensor(ONES, requires_grad=True), Tensor(ONES, requires_grad=True)
    model = minires.nn.Sequential(own=OwnOperation(backward, w))
    with pytest.raises(kind, match=f"^own: twice: .*{text}") as caught:
        model(x).sum().backward()
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("backward", "kind"),
    [(lambda dy: (dy @ ONES, dy), ValueError), (lambda dy: (dy.none, dy), AttributeError)],
)
def test_what_a_backward_raises_itself_stays_and_gets_a_note_of_the_operation(backward, kind):
    model = minires.nn.Sequential(own=OwnOperation(backward, Tensor(ONES, requires_grad=True)))
    with pytest.raises(kind) as caught:
        model(Tensor(ONES, requires_grad=True)).sum().backward()
    assert caught.value.__notes__ == ["own: twice: its backward failed for dy (2, 3)"]


@pytest.mark.parametrize(
    ("module", "place", "told"),
    [
        ("own", None, "own: no"), ("own", "another", "another: no"), (None, None, "no"),
        (None, "another", "another: no"),
    ],
)  # fmt: skip
def test_a_refusal_in_a_backward_names_the_module_unless_it_names_a_place_itself(module, place, told):
    def backward(dy):
        error = MiniresError("no")
        error.where = place
        raise error

    x = Tensor(ONES, requires_grad=True)
    layer = OwnOperation(backward, x)
    run = minires.nn.Sequential(**{module: layer}) if module else layer.forward
    with pytest.raises(MiniresError) as caught:
        run(x).sum().backward()
    assert str(caught.value) == told


@pytest.mark.parametrize("backward", [lambda dy: (dy, dy), lambda dy: dy])
def test_a_backward_without_the_place_of_an_input_that_was_not_given(backward):
    model = minires.nn.Sequential(own=OwnOperation(backward))
    with pytest.raises(MiniresError, match="own: .*a tuple of 3 gradients, one for each input"):
        model(Tensor(ONES, requires_grad=True)).sum().backward()


def test_record_asks_for_tensors_by_name():
    x = Tensor(ONES, requires_grad=True)
    with pytest.raises(MiniresError, match='own: record takes its inputs by name, .* not a list'):
        minires.record("own", x.data, inputs=[x], backward=lambda dy: (dy,))
    refused = "own: the inputs that record is given are tensors or None, but not w"
    with pytest.raises(MiniresError, match=refused):
        minires.record("own", x.data, inputs={"x": x, "w": ONES}, backward=lambda dy: (dy, None))
