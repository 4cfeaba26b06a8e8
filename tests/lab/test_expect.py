"""The rule of a verdict: intervals by hand, and numbers that agree, differ, and are too close."""

import math
import statistics

import numpy as np
import pytest

from minires.errors import ConfigError
from minires.lab.expect import NORMAL, Expect, T, interval, overall

DEEPER = Expect("deeper is worse", of=("deep", "error"), minus=("shallow", "error"), above=0)


def numbers(deep, shallow):
    return {"deep": [{"error": one} for one in deep], "shallow": [{"error": one} for one in shallow]}


def test_the_quantiles_are_those_of_student():
    # Integrated numerically: the density of t with n degrees of freedom, up to the quantile, has 95% below.
    for n in (1, 2, 3, 7, 29, 30):
        t = np.linspace(0, T[n - 1], 200_001)
        log = math.lgamma((n + 1) / 2) - math.lgamma(n / 2) - 0.5 * math.log(n * math.pi)
        density = np.exp(log - (n + 1) / 2 * np.log1p(t * t / n))
        assert abs(0.5 + np.trapezoid(density, t) - 0.95) < 2e-5
    assert abs(statistics.NormalDist().inv_cdf(0.95) - NORMAL) < 1e-4
    assert list(T) == sorted(T, reverse=True) and T[-1] > NORMAL and T[-1] / NORMAL < 1.04


def test_the_interval_is_mean_and_t_times_the_standard_error():
    values = [2.0, 2.5, 4.0, 3.5]
    around = T[2] * statistics.stdev(values) / 2
    assert interval(values) == pytest.approx((3.0 - around, 3.0 + around))
    assert interval([7.0]) == interval([]) == (-math.inf, math.inf)
    assert interval([1.5, 1.5]) == (1.5, 1.5)
    many = list(np.linspace(0, 1, 100))
    assert interval(many)[1] == pytest.approx(0.5 + NORMAL * statistics.stdev(many) / 10)


@pytest.mark.parametrize(
    ("deep", "shallow", "verdict"),
    [
        ([9.0, 9.2, 9.1], [8.0, 8.1, 8.2], "agrees"),
        ([8.0, 8.1, 8.2], [9.0, 9.2, 9.1], "differs"),
        ([9.0, 7.0, 8.1], [8.0, 8.1, 8.2], "too small to tell"),
        ([9.0], [8.0], "too small to tell"),  # one seed is never a cause
        ([8.0, 8.0], [8.0, 8.0], "too small to tell"),  # exactly on the border
        ([], [], "too small to tell"),
    ],
)
def test_a_difference_is_judged_by_where_its_interval_lies(deep, shallow, verdict):
    assert DEEPER.judge(numbers(deep, shallow)).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.1, 0.0, -0.1], "agrees"),
        ([3.0, 3.1, 3.2], "differs"),
        ([-3.0, -3.1, -3.2], "differs"),
        ([1.9, 2.1, 2.0], "too small to tell"),
    ],
)
def test_between_two_borders(values, verdict):
    close = Expect("about as good", of=("a", "x"), above=-2, below=2)
    assert close.judge({"a": [{"x": one} for one in values]}).verdict == verdict


def test_networks_that_learnt_nothing_are_not_said_to_lie_close_together():
    close = Expect("", of=("a", "error"), minus=("b", "error"), above=-2, below=2)
    nothing = [{"error": 90.0, "learnt": 0}] * 3
    assert close.judge({"a": nothing, "b": nothing}).verdict == "too small to tell"
    something = [{"error": one, "learnt": 1} for one in (40.0, 41.0, 40.5)]
    assert close.judge({"a": something, "b": something}).verdict == "agrees"
    assert close.judge({"a": something, "b": [*nothing[:1], *something[1:]]}).values == (0.0, 0.0)
    assert "of the seeds in which both learnt" in close.rule
    # Where one is to be better it counts, learnt or not.
    better = Expect("", of=("a", "error"), minus=("b", "error"), above=0)
    assert better.judge({"a": nothing, "b": something}).verdict == "agrees"


def test_values_are_paired_by_the_seed_and_seeds_without_a_number_are_left_out():
    found = DEEPER.judge({
        "deep": [{"error": 9.0}, {"error": None}, {"error": 8.0}, {}],
        "shallow": [{"error": 8.0}, {"error": 1.0}, {"error": 7.5}, {"error": 2.0}],
    })  # fmt: skip
    assert found.values == (1.0, 0.5) and found.mean == 0.75
    assert found.margin == pytest.approx(T[0] * statistics.stdev([1.0, 0.5]) / math.sqrt(2))
    several = Expect("", of=("deep", "x"), minus=(("a", "b"), "x"), above=0)
    assert several.judge({"deep": [{"x": 5.0}], "a": [{"x": 1.0}], "b": [{"x": 3.0}]}).values == (3.0,)


