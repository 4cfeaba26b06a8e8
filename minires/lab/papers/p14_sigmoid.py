"""P14: does a sigmoid shrink the gradient by four in every layer, and do shortcuts help?

The derivative of a sigmoid is at most 0.25. So, it is said, a gradient that goes back through L layers of
them shrinks by 0.25^L. But each layer multiplies by its weights, too. Chains of convolutions of 16 channels,
fresh, with sigmoid or ReLU, weights of Glorot or of He, with and without a shortcut around each layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minires import ops
from minires.lab import draw
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Run
from minires.lab.scale import Case, Scale
from minires.nn.layers import Conv2d
from minires.tensor import Tensor

KINDS: dict[str, tuple[str, str, bool]] = {
    "sigmoid, Glorot": ("sigmoid", "glorot_uniform", False), "sigmoid, He": ("sigmoid", "he_normal", False),
    "ReLU, Glorot": ("relu", "glorot_uniform", False), "ReLU, He": ("relu", "he_normal", False),
    "linear, He": ("linear", "he_normal", False),
    "sigmoid, Glorot, shortcuts": ("sigmoid", "glorot_uniform", True),
    "ReLU, Glorot, shortcuts": ("relu", "glorot_uniform", True),
}  # fmt: skip
ACTIVATIONS = {"sigmoid": ops.sigmoid, "relu": ops.relu}


class Sigmoid(Lab):
    """What is compared, the figure, and the rule."""

    number, name = "P14", "sigmoid"
    title = "A sigmoid costs the gradient a factor of four in each layer"
    claim = (
        "The derivative of the sigmoid is at most 0.25, so the gradient shrinks at least fourfold in every "
        "layer and vanishes in deep networks; with ReLU, or with shortcuts, it does not"
    )
    source = "widespread in tutorials; Hochreiter 1991; Glorot and Bengio 2010, section 3.2"
    why = (
        "Nothing is trained: the claim is one about fresh networks. They are chains of convolutions of 3x3 "
        "with 16 channels, each with its activation."
    )
    expects = (
        Expect("sigmoid, Glorot: a factor of about 0.25 in each layer", of=("sigmoid, Glorot", "factor"),
               above=0.2, below=0.3, unit="", paper="0.25"),
        Expect("sigmoid, He: at most 0.25 as well", of=("sigmoid, He", "factor"), below=0.25, unit="",
               paper="0.25 at most",
               because="A layer multiplies by its weights, too. He's are larger than Glorot's by the square "
               "root of 2; the chain of He's weights without an activation multiplies the gradient by 1.4 in "
               "each layer, less a little that is lost at the borders, and a sigmoid leaves a quarter of "
               "that, less a little where it is not steepest."),
        Expect("ReLU, He: about 1", of=("ReLU, He", "factor"), above=0.9, below=1.1, unit="",
               paper="He et al. 2015, arXiv:1502.01852: 1"),
        Expect("ReLU, Glorot: it does not vanish either", of=("ReLU, Glorot", "factor"), above=0.9, unit="",
               paper="none", added=True,
               because="Half of the numbers are zero behind a ReLU, so weights need twice Glorot's variance: "
               "with his each layer leaves the square root of a half, about 0.71, and with He's about 1. "
               "It is the activation and the weights together."),
        Expect("with shortcuts a sigmoid does not make it vanish",
               of=("sigmoid, Glorot, shortcuts", "factor"), above=0.9, unit=""),
    )  # fmt: skip
    further = (
        Expect("He's weights alone multiply by about the square root of 2", of=("linear, He", "factor"),
               above=1.3, below=1.42, unit=""),
        Expect("Glorot's with ReLU by about the square root of a half", of=("ReLU, Glorot", "factor"),
               above=0.64, below=0.75, unit="", paper="He et al. 2015: 0.71", added=True),
        Expect("with ReLU and shortcuts it grows", of=("ReLU, Glorot, shortcuts", "factor"), above=1.1,
               unit="", added=True),
    )  # fmt: skip
    means = {"factor": "what a layer multiplies the norm of the gradient by, mean over the layers",
             "layers": "layers", "batch": "pictures in the batch"}  # fmt: skip
    quick = Scale("quick", size=16, pictures=500, extra={"layers": 20, "batch": 32}, about="half a minute")
    hour = quick.but(name="hour", extra={"layers": 50, "batch": 64})
    full = hour.but(name="full", size=32)

    def cases(self, scale: Scale) -> dict[str, Case]:
        """Seven chains."""
        return {
            kind: scale.fresh(activation=activation, initializer=initializer, shortcuts=shortcuts)
            for kind, (activation, initializer, shortcuts) in KINDS.items()
        }

    def measure(self, run: Run) -> dict[str, Any]:
        """The norm of the gradient of what each layer hands on, and the mean factor from layer to layer."""
        rng, layers = np.random.default_rng(run.seed), run.extra["layers"]
        act = ACTIVATIONS.get(run.settings["activation"])
        options = {"padding": 1, "initializer": run.settings["initializer"], "rng": rng}
        x, _ = run.batch(run.extra["batch"], part="train")
        signals = [Conv2d(3, 16, 3, **options)(Tensor(x))]
        for _ in range(layers):
            y = Conv2d(16, 16, 3, **options)(signals[-1])
            y = y if act is None else act(y)
            signals.append((signals[-1] + y if run.settings["shortcuts"] else y).retain_grad())
        signals[-1].backward(rng.standard_normal(signals[-1].shape).astype("float32"))
        # In the first and the last layers the pictures and the ends of the chain are felt.
        grads = [one.grad for one in signals[1:] if one.grad is not None]
        sizes = [float(np.linalg.norm(grad.astype(np.float64))) for grad in grads]
        factor = (sizes[2] / sizes[-3]) ** (1 / (len(sizes) - 5))
        return {"sizes": [float(np.log10(one / sizes[-1])) for one in sizes], "factor": factor}

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """The logarithm of the gradient by layer."""
        axes = figure.subplots()
        draw.curves(axes, numbers, "sizes")
        layers = len(next(iter(numbers.values()))[0]["sizes"])
        places = np.arange(1, layers + 1)
        axes.plot(places, (layers - places) * np.log10(0.25), ":", color="black", label="0.25 a layer")
        draw.named(axes)
        draw.labelled(axes, "layer (the gradient comes from the right)", "log10 of the gradient, last = 0")
