"""``minires watch``: how a run goes, in the browser or the terminal."""

from __future__ import annotations

import argparse
import sys

from minires.commands.registry import Command
from minires.errors import ConfigError

TEXT = """\
Open a page in the browser that shows how a run goes, while it is trained and afterwards: curves, the layers
from the inside, what is taken for what, the pictures as the model gets them, and how long it may take. Only
this machine can reach the page; the run is only read. Ctrl-C ends the page, and not the run.

  minires watch runs/mine
  minires watch runs/mine --text          in the terminal, until the run ends
  minires watch runs/mine --text --once   as it is now"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder")
    parser.add_argument("--text", action="store_true", help="in the terminal, on one screen")
    parser.add_argument("--once", action="store_true", help="with --text: print it once, and end")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="the port (default: a free one)")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")


def run(options: argparse.Namespace) -> int:
    from minires.watch import follow, serve

    if options.once and not options.text:
        raise ConfigError("--once prints the view of the terminal; use it with --text")
    if options.text and (options.port or not options.browser):
        raise ConfigError("--text opens no page; leave out --port and --no-browser")
    if not options.text:
        serve(options.run_folder, port=options.port, open_browser=options.browser)
        return 0
    once = options.once or sys.stdout is None or not sys.stdout.isatty()
    follow(options.run_folder, once=once, write=print if once else _draw)
    return 0


def _draw(text: str) -> None:
    """Write a screen as it is: what clears it is for the terminal, and names in it are harmless already."""
    print(text, file=sys.__stdout__, flush=True)


COMMAND = Command("watch how a run goes, in the browser or the terminal", TEXT, run, add_options, json=False)
