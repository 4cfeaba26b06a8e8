"""What all tests need."""

import collections
import gc
import importlib
import os
import pkgutil
import signal
from contextlib import suppress
from typing import Any

import cuda_emulator
import pytest
from quick_runs import draw_nothing

from minires import ops


def pytest_configure(config: pytest.Config) -> None:
    """Kernels for the stand-in of a GPU are compiled once for all processes, and for the next time."""
    if (cache := getattr(config, "cache", None)) is not None:
        with suppress(OSError):
            cuda_emulator.keep_in(cache.mkdir("emulated"))


def pytest_sessionstart() -> None:
    """Every file of an operation is imported, so that the tests of all operations know one that is new."""
    for module in pkgutil.walk_packages(ops.__path__, "minires.ops."):
        importlib.import_module(module.name)


LONG = ("tutorials/test_site.py", "benchmarks/test_compare.py")  # minutes, in a few tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Large files first, so that no process works on long after the others; before them ``LONG``."""
    sizes = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: (not item.path.as_posix().endswith(LONG), -sizes[item.path]))


def pytest_collection_finish() -> None:
    """No garbage collection looks through what pytest has made of 16,000 tests: half the time of some."""
    gc.collect()
    gc.freeze()


# ``pytest -n auto`` runs the tests on several processes, see pytest-xdist; these two hooks are asked by it.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process per core, but no more than four: the largest networks take 2 GB each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay together: they share what was made for them, a trained run or a site."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # as they were sorted above
    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True, scope="session")
def signals_as_in_a_terminal():
    """A shell starts jobs in the background with Ctrl-C ignored, nohup with SIGHUP, and whatever these start
    ignores it too. A handler of ours is not inherited."""
    handlers = {"SIGINT": signal.default_int_handler, "SIGHUP": lambda number, frame: None}
    before = {}
    for name, handler in handlers.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def no_figures(monkeypatch):
    """Runs of the test draw no figures."""
    draw_nothing(monkeypatch)


@pytest.fixture
def registries_as_before():
    """What a test registers, or an example that it runs, is taken out of the registries again."""
    from minires import data, models, optim
    from minires.ops.registry import OPERATIONS
    from minires.train import recipes, schedules

    registries = (
        models.MODELS, data.SETS, data.augment.AUGMENTATIONS, optim.OPTIMIZERS, schedules.SCHEDULES,
        recipes.RECIPES, OPERATIONS,
    )  # fmt: skip
    before = [set(registry) for registry in registries]
    yield registries
    for registry, names in zip(registries, before, strict=True):
        for name in set(registry) - names:
            del registry[name]
