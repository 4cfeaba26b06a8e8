"""A network in Chainer or in DeZero, from a description in JSON: the child process of older_engines.py.

    PYTHON benchmarks/older_peers.py --peer chainer --folder FOLDER

It runs in an environment that has the engine and NumPy alone, so nothing of minires is imported here. The
folder holds the description (``network.json``), the weights under minires' names and in its layout, and the
inputs. The description is a list of layers, each with its ``kind``, its options, and in ``arrays`` the names
of its weights; a residual layer has two such lists, whose results are added.

Both engines put channels first. Everything is float32, and every layer is the engine's own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Actions = dict[str, Callable[[], Any]]


def serve(peer: str, folder: Path) -> None:
    """Do what the lines on the standard input ask, and answer each with a line of JSON."""
    network, inputs = json.loads((folder / "network.json").read_text()), np.load(folder / "inputs.npz")
    x = np.ascontiguousarray(inputs["x"].transpose(0, 3, 1, 2))
    actions = PEERS[peer](network, x, inputs["labels"], dict(np.load(folder / "weights.npz")))
    check = actions["check"]
    actions["check"] = lambda: np.savez(folder / f"{peer}.npz", **check())
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(actions[line.strip()]()), flush=True)


def assemble(network: list[dict[str, Any]], make: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    """The described network as a function; ``make`` gives that of a layer."""
    steps = [
        _residual(assemble(layer["branch"], make), assemble(layer["shortcut"], make))
        if layer["kind"] == "residual"
        else make(layer)
        for layer in network
    ]

    def run(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return run


def _residual(branch: Callable[[Any], Any], shortcut: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: branch(x) + shortcut(x)


def channels_first(array: Any) -> Any:
    """A kernel (KH, KW, C, O) as (O, C, KH, KW); other weights as they are."""
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def channels_last(array: Any) -> Any:
    """The inverse of :func:`channels_first`."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def timed_step(forward: Callable[[], Any], update: Callable[[], Any]) -> list[float]:
    """The seconds of forward, backward and optimiser, measured as compare.py does it for minires."""
    marks = [time.perf_counter()]
    loss = forward()
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    update()
    marks.append(time.perf_counter())
    return np.diff(marks).tolist()


def found(logits: Any, loss: Any, gradients: dict[str, Any]) -> dict[str, Any]:
    """What is compared. A peer that has left float32 somewhere would be timed for twice the work."""
    results = {"training": logits, "loss": loss, **{f"d {name}": array for name, array in gradients.items()}}
    wide = [name for name, array in results.items() if array.dtype != np.float32]
    if wide:
        raise SystemExit(f"{len(wide)} results are not in float32: {', '.join(wide[:5])}")
    return results


# ----------------------------------------------------------------------------------------- the engines


def _chainer(network: list[dict[str, Any]], x: Any, labels: Any, weights: dict[str, Any]) -> Actions:
    import chainer
    from chainer import functions as F
    from chainer import links as L

    chainer.config.train = True
    labels = labels.astype(np.int32)  # as in Chainer's own data sets
    links, parameters = chainer.ChainList(), {}

    def make(layer: dict[str, Any]) -> Callable[[Any], Any]:
        kind, arrays = layer["kind"], layer["arrays"]
        if kind == "relu":
            return F.relu
        if kind == "max_pool":
            return lambda x: F.max_pooling_2d(x, layer["kernel"], layer["stride"], cover_all=False)
        if kind == "avg_pool":
            return lambda x: F.average_pooling_2d(x, layer["kernel"], layer["stride"])
        if kind == "flatten":
            return lambda x: F.reshape(x, (len(x), -1))
        own = {name: channels_first(weights[path]) for name, path in arrays.items()}
        if kind == "conv":
            outputs, inputs, *kernel = own["weight"].shape
            link = L.Convolution2D(
                inputs, outputs, tuple(kernel), layer["stride"], layer["padding"],
                initialW=own["weight"], initial_bias=own["bias"],
            )  # fmt: skip
            learned = {"weight": link.W, "bias": link.b}
        elif kind == "batch_norm":
            link = L.BatchNormalization(
                own["gamma"].size, decay=layer["momentum"], eps=layer["eps"],
                initial_gamma=own["gamma"], initial_beta=own["beta"],
                initial_avg_mean=own["running_mean"], initial_avg_var=own["running_var"],
            )  # fmt: skip
            learned = {"gamma": link.gamma, "beta": link.beta}
        elif kind == "linear":
            link = L.Linear(*own["weight"].shape, initialW=own["weight"].T, initial_bias=own["bias"])
            learned = {"weight": link.W, "bias": link.b}
        else:
            raise SystemExit(f"chainer: no layer of the kind {kind!r}")
        links.append(link)
        parameters.update({arrays[name]: parameter for name, parameter in learned.items()})
        return link

    model = assemble(network, make)
    optimizer = chainer.optimizers.Adam(alpha=1e-3).setup(links)

    def forward() -> Any:
        links.cleargrads()
        return F.softmax_cross_entropy(model(x), labels)

    def check() -> dict[str, Any]:
        logits = model(x)
        links.cleargrads()
        loss = F.softmax_cross_entropy(logits, labels)
        loss.backward()
        gradients = {path: channels_last(parameter.grad) for path, parameter in parameters.items()}
        dense = {path: gradient.T for path, gradient in gradients.items() if gradient.ndim == 2}
        return found(logits.array, loss.array, {**gradients, **dense})

    return {
        "train": lambda: timed_step(forward, optimizer.update),
        "check": check,
        "versions": lambda: _versions(chainer),
    }


