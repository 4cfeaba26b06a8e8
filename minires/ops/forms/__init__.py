"""The kinds of arithmetic that operations are made of: what each number of a result is computed from.

    Formula     what a formula says, number by number, with sums over some axes
    Products    sums of products under a window, plus a bias
    Pool        the largest number under a window, or their mean
    Moved       numbers handed on to other places

An operation declares which of them is its own, and with which formula, in ``@operation(arithmetic=...)``.
Everybody who explains a number of it, the debugger's cards and the trace page, computes it by this.
"""

from minires.ops.forms.axes import AllBut, Near
from minires.ops.forms.formula import Formula
from minires.ops.forms.moved import Moved
from minires.ops.forms.pool import Pool
from minires.ops.forms.products import Products
from minires.ops.forms.values import Form, NotKept, Values

__all__ = ["AllBut", "Form", "Formula", "Moved", "Near", "NotKept", "Pool", "Products", "Values"]
