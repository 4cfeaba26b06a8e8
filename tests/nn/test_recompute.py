"""Recomputing activations: the same bits as the plain call, for less memory."""

import gc
import tracemalloc

import numpy as np
import pytest
from oracle import shake

import minires
from minires import Tensor, backend, models
from minires.errors import MiniresError
from minires.models.densenet import DenseBlock
from minires.nn import BatchNorm2d, Conv2d, Dropout, Linear, Module, ReLU, Sequential, identity_block


def rng(seed=0):
    return np.random.default_rng(seed)


def plain(block, *inputs):
    return block(*inputs)


RUNS = {"plain": plain, "recompute": minires.recompute}


def residual(block="b"):
    return shake(identity_block(8, (3, 4, 8), stage=2, block=block, rng=rng()))


def dense():
    layers = [
        Sequential(
            bn=BatchNorm2d(8 + 4 * i, relu=True),
            conv=Conv2d(8 + 4 * i, 4, 3, padding=1, rng=rng()),
            drop=Dropout(0.3, seed=i),
        )  # fmt: skip
        for i in range(3)
    ]
    return shake(DenseBlock(8, layers, growth=4, shared=True))


class Again(Module):
    """A call of a layer that belongs to another module."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def nested():
    """Blocks in a block, dropout, and one layer that is used twice."""
    twice = BatchNorm2d(8, relu=True)
    return shake(Sequential(residual(), twice, Dropout(0.5, seed=1), residual("c"), Again(twice)))


BLOCKS = {"residual": residual, "dense": dense, "nested": nested}


def results(make, run, *, steps=2, training=True, dtype="float32"):
    """Output, gradients, buffers and random states after some steps that accumulate gradients."""
    block = make().train(training).astype(dtype)
    found = {}
    for step in range(steps):
        x = Tensor(rng(step).standard_normal((3, 6, 5, 8)).astype(dtype), requires_grad=True)
        y = run(block, x * 2)
        y.backward(rng(9 + step).standard_normal(y.shape).astype(dtype))
        found |= {f"y{step}": y.numpy(), f"dx{step}": x.grad}
    found |= {f"d {name}": parameter.grad for name, parameter in block.named_parameters()}
    found |= dict(block.named_buffers())
    return found, block.random_states()


def assert_same_bits(first, second):
    (arrays, states), (others, other_states) = first, second
    assert arrays.keys() == others.keys() and states == other_states
    for name, array in arrays.items():
        assert array is not None and array.dtype == others[name].dtype, name
        assert np.array_equal(array, others[name]), name


# ---------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("training", [True, False])
def test_results_gradients_statistics_and_random_states(make, training):
    assert_same_bits(*(results(make, run, training=training) for run in RUNS.values()))


@pytest.mark.parametrize("mode", [minires.unfused, minires.reference])
@pytest.mark.parametrize("make", [residual, dense])
def test_the_second_run_is_in_the_mode_of_the_first(make, mode):
    """The backward is asked for outside of the mode: the plain tape has its nodes already."""

    def within(run):
        def inside(block, x):
            with mode():
                return run(block, x)

        return inside

    assert_same_bits(*(results(make, within(run)) for run in RUNS.values()))


def test_a_mode_that_is_on_in_the_backward_only_is_not_for_the_second_run():
    steps = []

    class Watched(ReLU):
        def forward(self, x):
            steps.append((minires.tensor.is_fused(), backend.is_reference()))
            return super().forward(x)

    y = minires.recompute(Watched(), Tensor([1.0], requires_grad=True))
    with minires.unfused(), minires.reference(), minires.no_grad():
        y.backward()
    assert steps == [(True, False)] * 2


def test_a_whole_network_block_by_block():
    def train(run):
        model = shake(models.build("se_resnet56_cifar", classes=3, repeats=(1, 2, 1), seed=2))
        x = Tensor(rng(1).standard_normal((4, 16, 16, 3)).astype(np.float32))
        for _, block in model.children():
            x = run(block, x)
        assert minires.unused_parameters(x, model) == []
        x.backward(rng(2).standard_normal(x.shape).astype(np.float32))
        return {name: p.grad for name, p in model.named_parameters()} | dict(model.named_buffers()), {}

    assert_same_bits(*(train(run) for run in RUNS.values()))


def test_recomputed_blocks_inside_of_recomputed_blocks():
    class Inner(Sequential):
        def forward(self, x):
            for _, module in self.children():
                borrows = isinstance(module, Again)  # statistics of a layer that is not its own
                x = module(x) if borrows else minires.recompute(module, x)
            return x

    def make():
        model = nested()
        model.__class__ = Inner
        return model

    first = results(nested, plain)
    assert_same_bits(first, results(make, plain))
    assert_same_bits(first, results(make, minires.recompute))


def test_two_inputs_one_of_them_twice_and_one_that_is_no_tensor():
    class Sum(Module):
        def __init__(self):
            super().__init__()
            self.fc = Linear(2, 2, rng=rng())

        def forward(self, a, b, factor):
            return self.fc(a * factor) * b

    found = []
    for run in RUNS.values():
        block = Sum()
        x, fixed = Tensor(rng().standard_normal((3, 2)), requires_grad=True), Tensor(np.ones((3, 2)) * 3)
        block.astype("float64")
        y = run(block, x, x, 2) + run(block, fixed, x, 0.5)
        y.backward(np.arange(6.0).reshape(3, 2))
        assert fixed.grad is None
        found.append(({"y": y.numpy(), "dx": x.grad, "dw": block.fc.weight.grad}, {}))
    assert_same_bits(*found)


# ------------------------------------------------------------------------------------------- state and tape


def test_statistics_move_once_and_the_second_run_sees_those_of_the_first():
    """In inference the running statistics are part of the function, and may change before the backward."""
    grads = []
    for run in RUNS.values():
        block = residual().eval()
        x = Tensor(rng().standard_normal((2, 5, 5, 8)).astype(np.float32), requires_grad=True)
        y = run(block, x)
        for _, buffer in block.named_buffers():
            buffer += 1
        block.train()
        moved = block.state_dict()
        y.backward(np.ones(y.shape, np.float32))
        grads.append(x.grad)
        assert all(np.array_equal(array, moved[name]) for name, array in block.state_dict().items())
        assert all(module.training for _, module in block.named_modules()) and block.training
    assert np.array_equal(*grads) and grads[0].any()


def test_dropout_draws_one_mask_and_goes_on_from_there():
    masks = []
    for run in RUNS.values():
        layer, x = Dropout(0.5, seed=4), Tensor(np.ones(1000, np.float32), requires_grad=True)
        y = run(layer, x)
        between = layer(x).numpy()  # drawn between the two runs
        y.backward(np.ones(1000, np.float32))
        assert np.array_equal(x.grad, y.numpy())
        masks.append((y.numpy(), between, layer(x).numpy()))
    assert all(np.array_equal(a, b) for a, b in zip(*masks, strict=True))
    assert not np.array_equal(masks[0][0], masks[0][2])


def test_it_is_one_step_named_after_the_block():
    class Net(Sequential):
        def forward(self, x):
            for block in self:
                x = minires.recompute(block, x)
            return x

    block = Net(first=residual(), second=ReLU())
    x = Tensor(rng().standard_normal((2, 5, 5, 8)).astype(np.float32), requires_grad=True)
    y = block(x)
    steps = list(y.backward_steps(np.ones(y.shape, np.float32)))
    assert [(step.node.op, step.node.path) for step in steps] == [
        ("recompute", "second"), ("recompute", "first"),
    ]  # fmt: skip
    assert [g.shape for g in steps[1].outgoing] == [x.shape, *(p.shape for p in block.parameters())]
    with minires.tensor.with_settings(path="outer"):
        assert minires.recompute(ReLU(), x).node.path == "outer"


def test_the_second_run_has_the_paths_of_the_first():
    paths = []

    class Watched(ReLU):
        def forward(self, x):
            y = super().forward(x)
            paths.append(y.node.path)
            return y

    named = Sequential(inner=Watched())
    for block in (named, Watched()):
        with minires.tensor.with_settings(path="outer"):
            y = minires.recompute(block, Tensor([1.0], requires_grad=True))
        y.backward()
    assert paths == ["outer.inner", "outer.inner", "outer", "outer"]


def test_hooks_on_parameters_and_inside():
    seen = []

    class Watched(Linear):
        def forward(self, x):
            y = super().forward(x)
            y.register_hook(lambda g: seen.append("inside"))
            return y

    block = Watched(2, 2, rng=rng())
    block.weight.register_hook(lambda g: seen.append("weight") or g * 2)
    x = Tensor(np.ones((3, 2), np.float32))
    for run in RUNS.values():
        run(block, x).backward(np.ones((3, 2), np.float32))
        assert seen == ["inside", "weight"]
        seen.clear()
        assert (block.weight.grad == 6).all()
        block.zero_grad()


def test_only_parameters_that_are_used_are_connected():
    block = Sequential(a=Linear(2, 2, rng=rng()), b=Linear(2, 2, rng=rng()))
    block.b.weight.requires_grad = False
    block.forward = lambda x: block.a(x)
    loss = minires.recompute(block, Tensor(np.ones((1, 2), np.float32))).sum()
    assert minires.unused_parameters(loss, block) == ["b.weight", "b.bias"]
    block.forward = lambda x: block.b(block.a(x))
    loss = minires.recompute(block, Tensor(np.ones((1, 2), np.float32))).sum()
    assert minires.unused_parameters(loss, block) == ["b.weight"]
    loss.backward()
    assert block.b.weight.grad is None and block.b.bias.grad is not None and block.a.weight.grad is not None


def test_a_retained_graph_can_be_followed_twice_and_a_freed_one_cannot():
    block = dense()
    x = Tensor(rng().standard_normal((2, 5, 5, 8)).astype(np.float32), requires_grad=True)
    loss = minires.recompute(block, x).sum()
    statistics, random = [b.copy() for _, b in block.named_buffers()], block.random_states()
    loss.backward(retain_graph=True)
    once = x.grad
    x.grad = None
    loss.backward()
    assert np.array_equal(x.grad, once) and once.any()
    assert all(np.array_equal(a, b) for a, (_, b) in zip(statistics, block.named_buffers(), strict=True))
    assert block.random_states() == random
    with pytest.raises(MiniresError, match="freed"):
        loss.backward()


def test_without_recording_or_without_gradients_it_is_a_plain_call():
    x = Tensor(np.ones((2, 5, 5, 8), np.float32), requires_grad=True)
    block = residual().eval()
    with minires.no_grad():
        y = minires.recompute(block, x)
        assert minires.recompute(Sequential(), x) is x
    assert y.node is None and np.array_equal(y.numpy(), block(x).numpy())
    assert minires.recompute(ReLU(), x.detach()).node is None


def test_a_block_that_returns_its_input():
    x = Tensor([1.0, 2.0], requires_grad=True)
    minires.recompute(Sequential(), x).backward([3.0, 4.0])
    assert x.grad.tolist() == [3, 4]


def test_what_cannot_be():
    block, x = ReLU(), Tensor([1.0], requires_grad=True)
    z = x * 2
    block.forward = lambda y: y + z
    with pytest.raises(MiniresError, match=r"the block uses <mul .*computed outside; make it an input"):
        minires.recompute(block, x)
    block.forward = lambda y: (y, y)
    with pytest.raises(MiniresError, match="must return one tensor, not tuple"):
        minires.recompute(block, x)


def test_an_error_in_the_second_run_leaves_all_as_it_was():
    calls = []

    class Fails(Dropout):
        def forward(self, x):
            calls.append(x)
            if len(calls) == 2:
                raise KeyError("second")
            return super().forward(x)

    block = Sequential(Linear(2, 2, rng=rng()), BatchNorm2d(2), Fails(0.5))
    weight = block.children().__next__()[1].weight
    y = minires.recompute(block, Tensor(rng().standard_normal((3, 2)).astype(np.float32)))
    node, state, random = weight.node, block.state_dict(), block.random_states()
    with pytest.raises(KeyError):
        y.sum().backward()
    assert weight.node is node and block.random_states() == random
    assert all(np.array_equal(array, state[name]) for name, array in block.state_dict().items())


# ------------------------------------------------------------------------------------------------ memory


@pytest.fixture
def one_thread():
    """A thread that waits for work still holds the arrays of its last one."""
    threads = backend.threads()
    backend.set_threads(1)
    yield
    backend.set_threads(threads)


@pytest.mark.parametrize("make", [residual, dense])
def test_only_the_input_and_the_result_are_kept(make, one_thread):
    """Counted, not timed: what is alive after the forward pass, beside the plain tape."""
    alive, block = {}, make()
    x = Tensor(rng().standard_normal((8, 16, 16, 8)).astype(np.float32), requires_grad=True)
    for name, run in RUNS.items():
        run(block, x * 2)  # compile the kernels
        gc.collect()
        tracemalloc.start()
        try:
            y = run(block, x * 2)
            alive[name] = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    kept = x.data.nbytes + y.data.nbytes
    assert kept <= alive["recompute"] < kept + 30_000  # the rest: nodes, states, statistics
    assert alive["plain"] > 1.7 * alive["recompute"]


def test_a_function_is_no_block():
    with pytest.raises(MiniresError, match="recompute takes a module, not <lambda>; nn.Sequential"):
        minires.recompute(lambda x: x * 2, Tensor([1.0]))
    x = Tensor([1.0, 2.0], requires_grad=True)
    minires.recompute(Sequential(lambda x: x * 2), x).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
