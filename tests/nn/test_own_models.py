"""A user's own model: nobody calls anything, and its layers are found, named, trained, saved and shown."""

from __future__ import annotations

import base64
import copy
import gc
import json
import multiprocessing
import operator
import pickle
import re
import threading
import weakref
import zlib
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import minires
from minires import nn
from minires.debug.trace_page import trace_html
from minires.errors import CheckpointError, ConfigError, MiniresError, ShapeError
from minires.nn import Parameter, paths
from minires.ops.cross_entropy import cross_entropy
from minires.optim import SGD, Adam
from minires.tape import reachable
from minires.tensor import Tensor
from minires.train import freeze
from minires.weights.onnx import export_onnx


@pytest.fixture(autouse=True)
def the_same_weights():
    """Whatever layers were made before: four steps of training must help."""
    minires.manual_seed(0)


class Net(nn.Module):
    """A list, a list in it, a dict, a ModuleList, a list of parameters, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), [nn.BatchNorm2d(4), nn.ReLU()]]
        self.more = nn.ModuleList([nn.Conv2d(4, 4, 1, bias=False)])
        self.again = self.layers[0]
        self.heads = {"left": nn.Linear(4, 3), "right": nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 3))}
        self.gains = [nn.Parameter([1.0]), nn.Parameter([2.0])]

    def forward(self, x):
        first, relu, (norm, last) = self.layers
        x = self.again(last(norm(relu(first(self.stem(x))))))
        for layer in self.more:
            x = layer(x)
        x = nn.GlobalAvgPool2d()(x)
        return self.heads["left"](x) * self.gains[0] + self.heads["right"](x) * self.gains[1]


PATHS = [
    "stem", "layers.0", "layers.1", "layers.2.0", "layers.2.1", "more.0", "heads.left", "heads.right",
    "heads.right.0", "heads.right.1",
]  # fmt: skip
NAMES = [
    "gains.0", "gains.1", "stem.weight", "stem.bias", "layers.0.weight", "layers.0.bias", "layers.2.0.gamma",
    "layers.2.0.beta", "more.0.weight", "heads.left.weight", "heads.left.bias", "heads.right.1.weight",
    "heads.right.1.bias",
]  # fmt: skip
RAN = [
    "stem", "layers.0", "layers.1", "layers.2.0", "layers.2.1", "layers.0", "more.0", "", "heads.left", "",
    "heads.right.0", "heads.right.1", "", "",
]  # fmt: skip


class Plain(nn.Module):
    """As one writes it on the first day."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(nn.GlobalAvgPool2d()(nn.ReLU()(self.conv(x))))


def batch(n=2, channels=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 6, 6, channels)).astype(np.float32)


def ran(model, *inputs):
    """The paths of what is recorded in one call, in order."""
    return on_tape(model(*(Tensor(one, requires_grad=True) for one in inputs)))


def on_tape(y):
    nodes = sorted(reachable(y.node), key=lambda node: node.number)
    return [node.path for node in nodes if node.op != "leaf"]


# ----------------------------------------------------------------------------------------------- names


def test_lists_tuples_and_dicts_of_modules_are_found_and_named():
    net = Net()
    assert [path for path, _ in net.named_modules()] == PATHS
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_buffers()] == ["layers.2.0.running_mean", "layers.2.0.running_var"]
    assert list(net.random_states()) == ["heads.right.0.rng"]
    assert [name for name, _ in net.children()] == [path for path in PATHS if "right." not in path]
    assert len(list(net.modules())) == 1 + len(PATHS) and next(net.modules()) is net
    net.eval()
    assert not any(module.training for module in net.modules())


def test_the_tape_has_the_path_of_every_layer_though_nobody_named_them():
    assert ran(Net(), batch()) == RAN
    assert ran(Plain(), batch()) == ["conv", "", "", "fc"]


def test_a_part_that_is_called_alone_has_paths_of_its_own():
    net = Net()
    x = batch(2, 4)[:, 0, 0]
    assert ran(net.heads["right"], x) == ["0", "1"]
    assert ran(net.heads["left"], x) == [""]
    assert ran(net, batch()) == RAN  # and the whole has not forgotten its own


