"""The report of a lab: figure, table and verdict, as files to look at, to compute with and to hand on.

The text is made once, as a list of parts, and written as Markdown and as one HTML page with the figure in it.
"""

from __future__ import annotations

import csv
import html
import io
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minires.errors import counted
from minires.files import atomic_write
from minires.inspect.runs import spread
from minires.lab.asked import drawn
from minires.lab.expect import AGREES, DIFFERS, UNCLEAR, Judged
from minires.lab.lab import Lab, Numbers
from minires.lab.outcome import Outcome
from minires.lab.run import MEANS
from minires.lab.scale import Case, Scale
from minires.train import Config
from minires.train.canvas import new_figure, save_figure

FIGURE, TABLE, REPORT = "figure", "table.csv", "report"
WIDTH, HEIGHT = 9.0, 4.2  # of a figure, in inches
MOST = 8  # columns of the table of all cases
RECIPE = ("epochs", "batch_size", "optimizer", "schedule", "label_smoothing", "augment", "clip")  # settings
ALIKE = "The same numbers from all seeds (does the network draw its weights from its seed?)"
WORDS = {
    AGREES: "What was measured here agrees with the claim.",
    UNCLEAR: "What was measured here is too small, or varies too much with the seed, to tell.",
    DIFFERS: "What was measured here differs from the claim.",
}


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """The figure of the lab."""

    text: str


Part = Heading | Paragraph | Table | Picture


def write(outcome: Outcome) -> None:
    """Write all files but the results themselves. Raises: MiniresError with the file and the cause."""
    folder = outcome.folder
    figure = new_figure(WIDTH, HEIGHT)
    drawn(outcome.lab, outcome.numbers, figure)
    save_figure(figure, folder / f"{FIGURE}.svg", format="svg", metadata={"Date": None})
    save_figure(figure, folder / f"{FIGURE}.png")
    _write(folder / TABLE, table(outcome))
    parts = list(report(outcome))
    _write(folder / f"{REPORT}.md", markdown(parts))
    svg = (folder / f"{FIGURE}.svg").read_text(encoding="utf-8")
    _write(folder / f"{REPORT}.html", page(parts, outcome.lab.title, svg))


