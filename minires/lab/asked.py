"""What a lab is asked for: its cases, what it measures of a run, its figure; and what is wrong with answers.

The code of a lab may be anybody's, in a file of its own. Whatever it raises comes out as one sentence that
says which lab, which method, of which run, and at which line of the file.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minires import data
from minires.errors import CheckpointError, ConfigError, DataError, MiniresError, plain, unknown
from minires.lab.expect import Expect
from minires.lab.lab import Lab, Numbers
from minires.lab.run import Pictures, Run, digest, key
from minires.lab.scale import Case, Scale
from minires.registry import added
from minires.train import run_folder, state

LONGEST = 2**20  # characters of JSON that are kept of a run
MOST = 1e100  # how large a number is: its square, and sums of these, can be computed with


def cases(lab: Lab, scale: Scale, pictures: Pictures) -> dict[str, Case]:
    """The cases of a lab, each with what decides its runs besides its settings.

    Raises: ConfigError if they are none, two of them train the same, or a rule is of none of them.
    """
    with _of(lab, "cases()"):
        given = lab.cases(scale)
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{_named(lab)}: cases() gives a dict with a Case for each name, not {given!r}")
    for name, case in given.items():
        if not isinstance(case, Case) or "data" not in case.settings:
            raise ConfigError(
                f"{_named(lab)}: the case {name!r} is a {type(case).__name__}; make it with scale.train(...) "
                "or scale.fresh(...)"
            )
        if not isinstance(name, str) or not name or name.startswith("_"):
            raise ConfigError(
                f"{_named(lab)}: the name of a case is a text that does not begin with _, not {name!r}"
            )
        try:
            digest([plain(dict(case.settings)), plain(dict(case.extra))])
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{_named(lab)}: settings of the case {name!r} are numbers, texts, lists and dicts of them "
                f"by name; {error}"
            ) from error
    found = {name: _with_what_decides(case, lab, pictures) for name, case in given.items()}
    same: dict[str, str] = {}
    for name, case in found.items():
        if case.trained and (other := same.setdefault(key(case, 0), name)) != name:
            raise ConfigError(
                f"{_named(lab)}: {other!r} and {name!r} are one and the same training; make it one case, and "
                "measure of it what both are for"
            )
    for one in (*lab.expects, *lab.further):
        for name in one.cases:
            if name not in found:
                raise ConfigError(f"{_named(lab)}: the rule {one.says!r}: {unknown('case', name, found)}")
    return found


def _with_what_decides(case: Case, lab: Lab, pictures: Pictures) -> Case:
    """The case, with what stands behind the names in its settings where that can become another: pictures at
    a path, and what users have registered."""
    decides: list[Any] = []
    if case.settings["data"] not in data.names():
        decides.append(state.fingerprint(pictures(dataclasses.replace(case, tests=None))))
    start = case.settings.get("start_from")
    if isinstance(start, str) and Path(start).is_file():
        decides.append(hashlib.sha256(Path(start).read_bytes()).hexdigest())
    if added() & set(_texts(case.settings)):
        decides.append(lab.beside or lab.version)
    settings = plain(dict(case.settings))
    return dataclasses.replace(case, settings=settings, decides=digest(decides) if decides else "")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def measure_key(lab: Lab, name: str, case: Case, seed: int) -> str:
    """What a measurement is found again by: the case, its run, what else the scale says, the version."""
    return digest([name, key(case, seed), plain(dict(case.extra)), lab.version])


def measured(lab: Lab, run: Run) -> dict[str, Any]:
    """What a lab measures of a run, as JSON holds it.

    Raises: MiniresError if ``measure`` fails or gives what JSON cannot hold; ConfigError if a rule is of a
    number that it does not give.
    """
    what = f"measure() of {run.case!r}, seed {run.seed}"
    with _of(lab, what):
        found = lab.measure(run)
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{_named(lab)}: {what} gives a dict of numbers by name, not a {type(found).__name__}"
        )
    try:
        given: dict[str, Any] = _rounded(plain(dict(found)))
        length = len(json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{_named(lab)}: {what} gives numbers, texts, lists and dicts of them by name; {error}"
        ) from error
    if length > LONGEST:
        raise ConfigError(
            f"{_named(lab)}: {what} gives {length:,} characters of JSON, and at most {LONGEST:,} are kept of "
            "a run; give means, or a part of it"
        )
    if not run.diverged:
        for one in (*lab.expects, *lab.further):
            _see_that_it_is_there(lab, one, run.case, given)
    return given


def _see_that_it_is_there(lab: Lab, one: Expect, case: str, given: Mapping[str, Any]) -> None:
    for name in one.figures(case):
        if name not in given:
            said = unknown("number", name, given)
            raise ConfigError(f"{_named(lab)}: the rule {one.says!r}, of the case {case!r}: {said}")
        if given[name] is not None and not isinstance(given[name], int | float):
            raise ConfigError(
                f"{_named(lab)}: the rule {one.says!r} is of {name!r}, which is no number, but a "
                f"{type(given[name]).__name__}, of the case {case!r}"
            )


def drawn(lab: Lab, numbers: Numbers, figure: Any) -> None:
    """Let a lab draw its figure, of a copy of the numbers. Raises: MiniresError if it fails."""
    with _of(lab, "figure()"):
        lab.figure(copy.deepcopy(numbers), figure)
        figure.draw_without_rendering()  # what matplotlib cannot set, such as half a formula in a name


@contextlib.contextmanager
def _of(lab: Lab, what: str) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, DataError):  # of a run folder, of pictures
        raise
    except (Exception, SystemExit) as error:
        kind = ConfigError if isinstance(error, ConfigError) else MiniresError
        said = [str(error)] if isinstance(error, MiniresError) else [type(error).__name__, str(error)]
        where = f"{what} fails, {_place(lab, error)}"
        raise kind(": ".join([_named(lab), where, *filter(None, said)])) from error


def _place(lab: Lab, error: BaseException) -> str:
    """Where in the file of the lab, which is not always where it was raised."""
    file = getattr(sys.modules.get(type(lab).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    at = next((one for one in reversed(frames) if one.filename == file), frames[-1])
    return f"{Path(at.filename).name}, line {at.lineno}"


def _named(lab: Lab) -> str:
    return f"the lab {lab.name}"


def _rounded(value: Any) -> Any:
    """Numbers of six digits, and None for what is not finite, or as good as that: JSON does not hold it."""
    if isinstance(value, dict):
        return {str(name): _rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, int | float) and abs(value) > MOST:
        return None
    if isinstance(value, float):
        return run_folder.finite(float(f"{value:.6g}"))
    return value
