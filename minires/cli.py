"""The command line: options in, exit status out; the subcommands stand in ``commands``.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minires.commands import COMMANDS, FAILED, Command
from minires.errors import ConfigError, MiniresError, UnknownName
from minires.version import __version__

WRONG_USE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; ``arguments`` are those of the shell if not given."""
    if hasattr(sys.stdout, "reconfigure"):  # a file name that the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    options = argparse.Namespace(debug=False, imports=(), own=())
    try:
        with _plain_warnings(options):
            _parser().parse_args(arguments, options)
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        print(f"minires: {stop}" if str(stop) else "minires: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` for example, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (MiniresError, OSError, MemoryError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        own = isinstance(error, UnknownName) and not options.imports
        hint = ". For one of your own, name the module that registers it: minires --import MODULE ..."
        message = in_options(_message(error), options.own)
        print(f"minires: error: {message}{hint if own else ''}", file=sys.stderr)
        return WRONG_USE if isinstance(error, ConfigError) else FAILED


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'no figure given'}); try a smaller --batch-size or --size"
    if isinstance(error, ImportError):
        return f"{error}; `minires doctor` says how to install it"
    return str(error)


def in_options(text: str, names: Iterable[str]) -> str:
    """A message with the options of a command in the place of Python's arguments of these names.

    >>> in_options("on the CPU leave it at precision='fp32'", ["precision"])
    'on the CPU leave it at --precision fp32'
    >>> in_options("batch_size is 0; try drop_last=False", ["batch_size", "drop_last"])
    '--batch-size is 0; try --no-drop-last'
    """
    for name in names:
        flag = name.replace("_", "-")

        def given(match: re.Match[str], flag: str = flag) -> str:
            value = match[1].strip("'")
            return {"True": f"--{flag}", "False": f"--no-{flag}"}.get(value, f"--{flag} {value}")

        # What stands in the parentheses of a call is Python's.
        text = re.sub(rf"(?<![\w(.])(?<!, ){name}=('[^']*'|[\w.:]*\w)", given, text)
        text = re.sub(rf"(^|: |value of ){name}(?= is | must | ')", rf"\1--{flag}", text)
    return text


@contextmanager
def _plain_warnings(options: argparse.Namespace) -> Iterator[None]:
    """Warnings as one line each, without the place in the source."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"minires: warning: {in_options(str(message), options.own)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minires",
        description="Train residual networks with a small engine written from scratch, and look into them.",
        epilog="`minires COMMAND --help` explains a command. Exit status: 0 done, 1 failed, 2 wrong use, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minires {__version__}")
    parser.add_argument("--debug", action="store_true", help="show where in the source an error arose")
    parser.add_argument(
        "--import", action=_Import, metavar="MODULE",
        help="import a module first, for the models, data sets, ... that it registers; can be repeated",
    )  # fmt: skip
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.help, command=command)
    return parser


class _Import(argparse.Action):
    """Imports a module of the user's as soon as it is read, so that the help of a command knows its names."""

    def __call__(self, parser: object, namespace: Any, name: Any, option: str | None = None) -> None:
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(name)
            namespace.imports = (*namespace.imports, name)
        except ImportError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                # The module is there, and imports something that is not.
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{last.filename}, line {last.lineno}" if last.filename[:1] != "<" else name
                raise MiniresError(f"--import {name}: {error} ({place})") from error
            raise ConfigError(
                f"--import {name}: there is no such module, neither in {here} nor installed; "
                "give the name that stands behind import, without .py"
            ) from error


class _CommandParser(argparse.ArgumentParser):
    """The parser of a command, which is asked for its options only when it was chosen.

    Some options name what other rooms know, and these take a while to import.
    """

    def __init__(self, *, command: Command, **options: Any) -> None:
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description=command.text, allow_abbrev=False, formatter_class=as_written, **options
        )
        self._command: Command | None = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if command := self._command:
            self._command = None
            self.set_defaults(run=command.run)
            command.add_options(self)
            hidden = argparse.SUPPRESS
            self.add_argument("--debug", action="store_true", default=hidden, help=hidden)
            if command.json:
                text = "print the result as JSON, for programs"
                self.add_argument("--json", action="store_true", help=text)
            self.set_defaults(own=tuple(one.dest for one in self._actions if one.option_strings))
        return super().parse_known_args(args, namespace)
