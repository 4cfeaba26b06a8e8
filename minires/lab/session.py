"""A lab from its first run to its report: what was done before is found again, the rest is done now.

    OUT/runs/MODEL-KEY/           a training run: a run folder, which several labs may measure
    OUT/NAME-SCALE/results.json   what was measured, by case and seed; the rest of the folder is made of it
                                  figure.svg, figure.png, table.csv, report.md, report.html
    OUT/NAME-SCALE-DATA/          the same of other pictures than those of the scale

Until all runs are done, what each has measured stands in a file of its own in ``measured/`` there.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires import backend, models
from minires import data as known_data
from minires.distributed import Communicator, Solo, each
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, counted, plain, whole
from minires.files import why
from minires.inspect import summarize
from minires.interrupt import Interrupted, status
from minires.lab import asked, report
from minires.lab import run as runs
from minires.lab.lab import Lab, checked
from minires.lab.outcome import Outcome, outcome
from minires.lab.scale import Case, Scale
from minires.train import run_folder
from minires.train.fields import between, exactly, listing, record, table, text

RESULTS, MEASURED = "results.json", "measured"
LONGEST = 2**28  # bytes of results.json: what is kept of a run (see asked.py), many times over
ROW = record(case=text, seed=between(0), key=text, measured=table(), date=text)
KIND = record(
    kind=exactly("lab"), format=exactly(1), lab=text, scale=table(), runs=listing(ROW)
)
PACE = 2e10  # multiply-adds a second of one core, to begin with
BACKWARD = 3  # a training step does so many times the arithmetic of a forward pass


@dataclass(frozen=True)
class Item:
    """A run that a lab asks for."""

    case: str
    made: Case
    seed: int
    key: str


def run_lab(
    lab: Lab,
    scale: Scale | str = "quick",
    *,
    seeds: int | None = None,
    out: str | os.PathLike[str] = "labs",
    data: str | None = None,
    device: str = "cpu",
    comm: Communicator | None = None,
    progress: bool | None = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Do all runs of a lab that were not done before, and write its figure, table and report.

    ``scale`` is quick, hour, full or one of your own; ``seeds``, if not given, are as many as the lab asks
    for; ``data`` takes the place of its data set. Networks are trained on ``device``; what is measured of
    them is measured on the CPU. The ranks of ``comm`` share the runs out among them. It can be interrupted at
    any moment; called again, it goes on.

    Raises: ConfigError for a lab, a scale or a device that is none; DataError if its pictures are not found,
    or the results there are of other pictures; MiniresError that says where, if the lab's own code fails;
    Interrupted after SIGINT or SIGTERM, once the run under way is saved.
    """
    checked(lab)
    backend.to_device(np.empty(0), backend.choose_device(device))  # refuses what is none
    comm = comm or Solo()
    scale, usual = _at(lab, scale, data)
    if scale.data not in known_data.names() and not known_data.is_there(scale.data):
        raise ConfigError(
            f"the scale {scale.name} of lab {lab.name} is of {scale.data}, which is no known data set and "
            "no path; say where the pictures are with data='path/to/pictures'"
        )
    seeds = whole("seeds", lab.seeds if seeds is None else seeds)
    pictures = runs.Pictures(say)
    if data is not None and scale.pictures is not None:
        there = len(pictures(Case({"data": scale.data, "size": scale.size})).train)
        if there < scale.pictures:
            say(f"{data} has {there:,} pictures to learn from, not {scale.pictures:,}: all are used")
            scale = scale.but(pictures=None)
    folder, run_folders = _folder(lab, scale, out, usual), Path(out) / "runs"
    cases = asked.cases(lab, scale, pictures)
    items = [
        Item(name, case, seed, asked.measure_key(lab, name, case, seed))
        for seed in range(seeds)
        for name, case in cases.items()
    ]
    comm.first(lambda: _make(folder, run_folders), "folders")
    comm.first(lambda: _see_that_they_are_of(scale.data, folder), "results")
    known = comm.first(lambda: _known(folder), "results")
    todo = [item for item in items if item.key not in known]
    for line in begins(lab, scale, len(items), len(todo)):
        say(line)
    macs = {item.case: _cost(item.made, pictures) for item in {one.case: one for one in todo}.values()}
    costs = {
        item.key: macs[item.case] * (not runs.has_ended(runs.folder_of(run_folders, item.made, item.seed)))
        for item in todo
    }
    if comm.size > 1 and todo:
        say(f"  {comm.size} processes share them; the first of them tells of its own")
        todo = shared_out(todo, [costs[item.key] for item in todo], comm.size)
    clock = _Clock(todo[comm.rank :: comm.size], costs, say)

    def work(item: Item) -> dict[str, Any]:
        pictures(item.made)
        began = time.perf_counter()
        bar = progress if comm.size == 1 else False
        place = runs.folder_of(run_folders, item.made, item.seed)
        run = runs.Run(item.case, item.made, item.seed, place, pictures)
        begun = item.made.trained and not runs.has_ended(place)
        if item.made.trained:
            try:
                runs.train(run, device, bar)
            except Interrupted as stop:
                raise Interrupted(f"{stop}; the same command goes on", status(stop) - 128) from stop
        found = asked.measured(lab, run)
        row = {
            "case": item.case, "seed": item.seed, "key": item.key,
            "date": datetime.date.today().isoformat(), "measured": found,
        }  # fmt: skip
        _keep(folder, row)
        # What it took before it was interrupted counts, too.
        took = run.summary.get("seconds") if begun else None
        clock.done(item, found, took or time.perf_counter() - began)
        return row

    for row in each(work, todo, comm):
        known[row["key"]] = row
    rows = [known[item.key] for item in items]
    comm.first(lambda: _write(folder, lab, scale, rows), "results")
    found = outcome(lab, scale, cases, rows, folder)
    comm.first(lambda: report.write(found), "report")
    return found


