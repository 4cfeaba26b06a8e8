"""P12: batch norm allows a high learning rate, and keeps the signal's size.

Plain and residual networks of 20 layers, with and without batch norm, at the usual rate and at a tenth of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale
from minires.models import build
from minires.nn.responses import responses


class BatchNorm(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P12", "batch-norm"
    title = "Batch norm allows a high learning rate"
    claim = (
        "Without batch norm the usual rate is too high; with it training stands it and is faster for it, and "
        "the size of the signal stays the same from layer to layer"
    )
    source = "Ioffe and Szegedy 2015, arXiv:1502.03167, sections 3.3 and 4.2; He et al. 2015, section 3.4"
    why = (
        "The paper's own figure is of Inception on ImageNet, where 5 and 30 times the usual rate are tried. "
        "Here the recipe of the residual networks for CIFAR stands in its place."
    )
    expects = (
        Expect("plain: at the high rate it is worse without batch norm",
               of=("plain, none, high", "train_error"), minus=("plain, BN, high", "train_error"), above=0,
               paper="5 times the rate diverges"),
        Expect("residual: at the high rate it is worse without batch norm",
               of=("resnet, none, high", "train_error"), minus=("resnet, BN, high", "train_error"), above=0),
        Expect("plain: with it the high rate is faster", of=("plain, BN, low", "train_error"),
               minus=("plain, BN, high", "train_error"), above=0,
               paper="5 times the rate: 14 times fewer steps"),
        Expect("residual: with it the high rate is faster", of=("resnet, BN, low", "train_error"),
               minus=("resnet, BN, high", "train_error"), above=0),
        Expect("without it the signal of a fresh residual network grows", of=("resnet, none, high", "growth"),
               minus=("resnet, BN, high", "growth"), above=0,
               unit="(log10 of last / first response)"),
    )  # fmt: skip
    quick = QUICK.but(epochs=8, extra={"rates": [0.05, 0.005]}, about="20 minutes")
    hour = Scale("hour", size=16, epochs=8, extra={"rates": [0.1, 0.01]})
    full = Scale("full", epochs=182, extra={"rates": [0.1, 0.01]})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Two kinds, with and without, two rates."""
        return {
            f"{kind}, {'BN' if bn else 'none'}, {name}": scale.train(
                f"{kind}20_cifar", variant={"bn": bn}, optimizer={"lr": lr}
            )
            for kind in ("plain", "resnet")
            for bn in (True, False)
            for name, lr in zip(("high", "low"), scale.extra["rates"], strict=True)
        }

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors; the responses of the layers of the fresh network, in training, and how much they grow."""
        fresh = build(run.config.model, classes=run.classes, seed=run.seed, **run.config.variant)
        x, _ = run.batch(64, part="train")
        found = [one.std for one in responses(fresh, x) if len(one.shape) == 4]
        return {**run.errors(), "responses": found, "growth": float(np.log10(found[-1] / found[0]))}

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Training error by epoch, and the fresh networks' responses."""
        left, right = figure.subplots(1, 2)
        draw.curves(left, numbers, "train_errors")
        draw.labelled(left, "epoch", "training error, %")
        draw.curves(right, numbers, "responses", legend=False, cases=[c for c in numbers if "high" in c])
        right.set_yscale("log")
        draw.labelled(right, "layer of the fresh network", "std before ReLU and addition")
