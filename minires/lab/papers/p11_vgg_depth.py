"""P11: VGG of 11, 13, 16 and 19 layers: is deeper better, and where does it stall without batch norm?

The configurations A, B, D and E with narrow layers and one dense layer at the end.
"""

from __future__ import annotations

from typing import Any

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.scale import Case, Scale

LAYERS = {11: "A", 13: "B", 16: "D", 19: "E"}


class VGGDepth(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P11", "vgg-depth"
    title = "VGG: deeper is better, up to 16 or 19 layers"
    claim = "The error falls from 11 to 16 layers, and is as good with 19; without batch norm deep ones stall"
    source = "Simonyan and Zisserman 2014, arXiv:1409.1556, table 3; batch norm: arXiv:1502.03167"
    why = (
        "Layers an eighth as wide, one dense layer, pictures of 32x32: five pools leave one "
        "number of each channel. The paper starts its deep networks from a trained shallow one; here all "
        "but one start from He's weights."
    )
    expects = (
        Expect("with batch norm 13 layers are better than 11", of=("11, BN", "test_error"),
               minus=("13, BN", "test_error"), above=0, paper="29.6% - 28.7% = 0.9"),
        Expect("and 16 better than 13", of=("13, BN", "test_error"), minus=("16, BN", "test_error"),
               above=0, paper="28.7% - 27.0% = 1.7",
               because="Trained three times as long they are behind in training, too: that is not "
               "overfitting; they are harder to train. P1 shows it of other plain networks with batch norm. "
               "The paper's remedy, to start deep ones from a trained one of 11 layers, is not taken here."),
        Expect("19 are about as good as 16", of=("19, BN", "test_error"), minus=("16, BN", "test_error"),
               above=-2, below=2, paper="27.3% - 27.0% = 0.3"),
        Expect("without batch norm 16 layers are better than 11", of=("11", "test_error"),
               minus=("16", "test_error"), above=0, paper="29.6% - 27.0% = 2.6"),
        Expect("19 layers train worse without batch norm than with it", of=("19", "train_error"),
               minus=("19, BN", "train_error"), above=0),
        Expect("without batch norm 19 layers stall: not five points better than guessing",
               of=("19", "train_error"), above=85, unit="%", added=True, paper="section 3.1: learning stalls",
               because="They start from He's weights, which were made for ReLUs a year later, and learn; the "
               "paper's were drawn with a deviation of 0.01. That it is the start is seen in the further "
               "question: from weights half as large in variance nothing is learnt."),
    )  # fmt: skip
    further = (
        Expect("with batch norm 16 layers are behind 13 in training, too", of=("16, BN", "train_error"),
               minus=("13, BN", "train_error"), above=0, added=True),
        Expect("trained three times as long they are still behind", of=("16, BN, longer", "train_error"),
               minus=("13, BN, longer", "train_error"), above=0, added=True),
        Expect("from Glorot's weights, half as large in variance, they stall",
               of=("19, Glorot", "train_error"), above=85, unit="%", added=True,
               paper="section 3.1, of its wide layers: they do not"),
        Expect("11 layers, too, train worse without it", of=("11", "train_error"),
               minus=("11, BN", "train_error"), above=0, added=True),
    )  # fmt: skip
    means = {"widths": "channels of the five stages", "head": "head"}
    quick = Scale("quick", pictures=5_000, tests=2_000, size=32, epochs=12, batch_size=64,
                  settings={"optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}},
                  extra={"widths": [8, 16, 32, 64, 64]}, about="40 minutes")  # fmt: skip
    hour = quick.but(name="hour", pictures=None, tests=None, epochs=8, about="")
    full = Scale("full", data="imagenet", size=224, epochs=74, batch_size=256, recipe="imagenet",
                 settings={"optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}},
                 extra={"widths": [64, 128, 256, 512, 512], "head": "dense"})  # fmt: skip

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Four depths with and without batch norm, and two of them for three times as long."""
        base = {"widths": scale.extra["widths"], "head": scale.extra.get("head", "linear")}

        def train(layers: int, bn: bool, times: int = 1, **more: Any) -> Case:
            variant = {**base, "configuration": LAYERS[layers], "bn": bn, **more}
            return scale.train("vgg16", variant=variant, epochs=times * scale.epochs)

        return {
            **{f"{layers}, BN" if bn else f"{layers}": train(layers, bn)
               for bn in (False, True) for layers in LAYERS},
            "19, Glorot": train(19, bn=False, initializer="glorot_uniform"),
            **{f"{layers}, BN, longer": train(layers, True, 3) for layers in (13, 16)},
        }  # fmt: skip

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Error by depth, and training error by epoch of the deepest."""
        left, right = figure.subplots(1, 2)
        endings = {"": "none", ", BN": "batch norm", ", BN, longer": "batch norm, three times as long"}
        for at, (ending, label) in enumerate(endings.items()):
            depths = [layers for layers in LAYERS if f"{layers}{ending}" in numbers]
            for layers in depths:
                values = numbers.all(f"{layers}{ending}", "test_error")
                left.plot([layers] * len(values), values, "o", color=draw.colour(at), markersize=3.5)
            means = [numbers.mean(f"{layers}{ending}", "test_error") for layers in depths]
            left.plot(depths, means, color=draw.colour(at), label=label)
        draw.named(left)
        left.set_xticks(list(LAYERS))
        draw.labelled(left, "layers", "test error, %")
        draw.curves(right, numbers, "train_errors", cases=[case for case in numbers if "longer" not in case])
        draw.labelled(right, "epoch", "training error, %")
