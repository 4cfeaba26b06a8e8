"""P6: does a network of 110 layers need a warm-up, and what for?

The first 400 steps of ResNet-110: at the usual rate, 0.1 for batches of 128; at a tenth of it until the
training error is below 80%, and then at that, as the paper does; and, which is not in the paper, at the usual
rate with a batch norm and ReLU before the average pool.
"""

from __future__ import annotations

from typing import Any

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.scale import Case, Scale

USUAL, WARM, NORM = "usual rate", "warm-up", "usual rate, last norm"


class WarmUp(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P6", "warm-up"
    title = "The warm-up of ResNet-110"
    claim = (
        "With 110 layers the rate 0.1 is slightly too large to start converging; 0.01 until the training "
        "error is below 80%, about 400 steps, lets it start"
    )
    source = "He et al. 2015, arXiv:1512.03385, section 4.2"
    why = (
        "The paper says that with 0.1 from the first step it starts converging after several epochs, and "
        "reaches about the same accuracy. Only the first 400 steps are looked at here. In the figure: what "
        "was learnt at the low rate can be lost again when the rate rises."
    )
    expects = (
        Expect(
            "with the warm-up the training error is lower after 400 steps", of=(USUAL, "train_error"),
            minus=(WARM, "train_error"), above=0,
            paper="with 0.1 below 90% only after several epochs; with the warm-up below 80% after 400 steps",
        ),
        Expect(
            "the warm-up brings it below 80%", of=(WARM, "train_error"), below=80, unit="%",
            paper="below 80% after about 400 steps",
        ),
    )  # fmt: skip
    further = (
        Expect(
            "a last norm does at least as well as the warm-up", of=(WARM, "train_error"),
            minus=(NORM, "train_error"), above=0,
        ),
    )  # fmt: skip
    means = {"units": "units of each width", "rate": "usual rate"}
    # 400 steps, in four parts, so that there are four errors to look at.
    quick = Scale(
        "quick", pictures=6_400, tests=2_000, size=16, epochs=4, batch_size=64,
        settings={"schedule": {"name": "constant"}},
        extra={"units": 18, "rate": 0.05}, about="half an hour",
    )  # fmt: skip
    hour = quick.but(name="hour", pictures=12_800, tests=None, size=32, batch_size=128, about="",
                     extra={"units": 18, "rate": 0.1})  # fmt: skip
    full = hour.but(name="full")

    def cases(self, scale: Scale) -> dict[str, Case]:
        """The original order of the V2 paper is V1; there the last norm is an option."""
        units, rate = (scale.extra["units"],) * 3, scale.extra["rate"]

        def train(**changes: Any) -> Case:
            last_norm = changes.pop("last_norm", False)
            variant = {"order": "original", "repeats": units, "last_norm": last_norm}
            return scale.train(
                "preresnet110_cifar", variant=variant, optimizer={"lr": rate}, **changes
            )

        return {
            USUAL: train(),
            WARM: train(schedule={"name": "constant", "begin": {"lr": rate / 10, "until_error": 0.8}}),
            NORM: train(last_norm=True),
        }

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Training error and loss of each hundred steps."""
        left, right = figure.subplots(1, 2)
        draw.curves(left, numbers, "train_errors", x=(100, 200, 300, 400))
        left.axhline(80, color="black", linestyle=":", linewidth=0.8)
        draw.labelled(left, "step", "training error of the last 100 steps, %")
        draw.curves(right, numbers, "train_losses", x=(100, 200, 300, 400), legend=False)
        draw.labelled(right, "step", "training loss of the last 100 steps")
