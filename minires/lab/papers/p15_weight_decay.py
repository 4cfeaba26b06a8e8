"""P15: does weight decay turn a residual block into the identity?

y = x + F(x): decay pulls the weights of F to 0, so, it is said, the block becomes the identity unless it is
needed. But behind a batch norm the size of a kernel has no effect at all. What has is gamma, which most
recipes leave without decay. The share of a block is the standard deviation of its branch over that of its
shortcut, as they are added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale
from minires.nn.responses import ways

DECAYS: dict[str, dict[str, Any]] = {
    "none": {"weight_decay": 0.0},
    "weights": {"weight_decay": 1e-3},
    "weights and gammas": {"weight_decay": 1e-3, "decay_vectors": True},
    "weights, no BN": {"weight_decay": 1e-3, "lr": 0.03},
    "none, no BN": {"weight_decay": 0.0, "lr": 0.03},
    "weights x 10": {"weight_decay": 1e-2},
    "weights and gammas x 10": {"weight_decay": 1e-2, "decay_vectors": True},
}


class WeightDecay(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P15", "weight-decay"
    title = "Weight decay and the identity"
    claim = "Weight decay drives a residual block's weights to zero, so that the block becomes the identity"
    source = "tutorials on residual networks (with deeplearning.ai's course, week 2, as their source)"
    why = (
        "A decay of 0.001, ten times the usual, so that a short training shows it. Without batch norm the "
        "weights start from Glorot's, half as large in variance, and the rate is 0.03, both chosen when runs "
        "had been seen: from He's the signal grows in each block (P12), and most learnt nothing."
    )
    expects = (
        Expect("the weights get smaller", of=("none", "norm"), minus=("weights", "norm"), above=0, unit="",
               paper="-"),
        Expect("the share of the branches gets smaller, with batch norm", of=("none", "share"),
               minus=("weights", "share"), above=0, unit=""),
        Expect("the gammas' decay makes it smaller", of=("weights", "share"),
               minus=("weights and gammas", "share"), above=0, unit=""),
        Expect("without batch norm the weights' decay makes it smaller", of=("none, no BN", "share"),
               minus=("weights, no BN", "share"), above=0, unit="", added=True),
        Expect("a block comes near the identity: a share below 0.1", of=("weights", "share"), below=0.1,
               unit="", paper="0",
               because="Behind a batch norm the size of a kernel has no effect: decay makes the kernels "
               "smaller, and the branches stay far from nothing, also with ten times the decay. The "
               "gammas are what has an effect, and most recipes leave them without decay."),
    )  # fmt: skip
    further = (
        Expect("ten times the decay of the weights leaves it far from it", of=("weights x 10", "share"),
               above=0.5, unit="", added=True),
        Expect("ten times that of the gammas, too, brings it nearer", of=("weights x 10", "share"),
               minus=("weights and gammas x 10", "share"), above=0, unit="", added=True),
    )  # fmt: skip
    means = {
        "share": "standard deviation of a block's branch over that of its shortcut, mean over the blocks",
        "norm": "norm of all kernels of the blocks at the end (without batch norm of the biases, too)",
    }  # fmt: skip
    quick = QUICK.but(about="20 minutes",
                  settings={**QUICK.settings, "schedule": {"name": "cosine"}, "watch": True})  # fmt: skip
    hour = quick.but(name="hour", pictures=None, tests=None, epochs=15, about="")
    full = Scale("full", epochs=182, settings={"watch": True})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Five decays with batch norm, two without."""
        without = {"bn": False, "initializer": "glorot_uniform"}
        return {
            name: scale.train("resnet20_cifar", variant=without if "no BN" in name else {}, optimizer=decay)
            for name, decay in DECAYS.items()
        }

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors; the blocks' shares and their mean; the norm of all kernels of the blocks, at the end and by
        epoch (without batch norm their biases count, too)."""
        found: dict[str, Any] = run.errors()
        if run.diverged:
            return found
        x, _ = run.batch(500)
        shares = [one.branch / one.shortcut for one in ways(run.model, x) if one.shortcut]
        norms: dict[float, float] = {}
        for row in run.layers:
            if row.path.startswith("res") and row.weight is not None:
                norms[row.epoch] = norms.get(row.epoch, 0.0) + row.weight**2
        by_epoch = [float(np.sqrt(norms[epoch])) for epoch in sorted(norms)]
        return {**found, "share": float(np.mean(shares)), "shares": shares, "norm": by_epoch[-1],
                "norms": by_epoch}  # fmt: skip

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """The norm of the blocks' weights by epoch, and the shares of the blocks."""
        left, right = figure.subplots(1, 2)
        draw.curves(left, numbers, "norms")
        left.set_ylim(0)
        draw.labelled(left, "epoch", "norm of the kernels of all blocks")
        draw.curves(right, numbers, "shares", legend=False)
        right.set_ylim(0)
        draw.labelled(right, "block", "std of the branch / of the shortcut")
