"""P4: where the activation stands in a residual unit, and how much of it is the last norm alone.

The five orders of the paper's table 2 in networks of 12 units. In the paper the orders "relu_only" and "full"
end in one more activation after the last addition, and the others do not: two things differ. So two more
networks change one of them at a time: the original order with a last batch norm and ReLU, and the full
pre-activation without.
"""

from __future__ import annotations

from typing import Any

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.scale import QUICK, Case, Scale
from minires.models.resnet_v2 import ORDERS

# Errors of the paper's table 2, ResNet-110 on CIFAR-10.
TABLE_2 = {"original": 6.61, "bn_after_add": 8.17, "relu_before_add": 7.84, "relu_only": 6.71, "full": 6.37}
WITH, WITHOUT = "original, last norm", "full, no last norm"


class Orders(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P4", "orders"
    title = "The order of activations in a residual unit"
    claim = (
        "Full pre-activation (batch norm and ReLU before each weight) is the best of five orders, and batch "
        "norm after the addition the worst"
    )
    source = "He et al. 2016, arXiv:1603.05027, table 2"
    why = (
        "12 units in the place of 54. The paper's table changes the order and the activation at the end of "
        "the network together; here two networks more take them apart."
    )
    expects = (
        *(
            Expect(
                f"full is better than {order}", of=(order, "test_error"), minus=("full", "test_error"),
                above=0, paper=f"{error}% - {TABLE_2['full']}% = {error - TABLE_2['full']:.2f}",
            )
            for order, error in TABLE_2.items()
            if order != "full"
        ),
        *(
            Expect(
                f"bn_after_add is worse than {order}", of=("bn_after_add", "test_error"),
                minus=(order, "test_error"), above=0,
                paper=f"{TABLE_2['bn_after_add']}% - {error}% = {TABLE_2['bn_after_add'] - error:.2f}",
            )
            for order, error in TABLE_2.items()
            if order not in ("full", "bn_after_add")
        ),
    )  # fmt: skip
    further = (
        Expect(
            "the order alone: with a last norm in both, full is better", of=(WITH, "test_error"),
            minus=("full", "test_error"), above=0,
        ),
        Expect(
            "the last norm alone: without it full is worse", of=(WITHOUT, "test_error"),
            minus=("full", "test_error"), above=0,
        ),
    )  # fmt: skip
    means = {"units": "units of each width"}
    quick = QUICK.but(epochs=8, extra={"units": 4}, about="20 minutes")  # fmt: skip
    hour = Scale("hour", size=16, epochs=6, extra={"units": 6})
    full = Scale("full", epochs=182, extra={"units": 18})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """The five orders, and the two that change one thing."""
        units = (scale.extra["units"],) * 3

        def train(**variant: Any) -> Case:
            return scale.train("preresnet110_cifar", variant={"repeats": units, **variant})

        return {
            **{order: train(order=order) for order in ORDERS},
            WITH: train(order="original", last_norm=True),
            WITHOUT: train(order="full", last_norm=False),
        }

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Training error by epoch; and the 2x2 of order and last norm beside the other orders."""
        left, right = figure.subplots(1, 2)
        draw.curves(left, numbers, "train_errors")
        draw.labelled(left, "epoch", "training error, %")
        draw.dots(right, numbers, "test_error")
        draw.labelled(right, "test error, %", "")
