"""The command line: options in, exit status out; the subcommands stand in ``commands``.

Exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted (143 by SIGTERM, 129 by SIGHUP; a run also by
SIGUSR1, 138 on Linux).
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from typing import Any, NoReturn, TextIO

from minires import distributed, interrupt, quiet_start
from minires.commands import COMMANDS, FAILED, Command
from minires.errors import ConfigError, MiniresError, UnknownName, closest, harmless
from minires.version import __version__

WRONG_USE = 2
_OUTPUT = "standard output"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status; ``arguments`` are those of the shell if not given."""
    interrupt.three_streams()
    if hasattr(sys.stdout, "reconfigure"):  # a file name that the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    given = [str(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    options = argparse.Namespace(debug=False, imports=(), own={}, given=given)
    launch = distributed.launched()
    told = [signal.SIGUSR1] if launch and hasattr(signal, "SIGUSR1") else []  # which mpirun hands on
    with interrupt.as_exceptions(*told) as came, _of_the_first(launch):
        try:
            with _plain_warnings(options), _harmless_output():
                _parser().parse_args(arguments, options)
                if launch is not None and not options.command_ranks and launch.rank:
                    return 0  # the first of them does it all
                if launch is not None and options.command_ranks:
                    distributed.world()
                status: int = options.run(options)
                interrupt.raise_what_came()
                if sys.stdout is not None:
                    sys.stdout.flush()
                return status
        except KeyboardInterrupt as stop:
            if _is_heard():  # who is told to end does not wait for somebody to read it
                _leave(str(stop) or "interrupted", "minires: ")
            return interrupt.status(stop)
        except BrokenPipeError:  # the reader of our output, `head` for example, has enough
            interrupt.to_nobody(sys.stdout)
            return FAILED
        except Exception as error:
            if came:  # a library on the way has made an error of its own of the signal
                _say(f"minires: {quiet_start.said(came[-1])}")
                return 128 + came[-1]
            if not isinstance(error, MiniresError | OSError | MemoryError | ImportError):
                raise
            return _failed(error, options)


def _failed(error: Exception, options: argparse.Namespace) -> int:
    """Say what went wrong; the exit status."""
    if options.debug:
        traceback.print_exc()
    own = isinstance(error, UnknownName) and not options.imports
    hint = ". For one of your own, name the module that registers it: minires --import MODULE ..."
    message = in_options(_message(error), options.own, options.given)
    _leave(f"{message}{hint if own else ''}", "minires: error: ")
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # what could not be written, on a full disk, cannot be written at the end either
        interrupt.to_nobody(sys.stdout)
    return WRONG_USE if isinstance(error, ConfigError) else FAILED


@contextmanager
def _of_the_first(launch: distributed.Launch | None) -> Iterator[None]:
    """Of several processes that a launcher of MPI has started only the first is heard in this block."""
    if launch is None or not launch.rank:
        yield
        return
    with open(os.devnull, "w", errors="backslashreplace") as nobody:  # whatever it is that nobody reads
        with redirect_stdout(nobody), redirect_stderr(nobody):
            yield


def _leave(text: str, before: str) -> None:
    """Say why the program ends, ``before`` it whose words these are; of several processes one says it."""
    launch = distributed.launched()
    comm = distributed.found()
    if comm is not None and comm.size > 1:
        comm.leave(text, before=before)
    elif launch is None or launch.rank == 0:
        _say(f"{before}{text}")