def recalled(
    lab: Lab, scale: Scale | str = "quick", out: str | os.PathLike[str] = "labs", *, data: str | None = None
) -> Outcome:
    """What a lab has found before, from its results.json in ``out``; nothing is run. ``data`` are the
    pictures that took the place of its own.

    Raises: CheckpointError if there are no results, or they are of other runs than the lab asks for now.
    """
    scale, usual = _at(lab, scale, data)
    folder = _folder(lab, scale, out, usual)
    content = read(folder)
    if data is not None and content["scale"].get("pictures") is None:  # there were fewer than it asks for
        scale = scale.but(pictures=None)
    cases, rows = asked.cases(lab, scale, runs.Pictures()), content["runs"]
    seeds = range(1 + max((row["seed"] for row in rows), default=0))
    wanted = [
        (name, seed, asked.measure_key(lab, name, case, seed))
        for seed in seeds for name, case in cases.items()
    ]  # fmt: skip
    if wanted != [(row["case"], row["seed"], row["key"]) for row in rows]:
        raise CheckpointError(
            f"{folder / RESULTS} has other runs, of other settings or another measure, than the lab has now; "
            f"run it anew: minires lab {lab.file or lab.name} --scale {scale.name} --out {out}"
        )
    return outcome(lab, scale, cases, rows, folder)


def _at(lab: Lab, scale: Scale | str, data: str | None) -> tuple[Scale, str]:
    """The scale, of these pictures if any are given, and those that are usual there."""
    scale = lab.scale(scale) if isinstance(scale, str) else scale
    return (scale if data is None else scale.but(data=data)), scale.data


def begins(lab: Lab, scale: Scale, items: int, todo: int) -> list[str]:
    """What is said before anything runs: the claim, and the rule of the verdict."""
    done = f", {items - todo} of them done before" if todo < items else ""
    return [
        f"{lab.number} {lab.title}".strip(),
        f"  claim   {lab.claim} ({lab.source})",
        *(f"  rule    {one.says}: {one.rule}" for one in lab.expects),
        *(f"  besides {one.says}: {one.rule}" for one in lab.further),
        f"  {scale.name}: {counted(items, 'run')}{done}",
    ]


def shared_out(items: Sequence[Any], costs: Sequence[float], ranks: int) -> list[Any]:
    """The items in an order in which every so many of them, the share of a rank, cost about the same: the
    most costly first, to and fro among the ranks.

    >>> order = shared_out("abcdef", [1, 9, 1, 9, 1, 9], ranks=2)
    >>> order[0::2], order[1::2]
    (['b', 'a', 'c'], ['d', 'f', 'e'])
    """
    down = sorted(range(len(items)), key=lambda at: -costs[at])
    rounds = [down[at : at + ranks] for at in range(0, len(down), ranks)]
    return [
        items[at]
        for number, one in enumerate(rounds)
        # The last round may be short: it stays as it is.
        for at in (one[::-1] if number % 2 and len(one) == ranks else one)
    ]


