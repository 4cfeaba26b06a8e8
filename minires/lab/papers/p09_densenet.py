"""P9: dense connections use parameters well. The error against the parameters, and who reads whom.

DenseNets of three blocks, with bottlenecks (B), compression (C) and both, beside residual networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw, measures
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale
from minires.models import build

SHOWN, SMALL = "k = 12", "k = 12, BC"


class Dense(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P9", "densenet"
    title = "DenseNets need fewer parameters"
    claim = (
        "A DenseNet reaches the error of a residual network with a fraction of its parameters, and gets "
        "better with the growth rate; bottlenecks and compression cost little"
    )
    version = 2
    source = "Huang et al. 2017, arXiv:1608.06993, table 2, figures 4 and 5"
    why = (
        "Six layers in a block, not 12 or 16, and 6 epochs, not 300, by the DenseNet's recipe. A fresh one "
        "reads all alike (1.0), and so short a training hardly changes that: figure 5 cannot be judged. By "
        "this recipe the residual networks do worse than by their own (P1)."
    )
    expects = (
        Expect("with fewer parameters it is better than a ResNet-20", of=("ResNet-20", "test_error"),
               minus=(SMALL, "test_error"), above=0, paper="figure 4: a third of the parameters, same error"),
        Expect("growth 12 is better than 6", of=("k = 6", "test_error"), minus=("k = 12", "test_error"),
               above=0, paper="5.24% at 12"),
        Expect("growth 24 is better than 12", of=("k = 12", "test_error"), minus=("k = 24", "test_error"),
               above=0, paper="L = 100: 4.10% at 12, 3.74% at 24"),
        Expect("B and C cost little: k = 12 with both is within three points",
               of=(SMALL, "test_error"), minus=(SHOWN, "test_error"), above=-3, below=3,
               paper="figure 4, left"),
        Expect("with a third of the parameters it is better than a ResNet-20", added=True, above=0,
               of=("ResNet-20", "test_error"), minus=("k = 6", "test_error"), paper="figure 4: same error"),
    )  # fmt: skip
    further = (
        Expect("the layers of a block read its first features at least half as strongly as others",
               of=(SHOWN, "early_use"), above=0.5, unit="", paper="figure 5: weights spread over all"),
        Expect("of weights for first features training changed at least half as much as of others",
               of=(SHOWN, "early_change"), above=0.5, unit="", added=True),
    )  # fmt: skip
    means = {
        "early_use": "mean weight for a block's first features, of that for its layers",
        "early_change": "the same of what training has changed",
        "parameters": "numbers that are learnt", "layers": "layers in a block"}
    quick = QUICK.but(epochs=6, extra={"layers": 6}, about="half an hour", settings={"optimizer": {
        "name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}})  # fmt: skip
    hour = quick.but(name="hour", pictures=None, tests=None, epochs=5, about="")
    full = hour.but(name="full", size=32, epochs=300, extra={"layers": 12}, about="")

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Three growth rates, B and C for one of them, and two residual networks."""
        layers = scale.extra["layers"]

        def dense(growth: int, bottleneck: bool = False, compress: bool = False) -> Case:
            variant = {"blocks": (layers,) * 3, "growth": growth, "init_channels": 16,
                       "bottleneck": bottleneck, "theta": 0.5 if compress else 1.0}  # fmt: skip
            return scale.train("densenet40_k12_cifar", variant=variant)

        return {
            **{f"k = {growth}": dense(growth) for growth in (6, 12, 24)},
            "k = 12, B": dense(12, bottleneck=True), "k = 12, C": dense(12, compress=True),
            SMALL: dense(12, bottleneck=True, compress=True),
            "ResNet-20": scale.train("resnet20_cifar"), "ResNet-32": scale.train("resnet32_cifar"),
        }  # fmt: skip

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors, parameters, and of a basic DenseNet the mean absolute weight by target and source layer."""
        found: dict[str, Any] = run.errors()
        if run.diverged:
            return found
        found["parameters"] = sum(one.size for one in run.model.parameters())
        if run.case == SHOWN:
            fresh = build(run.config.model, classes=run.classes, seed=run.seed, **run.config.variant)
            before, after = (dict(one.named_parameters()) for one in (fresh, run.model))
            for name, less in (("use", 0), ("change", 1)):
                weights = {path: one.numpy() - less * before[path].numpy() for path, one in after.items()}
                maps = [measures.weights_read(weights, f"block{block}", run.config.variant["growth"])
                        for block in (1, 2, 3)]  # fmt: skip
                early = [[row[0] / np.mean(row[1:]) for row in one if len(row) > 1] for one in maps]
                found |= {name: maps, f"early_{name}": float(np.mean(early))}
        return found

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Error against parameters; and of each block what training has changed in who reads whom."""
        axes = figure.subplots(1, 4, width_ratios=(3, 1, 1, 1))
        draw.against(axes[0], numbers, "parameters", "test_error", names=False)
        axes[0].set_xscale("log")
        draw.named(axes[0])
        draw.labelled(axes[0], "parameters", "test error, %")
        for block, maps in enumerate(_mean_maps(numbers), 1):
            shown = axes[block].imshow(maps, cmap="viridis", aspect="auto", vmin=0, vmax=2)
            axes[block].set(title=f"block {block}", xlabel="source", ylabel="reader" * (block == 1))
        figure.colorbar(shown, ax=axes[-1], label="change of weights, of the row's mean")


def _mean_maps(numbers: Numbers) -> list[np.ndarray[Any, Any]]:
    """The maps of the three blocks, seeds averaged, each row of its mean, NaN where nothing is read."""
    seeds = [one["change"] for one in numbers[SHOWN] if "change" in one] or [[[[np.nan]]] * 3]
    maps = []
    for block in range(3):
        rows = [np.mean([seed[block][at] for seed in seeds], axis=0) for at in range(len(seeds[0][block]))]
        wide = max(map(len, rows))
        maps.append(np.array([[*row / row.mean(), *[np.nan] * (wide - len(row))] for row in rows]))
    return maps
