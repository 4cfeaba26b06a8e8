"""Names of classes, as people keep them: a list in JSON or text, or Hugging Face's id2label."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minires.data.class_names import stripped
from minires.errors import CheckpointError, ConfigError
from minires.limits import regular_file

JSON = ("[", "{")
NUMBERED = re.compile(r"(\d+)[\s:,;]+(.+)")
SHOWN = 3
COMMAS = "Commas separate names; a file with one on each line holds names with commas"
LONGEST = 10_000_000  # bytes of a file of names
# What files call them: a list in the order of the outputs, or number -> name, or name -> number.
KEYS = (
    "id2label", "class_names", "classes", "label_names", "labels", "idx_to_class", "class_to_idx", "label2id",
)  # fmt: skip


def class_names(text: str) -> tuple[str, ...]:
    """The names of ``--class-names``: "cat,dog", or the path of a file that has one on each line, with or
    without its number, or all on one, or JSON: a list, or an object as {"0": "cat", "1": "dog"}, or one that
    holds such under "id2label". In a file a name may stand twice: ImageNet has two cranes.

    Raises: ConfigError if there is no such file, what is in it are no names, or one typed here stands twice.

    >>> class_names("cat, dog")
    ('cat', 'dog')
    """
    path = Path(text)
    if os.path.exists(path):
        where = f"--class-names {text}"
        if regular_file(path, ConfigError) > LONGEST:
            raise ConfigError(f"{where}: a file of names has {LONGEST:,} bytes at most")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read as text in UTF-8: {error}") from error
    elif "," in text or text.lstrip().startswith(JSON):
        where, content = "--class-names", text
    else:
        raise ConfigError(f"--class-names {text}: no such file, and a list needs at least two names: cat,dog")
    names = stripped(_listed(content, where), where, error=ConfigError)
    if where == "--class-names" and (twice := _twice(names)):
        raise ConfigError(f"--class-names has {twice[0]!r} twice")
    return tuple(names)


def _listed(content: str, where: str) -> list[str]:
    """The names in a text, in JSON, a line each, or all in one line."""
    if content.lstrip().startswith(JSON):
        try:
            found = names_in(json.loads(content), inside=True)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: this is no JSON: {error}") from error
        if found is None:
            raise ConfigError(
                f"{where}: this JSON holds no names; it may be a list, or an object like "
                '{"0": "cat", "1": "dog"}'
            )
        return found
    lines = content.rstrip().splitlines()
    if len(lines) == 1:
        return lines[0].split(",")
    parts = [match for line in lines if (match := NUMBERED.fullmatch(line.strip()))]
    numbered = {match[1]: match[2] for match in parts}
    return (names_in(numbered) if len(numbered) == len(lines) else None) or lines


def names_in(value: Any, *, inside: bool = False) -> list[str] | None:
    """The names that a list, {0: name} or {name: 0} holds, in the order of the outputs, or None.

    Numbers may begin at 1. With ``inside`` they may be under one of the usual keys, too.

    >>> names_in({"1": "dog", "0": "cat"}), names_in({"cat": 0, "dog": 1}), names_in(["cat", 3])
    (['cat', 'dog'], ['cat', 'dog'], None)
    """
    if isinstance(value, Mapping):
        if inside and (key := next((key for key in KEYS if key in value), None)):
            return names_in(value[key])
        if value and all(isinstance(one, int) and not isinstance(one, bool) for one in value.values()):
            if len(set(value.values())) < len(value):
                return None
            value = {number: name for name, number in value.items()}
        try:
            numbered = {int(number): name for number, name in value.items()}
        except (TypeError, ValueError):
            return None
        first = 1 if len(value) > 1 and 0 not in numbered else 0
        if sorted(numbered) != list(range(first, first + len(value))):
            return None
        value = [numbered[number] for number in sorted(numbered)]
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return None
    return list(value) if all(isinstance(one, str) for one in value) else None


def contradiction(found: Sequence[tuple[str, Sequence[str]]]) -> str:
    """What is wrong where one file has several lists of names, given as (where, names), and one name is of
    two outputs; else nothing. Lists in other words, such as identifiers of ImageNet, do not contradict.

    >>> contradiction([("classes", ["cat", "dog"]), ("class_to_idx", ["dog", "cat"])])
    "classes says that output 0 is 'cat', class_to_idx that output 1 is"
    """
    for place, (here, names) in enumerate(found):
        for there, others in found[place + 1 :]:
            for number, name in enumerate(names):
                if name in others and number not in (same := _places(name, others)):
                    return f"{here} says that output {number} is {name!r}, {there} that output {same[0]} is"
    return ""


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def said_twice(names: Sequence[str]) -> list[str]:
    """A sentence on what :func:`distinct` makes of names that stand twice, if there are any.

    >>> said_twice(["crane", "dog", "crane"])
    ["more than one class is called 'crane': the number of the class stands behind the later names"]
    """
    called = ", ".join(map(repr, (twice := _twice([name.strip() for name in names]))[:SHOWN]))
    more = f" and {len(twice) - SHOWN} others" if len(twice) > SHOWN else ""
    sentence = (
        f"more than one class is called {called}{more}: the number of the class stands behind the later names"
    )
    return [sentence] if twice else []


def several(outputs: int | None, path: str | os.PathLike[str]) -> None:
    """Check that the last layer of a file has two outputs or more.

    Raises: CheckpointError if it has one.
    """
    if outputs == 1:
        raise CheckpointError(
            f"{os.fspath(path)}: its last layer has one output, for yes or no through a sigmoid, it seems; "
            "the models here end in a softmax over two classes or more (of one it is always 1). "
            "load_pretrained(..., head=False) in Python takes all but the last layer"
        )


def _places(name: str, names: Sequence[str]) -> list[int]:
    return [number for number, other in enumerate(names) if other == name]


def distinct(names: Sequence[str], where: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names without space around them; of those that stand twice, the later ones with their number:
    ImageNet has two cranes, a bird and a machine.

    Raises: ConfigError, with the number, if one has no letters.

    >>> distinct(["crane", "dog ", "crane"], "labels.txt")
    ('crane', 'dog', 'crane (2)')
    """
    seen: Counter[str] = Counter()
    found = []
    for number, name in enumerate(stripped(names, where, error=ConfigError)):
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({number})")
    if again := _twice(found):
        raise ConfigError(f"{where}: two classes have one name: {again[0]}")
    return tuple(found)
