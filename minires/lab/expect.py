"""What a paper says, as a rule that numbers can break: a difference, and where it must lie.

Each seed gives one value, for example the error of the plain network less that of the residual one, both
trained from this seed. Of the mean of these values an interval is known,

    mean +- t(n - 1) s / sqrt(n)        s: standard deviation of the n values, t: Student's, 90% two-sided

and the rule, stated before anything runs, is

    agrees              the whole interval lies where the claim says
    differs             the whole interval lies elsewhere
    too small to tell   it lies across the border or on it, or there is one seed: one is never a cause

Where nothing is different, about one comparison in twenty is said to agree, and one in twenty to differ.

Networks that have learnt nothing are all alike. So where a claim is that two lie close together, with a
border on either side, a seed does not count of which one of the two says ``learnt`` 0.

Source: Student 1908, The probable error of a mean, Biometrika 6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minires.errors import ConfigError
from minires.inspect.runs import spread

AGREES, UNCLEAR, DIFFERS = "agrees", "too small to tell", "differs"
VERDICTS = (AGREES, UNCLEAR, DIFFERS)
# The 95% quantile of Student's t for 1, 2, ... degrees of freedom; beyond, that of the normal distribution
# is off by less than 4%.
T = (
    6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125, 1.7959, 1.7823, 1.7709,
    1.7613, 1.7531, 1.7459, 1.7396, 1.7341, 1.7291, 1.7247, 1.7207, 1.7171, 1.7139, 1.7109, 1.7081, 1.7056,
    1.7033, 1.7011, 1.6991, 1.6973,
)  # fmt: skip
NORMAL = 1.6449
ROUNDING = 1e-9  # of the measured numbers: what is so close to a border lies on it

Cases = str | tuple[str, ...]
Measured = Mapping[str, Sequence[Mapping[str, Any]]]  # by case, what was measured from each seed


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean lies, by the formula above; everywhere, if there is one value.

    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (0.314, 3.686)
    >>> interval([2.0])
    (-inf, inf)
    """
    n, (mean, deviation) = len(values), spread(values) or (0.0, None)
    if deviation is None:
        return -math.inf, math.inf
    around = (T[n - 2] if n - 2 < len(T) else NORMAL) * deviation / math.sqrt(n)
    return mean - around, mean + around


