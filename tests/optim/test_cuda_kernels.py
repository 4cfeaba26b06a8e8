"""The optimisers' CUDA kernels against the plain code: on a GPU, and emulated on the CPU.

A kernel finds its arrays in a table of addresses, and the emulator cannot put margins around them: so each
lies inside a larger array here.
"""

from __future__ import annotations

import cuda_emulator
import numpy as np
import opcheck
import pytest

from minires import backend
from minires.backend import cuda
from minires.optim import SGD, Adam, AdamW, cuda_kernels
from minires.tensor import Tensor
from minires.train import ema
from minires.train.ema import EMA

SHAPES = {
    "one": (1,), "seven": (7,), "chunk": (64, 64), "chunk and one": (17, 241), "many": (100, 1000),
    "without gradient": (3, 5),
}  # fmt: skip
CASES = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd coupled": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd decoupled": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "decoupled": True}),
    "sgd clip": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "clip_norm": 2.0}),
    "adam": (Adam, {"lr": 1e-2}),
    "adam coupled": (Adam, {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    "adam keras": (Adam, {"lr": 1e-2, "convention": "keras", "eps": 1e-3, "clip_norm": 0.5}),
    "adamw": (AdamW, {"lr": 1e-2, "weight_decay": 0.3}),
    "adamw clip": (AdamW, {"lr": 1e-2, "weight_decay": 0.3, "decay_vectors": True, "clip_norm": 0.5}),
}
CLOSE = {"float32": 1e-6, "float64": 1e-12}  # relative to the largest number of an array
STEPS = 4
MARGIN = 64

emulated = [
    pytest.mark.emulated,
    pytest.mark.skipif(cuda_emulator.compiler() is None, reason="there is no g++ here"),
]
on_dtypes = pytest.mark.parametrize("dtype", CLOSE)


class Machine:
    """A GPU or the emulator, and how often each kernel was launched on it."""

    def __init__(self, device, monkeypatch):
        self.device, self.launches, self.launched = device, {}, []
        if device == "cpu":
            cuda_emulator.emulate(monkeypatch)
        else:
            opcheck.need_device(device)
        self.launch = cuda._launch
        monkeypatch.setattr(cuda, "_launch", self.count)

    def count(self, source, name, *rest):
        self.launches[name] = self.launches.get(name, 0) + 1
        self.launched.append((source, name, *rest))
        self.launch(source, name, *rest)

    def replay(self):
        """Launch once more what was launched, with the same arguments, as a CUDA graph does."""
        for launched in self.launched:
            self.launch(*launched)


@pytest.fixture(params=[pytest.param("cpu", marks=emulated), pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request, monkeypatch):
    return Machine(request.param, monkeypatch)


class Arrays:
    """Makes arrays on a device, each with margins of 77 and NaN: what is written or read there shows."""

    def __init__(self, device="cpu"):
        self.device, self.wholes = device, []

    def __call__(self, array):
        margin = np.resize([77, np.nan], MARGIN).astype(array.dtype)
        whole = np.concatenate([margin[::-1], array.reshape(-1), margin])
        self.wholes.append(backend.to_device(whole, self.device))
        return self.wholes[-1][MARGIN:-MARGIN].reshape(array.shape)

    def check(self):
        for whole in self.wholes:
            margin = np.resize([77, np.nan], MARGIN)
            whole = backend.to_device(whole, "cpu")
            for found in (whole[:MARGIN][::-1], whole[-MARGIN:]):
                np.testing.assert_array_equal(found, margin, "written outside")


def make(kind, options, dtype, arrays):
    rng = np.random.default_rng(0)
    values = {path: rng.standard_normal(shape).astype(dtype) for path, shape in SHAPES.items()}
    optimizer = kind([(path, Tensor(arrays(v), requires_grad=True)) for path, v in values.items()], **options)
    for slot in optimizer.slots:
        optimizer._state[slot] = [arrays(np.zeros_like(value)) for value in values.values()]
    return optimizer


def give_gradients(optimizer, arrays, step):
    """New ones; the last parameter never has one, and of the others one goes without in each step."""
    rng = np.random.default_rng(step)
    for i, parameter in enumerate(optimizer.parameters):
        gradient = rng.standard_normal(parameter.shape) * 10.0 ** (step % 3 - 1)
        has_none = i in (step % 5, len(optimizer.parameters) - 1)
        parameter.grad = None if has_none else arrays(gradient.astype(parameter.dtype))


def run(optimizer, arrays, steps=range(STEPS)):
    for step in steps:
        optimizer.lr *= 0.97  # the schedule changes the rate between the steps
        give_gradients(optimizer, arrays, step)
        before = [None if p.grad is None else p.grad.copy() for p in optimizer.parameters]
        optimizer.step()
        for parameter, gradient in zip(optimizer.parameters, before, strict=True):
            assert gradient is None or (parameter.grad == gradient).all(), "the gradient was changed"
    arrays.check()


def numbers_of(optimizer):
    weights = {p: tensor.data for p, tensor in zip(optimizer.paths, optimizer.parameters, strict=True)}
    return {**weights, **optimizer.state_dict()}


def assert_same(got, expected, relative):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        opcheck.assert_close(got[name], array, relative, name)


def check(case, dtype, device="cpu"):
    kind, options = CASES[case]
    arrays, plain_arrays = Arrays(device), Arrays()
    fast, plain = make(kind, options, dtype, arrays), make(kind, options, dtype, plain_arrays)
    run(fast, arrays)
    with backend.reference():
        run(plain, plain_arrays)
    assert_same(numbers_of(fast), numbers_of(plain), CLOSE[dtype])


@on_dtypes
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_code_in_one_launch_for_each_step(case, dtype, machine):
    check(case, dtype, machine.device)
    kind, options = CASES[case]
    norm = {"squares_of_chunks": STEPS, "norm_of_chunks": STEPS} if "clip_norm" in options else {}
    assert machine.launches == {"sgd" if kind is SGD else "adam": STEPS, **norm}


@pytest.mark.parametrize("case", ["sgd nesterov", "adamw clip", "adam keras"])
def test_state_continues_to_the_same_bits(case, machine):
    kind, options = CASES[case]
    arrays = Arrays(machine.device)
    through, halted, continued = (make(kind, options, "float32", arrays) for _ in range(3))
    run(through, arrays)
    run(halted, arrays, range(2))
    for ours, theirs in zip(continued.parameters, halted.parameters, strict=True):
        ours.data[...] = theirs.data
    continued.step()  # there is no gradient: nothing happens
    continued.load_state_dict(halted.state_dict())
    run(continued, arrays, range(2, STEPS))
    assert_same(numbers_of(continued), numbers_of(through), 0.0)


def test_what_does_not_fit_is_left_to_the_plain_code(machine):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((30, 20)) for _ in range(5)]
    gradients = [rng.standard_normal((30, 20)) for _ in range(5)]
    results = []
    for device in (machine.device, "cpu"):
        weights = [backend.to_device(value.copy(), device) for value in values]
        given = [backend.to_device(gradient.copy(), device) for gradient in gradients]
        weights[0] = weights[0].T.copy().T  # not in order
        given[1] = given[1].T.copy().T  # is put in order
        given[2] = given[2].astype("float32")  # another dtype than its parameter
        weights[3], given[3] = weights[3].astype("float32"), given[3].astype("float32")
        parameters = [Tensor(weight, requires_grad=True) for weight in weights]
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient
        optimizer = SGD(parameters, 0.1, momentum=0.9)
        with backend.reference(on=bool(results)):
            norm = optimizer.gradient_norm()
            for _ in range(2):
                optimizer.step()
        results.append({str(i): p.data for i, p in enumerate(parameters)})
        results[-1]["norm"] = np.array(norm)
    assert_same(*results, 1e-6)
    # Each step takes a launch for float32 and one for float64.
    assert machine.launches == {"sgd": 4, "squares_of_chunks": 1, "norm_of_chunks": 1}


def check_norm(dtype, device="cpu"):
    arrays = Arrays(device)
    optimizer = make(SGD, {"lr": 0.1}, dtype, arrays)
    give_gradients(optimizer, arrays, 0)
    present = [backend.to_device(p.grad, "cpu") for p in optimizer.parameters if p.grad is not None]
    expected = np.sqrt(sum((gradient.astype("float64") ** 2).sum() for gradient in present))
    norm = optimizer.gradient_norm()
    arrays.check()
    assert isinstance(norm, float)
    np.testing.assert_allclose(norm, expected, rtol=1e-12)
    return optimizer


@on_dtypes
def test_norm_is_added_up_in_double_in_two_launches(dtype, machine):
    optimizer = check_norm(dtype, machine.device)
    assert machine.launches == {"squares_of_chunks": 1, "norm_of_chunks": 1}
    assert optimizer.gradient_norm() == optimizer.gradient_norm()
    largest = 1e30  # its square is beyond float32
    optimizer.parameters[4].grad[...] = largest
    np.testing.assert_allclose(optimizer.gradient_norm(), largest * np.sqrt(100000), rtol=1e-6)
    for wrong in (np.inf, np.nan):
        optimizer.parameters[4].grad[-1, -1] = wrong
        np.testing.assert_equal(optimizer.gradient_norm(), wrong)
    optimizer.zero_grad()
    assert optimizer.gradient_norm() == 0


@pytest.mark.parametrize("case", ["sgd coupled", "adam"])
def test_tables_are_sent_where_they_changed_and_stay_in_their_place(case, machine):
    """A CUDA graph replays the launch of one step; the numbers of each step are written before."""
    kind, options = CASES[case]
    arrays, plain_arrays = Arrays(machine.device), Arrays()
    fast, plain = make(kind, options, "float32", arrays), make(kind, options, "float32", plain_arrays)
    give_gradients(fast, arrays, 0)
    give_gradients(plain, plain_arrays, 0)
    fast.step()
    addresses, numbers = fast._on_gpu.tables["float32"]
    sent, devices = addresses.host, (addresses.device, numbers.device)
    with backend.reference():
        plain.step()
        for _ in range(3):
            for optimizer in (fast, plain):
                optimizer.lr *= 0.5
            plain.step()
            rows = {}
            for i, parameter in enumerate(fast.parameters):
                if parameter.grad is not None:
                    fast._steps[i] += 1
                    values = (1.0, fast._coupled[i], 1.0, *fast.numbers(fast._steps[i]))
                    rows[i] = ([parameter.data, parameter.grad, *fast._slots_of(i)], values)
            before = numbers.host
            fast._on_gpu.set(rows)
            assert addresses.host is sent and numbers.host is not before
            assert addresses.device is devices[0] and numbers.device is devices[1]
            machine.replay()
    assert_same(numbers_of(fast), numbers_of(plain), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_two_halves_is_a_step(case, machine):
    kind, options = CASES[case]
    arrays = Arrays(machine.device)
    halves, whole = (make(kind, options, "float32", arrays) for _ in range(2))
    run(halves, arrays, range(1))
    run(whole, arrays)
    for step in range(1, STEPS):
        halves.lr *= 0.97
        give_gradients(halves, arrays, step)
        halves.plan_step()
        assert float(halves.launch_step()) == halves.gradient_norm()
    arrays.check()
    assert_same(numbers_of(halves), numbers_of(whole), CLOSE["float32"])


class Model:
    """The little of a module that EMA asks for."""

    def __init__(self, dtype, arrays):
        rng = np.random.default_rng(0)
        values = {path: arrays(rng.standard_normal(shape).astype(dtype)) for path, shape in SHAPES.items()}
        self.parameters = {path: Tensor(array, requires_grad=True) for path, array in values.items()}
        self.buffers = {"mean": arrays(np.ones(7, dtype)), "count": np.zeros((), np.int64)}

    def named_parameters(self):
        return iter(self.parameters.items())

    def named_buffers(self):
        return iter(self.buffers.items())


def check_average(dtype, device="cpu"):
    results = []
    for where in (device, "cpu"):
        arrays, rng = Arrays(where), np.random.default_rng(1)
        model = Model(dtype, arrays)
        average = EMA(model, decay=0.3)
        average.averages = {
            path: arrays(backend.to_device(array, "cpu")) for path, array in average.averages.items()
        }
        with backend.reference(on=bool(results)):
            for _ in range(STEPS):
                for tensor in model.parameters.values():
                    weight = rng.standard_normal(tensor.shape).astype(dtype)
                    tensor.data[...] = backend.to_device(weight, where)
                model.buffers["mean"] *= 2
                average.update()
        arrays.check()
        results.append(average.state_dict())
    assert_same(*results, CLOSE[dtype])


@on_dtypes
def test_moving_average_in_one_launch(dtype, machine):
    check_average(dtype, machine.device)
    assert machine.launches == {"moving_average": STEPS}


def _mutant(what, owner, right, wrong, check):
    return pytest.param(owner, right, wrong, check, id=what)


def check_sgd():
    for case in ("sgd coupled", "sgd decoupled", "sgd clip"):
        check(case, "float64")


def check_adam():
    for case in ("adam coupled", "adamw clip"):
        check(case, "float64")


MUTANTS = [
    _mutant("one too many", SGD, "i < chunk[2]", "i <= chunk[2]", check_sgd),
    _mutant("always the first chunk", Adam, "int i = chunk[1] + ", "int i = ", check_adam),
    _mutant("every second", SGD, "i += blockDim.x", "i += 2 * blockDim.x", check_sgd),
    _mutant("numbers of another array", SGD, "7 * chunk[0]", "7 * (chunk[0] / 2)", check_sgd),
    _mutant("other numbers", Adam, "9 * chunk[0]", "8 * chunk[0]", check_adam),
    _mutant("no coupled decay", SGD, " + decay * wi", "", check_sgd),
    _mutant("no decoupled decay", Adam, "T wi = keep * w[i];", "T wi = w[i];", check_adam),
    _mutant("no Nesterov", SGD, "of_gradient * gi", "of_momentum * gi", check_sgd),
    _mutant("no momentum", SGD, "b[i] = bi;", "b[i] = gi;", check_sgd),
    _mutant("correction inside", Adam, "sqrt(vi) / correction", "sqrt(vi / correction)", check_adam),
    _mutant("squared gradient", Adam, "new2 * (gi * gi)", "new2 * gi", check_adam),
    _mutant("in float", cuda_kernels, "double sum = 0;", "float sum = 0;", lambda: check_norm("float32")),
    _mutant("no barrier", cuda_kernels, "__syncthreads();", "", lambda: check_norm("float64")),
    _mutant("half of a block", cuda_kernels, "half = 128", "half = 64", lambda: check_norm("float64")),
    _mutant("one too many", cuda_kernels, "i < chunk[2]", "i <= chunk[2]", lambda: check_norm("float64")),
    _mutant("too few sums", cuda_kernels, "i = threadIdx.x; i < n", "i = threadIdx.x + 1; i < n", check_sgd),
    _mutant("one too many", ema, "i < chunk[2]", "i <= chunk[2]", lambda: check_average("float64")),
    _mutant("other array", ema, "(w[i] - a[i])", "(w[0] - a[i])", lambda: check_average("float64")),
    _mutant("other share", ema, "[chunk[0]];", "[chunk[0] + 1];", lambda: check_average("float64")),
]


@pytest.mark.emulated
@emulated[1]
@pytest.mark.parametrize(("owner", "right", "wrong", "check"), MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutants_are_caught(owner, right, wrong, check, monkeypatch):
    cuda_emulator.emulate(monkeypatch)
    name = {cuda_kernels: "_NORM_CUDA", ema: "_CUDA"}.get(owner, "source")
    code = getattr(owner, name).code.removeprefix(cuda.PRELUDE)
    assert right in code
    monkeypatch.setattr(owner, name, cuda.Source(code.replace(right, wrong)))
    with pytest.raises(AssertionError):
        check()
