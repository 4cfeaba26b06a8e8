"""P7: a residual network as a crowd of shallow ones. Blocks are deleted and swapped, and paths counted.

A pre-activation network of 54 units, the paper's, and two of 9, at which plain ones learn, too. Deleting a
block is its shortcut + 0 x its branch; in a plain network it is not called. The two blocks that change the
shape stay. All is measured on test pictures.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from minires.inspect import path_lengths
from minires.lab import draw, measures
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale

DEEP, SMALL, PLAIN = "residual, 54", "residual, 9", "plain, 9"
COUNTS, SWAPS, DRAWS = (1, 2, 4, 6, 8, 10, 14, 20), (1, 2, 4, 8, 16, 32), 4


class Crowd(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P7", "crowd"
    title = "Residual networks behave like crowds of shallow ones"
    claim = (
        "Almost any block of a residual network can be deleted with little harm, several with gradually "
        "more, and reordering harms gradually, too; what trains are short paths, of 5 to 17 blocks of 54"
    )
    source = "Veit, Wilber, Belongie 2016, arXiv:1605.06431, figures 3, 5 and 6"
    why = (
        "The paper deletes from a plain VGG of 15 layers; depth and blocks differ there besides the "
        "shortcuts. Here the plain network has the depth and the blocks of the residual one beside it. Three "
        "and five points are what 500 pictures can tell. At `quick` 54 blocks have learnt less than 9 (P1)."
    )
    expects = (
        Expect("deleting one of 54 blocks costs less than three points, in the median of the blocks",
               of=(DEEP, "one_less"), below=3, learnt=True, paper="6.0% to about 6.1-6.5% in figure 3"),
        Expect("and less than five points for at least nine blocks of ten", of=(DEEP, "harmless"), above=0.9,
               unit="", learnt=True, paper="figure 3: all but those at changes of shape"),
        Expect("deleting one block costs a plain network more than a residual one", of=(PLAIN, "one_less"),
               minus=(SMALL, "one_less"), above=0, paper="VGG: to the error of guessing"),
        Expect("the error rises with the number of deleted blocks (rank correlation)",
               of=(DEEP, "delete_correlation"), above=0.5, unit="", paper="figure 5 (a)"),
        Expect("and with the number of swapped blocks (Kendall distance)", of=(DEEP, "swap_correlation"),
               above=0.5, unit="", paper="figure 5 (b)"),
        Expect("the gradient comes over paths of at most 17 of 54 blocks, on average",
               of=(DEEP, "effective_share"), below=0.315, unit="of the blocks",
               paper="5 to 17 of 54: 0.09 to 0.31; the average path has 0.5"),
    )  # fmt: skip
    version = 2
    further = (Expect("but the first block costs more than ten points", of=(DEEP, "first"), above=10,
                      learnt=True, added=True, paper="figure 3: only changes of shape do"),)  # fmt: skip
    means = {
        "one_less": "points that deleting a block costs, median", "harmless": "share of blocks that cost < 5",
        "first": "points that the first one costs (of 54 the 52 that keep the shape are deleted)",
        "delete_correlation": "rank correlation: deleted blocks, error", "swap_correlation": "order, error",
        "effective_share": "mean length of a path, weighed by its gradient, of all blocks",
        "units": "blocks of a width, deep", "small": "others", "tests": "pictures of the deleting"}
    quick = QUICK.but(epochs=10, extra={"units": 18, "small": 3, "tests": 500}, about="40 minutes")
    hour = quick.but(name="hour", pictures=None, tests=None, epochs=4, about="")
    full = Scale("full", epochs=182, extra={"units": 18, "small": 3, "tests": 10_000})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """The deep one, and two of the same blocks with and without shortcuts."""
        deep, small = ({"repeats": (scale.extra[name],) * 3} for name in ("units", "small"))
        return {DEEP: scale.train("preresnet110_cifar", variant=deep),
                SMALL: scale.train("resnet20_cifar", variant=small),
                PLAIN: scale.train("plain20_cifar", variant=small)}  # fmt: skip

    def measure(self, run: Run) -> dict[str, Any]:
        """What deleting and swapping does to the error, and the lengths of the paths."""
        found: dict[str, Any] = run.errors()
        if run.diverged:
            return found
        x, labels = run.batch(run.extra["tests"])
        rng = np.random.default_rng(run.seed)
        test = measures.Changed(run.model, x, labels)
        whole = test({})
        single = [test({block: "drop"}) - whole for block in test.removable]
        some = [count for count in COUNTS if count < len(test.removable)]
        deleted = [[test(dict.fromkeys(rng.choice(test.removable, count, replace=False), "drop")) - whole
                    for _ in range(DRAWS)] for count in some]  # fmt: skip
        orders = [test.swapped(count, rng) for count, _ in itertools.product(SWAPS, range(DRAWS))]
        swaps = [(distance, test({"order": order}) - whole) for distance, order in orders]
        found |= {
            "whole": whole, "one_less": float(np.median(single)), "single": single, "first": single[0],
            "harmless": float(np.mean(np.array(single) < 5)),
            "counts": some, "deleted": deleted, "swaps": swaps,
            "delete_correlation": measures.rank_correlation(np.repeat(some, DRAWS), np.ravel(deleted)),
            "swap_correlation": measures.rank_correlation(*zip(*swaps, strict=True)),
        }  # fmt: skip
        if run.case != PLAIN:
            paths = path_lengths(run.model, x[:32], labels[:32], samples=2)
            share = paths.effective / paths.effective.sum()
            found |= {"lengths": list(share), "effective_share": paths.effective_length / len(paths.units)}
        return found

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Deleting one, several, swapping, and the gradient by path length."""
        one, several, swap, length = figure.subplots(2, 2).ravel()
        for at, case in enumerate(one for one in numbers if len(numbers.all(one, "single"))):
            colour, single = draw.colour(at), np.sort(numbers.all(case, "single"), axis=1)
            one.plot(np.linspace(0, 1, single.shape[1]), single.mean(axis=0), color=colour, label=case)
            counts, deleted = numbers.mean(case, "counts"), numbers.all(case, "deleted")
            several.plot(counts, deleted.mean(axis=(0, 2)), ".-", color=colour)
            pairs, cost = numbers.all(case, "swaps").reshape(-1, 2).T
            swap.plot(pairs / pairs.max(), cost, ".", color=colour, markersize=3)
        shares = np.atleast_1d(numbers.mean(DEEP, "lengths"))
        length.bar(range(len(shares)), shares, color=draw.colour(0), alpha=0.6)
        draw.named(one)
        draw.labelled(one, "share of the blocks, sorted", "more error, points", "one block deleted")
        draw.labelled(several, "blocks deleted", "more error, points")
        draw.labelled(swap, "how far the order is another, 1: farthest", "more error, points")
        draw.labelled(length, "blocks on a path", "share of the gradient", DEEP)
