"""P1: a deeper plain network has a higher training error, a deeper residual network has not.

Four networks for CIFAR-10, plain and residual, of 20 and 56 layers. A plain network and the residual one of
its depth have the same parameters, as a shortcut of option A has none.
"""

from __future__ import annotations

from typing import Any

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.scale import QUICK, Case, Scale


def networks(scale: Scale) -> dict[str, Case]:
    """The four of the claim."""
    return {
        f"{kind}-{depth}": scale.train(f"{kind}{depth}_cifar")
        for kind in ("plain", "resnet")
        for depth in (20, 56)
    }


class Degradation(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P1", "degradation"
    title = "Deeper plain networks are worse, in training too"
    claim = (
        "A plain network of 56 layers has a higher training error than one of 20, so it is not overfitting; "
        "with shortcuts the deeper network is the better one"
    )
    source = "He et al. 2015, arXiv:1512.03385, figures 1 and 6"
    why = (
        "The paper trains for 64,000 steps of 128 pictures of 32x32, and its networks get to a few percent "
        "of error; at `quick` these are at the beginning."
    )
    expects = (
        Expect(
            "plain: 56 layers have a higher training error than 20",
            of=("plain-56", "train_error"), minus=("plain-20", "train_error"), above=0,
            paper="figure 6, left: plain-56 above plain-20 all the way",
        ),
        Expect(
            "plain: and a higher test error",
            of=("plain-56", "test_error"), minus=("plain-20", "test_error"), above=0,
            paper="figure 6, left",
        ),
        Expect(
            "at 56 layers the residual network has the lower training error",
            of=("plain-56", "train_error"), minus=("resnet-56", "train_error"), above=0,
            paper="figure 6",
        ),
        Expect(
            "residual: 56 layers have the lower training error",
            of=("resnet-56", "train_error"), minus=("resnet-20", "train_error"), below=0, added=True,
            paper="figure 6, middle; test errors 6.97% and 8.75%",
            because="At this start the 27 blocks drown what passes. If each begins near its shortcut, with a "
            "last gamma of 1/4, the deeper network gains, and whether it is still behind then the further "
            "questions say.",
        ),
    )  # fmt: skip
    further = (
        Expect(
            "56 layers gain by blocks that begin near their shortcut", of=("resnet-56", "train_error"),
            minus=("resnet-56, gamma 1/4", "train_error"), above=0, added=True,
        ),
        Expect(
            "and have the lower training error then", of=("resnet-56, gamma 1/4", "train_error"),
            minus=("resnet-20, gamma 1/4", "train_error"), below=0, added=True,
        ),
    )  # fmt: skip
    quick = QUICK.but(about="half an hour")  # fmt: skip

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Four networks under one recipe, and the residual ones with another start."""
        near = {
            f"resnet-{depth}, gamma 1/4": scale.train(f"resnet{depth}_cifar", variant={"last_gamma": 0.25})
            for depth in (20, 56)
        }
        return networks(scale) | near

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Errors by epoch: in training dashed, of pictures not learnt from solid."""
        axes = figure.subplots(1, 2, sharey=True)
        for one, kind in zip(axes, ("plain", "resnet"), strict=True):
            cases = [case for case in numbers if case.startswith(kind)]
            draw.curves(one, numbers, "train_errors", cases=cases, dashed=True, legend=False)
            draw.curves(one, numbers, "val_errors", cases=cases)
            draw.labelled(one, "epoch", "error, %" if kind == "plain" else "", kind)
        figure.suptitle("dashed: training; solid: validation", fontsize=9)
