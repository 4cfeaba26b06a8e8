"""``minires doctor``: what is here, what is missing, what mends it."""

from __future__ import annotations

import argparse

from minires.commands.loading import FAILED, print_json
from minires.commands.registry import Command

TEXT = """\
Look at Python, packages, BLAS, threads, GPU, data sets and disk; name what is missing or held back and the
command that mends it. Exit status 1 if minires cannot run as it is."""


def run(options: argparse.Namespace) -> int:
    from minires import doctor

    report = doctor.examine()
    if options.json:
        print_json(report)
    else:
        print(doctor.describe(report))
    return 0 if report["ok"] else FAILED


COMMAND = Command("say what is installed, what is missing, and what mends it", TEXT, run)
