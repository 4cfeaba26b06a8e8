"""``minires compare``: several runs beside each other."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import print_json, speaker
from minires.commands.registry import Command
from minires.errors import ConfigError, MiniresError, counted

if TYPE_CHECKING:
    from minires.inspect.disagreements import Disagreement
    from minires.inspect.runs import Compared, Run

TEXT = """\
Put runs beside each other: a table of their figures, the mean and spread (standard deviation) of those that
differ only in the seed, what differs in their settings, their curves in one figure, and the test pictures on
which their models disagree.

  minires compare runs/hands-default-1 runs/hands-default-2
  minires compare runs/* --out curves.svg --no-pictures

Runs that are not finished take part with their curves. The models are asked only where all runs have the same
test pictures and classes, and their data set is where it was; else it is said why not."""
SHEET = "disagree.png"
SHOWN = 10  # pictures in the table of those that the runs disagree on


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, two or more")
    parser.add_argument(
        "--out", metavar="FILE", default="compare.png",
        help=f"where to draw the curves, a .png or .svg (default: compare.png); {SHEET} comes beside it",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True,
        help="ask the models what is on the test pictures, or leave that out (default: ask)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    from minires import backend
    from minires.inspect.disagreements import disagreement
    from minires.inspect.runs import compare_runs
    from minires.inspect.runs_drawing import check_out
    from minires.train import continuing

    out, sheet = Path(options.out), Path(options.out).parent / SHEET
    check_out(out, (".png", ".svg"), "a figure")
    if out.name.lower() == SHEET:
        raise ConfigError(f"--out {out}: {SHEET} is for the pictures; choose another name")
    for path in (out, sheet):
        continuing.not_in_run("--out", path)
    if options.pictures:
        check_out(sheet, ".png", "a sheet of pictures")
    compared = compare_runs(options.runs)
    compared.draw(out)
    asked: Disagreement | None = None
    reason = "left out, as --no-pictures says"
    if options.pictures:
        try:
            with backend.before_compiling(speaker(sys.stderr)):
                asked = disagreement(compared.runs)
        except MiniresError as error:
            reason = str(error)
    drawn = asked is not None and len(asked.places) > 0
    if asked is not None and drawn:
        asked.draw(sheet)
    if options.json:
        print_json({
            **_plain(compared), "out": str(out), "pictures": _plain_pictures(asked, reason),
            "sheet": str(sheet) if drawn else None,
        })  # fmt: skip
        return 0
    _table(compared)
    print(f"\nThe curves: {out}")
    _pictures(asked, reason, sheet)
    return 0


def _table(compared: Compared) -> None:
    head = ("run", "model", "data", "recipe", "seed", "epochs", "test accuracy", "loss", "seconds")
    rows: list[tuple[str, ...]] = [head]
    for group in compared.groups:
        rows += [_row(run) for run in group.runs]
        if (seeds := len(group.seeds)) > 1:
            what = f"  mean and spread, {counted(seeds, 'seed')}"
            rows.append((what, "", "", "", "", "", _around(group.accuracy, 100, "%", 2),
                         _around(group.loss, 1, "", 4), _around(group.seconds, 1, "", 1)))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:<{wide}}" if place < 4 else f"{cell:>{wide}}"
            for place, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    if compared.differences:
        print("\nWhat differs in their settings:")
        width = max(map(len, compared.differences))
        for name, values in compared.differences.items():
            told = ", ".join(
                f"{run.label}: {_value(value)}"
                for run, value in zip(compared.runs, values, strict=True)
            )
            print(f"  {name:<{width}}  {told}")
    else:
        print("\nTheir settings are all the same.")


def _row(run: Run) -> tuple[str, ...]:
    epochs = str(run.config.epochs) if run.finished else f"{run.epochs} of {run.config.epochs}"
    accuracy = "" if run.accuracy is None else f"{100 * run.accuracy:.2f}%"
    loss = "" if run.loss is None else f"{run.loss:.4f}"
    seconds = "" if run.seconds is None else f"{run.seconds:.1f}"
    return (run.label, run.config.model, run.dataset, run.config.recipe, str(run.config.seed), epochs,
            accuracy, loss, seconds)  # fmt: skip


def _around(measured: tuple[float, float | None] | None, scale: float, unit: str, digits: int) -> str:
    if measured is None:
        return ""
    mean, deviation = measured
    around = "" if deviation is None else f" +- {scale * deviation:.{digits}f}"
    return f"{scale * mean:.{digits}f}{around}{unit}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pictures(asked: Disagreement | None, reason: str, sheet: Path) -> None:
    if asked is None:
        print(f"The test pictures: {reason}")
        return
    for note in asked.notes:
        print(f"  {note}")
    total, places = len(asked.pictures), asked.places
    if not len(places):
        print(f"The runs agree on all {total} test pictures.")
        return
    print(f"The runs disagree on {len(places)} of {total} test pictures: {sheet}")
    rows: list[tuple[str, ...]] = [("picture", "true", *(run.label for run in asked.runs))]
    rows += [
        (asked.pictures.names[place], asked.classes[asked.pictures.labels[place]],
         *(asked.classes[guess] for guess in asked.guesses[:, place]))
        for place in places[:SHOWN]
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(f"{cell:<{wide}}" for cell, wide in zip(row, widths, strict=True)).rstrip())
    if len(places) > SHOWN:
        print(f"  ... and {len(places) - SHOWN} more; --json names all")


def _plain(compared: Compared) -> dict[str, Any]:
    runs = [
        {
            "run": run.folder, "label": run.label, "model": run.config.model, "data": run.dataset,
            "recipe": run.config.recipe, "seed": run.config.seed, "finished": run.finished,
            "epochs": run.epochs, "of_epochs": run.config.epochs, "test_accuracy": run.accuracy,
            "test_loss": run.loss, "seconds": run.seconds, "curves": run.rows,
        }
        for run in compared.runs
    ]  # fmt: skip
    groups = [
        {
            "runs": [run.folder for run in group.runs], "seeds": group.seeds,
            **{name: _pair(getattr(group, name)) for name in ("accuracy", "loss", "seconds")},
        }
        for group in compared.groups
    ]
    labels = [run.folder for run in compared.runs]
    different = {
        name: dict(zip(labels, values, strict=True)) for name, values in compared.differences.items()
    }
    return {"runs": runs, "groups": groups, "differences": different}


def _pair(measured: tuple[float, float | None] | None) -> dict[str, float | None] | None:
    return measured and {"mean": measured[0], "deviation": measured[1]}


def _plain_pictures(asked: Disagreement | None, reason: str) -> dict[str, Any]:
    if asked is None:
        return {"asked": False, "why": reason}
    found = [
        {
            "picture": asked.pictures.names[place],
            "true": asked.classes[asked.pictures.labels[place]],
            "guesses": {
                run.folder: {"label": asked.classes[guess], "probability": float(sure)}
                for run, guess, sure in zip(
                    asked.runs, asked.guesses[:, place], asked.sure[:, place], strict=True
                )
            },
        }
        for place in asked.places
    ]
    return {
        "asked": True, "total": len(asked.pictures), "disagree": len(found), "notes": asked.notes,
        "pictures": found,
    }  # fmt: skip


COMMAND = Command("put runs beside each other: figures, curves, disagreements", TEXT, run, add_options)
