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
from minires.nn.blocks import Residual
from minires.nn.intervene import activations

KINDS = {"plain": "plain", "resnet": "residual"}


class BatchNorm(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P12", "batch-norm"
    title = "Batch norm allows a high learning rate"
    claim = (
        "Without batch norm the usual rate is too high; with it training stands it and is faster for it, and "
        "the size of the signal stays about the same from block to block"
    )
    version = 2
    source = "Ioffe and Szegedy 2015, arXiv:1502.03167, sections 3.3 and 4.2; He et al. 2015, section 3.4"
    why = (
        "The paper's own figure is of Inception on ImageNet, where 5 and 30 times the usual rate are tried. "
        "Here the recipe of the residual networks for CIFAR stands in its place. Behind a batch norm the "
        "size is 1 by its making; looked at is what blocks hand on, behind the addition and ReLU."
    )
    expects = (
        *(Expect(f"{words}: without it the high rate is worse than the low one",
                 of=(f"{kind}, none, high", "train_error"), minus=(f"{kind}, none, low", "train_error"),
                 above=0, added=True)
          for kind, words in KINDS.items()),
        Expect("plain: at the high rate it is worse without batch norm",
               of=("plain, none, high", "train_error"), minus=("plain, BN, high", "train_error"), above=0,
               paper="5 times the rate diverges"),
        Expect("residual: at the high rate it is worse without batch norm",
               of=("resnet, none, high", "train_error"), minus=("resnet, BN, high", "train_error"), above=0),
        Expect("plain: with it the high rate is faster", of=("plain, BN, low", "train_error"),
               minus=("plain, BN, high", "train_error"), above=0,
               paper="5 times the rate: 2.1 million steps in the place of 13.3"),
        Expect("residual: with it the high rate is faster", of=("resnet, BN, low", "train_error"),
               minus=("resnet, BN, high", "train_error"), above=0),
        *(Expect(f"{words}: with it the signal changes less than threefold",
                 of=(f"{kind}, BN, high", "growth"), above=-0.477, below=0.477, unit="(log10)", added=True)
          for kind, words in KINDS.items()),
        Expect("residual: without it the signal grows more", of=("resnet, none, high", "growth"),
               minus=("resnet, BN, high", "growth"), above=0, unit="(log10)", added=True),
    )  # fmt: skip
    means = {"growth": "log10 of what the last block of the fresh network hands on over the first one's",
             "rates": "the high and the low rate"}  # fmt: skip
    quick = QUICK.but(epochs=8, extra={"rates": [0.05, 0.005]}, about="20 minutes")
    hour = Scale("hour", size=16, epochs=8, extra={"rates": [0.1, 0.01]})
    full = Scale("full", epochs=182, extra={"rates": [0.1, 0.01]})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Two kinds, with and without, two rates."""
        return {
            f"{kind}, {'BN' if bn else 'none'}, {name}": scale.train(
                f"{kind}20_cifar", variant={"bn": bn}, optimizer={"lr": lr}
            )
            for kind in KINDS
            for bn in (True, False)
            for name, lr in zip(("high", "low"), scale.extra["rates"], strict=True)
        }

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors; the size of what each block of the fresh network hands on, in training."""
        fresh = build(run.config.model, classes=run.classes, seed=run.seed, **run.config.variant)
        x, _ = run.batch(64, part="train")
        blocks = [path for path, one in fresh.named_modules() if isinstance(one, Residual)]
        sizes = [float(one.std()) for one in activations(fresh, x, blocks).values()]
        return {**run.errors(), "sizes": sizes, "growth": float(np.log10(sizes[-1] / sizes[0]))}

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Training error by epoch, and the fresh networks' responses."""
        left, right = figure.subplots(1, 2)
        draw.curves(left, numbers, "train_errors")
        draw.labelled(left, "epoch", "training error, %")
        for at, case in enumerate(numbers):
            if "high" in case:  # the rate changes nothing of a fresh network
                sizes = numbers.all(case, "sizes")
                places = np.arange(1, sizes.shape[1] + 1)
                right.plot(places, sizes.T, color=draw.colour(at), linewidth=0.8, alpha=0.6)
                right.plot(places, sizes.mean(axis=0), color=draw.colour(at), label=case.rpartition(",")[0])
        right.set_yscale("log")
        draw.named(right)
        draw.labelled(right, "block of the fresh network", "std of what it hands on (thin: each seed)")
