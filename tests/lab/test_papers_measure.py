"""What the labs of minires measure, against numbers that are known."""

import types

import numpy as np
import pytest

from minires.lab import LABS, measures
from minires.lab.papers import p05_shortcut_kinds, p08_cardinality, p12_batch_norm, p13_shattered
from minires.models import build


def a_run(**more):
    """What a lab sees of a run that has learnt nothing, of ten classes."""
    errors = {"train_error": 90.0, "learnt": 0}
    x = np.random.default_rng(5).standard_normal((4, 8, 8, 3)).astype(np.float32)
    given = {"errors": lambda: dict(errors), "diverged": False, "classes": 10, "seed": 0, "extra": {},
             "batch": lambda count, part="test": (x, np.arange(4))}  # fmt: skip
    return types.SimpleNamespace(**(given | more))


def test_p02_says_which_networks_have_learnt():
    model = build("resnet20_cifar", repeats=(1, 1, 1), seed=0).eval()
    for learnt in (0, 1):
        found = LABS["responses"].measure(a_run(model=model, errors=lambda one=learnt: {"learnt": one}))
        assert found["learnt"] == learnt and found["response"] == pytest.approx(np.mean(found["responses"]))


@pytest.mark.parametrize("units", [1, 2])
def test_p05_a_half_on_each_shortcut_leaves_a_half_for_each_unit(units):
    variant = {"order": "original", "repeats": (units,) * 3, "shortcut": "A"}
    whole = p05_shortcut_kinds.over_shortcuts(variant, side=8, seed=0)
    half, left = {**variant, "gating": "constant", "scale": (0.5, 1.0)}, 0.5 ** (3 * units)
    assert p05_shortcut_kinds.over_shortcuts(half, side=8, seed=0) == pytest.approx(whole * left)
    run = a_run(settings={"size": 8, "variant": half})
    assert LABS["shortcut-kinds"].measure(run)["arrives"] == pytest.approx(left)


def test_p08_looks_at_pictures_all_over_of_which_none_was_learnt_from(monkeypatch):
    labels = np.repeat(np.arange(4), 5_000)  # class by class
    train = types.SimpleNamespace(
        names=[str(at) for at in range(20_000)], images=np.arange(20_000), labels=labels
    )
    learnt = types.SimpleNamespace(names=train.names[::4])
    seen = {}

    def error(model, x, labels):
        seen.update(x=x, labels=labels)
        return 12.5

    monkeypatch.setattr(p08_cardinality.measures, "error", error)
    model = build("resnet20_cifar", repeats=(1, 1, 1), seed=0)
    run = a_run(model=model, learnt_from=learnt, normalize=lambda x: x,
                splits=types.SimpleNamespace(train=train))  # fmt: skip
    found = LABS["cardinality"].measure(run)
    assert found["other_error"] == 12.5 and len(seen["x"]) == 7_500 and not (seen["x"] % 4 == 0).any()
    assert np.array_equal(labels[seen["x"]], seen["labels"]) and set(seen["labels"]) == {0, 1, 2, 3}
    learnt.names = train.names
    assert LABS["cardinality"].measure(run)["other_error"] is None


def test_p09_what_training_changed_is_the_difference_to_the_start():
    variant = {"blocks": (3, 3, 3), "growth": 4, "init_channels": 8, "bottleneck": False, "theta": 1.0}
    model = build("densenet40_k12_cifar", classes=10, seed=0, **variant)
    for name, one in model.named_parameters():
        if ".layer" in name and name.endswith("conv1.weight"):
            first = one.shape[2] - 4 * int(name.split(".layer")[1].split(".")[0]) + 4
            one.data[:, :, :first] += 0.25  # of the block's first features
            one.data[:, :, first:] -= 0.125
    config = types.SimpleNamespace(model="densenet40_k12_cifar", variant=variant)
    found = LABS["densenet"].measure(a_run(model=model, case="k = 12", config=config))
    assert found["early_change"] == pytest.approx(2, rel=1e-3) and found["early_use"] != found["early_change"]
    assert found["parameters"] == sum(one.size for one in model.parameters())


def test_p12_the_signal_that_grows_tenfold_has_a_growth_of_one(monkeypatch):
    config = types.SimpleNamespace(model="plain20_cifar", variant={"repeats": (1, 1, 1)})
    unit = np.array([-1.0, 1.0])
    monkeypatch.setattr(p12_batch_norm, "activations", lambda model, x, paths: {
        path: unit * 10.0 ** at for at, path in enumerate(paths[:2])
    })  # fmt: skip
    found = LABS["batch-norm"].measure(a_run(config=config))
    assert found["sizes"] == [1.0, 10.0] and found["growth"] == pytest.approx(1)


def test_p13_the_noise_is_a_hundredth_and_a_tenth(monkeypatch):
    monkeypatch.setattr(p13_shattered.measures, "kernel_gradient", lambda model, x, labels: x.ravel())
    run = a_run(settings={"model": "resnet20_cifar", "variant": {}}, extra={"blocks": [1], "batch": 4})
    x, _ = run.batch(4)
    noise = np.random.default_rng(0).standard_normal(x.shape).astype("float32")
    found = LABS["shattered"].measure(run)
    assert found["deepest"] == pytest.approx(measures.cosine(x.ravel(), (x + 0.01 * noise).ravel()))
    assert found["noisier"] == pytest.approx(measures.cosine(x.ravel(), (x + 0.1 * noise).ravel()))
    assert found["noisier"] < found["deepest"] < 1
