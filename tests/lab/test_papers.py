"""The labs that come with minires: each runs at a tiny scale, and its rule decides rightly on made-up
numbers."""

import copy
import html
import math
from pathlib import Path

import numpy as np
import pytest

import minires.lab
from minires import data
from minires.data import Dataset, Splits
from minires.lab import LABS, Scale, asked, find, run_lab
from minires.lab.lab import Numbers
from minires.lab.outcome import outcome
from minires.lab.run import MEANS, Pictures, Run
from minires.train.canvas import new_figure

CLASSES = ("a", "b", "c")


def dots(count, size, seed):
    """Pictures of noise with a bright spot whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    images = rng.integers(0, 100, (count, size, size, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 : size // 3, label * size // 4 : label * size // 4 + 4] = 250
    return Dataset(images, labels, CLASSES, tuple(f"{at}.png" for at in range(count)), "dots")


def read(*, size, seed):
    return Splits(*(dots(count, size or 16, at) for at, count in enumerate((15, 6, 6))), "dots, made here")


@pytest.fixture(autouse=True)
def dots_are_a_data_set(registries_as_before):
    """They can be named where a lab names a data set."""
    data.register("dots")(read)


TINY = {  # what keeps a network small
    "orders": {"units": 1}, "shortcut-kinds": {"units": 1},
    "warm-up": {"units": 1, "rate": 0.05}, "batch-norm": {"rates": [0.05, 0.005]},
    "crowd": {"units": 3, "small": 3, "tests": 6}, "cardinality": {"blocks": 1}, "densenet": {"layers": 2},
    "squeeze-excitation": {"blocks": 1}, "vgg-depth": {"widths": [4, 4, 4, 4, 4]},
    "shattered": {"blocks": [1, 2], "batch": 8}, "sigmoid": {"layers": 8, "batch": 4},
    "shortcuts": {"few": (1, 2, 1)}, "blog": {"longer": 1, "model": "resnet20_cifar"},
}  # fmt: skip


def tiny(lab):
    return lab.quick.but(
        name="tiny", data="dots", size=32 if lab.name == "vgg-depth" else 8, pictures=12, epochs=1,
        batch_size=6, about="", variant={"repeats": (1, 1, 1)}, extra=TINY.get(lab.name, {}),
    )  # fmt: skip


@pytest.mark.parametrize("name", LABS)
def test_a_lab_runs_at_a_tiny_scale_and_writes_its_report(name, tmp_path):
    lab, said = LABS[name], []
    found = run_lab(lab, tiny(lab), seeds=1, out=tmp_path, say=said.append)
    assert set(found.numbers) == set(found.cases) and all(len(seeds) == 1 for seeds in found.numbers.values())
    for one in (*found.judged, *found.further):
        ran = [found.numbers[case][0].get("learnt", 1) for case in one.expect.cases]
        assert len(one.values) == (all(ran) or not one.expect.of_learnt), one.expect.says
        assert all(map(math.isfinite, one.values)), one.expect.says
        assert one.verdict == "too small to tell"  # of one seed
    folder = tmp_path / f"{name}-tiny"
    report = (folder / "report.md").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (lab.claim, lab.source, *(one.says for one in (*lab.expects, *lab.further))):
        assert text in report and html.escape(text) in page
    assert found.verdict in report and "<svg" in page and "</svg>" in page
    assert (folder / "figure.png").stat().st_size > 5_000
    assert (folder / "table.csv").read_text().count("\n") > len(found.cases)
    assert any(line.startswith("  rule") for line in said[:3])  # before anything ran
    if any(case.trained for case in found.cases.values()):
        stands_runs_that_diverged(lab, found, tmp_path)


def stands_runs_that_diverged(lab, found, folder):
    """One of two seeds, and every one, of each case and of all."""
    lost = {}
    for name, case in found.cases.items():
        run = Run(name, case, 0, folder, Pictures())
        run.summary, run.epochs = {"test_accuracy": None, "diverged": True}, []
        lost[name] = asked.measured(lab, run)
    for name in (*lost, None):
        for kept in (1, 0):
            numbers = Numbers({
                case: seeds * kept + [lost[case]] if name in (case, None) else seeds * 2
                for case, seeds in found.numbers.items()
            })  # fmt: skip
            lab.figure(numbers, new_figure(9.0, 4.2))


@pytest.mark.parametrize("name", LABS)
def test_a_lab_is_a_short_file_that_says_what_it_must(name):
    lab = LABS[name]
    path = Path(minires.lab.papers.__path__[0]) / f"{type(lab).__module__.rpartition('.')[2]}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
    assert path.name.startswith(f"p{int(lab.number[1:]):02}_")
    assert lab.why and lab.quick.about and find(lab.number) is lab and find(name) is lab
    # What its rules are of is explained, and what else its scales say.
    figures = {figure for one in (*lab.expects, *lab.further) for case in one.cases
               for figure in one.figures(case)}  # fmt: skip
    extras = {name for scale in (lab.quick, lab.hour, lab.full) for name in scale.extra}
    assert figures | extras <= {*lab.means, *MEANS}
    for scale in (lab.quick, lab.hour, lab.full):
        cases = lab.cases(scale)
        # Each expectation is of cases that there are, at each scale.
        for one in (*lab.expects, *lab.further):
            for place in (one.of, one.minus):
                names = () if place is None else (place[0],) if isinstance(place[0], str) else place[0]
                assert set(names) <= set(cases), (scale.name, one.says)
    # All that they name comes with minires, so nothing else decides on their runs.
    assert not any(case.decides for case in asked.cases(lab, lab.quick, Pictures()).values())


def test_there_are_sixteen():
    assert [lab.number for lab in LABS.values()] == [f"P{number}" for number in range(1, 17)]


# ----------------------------------------------------------------------------------------- made-up numbers

# What the paper says, case by case, as numbers: with them every expectation holds.
AS_THE_PAPER = {
    "degradation": {
        "plain-20": {"train_error": 8, "test_error": 10}, "plain-56": {"train_error": 11, "test_error": 13},
        "resnet-20": {"train_error": 6, "test_error": 8.75},
        "resnet-56": {"train_error": 2, "test_error": 6.97},
        "resnet-20, gamma 1/4": {"train_error": 5}, "resnet-56, gamma 1/4": {"train_error": 1},
    },
    "responses": {
        "plain-20": {"response": 1.2}, "plain-56": {"response": 1.0}, "resnet-20": {"response": 0.8},
        "resnet-56": {"response": 0.5},
    },
    "shortcuts": {
        "none": {"test_error": 28.54}, "A": {"test_error": 25.03}, "B": {"test_error": 24.52},
        "C": {"test_error": 24.19}, "B, longer": {"test_error": 20}, "C, longer": {"test_error": 20},
        "B, fewer blocks": {"train_error": 30}, "C, fewer blocks": {"train_error": 29.5},
    },
    "orders": {
        "original": {"test_error": 6.61}, "bn_after_add": {"test_error": 8.17},
        "relu_before_add": {"test_error": 7.84}, "relu_only": {"test_error": 6.71},
        "full": {"test_error": 6.37}, "original, last norm": {"test_error": 6.6},
        "full, no last norm": {"test_error": 9.0},
    },
    "shortcut-kinds": {
        "identity": {"test_error": 6.61}, "0.5 on the shortcut": {"test_error": 20, "arrives": 0.0002},
        "0.5 and 0.5": {"test_error": 12.35}, "no shortcut": {"test_error": 25},
        "exclusive gating": {"test_error": 8.7},
        "gated, half open": {"test_error": 12.86, "arrives": 0.0003},
        "gated, nearly open": {"test_error": 6.91, "arrives": 0.9},
        "1x1 convolution": {"test_error": 12.22, "arrives": 2.0},
        "dropout 0.5": {"test_error": 21},
    },
    "warm-up": {
        "usual rate": {"train_error": 90}, "warm-up": {"train_error": 75},
        "usual rate, last norm": {"train_error": 70},
    },
    "crowd": {
        "residual, 54": {"one_less": 0.2, "harmless": 0.97, "delete_correlation": 0.95,
                         "swap_correlation": 0.9, "effective_share": 0.2},
        "residual, 9": {"one_less": 5}, "plain, 9": {"one_less": 60},
    },
    "cardinality": {
        "C = 1": {"test_error": 23.9, "train_error": 10}, "C = 2": {"test_error": 23.0},
        "C = 4": {"test_error": 22.6}, "C = 8": {"test_error": 22.3, "train_error": 8},
        "C = 16": {"test_error": 22.2},
    },
    "densenet": {
        "k = 6": {"test_error": 8}, "k = 12": {"test_error": 5.24, "early_use": 0.9, "early_change": 0.9},
        "k = 24": {"test_error": 4.5}, "k = 12, B": {}, "k = 12, C": {},
        "k = 12, BC": {"test_error": 5.5, "parameters": 170},
        "ResNet-20": {"test_error": 8.75, "parameters": 270}, "ResNet-32": {},
    },
    "squeeze-excitation": {
        "none": {"test_error": 23.30}, "r = 2": {"test_error": 22.29},
        "r = 4": {"test_error": 22.25, "early_spread": 0.02, "late_spread": 0.2},
        "r = 8": {"test_error": 22.26}, "r = 16": {"test_error": 22.28}, "r = 4, pre": {"test_error": 22.23},
        "r = 4, post": {"test_error": 22.78}, "r = 4, identity": {"test_error": 22.20, "passed": 1},
        "r = 4, max": {"test_error": 22.57}, "r = 4, no squeeze": {"test_error": 22.93},
        "r = 4, longer": {"test_error": 22.28}, "r = 4, identity, longer": {"test_error": 22.20},
    },
    "vgg-depth": {
        "11": {"test_error": 29.6}, "13": {}, "16": {"test_error": 27.0}, "19": {"train_error": 90},
        "19, Glorot": {"train_error": 90},
        "11, BN": {"test_error": 29.6}, "13, BN": {"test_error": 28.7}, "16, BN": {"test_error": 27.0},
        "19, BN": {"test_error": 27.3, "train_error": 20}, "13, BN, longer": {"train_error": 12},
        "16, BN, longer": {"train_error": 11},
    },
    "batch-norm": {
        "plain, BN, high": {"train_error": 20, "growth": 0.0}, "plain, BN, low": {"train_error": 30},
        "plain, none, high": {"train_error": 90}, "plain, none, low": {"train_error": 40},
        "resnet, BN, high": {"train_error": 18, "growth": 0.1}, "resnet, BN, low": {"train_error": 28},
        "resnet, none, high": {"train_error": 90, "growth": 2.0}, "resnet, none, low": {"train_error": 40},
    },
    "shattered": {
        "plain, BN": {"deepest": 0.0, "shallowest": 0.9}, "plain, no BN": {"deepest": 0.1},
        "residual, BN": {"deepest": 0.8}, "residual, no BN": {}, "residual, last gamma 0": {"deepest": 0.99},
    },
    "sigmoid": {
        "sigmoid, Glorot": {"factor": 0.25}, "sigmoid, He": {"factor": 0.24}, "ReLU, He": {"factor": 1.0},
        "ReLU, Glorot": {"factor": 1.0}, "linear, He": {"factor": 1.35},
        "sigmoid, Glorot, shortcuts": {"factor": 1.01}, "ReLU, Glorot, shortcuts": {"factor": 1.3},
    },
    "weight-decay": {
        "none": {"norm": 60, "share": 1.0}, "weights": {"norm": 5, "share": 0.05},
        "weights and gammas": {"share": 0.01}, "weights, no BN": {"share": 0.1},
        "none, no BN": {"share": 1.0}, "weights x 10": {"share": 0.01},
        "weights and gammas x 10": {"share": 0.001},
    },
    "blog": {
        "the exercise": {"test_accuracy": 86.67, "accuracy_batch": 89},
        "the exercise, 10 epochs": {"test_accuracy": 90, "accuracy_batch": 92},
        "two-epoch recipe": {"test_accuracy": 94},
    },
}  # fmt: skip


def judged(lab, numbers, noise=0.0, only=None):
    """What the lab says of three seeds with these numbers, each and a little noise; of ``only`` one number
    just that much below, on and above it."""
    rng, found = np.random.default_rng(3), []
    for case, measured in numbers.items():
        for seed in range(3):
            noisy = {
                name: value + noise * (rng.standard_normal() if only is None else seed - 1)
                if only in (None, (case, name)) else value
                for name, value in measured.items()
            }  # fmt: skip
            found.append({"case": case, "seed": seed, "key": "", "date": "", "measured": noisy})
    return outcome(lab, lab.quick, lab.cases(lab.quick), found, Path("nowhere"))


def distance(expect, numbers):
    """How far the value of an expectation lies from its border."""
    (case, what), minus = expect.of, expect.minus
    value = numbers[case][what] - (numbers[minus[0]][minus[1]] if minus else 0)
    return value - (expect.above if expect.above > -math.inf else expect.below)


@pytest.mark.parametrize("name", LABS)
def test_the_rule_agrees_with_numbers_as_the_paper_has_them(name):
    lab, numbers = LABS[name], AS_THE_PAPER[name]
    assert set(numbers) == set(lab.cases(lab.quick))
    found = judged(lab, numbers, 0.002)
    assert [(one.expect.says, one.verdict) for one in found.judged if one.verdict != "agrees"] == []
    assert found.verdict == "agrees"


@pytest.mark.parametrize("name", LABS)
def test_the_rule_cannot_tell_from_numbers_that_vary_too_much_or_lie_on_the_border(name):
    lab, numbers = LABS[name], AS_THE_PAPER[name]
    for at, expect in enumerate(lab.expects):
        far = distance(expect, numbers)
        found = judged(lab, numbers, 10 * far, only=expect.of)
        assert found.judged[at].verdict == found.verdict == "too small to tell", expect.says
        on_it = copy.deepcopy(numbers)
        on_it[expect.of[0]][expect.of[1]] -= far
        assert judged(lab, on_it, 0.1 * far, only=expect.of).judged[at].verdict == "too small to tell"


@pytest.mark.parametrize("name", LABS)
def test_the_rule_differs_where_one_thing_is_the_other_way_round(name):
    lab = LABS[name]
    for at, expect in enumerate(lab.expects):
        numbers = copy.deepcopy(AS_THE_PAPER[name])
        far = distance(expect, numbers)
        numbers[expect.of[0]][expect.of[1]] -= 2 * far  # as far on the other side of the border
        found = judged(lab, numbers, 0.1 * far, only=expect.of)
        assert found.judged[at].verdict == found.verdict == "differs", expect.says


def test_numbers_are_arrays_by_seed_and_cut_to_the_shortest():
    numbers = Numbers(a=[{"x": 1.0, "l": [1, 2, 3]}, {"x": None, "l": [4, 5]}, {"x": 3.0}])
    assert numbers.all("a", "x").tolist() == [1.0, 3.0] and numbers.mean("a", "x") == 2.0
    assert numbers.all("a", "l").tolist() == [[1, 2], [4, 5]]
    assert np.isnan(numbers.mean("a", "nothing")) and Scale("q").but(epochs=3).epochs == 3
