"""What the optimisers and averages are given must fit: gradients, arrays, parameters of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from minires import backend, nn
from minires.errors import ConfigError, MiniresError, ShapeError
from minires.nn import Parameter
from minires.optim import SGD, Adam, AdamW, Optimizer
from minires.tensor import Tensor
from minires.train.ema import EMA

F = np.float32


class Own(Optimizer):
    """An optimiser of a user's own, with a slot, and without a kernel."""

    slots = ("sum",)

    @staticmethod
    def plain(w, g, total, lr):
        total += g
        w -= lr * total


KINDS = pytest.mark.parametrize("kind", [SGD, Adam, AdamW, Own])
NO_GRADIENTS = {
    "a number": 1.0,
    "a list": [1.0, 2.0],
    "a tensor": Tensor([[1.0] * 3] * 4),
    "text": "gradient",
    "whole numbers": np.ones((4, 3), np.int64),
    "truth values": np.ones((4, 3), bool),
    "an array of objects": np.full((4, 3), None),
}
SHAPES = [(3,), (4,), (4, 1), (1, 3), (3, 4), (2, 4, 3), (), (0, 3), (400, 300)]


@pytest.mark.parametrize("wrong", SHAPES)
def test_a_gradient_of_another_shape_is_refused_with_both_shapes(wrong):
    w = Parameter(np.ones((4, 3), F), name="fc.weight")
    message = f"the gradient of fc.weight is of shape {wrong}, but the tensor is of shape (4, 3)"
    with pytest.raises(ShapeError) as error:
        w.grad = np.ones(wrong, F)
    assert str(error.value) == message and w.grad is None


@pytest.mark.parametrize("wrong", NO_GRADIENTS.values(), ids=NO_GRADIENTS)
def test_what_is_no_gradient_is_refused(wrong):
    w = Parameter(np.ones((4, 3), F))
    with pytest.raises(ShapeError, match="must be an array of floats of shape .4, 3., or None, not a"):
        w.grad = wrong
    assert w.grad is None


@pytest.mark.parametrize("wrong", [lambda g: g.mean(axis=0), lambda g: 1.0, Tensor, lambda g: [1.0]])
def test_a_hook_that_returns_no_gradient_changes_nothing(wrong):
    w = Parameter(np.ones((64, 3), F))
    w.register_hook(wrong)
    optimizer = SGD([w], lr=1.0)
    with pytest.raises(MiniresError, match="hook returned"):
        (w * 1.0).sum().backward()
    optimizer.step()
    assert w.grad is None and (w.data == 1).all()


@KINDS
def test_a_gradient_whose_array_got_another_shape_is_noticed_by_the_step(kind):
    first, w = Parameter(np.ones(3, F)), Parameter(np.ones((4, 3), F), name="w")
    optimizer = kind([first, w], lr=0.1)
    first.grad, w.grad = np.ones(3, F), np.ones((4, 3), F)
    w.grad.shape = (3, 4)
    with pytest.raises(ShapeError, match=r"^w: its gradient is of shape .3, 4., but .* of shape .4, 3."):
        optimizer.step()
    assert (first.data == 1).all() and (w.data == 1).all(), "a step is made whole or not at all"


@KINDS
def test_an_array_that_got_another_shape_is_noticed_by_the_step(kind):
    w = Parameter(np.ones((4, 3), F), name="w")
    optimizer = kind([w], lr=0.1)
    w.grad = np.ones((4, 3), F)
    optimizer.step()
    w.data.shape = (2, 6)
    with pytest.raises(ShapeError, match=r"^w: its gradient is of shape .4, 3., but the parameter is of"):
        optimizer.step()
    w.requires_grad = False
    w.data = np.ones((5, 3), F)
    w.requires_grad = True
    w.grad = np.ones((5, 3), F)
    if type(optimizer).slots:
        with pytest.raises(ShapeError, match=r"^w: its .* is of shape .4, 3., .* make a new optimiser"):
            optimizer.step()