def in_words(seconds: float) -> str:
    """A time that a person reads.

    >>> in_words(4.2), in_words(80), in_words(4000)
    ('4 s', '1.3 min', '1.1 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


class _Clock:
    """Says how far a process is with its runs, and about how long the rest takes."""

    def __init__(
        self, todo: Sequence[Item], costs: Mapping[str, float], say: Callable[[str], None]
    ) -> None:
        self._left = {item.key: costs[item.key] for item in todo}
        self._pace, self._spent, self._worked = PACE * backend.threads(), 0.0, 0.0
        self._say, self._all = say, len(todo)
        if sum(self._left.values()):
            say(f"  about {in_words(self._rest())}")

    def done(self, item: Item, measured: Mapping[str, Any], seconds: float) -> None:
        """A run has come to its end, after so many seconds here."""
        self._spent += seconds
        self._worked += self._left.pop(item.key, 0.0)
        if self._worked and self._spent:
            self._pace = self._worked / self._spent
        figures = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in measured.items()
                   if isinstance(value, int | float) and not isinstance(value, bool)]  # fmt: skip
        rest = f"; about {in_words(self._rest())} left" if self._left and self._worked else ""
        place = self._all - len(self._left)
        said = f": {', '.join(figures[:3])}" if figures else ""
        self._say(
            f"{place} of {self._all}  {item.case}, seed {item.seed}{said}  ({in_words(seconds)}){rest}"
        )

    def _rest(self) -> float:
        return sum(self._left.values()) / self._pace


def _cost(case: Case, pictures: runs.Pictures) -> float:
    """About the multiply-adds of a run."""
    settings = case.settings
    if not case.trained:
        return 0.0
    splits = pictures(case)
    side = settings["size"] or splits.train.images.shape[1]
    variant = {**models.entry(settings["model"]).to_look_at(side), **settings["variant"]}
    model = models.build(settings["model"], classes=len(splits.train.classes), **variant)
    count = settings.get("pictures") or len(splits.train)
    macs: float = summarize(model, (side, side, 3)).macs
    looked_at = len(splits.val) if settings["train_on"] == "train" else 0
    passes: int = settings["epochs"] * (BACKWARD * count + looked_at) + looked_at + len(splits.test)
    return macs * passes


# ------------------------------------------------------------------------------------------- what is kept


def _folder(lab: Lab, scale: Scale, out: str | os.PathLike[str], usual: str) -> Path:
    """Where a lab's results stand, those of other pictures than the ``usual`` ones by themselves."""
    of = re.sub(r"\W+", "-", Path(scale.data).stem).strip("-") or "data"
    return Path(out) / (f"{lab.name}-{scale.name}" + (f"-{of}" if scale.data != usual else ""))


def _see_that_they_are_of(data: str, folder: Path) -> None:
    with suppress(CheckpointError, ConfigError):
        there = read(folder)["scale"].get("data")
        if there != data and Path(str(there)).resolve() != Path(data).resolve():
            raise DataError(
                f"{folder} has the results of {there}, and these are of {data}; give another folder with "
                "--out (out= in Python)"
            )


def _make(folder: Path, run_folders: Path) -> None:
    try:
        for one in (folder / MEASURED, run_folders):
            one.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniresError(f"cannot make the folder {error.filename}: {why(error)}") from error


def _keep(folder: Path, row: Mapping[str, Any]) -> None:
    """Keep what was measured of one run, until all are."""
    (folder / MEASURED).mkdir(exist_ok=True)  # another process may have just tidied up
    run_folder.write_json(folder / MEASURED / f"{row['key']}.json", row)


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured before, by key; a file that is damaged counts as none."""
    rows: list[dict[str, Any]] = []
    with suppress(CheckpointError, ConfigError):
        rows = read(folder)["runs"]
    for path in sorted((folder / MEASURED).glob("*.json")):
        with suppress(CheckpointError, ConfigError):
            row = run_folder.read_json(path)
            ROW(path.name, row)
            rows.append(row)
    return {row["key"]: row for row in rows}


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The results of a lab, as its results.json has them.

    Raises: CheckpointError if there is no such file or it is damaged; ConfigError if it says something else.
    """
    content = run_folder.read_json(Path(folder) / RESULTS, longest=LONGEST)
    KIND(str(Path(folder) / RESULTS), content)
    return content


def _write(folder: Path, lab: Lab, scale: Scale, rows: list[dict[str, Any]]) -> None:
    """Write the results. What else was measured, before or by another process, stays beside them."""
    said = {name: value for name, value in vars(scale).items() if name != "about"}
    content = {"kind": "lab", "format": 1, "lab": lab.name, "scale": plain(said), "runs": rows}
    ours = {row["key"] for row in rows}
    for key, row in _known(folder).items():
        if key not in ours:
            _keep(folder, row)
    run_folder.write_json(folder / RESULTS, content)
    for row in rows:
        (folder / MEASURED / f"{row['key']}.json").unlink(missing_ok=True)
    with suppress(OSError):
        (folder / MEASURED).rmdir()