def table(outcome: Outcome) -> str:
    """All numbers as CSV: a line for each case, seed and figure, and of curves for each of their places."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["case", "seed", "figure", "place", "value"])
    for case, seeds in outcome.numbers.items():
        for seed, measured in enumerate(seeds):
            for name, value in measured.items():
                for place, number in _flat(value):
                    lines.writerow([case, seed, name, place, "" if number is None else number])
    return file.getvalue()


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        for at, one in enumerate(value):
            yield from _flat(one, f"{place}.{at}" if place else str(at))
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _flat(one, f"{place}.{name}" if place else name)
    else:
        yield place, value


def report(outcome: Outcome) -> Iterator[Part]:
    """The parts of the report."""
    lab, scale = outcome.lab, outcome.scale
    yield Heading(1, f"{lab.number} {lab.title}".strip())
    yield Paragraph(f"**Claim.** {lab.claim} ({lab.source})")
    yield Paragraph(f"**Verdict: {outcome.verdict}.** {WORDS[outcome.verdict]}")
    yield _judged("claim", outcome.judged, outcome.numbers)
    yield Picture(lab.title)
    yield Paragraph(
        "Where nothing else is said, a dot is a seed, a line the mean of the seeds, and a band reaches from "
        "the least to the greatest."
    )
    if outcome.further:
        yield Heading(2, "Further questions")
        yield Paragraph(
            "They take apart or explain what was found, and do not decide on the verdict."
        )
        yield _judged("question", outcome.further, outcome.numbers)
    explained = [one for one in (*outcome.judged, *outcome.further)
                 if one.verdict == DIFFERS and one.expect.because]  # fmt: skip
    if explained:
        yield Heading(2, "What differs, and why")
        for one in explained:
            yield Paragraph(f"**{one.expect.says}**: {one.expect.because}")
    yield Heading(2, "The rules")
    yield Paragraph(
        "Each seed gives one value. A claim agrees if the whole 90% interval of their mean (Student's t) "
        "lies where the claim says, differs if it lies elsewhere, and is too small to tell else. One seed is "
        "never enough. Measured is the mean, and behind ± half of that interval. Marked is a rule of which "
        "its author says that it was put, or put anew, when runs had been seen: it says less than others."
    )
    yield Table(
        ("claim", "rule", "each seed", "put later"),
        [
            (one.expect.says, one.expect.rule, ", ".join(f"{value:.3g}" for value in one.values) or "-",
             "runs seen" if one.expect.added else "")
            for one in (*outcome.judged, *outcome.further)
        ],
    )  # fmt: skip
    yield Heading(2, "What was run")
    trained = any(one.trained for one in outcome.cases.values())
    yield Paragraph(
        f"{counted(len(outcome.cases), 'case')}, {counted(outcome.seeds, 'seed')}, "
        f"{outcome.when}; again: {again(outcome)}. The pictures: {known_as(scale, trained=trained)}."
    )
    scales = (lab.quick, lab.hour, lab.full)
    usual = {one.data for one in scales if one.name == scale.name} or {lab.quick.data}
    if scale.data not in usual:
        yield Paragraph(
            f"**These are other pictures** than those of the lab ({', '.join(sorted(usual))}): numbers in "
            "its claim and its rules are not of them."
        )
    yield from _made(outcome.cases)
    yield from _of_all(outcome)
    if idle := [told for case in outcome.cases if (told := _idle(case, outcome.numbers[case]))]:
        yield Paragraph(
            f"**Not five points better than guessing** in the end, in training: {'; '.join(idle)}. What is "
            "seen there is not how well it learns."
        )
    if alike := outcome.alike:
        yield Paragraph(f"**{ALIKE}**: {'; '.join(alike)}.")
    says_no_full = not lab.number and type(lab).full is Lab.full  # an own lab, which has no larger scale
    if lab.why or not says_no_full:
        yield Heading(2, "What was scaled down, and why")
    if lab.why:
        yield Paragraph(lab.why)
    if says_no_full:
        return
    if rows := list(scaled_down(lab, scale, outcome.cases)):
        yield Table(("setting", "here", "with `--scale full`"), rows)
    else:
        yield Paragraph("The settings are those of `--scale full`.")


def _judged(what: str, judged: Sequence[Judged], numbers: Numbers) -> Table:
    rows = []
    for one in judged:
        told = [_idle(case, numbers[case]) for case in one.expect.cases if not one.expect.of_learnt]
        marks = "".join(f"; {idle} learnt nothing" for idle in told if idle)
        rows.append((one.expect.says, one.expect.paper or "-", shown(one), one.verdict + marks))
    return Table((what, "the paper's figure", "measured", "verdict"), rows)


def _idle(case: str, seeds: Sequence[Mapping[str, Any]]) -> str:
    """A case with how many of its seeds have learnt nothing, if any."""
    lost = sum(one.get("learnt") == 0 for one in seeds)
    return f"{case} ({lost} of {counted(len(seeds), 'seed')})" if lost else ""


def shown(judged: Judged) -> str:
    """The mean of a value and half of its interval.

    >>> from minires.lab.expect import Expect
    >>> claim = Expect("", of=("a", "error"), above=0)
    >>> shown(claim.judge({"a": [{"error": 2.0}, {"error": 2.2}]})), shown(claim.judge({"a": []}))
    ('2.1 ± 0.63 points', 'no seed counts')
    """
    if judged.mean is None:
        return "no seed counts"
    around = "" if judged.margin is None else f" ± {judged.margin:.2g}"
    return f"{judged.mean:.3g}{around} {judged.expect.unit}".rstrip()


def _of_all(outcome: Outcome) -> Iterator[Part]:
    """A table of the single numbers, first those of the rules: mean and standard deviation over the seeds;
    and what they are."""
    rules = [one.expect for one in (*outcome.judged, *outcome.further)]
    names = dict.fromkeys(name for one in rules for case in one.cases for name in one.figures(case))
    for seeds in outcome.numbers.values():
        for measured in seeds:
            names |= dict.fromkeys(
                name for name, value in measured.items() if isinstance(value, int | float)
            )
    chosen = list(names)[:MOST]
    if not chosen:
        return
    yield Table(
        ("case", *(name.replace("_", " ") for name in chosen)),
        [(case, *(_spread(outcome.numbers[case], name) for name in chosen)) for case in outcome.numbers],
    )
    more = f" All others stand in `{TABLE}`." if len(names) > MOST else ""
    yield Paragraph(f"Mean, and in brackets standard deviation, over the seeds.{more}")
    means = {**outcome.lab.means, **{name: MEANS[name] for name in MEANS if name not in outcome.lab.means}}
    if told := [(name.replace("_", " "), means[name]) for name in means if name in chosen]:
        yield Table(("measured", "what it is"), told)


def _spread(seeds: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [one[name] for one in seeds if isinstance(one.get(name), int | float)]
    measured = spread(values)
    if measured is None:
        return "-"
    mean, deviation = measured
    if all(isinstance(one, int) for one in values) and len(set(values)) == 1:
        return f"{values[0]:,}"
    return f"{mean:#.4g}" + ("" if deviation is None else f" ({deviation:.2g})")


def _made(cases: Mapping[str, Case]) -> Iterator[Part]:
    """A table of what the cases are: the model of each with its options, and what is not the same in all."""
    settings = {}
    for name, case in cases.items():
        more = {"tests": case.tests, "extra": dict(case.extra), "augment": case.settings.get("augment")}
        if more["augment"]:
            more["augment"] = _listed(more["augment"])
        settings[name] = dict(_flat({**case.settings, **more}))
    paths = dict.fromkeys(path for one in settings.values() for path in one)
    differ = [
        path for path in paths
        if path.startswith("variant.") or len({str(one.get(path)) for one in settings.values()}) > 1
    ]  # fmt: skip
    rows = []
    for name, found in settings.items():
        told = [f"`{found['model']}`"] if found.get("model") else []
        told += _in_words({path: found[path] for path in differ if path != "model" and path in found})
        rows.append((name, "; ".join(told)))
    if any(told for _, told in rows):
        yield Table(("case", "what it is"), rows)
    trained = [settings[name] for name, case in cases.items() if case.trained]
    common = {
        path: trained[0][path] for path in paths
        if trained and path.startswith(RECIPE) and path not in differ and trained[0].get(path)
    }  # fmt: skip
    if common:
        yield Paragraph(f"In all of them: {'; '.join(_in_words(common))}.")


def _in_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings by path in words; lists, which have a path for each place, are together again."""
    parts: dict[str, list[str]] = {}
    for path, value in settings.items():
        parts.setdefault(re.sub(r"(\.\d+)+$", "", path), []).append(f"{value}")
    return [f"{_worded(path)} {', '.join(values)}" for path, values in parts.items()]