@KINDS
def test_numbers_that_cannot_be_written_to_are_refused_before_anything_is_changed(kind):
    first, w = Parameter(np.ones(3, F)), Parameter(np.ones(3, F), name="w")
    optimizer = kind([first, w], lr=0.1)
    first.grad, w.grad = np.ones(3, F), np.ones(3, F)
    w.data.flags.writeable = False
    with pytest.raises(MiniresError, match="^w: its numbers cannot be changed, as their array is read-only"):
        optimizer.step()
    assert (first.data == 1).all()


@KINDS
@pytest.mark.parametrize("order", ["C", "F", "every second"])
def test_gradients_in_any_order_and_read_only_give_the_same_step(kind, order):
    gradient = np.arange(12, dtype=F).reshape(4, 3)
    second = np.repeat(gradient, 2, 1)[:, ::2]
    given = {"C": gradient, "F": np.asfortranarray(gradient), "every second": second}
    results = []
    for array in (gradient, given[order]):
        w = Parameter(np.ones((4, 3), F))
        optimizer = kind([w], lr=0.1)
        array = array.view()
        array.flags.writeable = False
        for _ in range(2):
            w.grad = array
            optimizer.step()
        results.append(w.data)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_a_single_number_add_up_over_backwards(dtype):
    w = Parameter(np.array(3.0, dtype))
    for count in (1, 2, 3):
        (w * w).backward()
        assert isinstance(w.grad, np.ndarray) and w.grad.shape == () and w.grad == 6 * count
    w.grad = np.float64(2.5)
    w.data = w.data - np.asarray(1, dtype)
    assert w.grad.dtype == w.data.dtype == dtype and w.grad == 2.5 and w.data == 2
    SGD([w], lr=2.0).step()
    assert w.data == -3 and w.data.shape == ()


def test_a_gradient_in_another_precision_is_converted():
    w = Parameter(np.ones(3, F))
    w.grad = np.full(3, 0.1)
    assert w.grad.dtype == F and w.grad[0] == F(0.1)
    wide = Parameter(np.ones(3))
    wide.grad = np.full(3, 0.1, F)
    assert wide.grad.dtype == np.float64


@pytest.mark.parametrize("wrong", [(3,), (3, 4), (4, 3, 1), ()])
def test_numbers_of_another_shape_cannot_take_the_place_of_a_parameters(wrong):
    w = Parameter(np.ones((4, 3), F))
    with pytest.raises(ShapeError, match="a gradient flows to this tensor of shape .4, 3."):
        w.data = np.ones(wrong, F)
    assert w.shape == (4, 3)


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 1.0, None, "x", Tensor([1.0, 2.0]), np.array(["a", "b"])])
def test_only_an_array_of_numbers_can_be_the_data_of_a_tensor(wrong):
    x = Tensor([1.0, 2.0])
    with pytest.raises(ShapeError, match="x.data must be an array of numbers, not a"):
        x.data = wrong
    assert x.tolist() == [1.0, 2.0]


def test_whole_numbers_cannot_take_the_place_of_a_parameters():
    w = Parameter(np.ones(2, F))
    for dtype in (np.int64, np.float16, bool):
        with pytest.raises(ShapeError, match="only float32, float64 and bfloat16 tensors have gradients"):
            w.data = np.ones(2, dtype)


def test_the_gradient_flows_to_what_took_the_place_of_a_parameters_numbers():
    w = Parameter(np.ones(2, F))
    w.data = np.full(2, 3.0)
    (w * w).sum().backward()
    assert w.grad.dtype == np.float64 and w.grad.tolist() == [6, 6]


@pytest.mark.parametrize("repeats", [False, True])
def test_a_parameter_of_a_read_only_array_is_a_copy_that_learns(repeats):
    array = np.broadcast_to(np.ones(1, F), (4,)) if repeats else np.ones(4, F)
    array.flags.writeable = False
    w = Parameter(array)
    w.grad = np.arange(4, dtype=F)
    SGD([w], lr=1.0).step()
    assert w.data.tolist() == [1, 0, -1, -2] and array.tolist() == [1, 1, 1, 1]


# ------------------------------------------------------------------------- one parameter under two names


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