@dataclass(frozen=True)
class Expect:
    """One thing that a claim says of the measured numbers: ``of``, less ``minus`` if that is given, lies
    ``above`` one number and ``below`` another.

    ``says`` is the claim in words, ``paper`` the figure that the paper has for it; ``because`` explains, by
    what else was run, why it came out otherwise where it did, and is shown only then. ``of`` and ``minus``
    are each the name of a case, or of several whose mean is taken, and the name of what was measured there;
    ``unit`` is that of the value. A claim that two which have learnt nothing would fulfil, as they are equal,
    is only of the seeds in which both have; ``learnt`` asks that of any other claim, too. ``added`` says that
    the rule was put, or put anew, when runs had been seen: reports say so.

    Raises: ConfigError if no border is given, or none lies between them, or what is said is no text.

    >>> claim = Expect("deep is worse", of=("deep", "error"), minus=("shallow", "error"), above=0)
    >>> numbers = {"deep": [{"error": 9.0}, {"error": 8.5}], "shallow": [{"error": 7.0}, {"error": 6.75}]}
    >>> found = claim.judge(numbers)
    >>> found.values, found.verdict
    ((2.0, 1.75), 'agrees')
    """

    says: str
    of: tuple[Cases, str]
    minus: tuple[Cases, str] | None = None
    above: float = -math.inf
    below: float = math.inf
    unit: str = "points"
    paper: str = ""
    because: str = ""
    learnt: bool = False
    added: bool = False

    def __post_init__(self) -> None:
        for name in ("says", "unit", "paper", "because"):
            if not isinstance(given := getattr(self, name), str):
                raise ConfigError(f"the expectation {self.says!r}: {name} is a text, not {given!r}")
        for name in ("of", "minus"):
            place = getattr(self, name)
            if not (_is_place(place) or name == "minus" and place is None):
                raise ConfigError(
                    f"the expectation {self.says!r}: {name} is the name of a case and of what was measured "
                    f'there, such as ("plain-20", "test_error"), not {place!r}'
                )
        if not self.above < self.below or self.above == -self.below == -math.inf:
            raise ConfigError(
                f"the expectation {self.says!r} is of a value above {self.above} and below {self.below}; "
                "give one border, or two with room between them"
            )

    @property
    def rule(self) -> str:
        """What must hold, in words.

        >>> Expect("", of=("deep", "error"), minus=("shallow", "error"), above=0).rule
        'error of deep - error of shallow > 0 points'
        """
        low, high = f"{self.above:g}", f"{self.below:g}"
        value = _named(self.of) + (f" - {_named(self.minus)}" if self.minus else "")
        if self.below == math.inf:
            where = f"> {low}"
        else:
            where = f"< {high}" if self.above == -math.inf else f"from {low} to {high}"
        seeds = "both" if self.minus else "it"
        learnt = f", of the seeds in which {seeds} learnt" if self.of_learnt else ""
        return f"{value} {where} {self.unit}".rstrip() + learnt

    @property
    def of_learnt(self) -> bool:
        """Whether seeds count only in which all its cases have learnt something."""
        return self.learnt or self.minus is not None and self.above < 0 < self.below

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of the cases that it is of."""
        return tuple(name for cases, _ in self._places for name in _names(cases))

    def figures(self, case: str) -> tuple[str, ...]:
        """What must be measured of a case."""
        return tuple(what for cases, what in self._places if case in _names(cases))

    @property
    def _places(self) -> tuple[tuple[Cases, str], ...]:
        return (self.of,) if self.minus is None else (self.of, self.minus)

    def judge(self, numbers: Measured) -> Judged:
        """Hold it against what was measured; seeds of which a number is missing do not count.

        Raises: ConfigError if there is no such case.
        """
        found = [_values(numbers, place) for place in self._places]
        if self.of_learnt:
            learnt = [_learnt(numbers, cases) for cases, _ in self._places]
            found[0] = [one if all(both) else None for one, *both in zip(found[0], *learnt, strict=True)]
        pairs = [[one for one in pair if one is not None] for pair in zip(*found, strict=True)]
        values = tuple(pair[0] - sum(pair[1:]) for pair in pairs if len(pair) == len(found))
        low, high = interval(values)
        # What rounding does to numbers that are the same for all seeds decides nothing.
        least = ROUNDING * max((abs(one) for pair in pairs for one in pair), default=0.0)
        if low > self.above + least and high < self.below - least:
            verdict = AGREES
        elif high < self.above - least or low > self.below + least:
            verdict = DIFFERS
        else:
            verdict = UNCLEAR
        return Judged(self, values, (low, high), verdict)


@dataclass(frozen=True)
class Judged:
    """An expectation held against numbers: its value of each seed, the interval of the mean, the verdict."""

    expect: Expect
    values: tuple[float, ...]
    interval: tuple[float, float]
    verdict: str

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None where nothing was measured."""
        measured = spread(self.values)
        return None if measured is None else measured[0]

    @property
    def margin(self) -> float | None:
        """Half the width of the interval; None with fewer than two seeds."""
        return None if len(self.values) < 2 else (self.interval[1] - self.interval[0]) / 2


def overall(verdicts: Sequence[str]) -> str:
    """The verdict on a claim that says several things: it agrees if all do, and differs if one does.

    >>> overall(["agrees", "too small to tell"]), overall(["agrees", "differs"])
    ('too small to tell', 'differs')
    """
    return max(verdicts, key=VERDICTS.index)


def _names(cases: Cases) -> tuple[str, ...]:
    return (cases,) if isinstance(cases, str) else cases


def _is_place(place: Any) -> bool:
    if not isinstance(place, tuple) or len(place) != 2 or not isinstance(place[0], str | tuple):
        return False
    texts = (*_names(place[0]), place[1])
    return len(texts) > 1 and all(isinstance(one, str) and one for one in texts)


def _named(place: tuple[Cases, str]) -> str:
    cases, what = place
    names = [f"'{name}'" if "," in name else name for name in _names(cases)]
    return f"{what.replace('_', ' ')} of {', '.join(names)}"


def _learnt(numbers: Measured, cases: Cases) -> list[bool]:
    """By seed whether all of these cases have learnt something; what says nothing of it has."""
    seeds = zip(*(numbers[name] for name in _names(cases)), strict=True)
    return [all(one.get("learnt", 1) for one in seed) for seed in seeds]


def _values(numbers: Measured, place: tuple[Cases, str]) -> list[float | None]:
    """By seed what was measured there: of several cases the mean; None where it is missing or no number."""
    cases, what = place
    names = _names(cases)
    for name in names:
        if name not in numbers:
            raise ConfigError(f"there is no case {name!r}; there are {', '.join(numbers)}")
    rows = []
    for seeds in zip(*(numbers[name] for name in names), strict=True):
        found = [seed.get(what) for seed in seeds]
        right = [one for one in found if isinstance(one, int | float) and math.isfinite(one)]
        rows.append(math.fsum(right) / len(right) if len(right) == len(found) else None)
    return rows