def _worded(path: str) -> str:
    """A setting in words.

    >>> [_worded(one) for one in ("optimizer.weight_decay", "schedule.name", "schedule.begin.lr")]
    ['weight decay', 'schedule', 'schedule begin lr']
    """
    short = re.sub(r"^(optimizer|variant|extra)\.(?!name$)|\.name$", "", path)
    return short.replace(".", " ").replace("_", " ")


def known_as(scale: Scale, *, trained: bool = True) -> str:
    """The pictures of a scale in words.

    >>> known_as(Scale("quick", pictures=5_000, size=16))
    '`cifar10`, 5,000 to learn from, 16x16'
    """
    count = "all of them" if scale.pictures is None else f"{scale.pictures:,}"
    size = f", {scale.size}x{scale.size}" if scale.size else ""
    return f"`{scale.data}`, {count}{' to learn from' * trained}{size}"


def scaled_down(lab: Lab, scale: Scale, cases: Mapping[str, Case]) -> Iterator[tuple[str, str, str]]:
    """What differs from the lab's scale ``full``, but for what each of the cases sets by itself; where
    nothing is trained, without the settings of training."""
    full, trained = lab.full, [one.settings for one in cases.values() if one.trained]
    names = {"data": "data", "pictures": "training pictures", "size": "side of the pictures"}
    if trained:
        names |= {"epochs": "epochs", "batch_size": "pictures in a step"}
    names["tests"] = "validation pictures, and test pictures, at most"
    for field, words in names.items():
        here, there = getattr(scale, field), getattr(full, field)
        by_case = field != "tests" and bool(trained) and not any(one.get(field) == here for one in trained)
        if here != there and not by_case:
            yield words, _said(here), _said(there)
    if trained:
        if scale.recipe != full.recipe:
            yield "recipe", scale.recipe, full.recipe
        ours, theirs = (Config.settings_of(one.recipe, **one.settings) for one in (scale, full))
        for name in {**scale.settings, **full.settings}:
            own = _by_case(ours[name], [one.get(name) for one in trained])
            here, there = (_without(one[name], own) for one in (ours, theirs))
            if here != there:
                yield name.replace("_", " "), _listed(here), _listed(there)
    for mine, of_full in ((scale.variant, full.variant), (scale.extra, full.extra)):
        for name in {**mine, **of_full}:
            if mine.get(name) != of_full.get(name):
                here, there = (_listed(one[name]) if name in one else "-" for one in (mine, of_full))
                yield lab.means.get(name, name), here, there


