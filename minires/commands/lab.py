"""``minires lab``: a claim of a paper, tried."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minires.commands.loading import DEVICES, print_json, speaker
from minires.commands.registry import Command

if TYPE_CHECKING:
    from minires.lab import Judged, Lab, Outcome

SCALES = ("quick", "hour", "full")
TEXT = """\
See whether a claim of a paper holds: the runs that it asks for, a figure, a table, and a verdict by a rule
that is said before the first run. Without a name the labs are listed.

  minires lab                                    the list
  minires lab shortcuts                          one of them, by its name or number (P3)
  minires lab shortcuts --seeds 5 --scale hour   more starts, more training
  minires lab ./my_lab.py                        one of your own: see the guide, page "The lab"

The scale is quick (minutes), hour (about an hour for each seed, on two cores) or full (the paper's own
setting, for a GPU). Each training run is kept by its settings in OUT/runs, and what was measured beside the
report; neither is done twice. Ctrl-C stops, and the same command goes on. What is measured of trained
networks is measured on the CPU. The report is OUT/NAME-SCALE/report.html and report.md, beside figure.svg,
figure.png, table.csv and results.json. The processes of mpirun share the runs out among them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME",
                        help="a lab, its number, or a Python file with one (default: list them)")  # fmt: skip
    parser.add_argument("--seeds", type=int, metavar="N",
                        help="how many starts of each network (default: what the lab asks for, mostly 3)")
    # fmt: skip
    parser.add_argument("--scale", choices=SCALES, default="quick", help="how much is done (default: quick)")
    parser.add_argument("--data", metavar="NAME", help="another data set, or a path, as for train")
    parser.add_argument("--device", default="cpu", metavar="NAME", help=DEVICES)
    parser.add_argument("--out", default="labs", metavar="DIR", help="where all of it stands (default: labs)")


def run(options: argparse.Namespace) -> int:
    from minires import backend, lab
    from minires.distributed import world
    from minires.interrupt import Interrupted
    from minires.train import team

    if options.name is None:
        return _list(options)
    chosen = lab.find(options.name)
    comm = world()
    asked = {name: getattr(options, name) for name in ("seeds", "scale", "data", "device", "out")}
    asked |= {"lab": chosen.name, "version": chosen.version}
    team.same_settings(comm, asked)
    said = speaker(sys.stderr if options.json else sys.stdout)
    say = said if comm.is_first else _silent
    with backend.before_compiling(say):
        try:
            outcome = lab.run_lab(
                chosen, options.scale, seeds=options.seeds, out=options.out, data=options.data,
                device=options.device, comm=comm, progress=None, say=say,
            )  # fmt: skip
        except KeyboardInterrupt:  # while it reads pictures, or measures
            raise Interrupted("stopped; what is done is kept, and the same command goes on", 2) from None
    if not comm.is_first:
        return 0
    if options.json:
        print_json(_plain(outcome))
    else:
        _tell(outcome)
    return 0


def _silent(line: str) -> None:
    """Nobody is told."""


def _list(options: argparse.Namespace) -> int:
    from minires import lab

    if options.json:
        print_json({"labs": [_described(one) for one in lab.LABS.values()]})
        return 0
    for one in lab.LABS.values():
        print(f"{one.number:<4} {one.name:<20} {one.title}")
        told = f"{one.claim} ({one.source}). Quick: {one.quick.about}."
        print(textwrap.fill(told, 100, initial_indent=" " * 5, subsequent_indent=" " * 5))
    print("\nminires lab NAME runs one; --scale and --seeds say how much of it: minires lab --help")
    return 0


def _described(lab: Lab) -> dict[str, Any]:
    return {
        "number": lab.number, "name": lab.name, "title": lab.title, "claim": lab.claim, "source": lab.source,
        "rule": [{"says": one.says, "rule": one.rule, "paper": one.paper} for one in lab.expects],
        "further": [{"says": one.says, "rule": one.rule, "paper": one.paper} for one in lab.further],
        "quick": lab.quick.about,
    }  # fmt: skip


def _tell(outcome: Outcome) -> None:
    from minires.lab.report import ALIKE, shown

    print()
    wide = max(len(one.expect.says) for one in (*outcome.judged, *outcome.further))
    for one in outcome.judged:
        print(f"  {one.expect.says:<{wide}}  {shown(one):>20}  {one.verdict}")
    if outcome.further:
        print("besides")
    for one in outcome.further:
        print(f"  {one.expect.says:<{wide}}  {shown(one):>20}  {one.verdict}")
    if outcome.alike:
        print(f"\n{ALIKE}: {'; '.join(outcome.alike)}")
    print(f"\nVerdict: {outcome.verdict}. The report: {Path(outcome.folder) / 'report.html'}")


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        **_described(outcome.lab), "scale": outcome.scale.name, "seeds": outcome.seeds,
        "verdict": outcome.verdict, "folder": str(outcome.folder),
        "judged": [_one(judged) for judged in outcome.judged],
        "besides": [_one(judged) for judged in outcome.further],
        "numbers": dict(outcome.numbers),
    }  # fmt: skip


def _one(judged: Judged) -> dict[str, Any]:
    return {
        "says": judged.expect.says, "values": list(judged.values), "mean": judged.mean,
        "margin": judged.margin, "verdict": judged.verdict,
    }  # fmt: skip


COMMAND = Command("see whether a claim of a paper holds", TEXT, run, add_options, ranks=True)
