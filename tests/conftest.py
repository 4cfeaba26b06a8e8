"""What all tests need."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_as_in_a_terminal():
    """A shell starts jobs in the background with Ctrl-C ignored, and whatever these start ignores it too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def registries_as_before():
    """What a test registers, or an example that it runs, is taken out of the registries again."""
    from minires import data, models
    from minires.train import optim, recipes, schedules

    registries = (
        models.MODELS, data.SETS, data.augment.AUGMENTATIONS, optim.OPTIMIZERS, schedules.SCHEDULES,
        recipes.RECIPES,
    )  # fmt: skip
    before = [set(registry) for registry in registries]
    yield registries
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - names:
            del registry[name]