@KINDS
@pytest.mark.parametrize("given", ["twice", "pairs twice", "as the model gives them"])
def test_a_shared_parameter_is_changed_once(kind, given):
    model, once = Tied(), Parameter(np.ones((2, 2), F))
    w = model.a.weight
    w.data[...] = 1
    parameters = {
        "twice": [w, model.b.weight],
        "pairs twice": [("a.weight", w), ("b.weight", model.b.weight)],
        "as the model gives them": list(model.named_parameters()),
    }[given]
    for parameter, optimizer in [(w, kind(parameters, lr=0.1)), (once, kind([once], lr=0.1))]:
        for _ in range(2):
            parameter.grad = np.ones((2, 2), F)
            optimizer.step()
    np.testing.assert_array_equal(w.data, once.data)


@KINDS
def test_an_optimiser_made_before_astype_trains_the_model_that_is_used(kind):
    model = Tied()
    model.a.bias.requires_grad = False
    seen = []
    model.b.bias.register_hook(seen.append)
    optimizer, ema = kind(model.named_parameters(), lr=0.1), EMA(model, decay=0.5)
    before = model.a.weight.data.astype(np.float64)
    for dtype in ("float64", "float32", "float64"):
        model.astype(dtype)
        assert model.b.weight is model.a.weight and not model.a.bias.requires_grad
        optimizer.zero_grad()
        model(Tensor(np.ones((3, 2), dtype))).sum().backward()
        optimizer.step()
        ema.update()
        assert {one.data.dtype for one in model.parameters()} == {np.dtype(dtype)}
        assert {one.dtype for one in ema.averages.values()} == {np.dtype(dtype)}
    assert len(seen) == 3 and (model.a.weight.data != before).any()
    trained = model.a.weight.data.copy()
    with ema.swap():
        assert (model.a.weight.data != trained).any() and model.b.weight is model.a.weight
    np.testing.assert_array_equal(model.a.weight.data, trained)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_buffers_of_floats_are_averaged(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = nn.Sequential(nn.Linear(2, 2))
    model.seen, model.count = np.ones(3, backend.dtype_of(dtype)), np.ones(3, np.int64)
    ema = EMA(model, decay=0.0)
    model.seen[...] = 3
    ema.update()
    assert model.seen.dtype == ema.averages["seen"].dtype and ema.averages["seen"].tolist() == [3, 3, 3]
    assert "count" not in ema.averages


def test_an_average_of_a_model_that_has_changed_says_so():
    model = Tied()
    ema = EMA(model)
    model.c = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="ema: c.weight is now of shape .2, 2., but its average is .* None"):
        ema.update()
    with pytest.raises(ConfigError, match="make a new EMA when the model has changed"), ema.swap():
        pass


# --------------------------------------------------------------------------------- what is no parameter


w = Parameter([1.0, 2.0])
WRONG = {
    "a result": ([w * 2], "is the result of the operation mul"),
    "a result, frozen": ([(w * 2).detach()], "is a tensor that needs no gradient"),
    "a group": ([{"params": [w], "lr": 0.1}], "is a dict; groups of parameters"),
    "arrays": ([np.ones(2)], "must be a Parameter, or a tensor that needs a gradient, not a ndarray"),
    "a list of lists": ([[w]], "must be a Parameter, or a tensor that needs a gradient, not a list"),
    "a state dict": ({"w": np.ones(2)}, "takes a list of parameters, or net.parameters.., not a dict"),
    "its items": ({"w": np.ones(2)}.items(), "must be a Parameter, .* not a ndarray"),
    "a tensor": (w, "not one tensor of shape .2,.; give .w."),
    "a model": (nn.Linear(2, 2), "takes parameters, not the Linear that has them"),
    "a method": (nn.Linear(2, 2).parameters, "call it, net.parameters"),
    "None": (None, "takes a list of parameters"),
    "a number": (3, "takes a list of parameters"),
    "text": ("weights", "takes a list of parameters"),
    "nothing": ([], "needs at least one parameter"),
    "a path alone": ([("w", "v")], "must be a Parameter"),
}


@KINDS
@pytest.mark.parametrize(("parameters", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_trained_is_refused_in_words(kind, parameters, message):
    with pytest.raises(ConfigError, match=message):
        kind(parameters, lr=0.1)