def _by_case(setting: Any, given: Sequence[Any]) -> set[str]:
    """The parts of a setting of a scale that all cases set to something else."""
    if not isinstance(setting, Mapping):
        return set()
    cases = [one for one in given if isinstance(one, Mapping)]
    return {part for part, value in setting.items() if not any(one.get(part) == value for one in cases)}


def _without(setting: Any, parts: set[str]) -> Any:
    if not isinstance(setting, Mapping):
        return setting
    return {part: value for part, value in setting.items() if part not in parts}


def _said(value: Any) -> str:
    return "all" if value is None else str(value)


def _listed(value: Any) -> str:
    """A setting, without the brackets of Python."""
    if isinstance(value, dict):
        named = {name: f"{name} {_listed(one)}" for name, one in value.items()}
        return ", ".join((named | ({"name": str(value["name"])} if "name" in value else {})).values())
    return ", ".join(map(_listed, value)) if isinstance(value, list | tuple) else str(value)


def again(outcome: Outcome) -> str:
    """How to have the same once more: the command, if it can ask for this scale."""
    lab, scale, name = outcome.lab, outcome.scale, shlex.quote(outcome.lab.file or outcome.lab.name)
    for which, one in (("quick", lab.quick), ("hour", lab.hour), ("full", lab.full)):
        fewer = one.but(data=scale.data, pictures=None)  # of another set that has not so many all are used
        if scale == one.but(data=scale.data) or scale.data != one.data and scale == fewer:
            data = "" if scale.data == one.data else f" --data {shlex.quote(scale.data)}"
            return f"`minires lab {name} --scale {which} --seeds {outcome.seeds}{data}`"
    return f"`run_lab` with this scale and `seeds={outcome.seeds}`"


# -------------------------------------------------------------------------------------------------- forms


def markdown(parts: Iterable[Part]) -> str:
    """The report as Markdown, with the figure beside it."""
    texts = []
    for part in parts:
        if isinstance(part, Heading):
            texts.append(f"{'#' * part.level} {part.text}")
        elif isinstance(part, Paragraph):
            texts.append(part.text)
        elif isinstance(part, Picture):
            texts.append(f"![{part.text}]({FIGURE}.svg)")
        else:
            rows = [part.head, ["---"] * len(part.head), *part.rows]
            texts.append("\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows))
    return "\n\n".join(texts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def page(parts: Iterable[Part], title: str, svg: str) -> str:
    """The report as a page that needs nothing else."""
    body = []
    for part in parts:
        if isinstance(part, Heading):
            body.append(f"<h{part.level}>{html.escape(part.text)}</h{part.level}>")
        elif isinstance(part, Paragraph):
            body.append(f"<p>{_marked(part.text)}</p>")
        elif isinstance(part, Picture):
            body.append(f"<figure>{svg[svg.index('<svg'):]}</figure>")
        else:
            head = "".join(f"<th>{_marked(cell)}</th>" for cell in part.head)
            rows = "".join(
                f"<tr>{''.join(f'<td>{_marked(cell)}</td>' for cell in row)}</tr>\n" for row in part.rows
            )
            body.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>")
    return PAGE.format(title=html.escape(title), body="\n".join(body))


def _marked(text: str) -> str:
    """Text with ``**bold**`` and code in its marks, for HTML."""
    text = html.escape(text)
    for mark, tag in (("**", "strong"), ("`", "code")):
        pieces = text.split(mark)
        if len(pieces) % 2:
            text = "".join(
                piece if at % 2 == 0 else f"<{tag}>{piece}</{tag}>" for at, piece in enumerate(pieces)
            )
    return text


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #111827;
  max-width: 56rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: .92rem }}
th, td {{ text-align: left; vertical-align: top;
  padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e5e7eb }}
figure {{ margin: 1rem 0 }}
svg {{ max-width: 100%; height: auto }}
code {{ background: #f3f4f6; padding: 0 .2em }}
</style></head>
<body>
{body}
</body></html>
"""


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
