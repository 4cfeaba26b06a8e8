"""P3: which shortcut, where the shape changes or everywhere; and none at all.

    A      every second place and channels of zeros: no parameters
    B      a 1x1 convolution where the shape changes
    C      a 1x1 convolution in every block
    none   the plain network
"""

from __future__ import annotations

from typing import Any

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.scale import QUICK, Case, Scale

TABLE_3 = {"none": 28.54, "A": 25.03, "B": 24.52, "C": 24.19}  # top-1 error, ResNet-34 on ImageNet


class Shortcuts(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P3", "shortcuts"
    title = "Any shortcut is much better than none; projections add little"
    claim = (
        "All three shortcuts are considerably better than the plain network. B is slightly better than A, "
        "and C marginally better than B, so projections are not essential"
    )
    source = "He et al. 2015, arXiv:1512.03385, table 3"
    why = (
        "The paper's table is of 34 layers on ImageNet; here they are networks of 20 layers for CIFAR, where "
        "C has 5% more parameters than A. Five seeds, since from the first three it could not be told "
        "whether C with few blocks is within two points of B: chosen when those had been seen, they make the "
        "interval somewhat too narrow."
    )
    expects = (
        *(
            Expect(
                f"{kind} is better than no shortcut",
                of=("none", "test_error"), minus=(kind, "test_error"), above=0,
                paper=f"{TABLE_3['none']}% - {TABLE_3[kind]}% = {TABLE_3['none'] - TABLE_3[kind]:.2f}",
            )
            for kind in "ABC"
        ),
        Expect(
            "B is better than A", of=("A", "test_error"), minus=("B", "test_error"), above=0, paper="0.51",
        ),
        Expect(
            "C is better than B", of=("B", "test_error"), minus=("C", "test_error"), above=0, paper="0.33",
            because="C is behind in training, too, where more parameters should help, and stays so in three "
            "times as long a training. It has nothing that passes its blocks unchanged, and the more blocks, "
            "the more that hampers, as the sequel found with 110 layers (arXiv:1603.05027, table 1; a row of "
            "P5, too). With one block of each width, where C has one projection more than B, the two are "
            "compared in the further questions.",
        ),
        Expect(
            "but by little: between A and C lie less than two points",
            of=("A", "test_error"), minus=("C", "test_error"), above=-2, below=2, paper="0.84",
        ),
    )  # fmt: skip
    further = (
        Expect(
            "C is behind B in training, too", of=("C", "train_error"), minus=("B", "train_error"), above=0,
            added=True,
        ),
        Expect(
            "trained three times as long it is still behind", of=("C, longer", "train_error"),
            minus=("B, longer", "train_error"), above=0, added=True,
        ),
        Expect(
            "with one block of each width it is within two points of B",
            of=("C, fewer blocks", "train_error"), minus=("B, fewer blocks", "train_error"),
            above=-2, below=2, added=True,
        ),
    )  # fmt: skip
    means = {"model": "network", "few": "blocks of each width in the shorter ones"}
    seeds = 5
    quick = QUICK.but(about="an hour")
    full = Scale(
        "full", data="imagenet", size=224, epochs=120, batch_size=256, recipe="imagenet",
        extra={"model": "resnet34", "few": (1, 1, 1, 1)},
    )  # fmt: skip

    def cases(self, scale: Scale) -> dict[str, Case]:
        """One network with each shortcut, and two of them for three times as long, and with fewer blocks."""
        model = scale.extra.get("model", "resnet20_cifar")
        few = scale.extra.get("few", (1, 1, 1))
        return {
            **{kind: scale.train(model, variant={"shortcut": kind}) for kind in ("A", "B", "C", "none")},
            **{f"{kind}, longer": scale.train(model, variant={"shortcut": kind}, epochs=3 * scale.epochs)
               for kind in "BC"},
            **{f"{kind}, fewer blocks": scale.train(model, variant={"shortcut": kind, "repeats": few})
               for kind in "BC"},
        }  # fmt: skip

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Errors by epoch, and at the end."""
        left, right = figure.subplots(1, 2)
        draw.curves(left, numbers, "val_errors", cases=("A", "B", "C", "none"))
        draw.labelled(left, "epoch", "validation error, %")
        draw.dots(right, numbers, "test_error")
        draw.labelled(right, "test error, %", "")
