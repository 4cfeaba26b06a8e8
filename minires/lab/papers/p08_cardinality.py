"""P8: many narrow paths are better than a few wide ones, at equal parameters.

A small ResNeXt of 20 layers (bottlenecks of 64, 128 and 256 channels) with C paths in each block, as wide as
the parameters allow: C = 1 is a ResNet.
"""

from __future__ import annotations

from typing import Any

from minires.lab import draw, measures
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale

# C: the width of a path in a stage of 64 channels. C (512 d + 9 d d) is about the same in every row of the
# paper's table 3, from 1x64d to 32x4d; of a stage of 16 channels C d / 4 are left, rounded down.
WIDTHS = {1: 64, 2: 40, 4: 24, 8: 14, 16: 8}
TABLE_3 = {1: 23.9, 2: 23.0, 4: 22.6, 8: 22.3, 16: None, 32: 22.2}  # top-1 error, ImageNet, 50 layers


class Cardinality(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P8", "cardinality"
    title = "More paths are better than wider ones"
    claim = (
        "At equal parameters the error falls as the number of paths in a block, the cardinality C, grows "
        "from 1 to 32 and each gets narrower"
    )
    source = "Xie et al. 2016, arXiv:1611.05431, table 3"
    why = (
        "The paper's networks are of 50 layers on ImageNet. In so narrow ones C = 16 leaves a path two "
        "channels in the first stage, and there is no room for C = 32. Six seeds, since from the first "
        "three C = 8 came out 1.6 points worse than C = 1; with six that cannot be told. Chosen when those "
        "had been seen, they make the interval somewhat too narrow."
    )
    expects = (
        Expect("C = 2 is better than C = 1", of=("C = 1", "test_error"), minus=("C = 2", "test_error"),
               above=0, paper="23.9% - 23.0% = 0.9", added=True,
               because="On 8,000 other pictures it is less, and cannot be told from nothing, and in training "
               "there is none of it (further questions): if two paths are worse at this size, then by less."),
        Expect("C = 4 is better than C = 1", of=("C = 1", "test_error"), minus=("C = 4", "test_error"),
               above=0, paper="23.9% - 22.6% = 1.3"),
        Expect("C = 8 is better than C = 1", of=("C = 1", "test_error"), minus=("C = 8", "test_error"),
               above=0, paper="23.9% - 22.3% = 1.6"),
        Expect("C = 16 is better than C = 1", of=("C = 1", "test_error"), minus=("C = 16", "test_error"),
               above=0, paper="C = 32: 23.9% - 22.2% = 1.7"),
        Expect("in training, too: C = 8 fits better than C = 1", of=("C = 1", "train_error"),
               minus=("C = 8", "train_error"), above=0, paper="figure 5: lower training errors"),
    )  # fmt: skip
    further = tuple(
        Expect(f"C = 2 is worse than C = 1 {where}, too", of=("C = 2", what), minus=("C = 1", what),
               above=0, added=True)
        for where, what in (("on 8,000 other pictures", "other_error"), ("in training", "train_error"))
    )  # fmt: skip
    means = {
        "other_error": "percent wrong of 8,000 training pictures that it did not learn from",
        "parameters": "numbers that are learnt", "blocks": "blocks in each stage", "model": "network",
    }  # fmt: skip
    version = 2
    seeds = 6
    quick = QUICK.but(epochs=10, extra={"blocks": 2}, about="35 minutes")  # fmt: skip
    hour = quick.but(name="hour", pictures=None, tests=None, epochs=8, about="")
    full = Scale(
        "full", data="imagenet", size=224, epochs=90, batch_size=256, recipe="imagenet",
        extra={"model": "resnext50_32x4d"},
    )  # fmt: skip

    def cases(self, scale: Scale) -> dict[str, Case]:
        """The same blocks with C paths."""
        blocks = scale.extra.get("blocks")
        small = {"repeats": (blocks,) * 3, "widths": (16, 32, 64)} if blocks else {}
        model = scale.extra.get("model", "resnext29_8x64d_cifar")
        widths = WIDTHS if blocks else {1: 64, 2: 40, 4: 24, 8: 14, 16: 8, 32: 4}
        return {
            f"C = {c}": scale.train(model, variant={**small, "cardinality": c, "width": width})
            for c, width in widths.items()
        }

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors, also of pictures that nothing was decided by, and how many parameters there are."""
        if run.diverged:
            return {**run.errors(), "other_error": None, "parameters": None}
        learnt, every = set(run.learnt_from.names), run.splits.train
        rest = [at for at, name in enumerate(every.names) if name not in learnt]
        rest = rest[:: max(1, -(-len(rest) // 8_000))]  # from all over it: it may stand class by class
        x, labels = run.normalize(every.images[rest]), every.labels[rest]
        return {
            **run.errors(), "parameters": sum(one.size for one in run.model.parameters()),
            "other_error": measures.error(run.model, x, labels) if rest else None,
        }  # fmt: skip

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Error against C, and by epoch."""
        left, right = figure.subplots(1, 2)
        draw.against(left, numbers, {case: float(case[4:]) for case in numbers}, "test_error", names=False)
        left.set_xscale("log", base=2)
        places = [float(case[4:]) for case in numbers]
        means = [numbers.mean(case, "test_error") for case in numbers]
        left.plot(places, means, color="black", linewidth=0.8)
        left.set_xticks(places, [f"{place:g}" for place in places])
        draw.labelled(left, "cardinality C", "test error, %")
        draw.curves(right, numbers, "train_errors")
        draw.labelled(right, "epoch", "training error, %")