def test_errors_name_the_layer():
    with pytest.raises(ShapeError, match=r"^conv: conv2d: w \(3, 3, 3, 4\) expects 3 input channels"):
        Plain()(Tensor(batch(2, 5)))
    net = Net()
    net.heads["right"][1] = nn.Linear(5, 3)
    with pytest.raises(ShapeError, match=r"^heads\.right\.1: linear"):
        net(Tensor(batch()))
    with pytest.raises(ShapeError, match="^conv2d"):
        net.stem(Tensor(batch(2, 5)))


def test_names_follow_what_is_replaced_moved_or_added_between_calls():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Identity(), nn.ReLU()]
            self.extra = None
            self.empty = [None]

        def forward(self, x):
            for layer in (*self.layers, self.extra, *self.empty):
                x = x if layer is None else layer(x)
            return x

    chain = Chain()

    def paths():
        return ran(chain, batch())

    assert paths() == ["layers.1"]
    chain.layers.reverse()  # in place: no attribute is set
    assert paths() == ["layers.0"]
    chain.layers.insert(0, nn.Sigmoid())
    assert paths() == ["layers.0", "layers.1"]
    chain.layers[0] = nn.Sequential(inner=nn.Sigmoid())
    assert paths() == ["layers.0.inner", "layers.1"]
    chain.extra = nn.Sigmoid()
    chain.empty[0] = nn.ReLU()
    assert paths() == ["layers.0.inner", "layers.1", "extra", "empty.0"]
    chain.layers[0].inner = nn.Sequential(nn.ReLU())
    del chain.layers[1]
    chain.extra = None
    assert paths() == ["layers.0.inner.0", "empty.0"]
    chain.layers = nn.ModuleList([nn.Identity()])
    chain.layers.append(nn.ReLU())
    assert paths() == ["layers.1", "empty.0"]
    chain.layers[0] = nn.ReLU()
    assert paths() == ["layers.0", "layers.1", "empty.0"]


def test_layers_that_are_made_in_the_first_call_are_named_in_it():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = None

        def forward(self, x):
            if self.fc is None:
                self.fc = nn.Linear(x.shape[1], 2)
            return self.fc(x)

    assert ran(Lazy(), batch()[:, 0, 0]) == ["fc"]


def test_a_module_that_is_not_held_is_named_under_the_place_of_its_call():
    hidden = nn.Sequential(fc=nn.Linear(3, 3))

    class Around(nn.Module):
        def forward(self, x):
            return hidden(x)

    assert ran(nn.Sequential(a=Around()), batch()[:, 0, 0]) == ["a.fc"]
    assert ran(lambda x: hidden(x), batch()[:, 0, 0]) == ["fc"]
    with minires.tensor.with_settings(path="teacher"):
        assert ran(hidden, batch()[:, 0, 0]) == ["teacher.fc"]
    assert ran(hidden, batch()[:, 0, 0]) == ["fc"]


def test_blocks_that_add_nothing_to_paths_keep_the_papers_names():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = [nn.identity_block(4, (2, 2, 4), stage=2, block=name) for name in "bc"]

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    assert [path for path, _ in Own().named_modules()][:2] == ["blocks.0", "res2b_branch2a"]
    assert ran(Own(), batch(2, 4))[-1] == "bn2c_branch2c"


def test_threads_have_names_of_their_own():
    net, found = Net(), {}
    inside, done = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            inside.set()
            assert done.wait(30)
            return x * 2

    def work():
        x = Tensor(batch(2, 4)[:, 0, 0], requires_grad=True)
        found["path"] = nn.Sequential(waits=Waits())(x).node.path

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    found["whole"] = ran(net, batch())  # while the other thread is inside a model
    done.set()
    thread.join()
    assert found == {"path": "waits", "whole": RAN}


def test_after_an_error_the_next_call_is_outermost_again():
    net = Net()
    with pytest.raises(ShapeError):
        net(Tensor(batch(2, 5)))
    assert ran(net.heads["right"], batch(2, 4)[:, 0, 0]) == ["0", "1"]


def test_a_name_of_a_method_is_refused_for_a_layer():
    net = nn.Module()
    for name in ("train", "apply", "forward"):
        with pytest.raises(ConfigError, match=f"'{name}' cannot be the name of a layer"):
            setattr(net, name, nn.ReLU())
    with pytest.raises(ConfigError, match="'append' cannot be"):
        nn.Sequential(append=nn.ReLU())
    net.training = False  # what is no layer may be set
    with pytest.raises(ConfigError, match="a set of layers has no order"):
        net.layers = {nn.ReLU()}


