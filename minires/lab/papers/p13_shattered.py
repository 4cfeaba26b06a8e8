"""P13: the gradients of a deep plain network are noise; shortcuts keep their direction.

The gradient of all kernels for a batch, and for the same batch with noise of a hundredth of its standard
deviation: their cosine is 1 where the direction holds, 0 where it is another one. Nothing is trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw, measures
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import Case, Scale
from minires.models import build

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain, BN": ("plain20_cifar", {}), "plain, no BN": ("plain20_cifar", {"bn": False}),
    "residual, BN": ("resnet20_cifar", {}), "residual, no BN": ("resnet20_cifar", {"bn": False}),
    "residual, last gamma 0": ("resnet20_cifar", {"last_gamma": 0.0}),
}  # fmt: skip


class Shattered(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P13", "shattered"
    title = "Shattered gradients"
    claim = (
        "In deep plain networks the gradient is as good as white noise; in residual networks with batch norm "
        "its direction decays far more slowly with depth"
    )
    version = 2
    source = "Balduzzi et al. 2017, arXiv:1702.08591, sections 1 and 2"
    why = (
        "The paper looks at gradients of inputs, in theory and on small networks; training follows those of "
        "the weights, so these are looked at here, in convolutional networks for pictures. Measured is the "
        "cosine of two gradients: that for some pictures, and that for the same pictures with 1% of noise. "
        "How much is left depends on how much noise there is, so 0.2 and 0.5 are of this noise. Whether "
        "residual networks keep more is looked at with ten times as much, too."
    )
    expects = (
        Expect("in the deepest plain network nothing of the direction is left",
               of=("plain, no BN", "deepest"), below=0.2, unit="", paper="correlations 2^-L", added=True,
               because="It is batch norm that shatters here: the same network with it keeps nothing, as the "
               "next line says, and residual networks without it keep nearly all. The paper's law assumes "
               "that half of the units are active, each by itself, for two inputs; without batch norm inputs "
               "as close as these pass nearly the same units."),
        Expect("nor with batch norm", of=("plain, BN", "deepest"), below=0.2, unit="",
               paper="decays exponentially, batch norm or not"),
        Expect("in the residual network of its depth most of it is", of=("residual, BN", "deepest"),
               above=0.5, unit="", paper="decays as 1/sqrt(L)"),
        Expect("there residual keeps more than plain, both with batch norm", of=("residual, BN", "deepest"),
               minus=("plain, BN", "deepest"), above=0.3, unit=""),
    )  # fmt: skip
    further = (
        Expect("at 8 layers the plain one keeps it, too", of=("plain, BN", "shallowest"), above=0.5, unit=""),
        Expect("it is batch norm that shatters the plain one: it keeps less than without",
               of=("plain, no BN", "deepest"), minus=("plain, BN", "deepest"), above=0, unit="", added=True),
        Expect("and the residual one", of=("residual, no BN", "deepest"), minus=("residual, BN", "deepest"),
               above=0, unit="", paper="the other way round: (3/4)^L without, 1/sqrt(L) with it", added=True),
        Expect("with ten times the noise residual keeps more than plain, too", of=("residual, BN", "noisier"),
               minus=("plain, BN", "noisier"), above=0, unit="", added=True),
        Expect("a last gamma of 0 keeps still more", of=("residual, last gamma 0", "deepest"),
               minus=("residual, BN", "deepest"), above=0, unit=""),
    )  # fmt: skip
    means = {
        "deepest": "cosine in the network with the most blocks (9 of each width: 56 layers)",
        "shallowest": "in the one with the fewest (1: 8 layers)",
        "noisier": "in the deepest one, with 10% of noise",
        "blocks": "blocks of each width", "batch": "pictures in the batch",
    }  # fmt: skip
    quick = Scale("quick", size=16, pictures=1_000, extra={"blocks": [1, 2, 3, 5, 7, 9], "batch": 32},
                  about="a minute")  # fmt: skip
    hour = quick.but(name="hour", extra={"blocks": [1, 3, 5, 9, 12, 18], "batch": 128})
    full = hour.but(name="full", size=32)

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Five kinds of network, each at all depths."""
        return {kind: scale.fresh(model=model, variant=variant) for kind, (model, variant) in KINDS.items()}

    def measure(self, run: Run) -> dict[str, Any]:
        """The cosine for each depth; those of the shallowest and the deepest, with more noise, too."""
        x, labels = run.batch(run.extra["batch"], part="train")
        noise = np.random.default_rng(run.seed).standard_normal(x.shape).astype("float32")
        cosines = []
        for blocks in run.extra["blocks"]:
            variant = {**run.settings["variant"], "repeats": (blocks,) * 3}
            model = build(run.settings["model"], classes=run.classes, seed=run.seed, **variant)
            pair = [measures.kernel_gradient(model, one, labels) for one in (x, x + 0.01 * noise)]
            cosines.append(measures.cosine(*pair))
        noisier = measures.cosine(pair[0], measures.kernel_gradient(model, x + 0.1 * noise, labels))
        depths = [6 * blocks + 2 for blocks in run.extra["blocks"]]
        return {"depths": depths, "cosines": cosines, "shallowest": cosines[0], "deepest": cosines[-1],
                "noisier": noisier}  # fmt: skip

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """The cosine by depth."""
        axes = figure.subplots()
        draw.curves(axes, numbers, "cosines", x=numbers.mean("plain, BN", "depths"))
        axes.axhline(0, color="black", linewidth=0.8)
        draw.labelled(axes, "layers", "cosine of the two gradients of all kernels")
