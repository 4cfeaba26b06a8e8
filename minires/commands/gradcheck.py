"""``minires gradcheck``: the gradients of all operations, checked."""

from __future__ import annotations

import argparse

from minires.commands.loading import FAILED, print_json
from minires.commands.registry import Command

TEXT = """\
Compare the gradients of every operation with numeric ones, in float64 and with a random upstream gradient,
in a table of cases: strides, paddings, groups, odd sizes. Exit status 1 if one is wrong."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "operations", nargs="*", metavar="OP", help="only these, for example conv2d batch_norm"
    )


def run(options: argparse.Namespace) -> int:
    from minires.ops.cases import all_cases, check_all

    cases, rows = all_cases(), []
    widths = max(map(len, cases)), max(len(case.name) for table in cases.values() for case in table)
    results = check_all(options.operations or None)
    if not options.json:
        print(f"{'operation':<{widths[0]}}  {'case':<{widths[1]}}  worst error  verdict  seconds")
    for row in results:
        rows.append(row)
        if not options.json:
            verdict = "right" if row.ok else "WRONG"
            print(f"{row.op:<{widths[0]}}  {row.case:<{widths[1]}}  {row.error:>11.1e}  {verdict:<7}  "
                  f"{row.seconds:>7.2f}", flush=True)  # fmt: skip
    wrong = [row for row in rows if not row.ok]
    seconds = sum(row.seconds for row in rows)
    if options.json:
        print_json({
            "ok": not wrong, "seconds": seconds,
            "cases": [{"op": row.op, "case": row.case, "error": row.error, "ok": row.ok,
                       "seconds": row.seconds} for row in rows],
        })  # fmt: skip
        return FAILED if wrong else 0
    for row in wrong:
        print(f"\n{row.op}, {row.case}: {row.report}")
    tally = f"{len(wrong)} of {len(rows)} cases are WRONG" if wrong else f"all {len(rows)} cases are right"
    print(f"\n{tally}; {seconds:.1f} s. The error is relative, against numeric gradients in float64.")
    return FAILED if wrong else 0


COMMAND = Command("check the gradients of all operations numerically", TEXT, run, add_options)
