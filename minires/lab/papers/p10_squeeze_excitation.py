"""P10: squeeze and excitation: does it help, by how much depends on r, on its place, on the pooling?

Gates in a residual network of 20 layers. Without biases in the gates, as in the paper's ablations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.measures import gates_by_class
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale

EACH = 50  # pictures of a class, as in figure 6
RATIOS = {"none": None, "r = 2": 2, "r = 4": 4, "r = 8": 8, "r = 16": 16}
OTHERS = {"r = 4, pre": {"placement": "pre"}, "r = 4, post": {"placement": "post"},
          "r = 4, identity": {"placement": "identity"}, "r = 4, max": {"squeeze": "max"},
          "r = 4, no squeeze": {"squeeze": "none"}}  # fmt: skip
HALVED = (
    "Each gate on a shortcut passes about half of what it is given, all together next to nothing (further "
    "questions). Halved shortcuts without gates cost as much in P5. Trained three times as long it stays "
    "behind; the paper trains for 100 epochs of ImageNet."
)
PLACES = (("before the branch", "pre", "22.23", ""), ("on the shortcut", "identity", "22.20", HALVED))


class Gates(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P10", "squeeze-excitation"
    title = "Squeeze and excitation lowers the error"
    claim = (
        "Gates that weigh the channels lower the error at almost no cost; how far the squeeze goes (r from 2 "
        "to 16) hardly matters, nor does the place, save after the addition; late gates depend on the class"
    )
    source = "Hu et al. 2017, arXiv:1709.01507, tables 10, 11, 14 and 16, figure 6"
    why = (
        "20 layers of 16, 32 and 64 channels in the place of SE-ResNet-50: r = 16 leaves one, two and four "
        "numbers between the two layers of a gate."
    )
    expects = (
        *(Expect(f"gates of {ratio} are better than none", of=("none", "test_error"),
                 minus=(ratio, "test_error"), above=0, paper=f"23.30% - {error}%")
          for ratio, error in (("r = 2", 22.29), ("r = 4", 22.25), ("r = 8", 22.26), ("r = 16", 22.28))),
        Expect("from r = 2 to r = 16 it changes by less than two points", of=("r = 16", "test_error"),
               minus=("r = 2", "test_error"), above=-2, below=2, paper="22.28% - 22.29%"),
        *(Expect(f"{where} they help as much, within two points", of=(f"r = 4, {place}", "test_error"),
                 minus=("r = 4", "test_error"), above=-2, below=2, because=because, added=True,
                 paper=f"{error}% - 22.28%")
          for where, place, error, because in PLACES),
        Expect("after the addition they help less", of=("r = 4, post", "test_error"),
               minus=("r = 4", "test_error"), above=0, paper="22.78% - 22.28% = 0.50"),
        Expect("the maximum in the place of the mean is a little worse", of=("r = 4, max", "test_error"),
               minus=("r = 4", "test_error"), above=0, paper="22.57% - 22.28% = 0.29"),
        Expect("without a squeeze it is worse", of=("r = 4, no squeeze", "test_error"),
               minus=("r = 4", "test_error"), above=0, paper="22.93% - 22.28% = 0.65"),
        Expect("gates differ between classes more in the last stage than in the first",
               of=("r = 4", "late_spread"), minus=("r = 4", "early_spread"), above=0, unit="",
               paper="figure 6"),
    )  # fmt: skip
    further = (
        Expect("trained three times as long: on the shortcut, within two points",
               of=("r = 4, identity, longer", "test_error"), minus=("r = 4, longer", "test_error"),
               above=-2, below=2, added=True, because=HALVED),
        Expect("the gates on the shortcuts together pass less than a twentieth",
               of=("r = 4, identity", "passed"), below=5, unit="%", added=True),
    )  # fmt: skip
    means = {
        "early_spread": "standard deviation of a gate between classes, mean of the first block's",
        "late_spread": "the same of the last block's",
        "passed": "percent that all gates one after the other leave, the mean of each block taken",
        "blocks": "blocks in each stage", "model": "network",
    }  # fmt: skip
    quick = QUICK.but(epochs=8, extra={"blocks": 3}, about="50 minutes")  # fmt: skip
    hour = Scale("hour", size=16, epochs=6, extra={"blocks": 3})
    full = Scale("full", data="imagenet", size=224, epochs=100, batch_size=1024, recipe="imagenet",
                 extra={"model": "se_resnet50"})  # fmt: skip

    def cases(self, scale: Scale) -> dict[str, Case]:
        """No gates, four reductions, and five other ways with one of them."""
        blocks = scale.extra.get("blocks")
        base = {"gate_bias": False, **({"repeats": (blocks,) * 3} if blocks else {})}
        model = scale.extra.get("model", "se_resnet56_cifar")
        given: dict[str, dict[str, Any]] = {name: {"reduction": ratio} for name, ratio in RATIOS.items()}
        given |= {name: {"reduction": 4, **other} for name, other in OTHERS.items()}
        found = {name: scale.train(model, variant={**base, **one}) for name, one in given.items()}
        for name in ("r = 4", "r = 4, identity"):
            found[f"{name}, longer"] = scale.train(
                model, variant={**base, **given[name]}, epochs=3 * scale.epochs
            )
        return found

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors; of two networks with r = 4 the gates, how far they differ by class, and what all pass."""
        found: dict[str, Any] = run.errors()
        if run.case in ("r = 4", "r = 4, identity") and not run.diverged:
            labels = run.splits.test.labels
            of_each = [np.flatnonzero(labels == one)[:EACH] for one in range(min(run.classes, 10))]
            at = np.concatenate(of_each)
            means = gates_by_class(run.model, run.normalize(run.splits.test.images[at]), labels[at])
            spread = [float(np.std(one, axis=0).mean()) for one in means]
            found |= {"gates": [one.mean(axis=1).tolist() for one in means], "spreads": spread,
                      "early_spread": spread[0], "late_spread": spread[-1],
                      "passed": float(100 * np.prod([one.mean() for one in means]))}  # fmt: skip
        return found

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """The error of each, and how far the gates of one network differ between classes."""
        left, right = figure.subplots(1, 2)
        draw.dots(left, numbers, "test_error")
        draw.labelled(left, "test error, %", "")
        draw.curves(right, numbers, "spreads", cases=["r = 4"])
        draw.labelled(right, "gate, from the first block to the last", "std of a gate between classes")
