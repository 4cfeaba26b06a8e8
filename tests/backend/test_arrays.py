"""Array modules and devices."""

from types import SimpleNamespace

import numpy as np
import pytest

from minires import backend
from minires.backend import arrays
from minires.errors import ConfigError


def test_devices():
    x = np.ones(3)
    assert backend.array_module(x) is np and backend.device_of(x) == "cpu"
    assert backend.to_device(x, "cpu") is x


def test_auto_is_the_gpu_if_there_is_one(monkeypatch):
    def none():
        raise ConfigError("this machine has none")

    monkeypatch.setattr(arrays, "cupy", none)
    assert backend.choose_device("auto") == "cpu"
    monkeypatch.setattr(arrays, "cupy", lambda: "the cupy module")
    assert backend.choose_device("auto") == "cuda"
    assert backend.choose_device("cpu") == "cpu" and backend.choose_device("cuda:1") == "cuda:1"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    runtime = SimpleNamespace(getDeviceCount=lambda: 2)
    monkeypatch.setattr(arrays, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with pytest.raises(ConfigError, match="there is no cuda:2: this machine's GPUs are cuda:0 to cuda:1"):
        backend.to_device(np.zeros(1), "cuda:2")