def test_forgetting_super_init_says_so_at_the_first_use():
    class Forgot(nn.Module):
        def __init__(self):
            self.width = 3
            self.conv = nn.Conv2d(3, 4, 3)

    with pytest.raises(MiniresError, match=r"Forgot sets 'conv' .* begin Forgot.__init__ with super\(\)"):
        Forgot()

    class Listed(Forgot):
        def __init__(self):
            self.layers = [[nn.ReLU()]]

    with pytest.raises(MiniresError, match="Listed sets 'layers'"):
        Listed()

    class Nothing(nn.Module):
        def __init__(self):
            pass

        def forward(self, x):
            return x

    for use in (lambda net: net(1), lambda net: net.state_dict(), lambda net: net.train(), repr):
        with pytest.raises(MiniresError, match=r"Nothing is used before .* super\(\).__init__\(\)"):
            use(Nothing())


# --------------------------------------------------------------------------------------------- sharing


def test_what_is_held_twice_is_counted_once_and_said_to_be_shared():
    net = Net()
    assert net.shared_names() == {"layers.0": ["again"]}
    total = sum(parameter.size for parameter in net.parameters())
    assert len({id(parameter) for parameter in net.parameters()}) == len(NAMES)
    text = repr(net)
    assert "  again: = layers.0 (shared)" in text.splitlines() and f"{total:,} parameters" in text
    summary = net.summary((6, 6, 3))
    assert summary.parameters == total and summary.shared == {"layers.0": ["again"]}
    assert "shared        layers.0 = again" in str(summary).splitlines()
    json.dumps(summary.to_dict())


