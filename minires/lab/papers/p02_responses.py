"""P2: how strong the answers of layers are, in the networks of P1.

The standard deviation of what each 3x3 layer gives after its batch norm, before the nonlinearity and the
addition. If residual functions are small, closer to zero than those of a plain network, that is what an
identity needs to be a good starting point.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.papers.p01_degradation import Degradation, networks
from minires.lab.run import Run
from minires.lab.scale import Case, Scale
from minires.nn.responses import responses


class Responses(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P2", "responses"
    title = "Residual layers answer less strongly"
    claim = (
        "Layers of residual networks have smaller responses than those of plain ones, and the deeper the "
        "network the smaller they are: each layer changes the signal less"
    )
    version = 2
    source = "He et al. 2015, arXiv:1512.03385, section 4.2 and figure 7"
    why = (
        "The networks are those of P1, trained as far as there; the pictures are test pictures. What "
        "networks answer that have learnt nothing says little of the claim, which is of trained ones."
    )
    means = {"response": "standard deviation of what a convolution hands on, mean over the convolutions"}
    expects = (
        Expect(
            "of 20 layers, the plain network's responses are larger",
            of=("plain-20", "response"), minus=("resnet-20", "response"), above=0, unit="",
            paper="figure 7: plain-20 above ResNet-20",
        ),
        Expect(
            "of 56 layers, too",
            of=("plain-56", "response"), minus=("resnet-56", "response"), above=0, unit="",
            paper="figure 7: plain-56 above ResNet-56",
        ),
        Expect(
            "the deeper residual network has the smaller responses",
            of=("resnet-56", "response"), minus=("resnet-20", "response"), below=0, unit="",
            paper="figure 7: ResNet-20 above ResNet-56 above ResNet-110",
        ),
    )  # fmt: skip
    quick = Degradation.quick.but(about="a minute after P1, else as long as that")
    hour, full = Degradation.hour, Degradation.full
    pictures = 500

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Those of P1, which are not trained again."""
        return networks(scale)

    def measure(self, run: Run) -> dict[str, Any]:
        """The responses of the convolutions, in order, and their mean."""
        learnt = {"learnt": run.errors()["learnt"]}
        if run.diverged:
            return {"response": None, "responses": [], **learnt}
        x, _ = run.batch(self.pictures)
        found = [one.std for one in responses(run.model, x) if len(one.shape) == 4]
        return {"response": float(np.mean(found)), "responses": found, **learnt}

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Both panels of figure 7: in the order of the layers, and sorted."""
        left, right = figure.subplots(1, 2, sharey=True)
        for at, case in enumerate(numbers):
            found = numbers.all(case, "responses")
            if not len(found):
                continue
            style = "--" if case.startswith("plain") else "-"
            x = np.arange(1, found.shape[1] + 1)
            left.plot(x, found.mean(axis=0), style, color=draw.colour(at), label=case, linewidth=1)
            down = np.sort(found, axis=1)[:, ::-1]
            right.plot(x, down.mean(axis=0), style, color=draw.colour(at), linewidth=1)
            right.fill_between(x, down.min(axis=0), down.max(axis=0), color=draw.colour(at), alpha=0.15)
        draw.labelled(left, "layer", "standard deviation", "in their order")
        draw.labelled(right, "rank", "", "sorted by size")
        draw.named(left)