def _is_heard() -> bool:
    try:
        return quiet_start.can_write(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # it is no file, but what a test has put there
        return True


def _say(line: str) -> None:
    """Print a line to standard error, if there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(harmless(line), file=sys.stderr, flush=True)


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'no figure given'}); try a smaller --batch-size or --size"
    if isinstance(error, ImportError):
        return f"{error}; `minires doctor` says how to install it"
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        from minires.files import why

        return f"{os.fsdecode(error.filename)}: {why(error)}"
    return str(error)


def in_options(text: str, own: Mapping[str, Sequence[str]], given: Iterable[str] = ()) -> str:
    """A message with the options of a command in the place of Python's arguments of these names. What the
    user gave, such as a folder "lr=0.1", stays as it is.

    >>> own = {"precision": ["--precision"], "drop_last": ["--drop-last", "--no-drop-last"]}
    >>> in_options("on the CPU leave it at precision='fp32'", own)
    'on the CPU leave it at --precision fp32'
    >>> in_options("precision is 3; try drop_last=False", own)
    '--precision is 3; try --no-drop-last'
    >>> in_options("drop_last=True holds a run already", own, ["drop_last=True"])
    'drop_last=True holds a run already'
    """
    theirs = sorted((one for one in given if "=" in one or ":" in one), key=len, reverse=True)
    if theirs:
        parts = re.split(f"({'|'.join(map(re.escape, theirs))})", text)
        return "".join(part if place % 2 else in_options(part, own) for place, part in enumerate(parts))
    for name, flags in own.items():
        named = [flag for flag in flags if flag.startswith("--")]
        if not named:
            continue

        def option(match: re.Match[str], named: list[str] = named) -> str:
            value = match[1]
            value = value[1:-1] if value[0] in "'\"" else value
            if value == "None" or (value == "False" and len(named) < 2):
                return match[0]
            return {"True": named[0], "False": named[-1]}.get(value, f"{named[0]} {shlex.quote(value)}")

        # A word by itself: not a part of a path, nor of the parentheses of a call, which are Python's.
        value = r"""('[^']*'|"[^"]*"|[\w:]+|-?[\d.e-]*\d)(?=[,;)]|\.?(?:\s|$))"""
        text = re.sub(rf"(?<!\S)(?<!, ){name}={value}", option, text)
        text = re.sub(rf"(^|: |value of ){name}(?= is | must | ')", rf"\1{named[0]}", text)
    return text


def _harmless_output() -> AbstractContextManager[Any]:
    """Standard output, if there is one, for a terminal."""
    return nullcontext() if sys.stdout is None else redirect_stdout(_Harmless(sys.stdout))


@contextmanager
def _named() -> Iterator[None]:
    """An error of the system says what could not be written."""
    try:
        yield
    except OSError as error:
        error.filename = _OUTPUT
        raise


class _Harmless:
    """A stream for a terminal on which names from files cannot do anything: see ``harmless``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _named():
            return self._stream.write(harmless(text))

    def flush(self) -> None:
        with _named():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _plain_warnings(options: argparse.Namespace) -> Iterator[None]:
    """Warnings as one line each, without the place in the source, and no line twice."""
    said = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            _say(f"minires: warning: {in_options(str(message), options.own, options.given)}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minires",
        description="Train residual networks with a small engine written from scratch, and look into them.",
        epilog="`minires COMMAND --help` explains a command. Exit status: 0 done, 1 failed, 2 wrong use, "
        "130 interrupted (143 by SIGTERM, 129 by SIGHUP; a run also by SIGUSR1, 138 on Linux).",
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
        super().__init__(description=command.text, allow_abbrev=False, formatter_class=as_written, **options)
        self._command: Command | None = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if command := self._command:
            self._command = None
            self.set_defaults(run=command.run, command_ranks=command.ranks)
            command.add_options(self)
            hidden = argparse.SUPPRESS
            self.add_argument("--debug", action="store_true", default=hidden, help=hidden)
            if command.json:
                text = "print the result as JSON, for programs"
                self.add_argument("--json", action="store_true", help=text)
            self.set_defaults(own={one.dest: one.option_strings for one in self._actions})
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            self._check_value(action, getattr(found, action.dest, None))
        if rest:
            first = next((one.partition("=")[0] for one in rest if one.startswith("--")), None)
            known = [name for action in self._actions for name in action.option_strings]
            near = closest(first, known, count=1) if first else []
            if first is None and "--data" in known and os.path.exists(rest[0]):
                near = [f"--data {shlex.quote(rest[0])}"]
            wrong = f"there is no option {first}" if first else f"too many arguments: {' '.join(rest)}"
            self.error(wrong + "".join(f"; did you mean {one}?" for one in near))
        return found, rest

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """An empty text, as of a variable of the shell that is not set, is no folder; nothing is fetched."""
        name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
        for one in value if isinstance(value, list) else [value]:
            if one == "":
                self.error(f"{name} is empty")
            if isinstance(one, str) and one.startswith(("http://", "https://")):
                self.error(f"{name} {one}: nothing is fetched; download it first, and give its path")

    def error(self, message: str) -> NoReturn:
        super().error(harmless(message))
