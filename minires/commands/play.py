"""``minires play``: a page in the browser that asks a trained model."""

from __future__ import annotations

import argparse

from minires.commands.loading import change_option, changes_of, run_options
from minires.commands.registry import Command

TEXT = """\
Open a page in the browser in which you drop, draw or photograph pictures, and see what a trained model takes
them for, and which places of a picture made it think so. Only this machine can reach the page; Ctrl-C ends
it.

  minires play runs/signs-default-1
  minires play runs/signs-default-1 --data photos
  minires play runs/signs-default-1 --change res3b=drop"""


def add_options(parser: argparse.ArgumentParser) -> None:
    run_options(parser)
    parser.add_argument(
        "--data", metavar="PATH", help="show these pictures, too: a folder, a zip, a tar or one picture"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="the port (default: a free one)")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")
    change_option(parser)


def run(options: argparse.Namespace) -> int:
    from minires.play import serve

    serve(
        options.model, data=options.data, port=options.port, device=options.device,
        open_browser=options.browser, changes=changes_of(options),
    )  # fmt: skip
    return 0


COMMAND = Command("show pictures to a trained model, in the browser", TEXT, run, add_options, json=False)