def test_a_parameter_that_two_layers_share():
    net = nn.Sequential(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    net.b.weight = net.a.weight
    assert [name for name, _ in net.named_parameters()] == ["a.weight", "a.bias", "b.bias"]
    assert net.shared_names() == {"a.weight": ["b.weight"]}
    assert "weight = a.weight (shared)" in repr(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.astype(np.float64).to("cpu")):
        assert other.b.weight is other.a.weight and len(list(other.parameters())) == 3
        assert other.summary((3,)).params_total == 9 + 3 + 3


def test_a_list_in_a_list_that_is_replaced_has_its_modules_found():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [[nn.Linear(2, 2)]]

        def forward(self, x):
            for (layer,) in self.layers:
                x = layer(x)
            return x

    net, x = Nested(), np.ones((1, 2), np.float32)
    others = [nn.Linear(2, 2)], [nn.Sequential(inner=nn.Linear(2, 2))]  # before: what is made is noticed, too
    assert ran(net, x) == ["layers.0.0"]
    for other, path in zip(others, ("layers.0.0", "layers.0.0.inner"), strict=True):
        net.layers[0] = other
        assert ran(net, x) == [path]


def test_a_module_that_holds_the_one_around_it_is_no_endless_loop():
    net = nn.Sequential(nn.Linear(3, 2))
    net[0].around = [net]
    around = net[0].around
    around.append(around)  # and a list that holds itself
    assert [path for path, _ in net.named_modules()] == ["0"]
    assert ran(net, batch()[:, 0, 0]) == ["0"]
    assert "around.0: = the whole (shared)" in repr(net)


def test_apply_reaches_each_module_once_and_inner_ones_first():
    seen = []
    net = Net()
    assert net.apply(seen.append) is net
    assert len(seen) == len(PATHS) + 1 and seen[-1] is net
    assert seen.index(net.heads["right"][1]) < seen.index(net.heads["right"])
    assert [type(module).__name__ for module in seen[:2]] == ["Conv2d", "Conv2d"]


# ---------------------------------------------------------------------------- training, saving, copies


def train(net, steps=4, kind=Adam, **options):
    optimizer = kind(net.named_parameters(), lr=0.01, **options)
    losses = []
    for _ in range(steps):
        loss = cross_entropy(net(Tensor(batch())), np.array([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_layer_in_a_list_is_trained():
    net = Net()
    before = net.state_dict()
    losses = train(net)
    assert losses[-1] < losses[0]
    assert all(not np.array_equal(before[name], array) for name, array in net.state_dict().items())


def test_state_dicts_are_the_same_each_time_and_load_back():
    a, b = Net(), Net()
    train(a)
    state = a.state_dict()
    buffers = ["layers.2.0.running_mean", "layers.2.0.running_var"]
    assert list(state) == [*NAMES, *buffers] == list(b.state_dict())
    b.load_state_dict(state)
    assert np.array_equal(a.eval()(Tensor(batch())).data, b.eval()(Tensor(batch())).data)
    assert np.array_equal(b.again.weight.data, a.layers[0].weight.data)
    del state["layers.0.bias"]
    with pytest.raises(CheckpointError, match="missing: layers.0.bias"):
        b.load_state_dict(state)


def through_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def tied():
    net = nn.Sequential(a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    net.b.weight = net.a.weight
    return net


def frozen():
    net = Net()
    net.layers[2][0].frozen = True
    net.stem.weight.requires_grad = net.gains[0].requires_grad = False
    net.heads["left"].eval()
    return net


MODELS = {
    "conv": lambda: nn.Conv2d(3, 4, 3),
    "sequential": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
    "resnet20": lambda: minires.models.build("resnet20_cifar"),
    "own": Net,
    "tied": tied,
    "frozen": frozen,
    "float64": lambda: Net().astype(np.float64),
}


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_copy_and_a_pickle_are_whole_and_apart(make, copied):
    net = make()
    x = Tensor(batch() if make is not tied else batch()[:, 0, 0])
    x = x.astype(net.state_dict().popitem()[1].dtype)
    net(x)  # so that what a call leaves behind is there
    other = copied(net)
    state, theirs = net.state_dict(), other.state_dict()
    assert list(state) == list(theirs) and net.shared_names() == other.shared_names()
    assert all(np.array_equal(state[name], theirs[name]) for name in state)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert one is not two and not np.shares_memory(one.data, two.data)
        assert (one.requires_grad, one.dtype, type(one)) == (two.requires_grad, two.dtype, Parameter)
    for (_, one), (_, two) in zip(net.named_buffers(), other.named_buffers(), strict=True):
        assert not np.shares_memory(one, two)
    modes = [(module.training, getattr(module, "frozen", None)) for module in net.modules()]
    assert modes == [(module.training, getattr(module, "frozen", None)) for module in other.modules()]
    assert net.random_states() == other.random_states()
    y, z = net(x), other(x)
    assert np.array_equal(y.data, z.data) and on_tape(y) == on_tape(z)


def test_a_started_process_gets_the_model():
    net = minires.models.build("resnet20_cifar").eval()
    freeze(net, ["*"])  # what is on a tape cannot come back from there
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    # Nothing of this file: the process could not import it if pytest was not started in the folder of tests.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(operator.call, net, Tensor(x)).result()
    assert np.array_equal(there.numpy(), net(Tensor(x)).numpy())


def _ten_times(gradient):
    return 10 * gradient


class TenTimes:
    """A hook that holds the tensor it hangs on."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __call__(self, gradient):
        return 10 * gradient


class Watching(nn.Module):
    """A model whose own method is the hook of its weight."""

    def __init__(self):
        super().__init__()
        self.dense, self.seen = nn.Linear(2, 2), 0
        self.dense.weight.register_hook(self.see)

    def see(self, gradient):
        self.seen += 1

    def forward(self, x):
        return self.dense(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_hook_that_holds_its_tensor_holds_the_copy_in_the_copy(copied):
    layer = nn.Linear(2, 2)
    layer.weight.register_hook(TenTimes(layer.weight))
    other = copied(layer)
    (hook,) = other.weight.node.hooks
    assert hook.tensor is other.weight and other.weight is not layer.weight
    for model in (layer, other):
        model(Tensor([[1.0, 2.0]])).sum().backward()
    assert np.array_equal(layer.weight.grad, other.weight.grad) and other.weight.grad[1, 1] == 20


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_hook_that_is_a_method_of_the_model_is_that_of_the_copy(copied):
    model = Watching()
    for given in (model, {"weight": model.dense.weight, "model": model}):  # the tensor first, too
        made = copied(given)
        other = made["model"] if isinstance(made, dict) else made
        assert not isinstance(made, dict) or made["weight"] is other.dense.weight
        other(Tensor([[1.0, 2.0]])).sum().backward()
        assert (model.seen, other.seen) == (0, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_copy_of_a_model_has_its_hooks(copied):
    net = Net()
    next(net.parameters()).register_hook(_ten_times)
    other = copied(net)
    for model in (net, other):
        model(Tensor(batch())).sum().backward()
    first, theirs = next(net.parameters()), next(other.parameters())
    assert np.array_equal(first.grad, theirs.grad) and np.abs(first.grad).max() > 0
    other.zero_grad()
    theirs.node.hooks.clear()
    other(Tensor(batch())).sum().backward()
    np.testing.assert_allclose(10 * theirs.grad, first.grad, rtol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_pickle])
def test_a_tensor_with_a_gradient_is_copied_as_a_leaf_without_it(copied):
    x = Tensor([1.0, 2.0], requires_grad=True, name="x")
    remove = x.register_hook(_ten_times)
    (x * x).sum().backward()
    y = copied(x)
    assert (y.requires_grad, y.name, y.grad) == (True, "x", None) and np.array_equal(y.data, x.data)
    (y * y).sum().backward()
    assert y.grad.tolist() == x.grad.tolist() == [20.0, 40.0]
    remove()  # from x alone
    (y * y + x * x).sum().backward()
    assert y.grad.tolist() == [40.0, 80.0] and x.grad.tolist() == [22.0, 44.0]
    assert not copied(Tensor([1.0])).requires_grad
    with pytest.raises(MiniresError, match="only leaf tensors"):
        copied(x * 2)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_astype_keeps_parameters_sharing_freezing_and_hooks(kind):
    net, seen = frozen(), []
    weight = net.layers[0].weight
    weight.register_hook(lambda g: seen.append(g.dtype))
    net.count = np.array([3])  # a buffer of whole numbers
    options = {"momentum": 0.9} if kind is SGD else {}
    optimizer = kind(net.named_parameters(), lr=0.01, **options)

    def step(dtype):
        loss = cross_entropy(net(Tensor(batch().astype(dtype))), np.array([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(np.float32)
    before = net.state_dict()
    assert net.astype("float64") is net and net.layers[0].weight is weight is net.again.weight
    assert all(parameter.dtype == np.float64 and parameter.grad is None for parameter in net.parameters())
    assert weight.node.dtype == np.float64
    assert {array.dtype for _, array in net.named_buffers()} == {np.dtype(np.float64), np.dtype(np.int64)}
    assert not net.stem.weight.requires_grad and net.layers[0].bias.requires_grad
    step(np.float64)
    assert seen == [np.float32, np.float64]
    assert not np.array_equal(weight.data, before["layers.0.weight"]) and weight.dtype == np.float64
    assert optimizer.state_dict()[f"{optimizer.slots[0]}:layers.0.weight"].dtype == np.float64
    with pytest.raises(ShapeError, match="parameters are float32 or float64, not int64"):
        net.astype(np.int64)


def test_an_optimizer_goes_on_after_astype_as_if_all_had_been_so_from_the_start():
    nets = [nn.Linear(3, 2, rng=np.random.default_rng(0)) for _ in range(2)]
    x = Tensor(np.array([[1.0, -2.0, 0.5]]))  # exact in float32
    nets[1].astype(np.float64)
    optimizers = [SGD(net.named_parameters(), lr=0.25, momentum=0.5) for net in nets]
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            if step == 1:
                net.astype(np.float64)
            optimizer.zero_grad()
            net(x.astype(net.weight.dtype)).sum().backward()
            optimizer.step()
    assert np.array_equal(nets[0].bias.data, nets[1].bias.data)
    assert np.allclose(nets[0].weight.data, nets[1].weight.data, rtol=1e-6)


def test_to_the_same_place_changes_nothing():
    net = Net()
    train(net, 1)
    gradients = [parameter.grad for parameter in net.parameters()]
    arrays = [parameter.data for parameter in net.parameters()]
    net.to("cpu").astype(np.float32)
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(p.data is a for p, a in zip(net.parameters(), arrays, strict=True))


def test_a_buffer_that_is_held_twice_stays_one():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    net[1].running_mean = net[0].running_mean
    assert net.astype(np.float64)[1].running_mean is net[0].running_mean
    assert [name for name, _ in net.named_buffers()] == [
        "0.running_mean", "0.running_var", "1.running_var",
    ]  # fmt: skip


# ----------------------------------------------------------------------------- the other rooms know it


def test_the_stepper_goes_to_a_layer_of_an_own_model():
    stepper = minires.step(Plain(), batch())
    assert (stepper.goto("conv").op, stepper.here.path) == ("conv2d", "conv")
    stepper = minires.step(Net(), batch(), np.array([0, 2]))
    assert (
        stepper.goto("layers.2.0").op == "batch_norm" and stepper.goto("heads.right").path == "heads.right.0"
    )
    assert "w is the parameter more.0.weight" in repr(stepper.goto("more.0"))
    with pytest.raises(ConfigError, match="there is no module 'conv'; there are heads.left, "):
        stepper.goto("conv")


def test_a_message_never_ends_in_an_empty_list():
    stepper = minires.step(lambda x: (x * x).sum(), batch())
    none = "there is no module 'conv'; there are none at all. Nor is there such an operation; "
    with pytest.raises(ConfigError, match=none + "there are input, mul, sum$"):
        stepper.goto("conv")


def test_the_stepper_knows_the_layers_from_a_loss_alone():
    loss = cross_entropy(Net()(Tensor(batch())), np.array([0, 1]))
    assert minires.step(loss).goto("layers.0").op == "conv2d"


def test_summary_and_trace_of_an_own_model():
    net = Net()
    rows = [layer.name for layer in net.summary((6, 6, 3), memory=True).layers]
    assert rows == [path for path in RAN if path]
    packed = re.search(rb'id="chunk0">([^<]*)<', trace_html(net, batch(1)[0]))[1]
    operations = json.loads(zlib.decompress(base64.b64decode(packed)))["operations"]
    assert {one["path"] for one in operations} == set(RAN)
    assert [one["within"] for one in operations if one["path"] == "heads.right.1"] == [
        ["heads.right", "heads.right.1"]
    ]


def test_an_onnx_file_of_an_own_model_has_its_names(tmp_path):
    onnx = pytest.importorskip("onnx")
    net = Net()
    net.heads["right"].append(nn.Sigmoid())
    export_onnx(net, tmp_path / "own.onnx", (6, 6, 3))
    graph = onnx.load(tmp_path / "own.onnx").graph
    assert {node.name for node in graph.node} >= {
        "stem",
        "layers.0",
        "layers.0.conv",
        "more.0",
        "heads.right.2",
    }
    assert {"layers.0.weight", "more.0.weight", "heads.right.1.bias"} <= {
        one.name for one in graph.initializer
    }


def test_the_summary_of_a_single_layer_and_of_a_part_that_is_not_called_itself():
    (row,) = nn.Conv2d(3, 4, 3).summary((6, 6, 3)).layers
    assert (row.name, row.params, row.output) == ("Conv2d", 3 * 3 * 3 * 4 + 4, (4, 4, 4))

    class Reaches(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU())

        def forward(self, x):
            return self.body.conv(x)  # past the block itself

    summary = Reaches().summary((6, 6, 3))
    assert summary.outputs == {"body": (4, 4, 4)} and "body" in str(summary)
    assert ran(Reaches(), batch()) == ["body.conv"]


def test_a_model_is_called_in_a_loop_over_its_own_parameters_and_modules():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    x = Tensor(np.ones((1, 3), np.float32))
    assert sum(model(x).size for _ in model.named_parameters()) == 6
    assert sum(module(x).size for module in model.modules() for _ in model.named_buffers()) == 0
    for module in nn.Sequential(nn.Linear(3, 3)).modules():
        assert [module(x).shape for _ in module.parameters()] == [(1, 3)] * 2


def test_what_a_list_holds_besides_modules_is_not_kept_alive_and_costs_no_second_look(monkeypatch):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.features = nn.Linear(2, 2), []

        def forward(self, x):
            y = self.layer(x)
            self.features.append(y)
            return y

    model, x = Keeps(), Tensor(np.ones((1, 2), np.float32))
    kept = weakref.ref(model(x))
    model.features.clear()
    gc.collect()
    assert kept() is None
    looks = []
    monkeypatch.setattr(paths.Tree, "look", lambda self, root: looks.append(root))
    for _ in range(3):
        model(x)
        model.features = []
    assert not looks


def test_a_parameter_cannot_be_replaced_by_what_is_none():
    layer = nn.Linear(2, 2)
    refused = "'weight' is a parameter, and .* would take it out of training"
    for value in (layer.weight - 0.1, np.zeros((2, 2), np.float32), 3.0):
        with pytest.raises(ConfigError, match=refused):
            layer.weight = value
    layer.weight, layer.bias = Parameter(np.zeros((2, 2), np.float32)), None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
