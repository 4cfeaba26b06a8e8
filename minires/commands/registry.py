"""What the program knows of a subcommand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


def no_options(parser: argparse.ArgumentParser) -> None:
    """For a command that has no options of its own."""


@dataclass(frozen=True)
class Command:
    """A subcommand: ``help`` is its line in ``minires --help``, ``text`` the head of its own help.

    ``run`` does the work and returns the exit status; ``add_options`` adds its options to the parser, and is
    called only when the command is chosen. Both import what they need when they run. With ``json`` there is
    the option ``--json``, and the result is printed so. With ``ranks`` the processes that a launcher of MPI
    has started share its work; of any other command the first of them does it all.
    """

    help: str
    text: str
    run: Callable[[argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None] = no_options
    json: bool = True
    ranks: bool = False
