"""What models, parameters, tensors, steps and optimisers look like when they are printed."""

from __future__ import annotations

import numpy as np

from minires import nn
from minires.nn import Parameter
from minires.optim import SGD, Adam
from minires.tensor import Tensor


def test_print_shows_a_tree_with_options_shapes_and_counts():
    model = nn.Sequential(
        conv=nn.Conv2d(3, 8, (3, 5), stride=2, bias=False),
        block=nn.Sequential(nn.BatchNorm2d(8, eps=0.1), nn.ReLU()),
        pool=nn.AvgPool2d(2, count_padding=True),
        fc=nn.Linear(8, 2),
    )
    model.fc.bias.requires_grad = False
    assert repr(model) == (
        "Sequential, 394 parameters, 2 of them frozen\n"
        "  conv: Conv2d(3, 8, (3, 5), stride=2, bias=False)  weight (3, 5, 3, 8)              360\n"
        "  block: Sequential                                                                   16\n"
        "    0: BatchNorm2d(8, eps=0.1)                      gamma (8,), beta (8,)             16\n"
        "    1: ReLU()\n"
        "  pool: AvgPool2d(2, count_padding=True)\n"
        "  fc: Linear(8, 2)                                  weight (8, 2), bias (2,) frozen   18"
    )
    assert repr(nn.ReLU()) == "ReLU()" and repr(nn.Dropout(0.25)) == "Dropout(0.25)"


def test_an_own_layer_shows_the_options_that_it_keeps():
    class Own(nn.Module):
        def __init__(self, width, depth, *, kind="a", other=None, hidden=3):
            super().__init__()
            self.width, self.depth, self.kind, self.other = width, depth, kind, other

    assert repr(Own(4, 2)) == "Own(4, 2)"
    assert repr(Own(4, 2, kind="b", other=(1, 2))) == "Own(4, 2, kind='b', other=(1, 2))"

    class Said(Own):
        def extra_repr(self):
            return "as I say"

    assert repr(Said(1, 2)) == "Said(as I say)"


def test_a_notebook_shows_a_tree_that_folds():
    model = nn.Sequential(a=nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), last=nn.ReLU())
    setattr(model, "<b>", nn.ReLU())
    page = model._repr_html_()
    assert page.count("<details") == page.count("</details>") == 2 and page.count("<details open") == 1
    assert page.count("<div") == page.count("</div>")
    assert "&lt;b&gt;: ReLU()" in page and "<b>" not in page and "1: Linear(2, 2)" in page
    assert model.summary((2,))._repr_html_().startswith("<pre>Sequential, input 2\n")


def test_nothing_prints_a_huge_array():
    x = Tensor(np.arange(3000.0).reshape(10, 300), requires_grad=True)
    assert repr(x) == (
        "Tensor(shape (10, 300), from 0 to 2999, mean 1500, dtype=float64, requires_grad=True)"
    )
    assert repr(Parameter([1.0])) == "Parameter([1.], dtype=float32, requires_grad=True)"
    tall = repr(Tensor(np.zeros((50, 1))))
    assert tall == "Tensor(shape (50, 1), from 0 to 0, mean 0, dtype=float64)"
    (step,) = (x * 2).backward_steps(np.ones((10, 300)))
    assert repr(step) == "<backward of <mul (no module) (10, 300)>: (10, 300) -> (10, 300), none>"


def test_an_optimizer_shows_its_options_and_how_much_it_decays():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    assert repr(SGD(net.named_parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, clip_norm=1.0)) == (
        "SGD of 4 parameters (14 numbers): lr=0.1, clip_norm=1.0, momentum=0.9, nesterov=False, "
        "weight_decay=0.0001 of 2 of them"
    )
    text = repr(Adam(net.parameters(), weight_decay=0.1, decoupled=True, decay_vectors=True))
    assert text.endswith("eps=1e-08, decoupled weight_decay=0.1 of 4 of them")
