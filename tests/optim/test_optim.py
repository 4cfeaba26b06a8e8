"""Optimisers: against PyTorch, the fused sweep against the plain code, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from minires import backend, nn, optim
from minires.errors import CheckpointError, ConfigError
from minires.optim import SGD, Adam, AdamW, Optimizer
from minires.tensor import Tensor
from minires.train.ema import EMA

SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (3, 3, 5, 7),
    "bn.gamma": (7,),
    "bn.beta": (7,),
    "fc.weight": (40, 6),
    "fc.bias": (6,),
}
CASES = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd nesterov decay": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "sgd decoupled": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "decoupled": True}),
    "adam": (Adam, {"lr": 1e-2}),
    "adam decay betas": (Adam, {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    "adam keras": (Adam, {"lr": 1e-2, "convention": "keras", "eps": 1e-3}),
    "adamw": (AdamW, {"lr": 1e-2, "weight_decay": 0.3}),
    "adamw keras": (AdamW, {"lr": 1e-2, "weight_decay": 0.3, "convention": "keras", "clip_norm": 0.5}),
    "adamw clip": (AdamW, {"lr": 1e-2, "weight_decay": 0.3, "clip_norm": 0.5}),
    "sgd clip": (SGD, {"lr": 0.1, "momentum": 0.9, "clip_norm": 0.5}),
    "sgd nesterov clip decay": (
        SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 1e-3, "clip_norm": 2.0},
    ),
    "adam clip decay": (Adam, {"lr": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0}),
}


def make(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {path: rng.normal(size=shape).astype(dtype) for path, shape in SHAPES.items()}
    return [(path, Tensor(array, requires_grad=True)) for path, array in arrays.items()]


def run(optimizer, parameters, steps=50, seed=1):
    rng = np.random.default_rng(seed)
    for step in range(steps):
        optimizer.lr *= 0.97  # the schedule changes the rate between the steps
        for _, parameter in parameters:
            gradient = rng.normal(size=parameter.shape) * 10.0 ** (step % 3 - 1)
            parameter.grad = gradient.astype(parameter.dtype)
        optimizer.step()
    return [parameter.data for _, parameter in parameters]


OTHERS = ("sgd decoupled", "adam keras", "adamw keras")  # PyTorch has none of these


@pytest.mark.parametrize("case", [name for name in CASES if name not in OTHERS])
def test_equals_pytorch_in_float64(case):
    torch = pytest.importorskip("torch")
    kind, options = CASES[case]
    ours = make()
    got = run(kind(ours, **options), ours)

    options = dict(options)
    clip = options.pop("clip_norm", None)
    weights = [torch.tensor(p.data, requires_grad=True) for _, p in make()]
    matrices = [w for w in weights if w.ndim > 1]
    vectors = [w for w in weights if w.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    theirs = getattr(torch.optim, kind.__name__)(groups, **options)
    rng = np.random.default_rng(1)
    for step in range(50):
        for group in theirs.param_groups:
            group["lr"] *= 0.97
        for weight in weights:
            weight.grad = torch.tensor(rng.normal(size=weight.shape) * 10.0 ** (step % 3 - 1))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        theirs.step()
    for array, weight in zip(got, weights, strict=True):
        np.testing.assert_allclose(array, weight.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not backend.HAS_NUMBA, reason="needs Numba (pip install numba)")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_fused_equals_plain(case, dtype, monkeypatch):
    monkeypatch.setattr("minires.optim.optimizer._GRAIN", 16)  # several chunks, cut inside the parameters
    kind, options = CASES[case]
    fused, plain = make(dtype), make(dtype)
    a = run(kind(fused, **options), fused)
    with backend.reference():
        b = run(kind(plain, **options), plain)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == dtype
        rtol, atol = (1e-5, 1e-6) if dtype == np.float32 else (1e-13, 0.0)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def test_decoupled_decay_shrinks_weights_but_not_vectors():
    parameters = make()
    before = [p.data.copy() for _, p in parameters]
    optimizer = SGD(parameters, lr=0.5, weight_decay=0.2, decoupled=True)
    for _, p in parameters:
        p.grad = np.zeros(p.shape)
    optimizer.step()
    for (path, p), old in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.data, old * (0.9 if p.data.ndim > 1 else 1.0), rtol=1e-15, err_msg=path)
    optimizer = SGD(parameters, lr=0.5, weight_decay=0.2, decay_vectors=True)
    optimizer.step()
    np.testing.assert_allclose(parameters[1][1].data, before[1] * 0.9, rtol=1e-15)


def test_updates_in_place_and_skips_parameters_without_gradient():
    parameters = make(np.float32)
    arrays = [p.data for _, p in parameters]
    optimizer = Adam([p for _, p in parameters], lr=0.1)
    before = arrays[0].copy()
    parameters[1][1].grad = np.ones(7, np.float32)
    optimizer.step()
    assert all(p.data is array for (_, p), array in zip(parameters, arrays, strict=True))
    assert np.array_equal(arrays[0], before) and not np.array_equal(arrays[1], make(np.float32)[1][1].data)
    optimizer.zero_grad()
    assert parameters[1][1].grad is None


def test_transposed_gradient_and_parameter():
    a = Tensor(np.ones((4, 3)), requires_grad=True)
    b = Tensor(np.asfortranarray(np.ones((4, 3))), requires_grad=True)
    gradient = np.arange(12.0).reshape(3, 4).T
    a.grad, b.grad = gradient, gradient
    SGD([a, b], lr=1.0).step()
    assert np.array_equal(a.data, 1 - gradient) and np.array_equal(b.data, 1 - gradient)


def test_clipping_leaves_the_gradient_alone_and_bounds_the_step():
    p = Tensor(np.zeros((2, 2)), requires_grad=True)
    p.grad = np.full((2, 2), 3.0)
    optimizer = SGD([p], lr=1.0, clip_norm=1.5)
    assert optimizer.gradient_norm() == 6.0
    optimizer.step()
    assert np.all(p.grad == 3.0)
    np.testing.assert_allclose(np.linalg.norm(p.data), 1.5, rtol=1e-6)
    p.grad[0, 0] = np.nan
    assert np.isnan(optimizer.gradient_norm())


@pytest.mark.parametrize("case", ["sgd momentum", "adam"])
def test_state_continues_to_the_same_bits(case):
    kind, options = CASES[case]
    through, halted = make(np.float32), make(np.float32)
    optimizer = kind(through, **options)
    run(optimizer, through, 4)
    run(optimizer, through, 4, seed=2)
    first = kind(halted, **options)
    run(first, halted, 4)
    second = kind(halted, **options)
    second.load_state_dict(first.state_dict())
    run(second, halted, 4, seed=2)
    assert second.lr == optimizer.lr
    for (path, a), (_, b) in zip(through, halted, strict=True):
        assert np.array_equal(a.data, b.data), path


def test_state_of_another_optimiser_is_refused():
    parameters = make()
    adam = Adam(parameters)
    run(adam, parameters, 1)
    with pytest.raises(CheckpointError, match="average:conv.weight"):
        SGD(parameters, lr=0.1).load_state_dict(adam.state_dict())
    state = adam.state_dict()
    del state["square:fc.bias"]
    with pytest.raises(CheckpointError, match="no square:fc.bias"):
        Adam(parameters).load_state_dict(state)
    with pytest.raises(CheckpointError, match="4 parameters"):
        Adam(parameters[:4]).load_state_dict(adam.state_dict())


def test_bad_options_are_refused():
    p = make()
    for wrong, message in [
        (lambda: SGD([], lr=0.1), "at least one parameter"),
        (lambda: SGD([("w", p[0][1]), ("w", p[1][1])], lr=0.1), "two parameters under one path: w"),
        (lambda: SGD(p, lr=-1.0), "lr is -1.0"),
        (lambda: SGD(p, lr=float("nan")), "lr is nan"),
        (lambda: SGD(p, lr=0.1, momentum=1.0), "momentum is 1.0"),
        (lambda: SGD(p, lr=0.1, nesterov=True), "momentum above 0"),
        (lambda: Adam(p, betas=(0.9, 1.5)), r"betas\[1\] is 1.5"),
        (lambda: Adam(p, clip_norm=0.0), "clip_norm is 0.0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            wrong()


def test_an_optimiser_is_built_from_its_dict_with_its_own_options_and_those_that_all_have(
    registries_as_before,
):
    @optim.register("halves")
    class Halves(Optimizer):
        def __init__(self, parameters, lr, *, share=0.5, **options):
            super().__init__(parameters, lr, **options)
            self.share = share

        def numbers(self, step):
            return self.lr, self.share

        @staticmethod
        def plain(w, g, lr, share):
            w -= lr * share * g

    w = Tensor([1.0, 2.0], requires_grad=True)
    made = optim.build({"name": "halves", "lr": 0.5, "share": 0.25, "weight_decay": 0.1}, [w])
    assert isinstance(made, Halves) and (made.lr, made.share) == (0.5, 0.25)
    w.grad = np.array([8.0, -8.0], np.float32)
    made.step()
    assert w.tolist() == [0.0, 3.0]
    built = optim.build({"name": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 2.0}, [w])
    assert isinstance(built, SGD) and (built.momentum, built.clip_norm) == (0.9, 2.0)
    for spec, message in [
        ({"name": "halves", "lr": 0.1, "shar": 1}, "Did you mean 'share'"),
        ({"name": "halves", "lr": 0.1, "clip": 1}, "Did you mean 'clip_norm'"),
        ({"name": "halves", "share": 1}, "the optimizer halves needs a learning rate: give lr"),
        ({"name": "adan", "lr": 0.1}, "unknown optimizer 'adan'. Did you mean 'adam'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            optim.build(spec, [w])


class Two:
    """The little of a module that EMA asks for."""

    def __init__(self):
        self.weight, self.mean = Tensor(np.zeros(3, np.float32), requires_grad=True), np.zeros(2, np.float32)

    def named_parameters(self):
        return iter([("weight", self.weight)])

    def named_buffers(self):
        return iter([("mean", self.mean), ("count", np.zeros((), np.int64))])


def test_ema_follows_its_formula_swaps_and_continues():
    model, ema_of, rng = Two(), None, np.random.default_rng(0)
    ema = EMA(model, decay=0.5)
    expected = np.zeros(3)
    for t in range(1, 12):
        model.weight.data[...] = rng.normal(size=3)
        model.mean[...] = t
        ema.update()
        d = min(0.5, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * model.weight.data
    own = model.weight.data.copy()
    with ema.swap():
        np.testing.assert_allclose(model.weight.data, expected, rtol=1e-5, atol=1e-6)
        assert 9 < model.mean[0] < 11
    assert np.array_equal(model.weight.data, own) and model.mean[0] == 11
    ema_of = EMA(model, decay=0.5)
    ema_of.load_state_dict(ema.state_dict())
    assert ema_of.updates == 11 and np.array_equal(ema_of.averages["weight"], ema.averages["weight"])
    with pytest.raises(CheckpointError, match="mean is missing"):
        ema.load_state_dict({k: v for k, v in ema.state_dict().items() if k != "mean"})
    with pytest.raises(ConfigError, match="decay"):
        EMA(model, decay=1.0)


def leaf():
    return Tensor(np.ones((2, 2), np.float32), requires_grad=True)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (leaf(), r"a list of parameters, not one tensor of shape \(2, 2\)"),
        (nn.Linear(2, 2), r"not the Linear that has them; give net.parameters\(\)"),
        (nn.Linear(2, 2).parameters, r"not a method; call it, net.parameters\(\)"),
        (nn.Linear(2, 2).state_dict(), "not a dict"),
        (np.ones(3), "not a ndarray"),
        (None, "not a NoneType"),
        ([{"params": [leaf()], "lr": 0.1}], "parameter 0 of an optimiser is a dict; groups of parameters"),
        ([leaf(), np.ones(3)], "parameter 1 of an optimiser must be a Parameter, .* not a ndarray"),
        ([("w", "v")], "parameter 0 .* not a str"),
        ([leaf() * 2], "parameter 0 of an optimiser is the result of the operation mul"),
        ([leaf(), Tensor([1.0])], "parameter 1 of an optimiser is a tensor that needs no gradient"),
    ],
)
def test_what_is_no_list_of_parameters_is_refused_in_words(given, text):
    for kind in (SGD, Adam):
        with pytest.raises(ConfigError, match=text):
            kind(given, lr=0.1)


@pytest.mark.parametrize("options", [{"lr": "0.1"}, {"lr": None}, {"lr": True}, {"weight_decay": "1"}])
def test_a_number_that_is_none_is_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} must be a number, not {value!r}"):
        SGD([leaf()], **{"lr": 0.1, **options})
    with pytest.raises(ConfigError, match="clip_norm must be a number, not '1'"):
        SGD([leaf()], lr=0.1, clip_norm="1")
    assert SGD([leaf()], lr=np.float32(0.5)).lr == 0.5


def test_an_own_formula_that_returns_the_weights_instead_of_changing_them_is_noticed():
    class Returns(Optimizer):
        @staticmethod
        def plain(w, g, lr):
            return w - lr * g

    w = leaf()
    w.grad = np.ones((2, 2), np.float32)
    with pytest.raises(ConfigError, match="Returns.plain returned a value, .* in place"):
        Returns([w], lr=0.1).step()


def test_frozen_parameters_are_taken_and_an_optimiser_needs_a_formula():
    frozen = nn.Linear(2, 2)
    frozen.weight.requires_grad = False
    assert len(SGD(frozen.parameters(), lr=0.1).parameters) == 2

    class Formless(Optimizer):
        def numbers(self, step):
            return (self.lr,)

    with pytest.raises(ConfigError, match=r"Formless has no formula; give it a static method plain\(w, g"):
        Formless([leaf()], lr=0.1)