def _dezero(network: list[dict[str, Any]], x: Any, labels: Any, weights: dict[str, Any]) -> Actions:
    import dezero
    from dezero import functions as F
    from dezero import layers as L

    # The derivative of its loss has the type that float32 and the labels make together: with the usual int64
    # (and with int32) the whole backward pass would be in float64.
    labels = labels.astype(np.int16)
    model_layers: list[Any] = []
    parameters: dict[str, Any] = {}

    class BatchNorm(L.BatchNorm):
        """The layer has no options; the function below it (whose name is spelt so) has."""

        def __init__(self, decay: float, eps: float) -> None:
            super().__init__()
            self.options = {"decay": decay, "eps": eps}

        def __call__(self, x: Any) -> Any:
            statistics = self.avg_mean.data, self.avg_var.data
            return F.batch_nrom(x, self.gamma, self.beta, *statistics, **self.options)

    def make(layer: dict[str, Any]) -> Callable[[Any], Any]:
        kind, arrays = layer["kind"], layer["arrays"]
        if kind == "relu":
            return F.relu
        if kind == "max_pool":
            return lambda x: F.pooling(x, layer["kernel"], layer["stride"])
        if kind == "avg_pool":
            return lambda x: F.average_pooling(x, layer["kernel"], layer["stride"])
        if kind == "flatten":
            return F.flatten
        if kind == "conv":
            kernel, outputs = weights[arrays["weight"]].shape[:2], weights[arrays["weight"]].shape[3]
            one: Any = L.Conv2d(outputs, kernel, layer["stride"], layer["padding"])
            learned = {"weight": one.W, "bias": one.b}
        elif kind == "batch_norm":
            one = BatchNorm(layer["momentum"], layer["eps"])
            learned = {"gamma": one.gamma, "beta": one.beta,
                       "running_mean": one.avg_mean, "running_var": one.avg_var}  # fmt: skip
        elif kind == "linear":
            one = L.Linear(weights[arrays["bias"]].size)
            learned = {"weight": one.W, "bias": one.b}
        else:
            raise SystemExit(f"dezero: no layer of the kind {kind!r}")
        for name, parameter in learned.items():
            parameter.data = channels_first(weights[arrays[name]])
            parameters[arrays[name]] = parameter
        model_layers.append(one)
        return one

    model = assemble(network, make)
    container = dezero.models.Sequential(*model_layers)  # never called: it lists the parameters
    optimizer = dezero.optimizers.Adam(alpha=1e-3).setup(container)

    def forward() -> Any:
        container.cleargrads()
        return F.softmax_cross_entropy(model(x), labels)

    def check() -> dict[str, Any]:
        container.cleargrads()
        logits = model(x)
        loss = F.softmax_cross_entropy(logits, labels)
        loss.backward()
        learned = {path: parameter for path, parameter in parameters.items() if "running_" not in path}
        gradients = {path: channels_last(parameter.grad.data) for path, parameter in learned.items()}
        return found(logits.data, loss.data, gradients)

    return {
        "train": lambda: timed_step(forward, optimizer.update),
        "check": check,
        "versions": lambda: _versions(dezero),
    }


def _versions(engine: Any) -> dict[str, str]:
    """Of all that takes part."""
    return {
        engine.__name__: engine.__version__, "numpy": np.__version__, "blas": _blas(),
        "python": platform.python_version(),
    }  # fmt: skip


def _blas() -> str:
    """The processor whose kernels the OpenBLAS of NumPy's wheel uses; NumPy 1.23 has no way to ask."""
    for path in Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
        name = ctypes.CDLL(str(path)).openblas_get_corename64_  # the library that is loaded already
        name.restype = ctypes.c_char_p
        return f"openblas {name().decode()}"
    return "unknown"


PEERS = {"chainer": _chainer, "dezero": _dezero}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    serve(options.peer, options.folder)


if __name__ == "__main__":
    main()
