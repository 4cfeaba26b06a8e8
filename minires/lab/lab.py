"""A lab: one claim of a paper, what is run to see whether it holds, the figure, and the rule of the verdict.

    class Depth(Lab):
        number, name, title = "P1", "degradation", "Deeper plain networks are worse"
        claim, source = "...", "..."
        expects = [Expect("...", of=("plain-56", "train_error"), minus=("plain-20", "train_error"), above=0)]

        def cases(self, scale):
            return {"plain-20": scale.train("plain20_cifar"), "plain-56": scale.train("plain56_cifar")}

        def measure(self, run):
            return run.errors()

        def figure(self, numbers, figure):
            draw.curves(figure.subplots(), numbers, "train_errors")

A file with such a class is run by ``minires lab my_lab.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from minires.errors import ConfigError
from minires.lab.expect import Expect
from minires.lab.run import Run
from minires.lab.scale import QUICK, Case, Scale, see_that_it_names_a_folder


class Numbers(dict[str, list[dict[str, Any]]]):
    """What was measured: by case a dict for each seed.

    >>> seeds = [{"error": 9.0, "errors": [12.0, 9.0]}, {"error": 8.0, "errors": [11.0, 8.0]}]
    >>> numbers = Numbers(plain=seeds)
    >>> numbers.all("plain", "error").tolist(), numbers.all("plain", "errors").shape
    ([9.0, 8.0], (2, 2))
    """

    def all(self, case: str, what: str) -> NDArray[np.float64]:
        """What was measured under a name, seed by seed: lists become axes; seeds without it are left out.

        Shapes: (seeds, ...), cut to the shortest list where they differ in length.
        """
        found = [one[what] for one in self[case] if one.get(what) is not None]
        if found and isinstance(found[0], list):
            shortest = min(map(len, found))
            found = [one[:shortest] for one in found]
        return np.array(found, dtype=float)

    def mean(self, case: str, what: str) -> Any:
        """The mean over the seeds, NaN where there are none."""
        found = self.all(case, what)
        return found.mean(axis=0) if len(found) else np.nan


class Lab:
    """The base of all labs; see the head of this file.

    ``number`` is P1 to P16 for those that come with minires, and may be left out. ``quick``, ``hour`` and
    ``full`` are its scales: minutes, about an hour for each seed on two cores, and the paper's own setting.
    ``why`` says what stands in the place of the paper's experiment and why. ``expects`` is what the claim
    says, and decides on the verdict; ``further`` are questions besides, judged by the same rule, which
    explain or take apart what was found. ``means`` says in a few words what each measured number is, those of
    ``run.errors()`` apart, and what the names in ``extra`` of its scales are: the report has it. ``seeds``
    are as many starts as it asks for. What was measured is found again as long as ``version`` is the same:
    raise it when ``measure`` measures something else, or a network of your own is another. Of a lab that
    ``load_file`` reads from a file that is seen: ``version`` is the whole file, ``beside`` what stands in it
    beside the lab, where its networks are, and ``file`` its path.
    """

    number: ClassVar[str] = ""
    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    claim: ClassVar[str] = ""
    source: ClassVar[str] = ""
    why: ClassVar[str] = ""
    expects: ClassVar[Sequence[Expect]] = ()
    further: ClassVar[Sequence[Expect]] = ()
    means: ClassVar[Mapping[str, str]] = {}
    seeds: ClassVar[int] = 3
    version: int | str = 1
    beside: str = ""
    file: str = ""
    quick: ClassVar[Scale] = QUICK
    hour: ClassVar[Scale] = Scale("hour", size=16, epochs=20)
    full: ClassVar[Scale] = Scale("full", epochs=182)

    def cases(self, scale: Scale) -> Mapping[str, Case]:
        """What is compared, by name."""
        raise NotImplementedError

    def measure(self, run: Run) -> Mapping[str, Any]:
        """What is measured of one run: numbers, and lists of numbers, by name."""
        return run.errors()

    def figure(self, numbers: Numbers, figure: Any) -> None:
        """Draw what was measured into a figure of matplotlib."""
        raise NotImplementedError

    def scale(self, name: str) -> Scale:
        """The scale of this name. Raises: ConfigError if there is none."""
        by_name = {"quick": self.quick, "hour": self.hour, "full": self.full}
        if name not in by_name:
            raise ConfigError(f"the scale is quick, hour or full, not {name!r}")
        return by_name[name]


def checked(lab: Lab) -> Lab:
    """See that a lab says what it must. Raises: ConfigError that names what is missing."""
    where, kind = f"the lab {type(lab).__name__}", type(lab)
    missing = [one for one in ("name", "title", "claim", "source", "expects") if not getattr(lab, one)]
    if missing:
        raise ConfigError(f"{where} does not say its {', '.join(missing)}")
    for name in ("number", "name", "title", "claim", "source", "why"):
        if not isinstance(given := getattr(lab, name), str):
            raise ConfigError(f"{where}: {name} is a text, not {given!r}")
    if kind.cases is Lab.cases or kind.figure is Lab.figure:
        missing = ["cases(self, scale)"] * (kind.cases is Lab.cases)
        missing += ["figure(self, numbers, figure)"] * (kind.figure is Lab.figure)
        raise ConfigError(f"{where} does not define {' and '.join(missing)}")
    see_that_it_names_a_folder(f"{where}: its name", lab.name)
    for name, given in (("expects", lab.expects), ("further", lab.further)):
        if not isinstance(given, list | tuple) or not all(isinstance(one, Expect) for one in given):
            raise ConfigError(f"{where}: {name} is a list of minires.lab.Expect")
    if not isinstance(lab.means, Mapping) or not all(isinstance(one, str) for one in lab.means.values()):
        raise ConfigError(f"{where}: means is a dict that says in words what each number is")
    says = [one.says for one in (*lab.expects, *lab.further)]
    if double := next((one for one in says if says.count(one) > 1), None):
        raise ConfigError(f"{where}: two rules say {double!r}; give each its own words")
    for name in ("quick", "hour", "full"):
        if not isinstance(getattr(lab, name), Scale):
            raise ConfigError(f"{where}: {name} is a minires.lab.Scale")
    return lab
