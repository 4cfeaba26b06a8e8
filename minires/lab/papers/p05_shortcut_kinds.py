"""P5: what may stand on a shortcut: everything but the identity harms, the more the less it lets by.

Each of the paper's table 1 in a network of 12 units, original order. ``arrives`` is the mean size of a random
gradient, sent along the shortcuts alone from the last unit to the first, as a share of what arrives over
identities; it is measured in the fresh network. (Over dropout as much arrives on average, but at few places:
what is kept is doubled each time.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale
from minires.models import build
from minires.nn.blocks import Residual
from minires.tensor import Tensor

KINDS: dict[str, tuple[dict[str, Any], str]] = {  # options, error in the paper with 110 layers
    "identity": ({}, "6.61%"),
    "0.5 on the shortcut": ({"gating": "constant", "scale": (0.5, 1.0)}, "fails (over 20%)"),
    "0.5 and 0.5": ({"gating": "constant", "scale": (0.5, 0.5)}, "12.35%"),
    "no shortcut": ({"gating": "constant", "scale": (0.0, 1.0)}, "fails (over 20%)"),
    "exclusive gating": ({"gating": "exclusive", "gate_bias": -6.0}, "8.70%"),
    "gated, half open": ({"gating": "shortcut_only", "gate_bias": 0.0}, "12.86%"),
    "gated, nearly open": ({"gating": "shortcut_only", "gate_bias": -6.0}, "6.91%"),
    "1x1 convolution": ({"shortcut": "C"}, "12.22%"),
    "dropout 0.5": ({"gating": "dropout", "dropout": 0.5}, "fails (over 20%)"),
}


class ShortcutKinds(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P5", "shortcut-kinds"
    title = "Nothing on the shortcut is better than the identity"
    claim = (
        "Of nine things on the shortcut the identity gives the lowest error; a factor of a half there, also "
        "that of gates that are half open, leaves next to nothing of a gradient"
    )
    source = "He et al. 2016, arXiv:1603.05027, table 1"
    why = (
        "12 units in the place of 54: a factor of a half is taken 12 times, not 54, so what the paper "
        "reports to fail may here only be worse."
    )
    expects = (
        *(Expect(f"the identity is better than: {kind}", of=(kind, "test_error"),
                 minus=("identity", "test_error"), above=0, paper=f"{error}, identity 6.61%")
          for kind, (_, error) in KINDS.items() if kind != "identity"),
        *(Expect(f"less than a hundredth of a gradient arrives over: {kind}", of=(kind, "arrives"),
                 below=0.01, unit="", added=True, paper="equation 6: the product of the factors")
          for kind in ("0.5 on the shortcut", "gated, half open")),
    )  # fmt: skip
    further = (
        Expect("over 1x1 convolutions more arrives, not less: how much is not what harms there",
               of=("1x1 convolution", "arrives"), above=1, unit="", added=True),
        Expect("gates that are nearly open harm, though nearly all of it arrives",
               of=("gated, nearly open", "arrives"), above=0.8, unit="", added=True),
    )  # fmt: skip
    means = {"arrives": "mean size of a gradient that came back over all shortcuts of the fresh network, of "
             "what comes over identities", "units": "units of each width"}  # fmt: skip
    quick = QUICK.but(epochs=8, extra={"units": 4}, about="40 minutes")  # fmt: skip
    hour = Scale("hour", size=16, epochs=5, extra={"units": 6})
    full = Scale("full", epochs=182, extra={"units": 18})

    def cases(self, scale: Scale) -> dict[str, Case]:
        """A network for each row of the table; its one-by-one convolutions are of option C everywhere."""
        base = {"order": "original", "repeats": (scale.extra["units"],) * 3}
        return {
            kind: scale.train("preresnet110_cifar", variant={**base, **options})
            for kind, (options, _) in KINDS.items()
        }

    def measure(self, run: Run) -> dict[str, Any]:
        """Errors, and how much of a gradient arrives over the shortcuts."""
        side = run.settings["size"] or 32
        variant = run.settings["variant"]
        arrives = over_shortcuts(variant, side, run.seed)
        identity = over_shortcuts(
            {**variant, "gating": "none", "shortcut": "A"}, side, run.seed
        )
        return {**run.errors(), "arrives": arrives / identity}

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """The error of each kind; and against the share of the gradient that arrives."""
        left, right = figure.subplots(1, 2)
        draw.dots(left, numbers, "test_error")
        draw.labelled(left, "test error, %", "")
        draw.against(right, numbers, "arrives", "test_error")
        draw.labelled(right, "share of the gradient that arrives over the shortcuts", "test error, %")
        right.set_xscale("symlog", linthresh=1e-6)


def over_shortcuts(variant: dict[str, Any], side: int, seed: int) -> float:
    """The mean size of the gradient that comes back over a fresh network's shortcuts to its first unit."""
    model = build("preresnet110_cifar", seed=seed, **variant)
    units = [one for one in model.modules() if isinstance(one, Residual)]
    width = getattr(units[0], "in_channels", 16)
    rng = np.random.default_rng(seed)
    start = Tensor(np.abs(rng.standard_normal((8, side, side, width))).astype("float32"), requires_grad=True)
    signal: Tensor | None = start
    for unit in units:
        assert signal is not None  # of these none is plain
        _, signal = unit.parts(signal)
    assert signal is not None
    signal.backward(rng.standard_normal(signal.shape).astype("float32"))
    return 0.0 if start.grad is None else float(np.abs(start.grad).mean())