def test_the_noise_of_nothing_agrees_about_once_in_twenty():
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(4000):
        deep, shallow = rng.standard_normal((2, 3))
        verdicts.append(DEEPER.judge(numbers(list(deep), list(shallow))).verdict)
    assert abs(verdicts.count("agrees") / 4000 - 0.05) < 0.01
    assert abs(verdicts.count("differs") / 4000 - 0.05) < 0.01


def test_the_whole_agrees_if_all_do_and_differs_if_one_does():
    assert overall(["agrees", "agrees"]) == "agrees"
    assert overall(["agrees", "too small to tell", "agrees"]) == "too small to tell"
    assert overall(["differs", "too small to tell"]) == "differs"


def test_what_have_learnt_nothing_are_not_close():
    """Neither where two borders say it nor where one does, nor where a rule asks for it."""
    guess = {name: [{"x": 90.0 + at / 10, "learnt": 0} for at in range(3)] for name in "ab"}
    learnt = {name: [{**one, "learnt": 1} for one in seeds] for name, seeds in guess.items()}
    close = {"of": ("a", "x"), "minus": ("b", "x")}
    for claim in (
        Expect("", **close, above=-2, below=2),
        Expect("", **close, below=2),
        Expect("", **close, above=-2),
        Expect("", of=("a", "x"), above=80, learnt=True),
    ):
        assert claim.judge(guess).verdict == "too small to tell" and claim.judge(guess).values == ()
        assert claim.judge(learnt).verdict == "agrees"
        assert "learnt" in claim.rule
    assert Expect("", of=("a", "x"), above=80).judge(guess).verdict == "agrees"
    assert not Expect("", **close, above=0).of_learnt


def test_of_several_cases_all_must_have_learnt():
    close = Expect("", of=(("a", "b"), "x"), minus=("c", "x"), above=-2, below=2)
    learnt, idle = {"x": 1.0, "learnt": 1}, {"x": 1.0, "learnt": 0}
    found = close.judge({"a": [learnt] * 3, "b": [learnt, idle, learnt], "c": [learnt, learnt, idle]})
    assert found.values == (0.0,)


def test_on_the_border_nothing_can_be_told_whatever_rounding_does():
    same = {"a": [{"x": 0.1 + 0.2}] * 2, "b": [{"x": 0.3}] * 2}
    assert Expect("", of=("a", "x"), minus=("b", "x"), above=0).judge(same).verdict == "too small to tell"
    apart = {"a": [{"x": 0.3}] * 3, "b": [{"x": 0.1}] * 3}
    assert Expect("", of=("a", "x"), minus=("b", "x"), above=0.2).judge(apart).verdict == "too small to tell"
    assert Expect("", of=("a", "x"), minus=("b", "x"), above=0.19).judge(apart).verdict == "agrees"
    tiny = {"a": [{"x": 3e-12}] * 3}
    assert Expect("", of=("a", "x"), above=0).judge(tiny).verdict == "agrees"


def test_what_is_no_rule_is_refused():
    with pytest.raises(ConfigError, match="give one border"):
        Expect("", of=("a", "x"))
    with pytest.raises(ConfigError, match="above 2 and below 1"):
        Expect("", of=("a", "x"), above=2, below=1)
    for of in ("a", ("a",), ((), "x"), (("a", 1), "x"), ("", "x"), ("a", ""), (1, "x"), ["a", "x"]):
        with pytest.raises(ConfigError, match="of is the name of a case and of what was measured there"):
            Expect("", of=of, above=0)
    with pytest.raises(ConfigError, match="paper is a text, not 7"):
        Expect("", of=("a", "x"), above=0, paper=7)
    with pytest.raises(ConfigError, match="there is no case 'deep'; there are a"):
        DEEPER.judge({"a": [{"error": 1.0}]})


def test_the_rule_is_said_in_words():
    assert DEEPER.rule == "error of deep - error of shallow > 0 points"
    assert Expect("", of=("a", "test_error"), below=80, unit="%").rule == "test error of a < 80 %"
    assert Expect("", of=("a", "x"), above=-1, below=1, unit="").rule == "x of a from -1 to 1"
