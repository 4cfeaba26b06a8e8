"""Where data sets are looked for: MINIRES_DATA, ./data, the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from minires.errors import ConfigError


def cache() -> Path:
    """Return the user's cache folder of minires: ``$XDG_CACHE_HOME/minires`` or ``~/.cache/minires``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minires"


def roots() -> list[Path]:
    """Return the folders in which a data set's folder is looked for, in order.

    Raises: ConfigError when MINIRES_DATA is set but is not a folder.
    """
    places = [Path("data"), cache()]
    named = os.environ.get("MINIRES_DATA")
    if named:
        if not Path(named).is_dir():
            raise ConfigError(f"MINIRES_DATA names {named}, which is not a folder; correct it or unset it")
        places.insert(0, Path(named))
    return places
