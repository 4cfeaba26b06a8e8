"""A file of the web, piece by piece: counted, with a bar, and an error in words if not all came."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator
from contextlib import closing

from tqdm import tqdm

from minires.errors import ConfigError, DataError

TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 16  # bytes


def fetch(
    url: str,
    write: Callable[[bytes], object],
    *,
    name: str,
    most: int,
    what: str,
    instead: str,
    timeout: float = TIMEOUT,
) -> None:
    """Give what is at ``url`` to ``write``, piece by piece, with a bar that is called ``name``.

    ``most`` is how many bytes it may have, ``what`` it is, for the error of one that has more, and
    ``instead`` the way of those who have no network.

    Raises: ConfigError for an address that is not http; DataError that says why nothing whole came.
    """
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise ConfigError(f"download: only https addresses, got {url}")
    with closing(_pieces(url, timeout, instead)) as pieces, \
            tqdm(unit="B", unit_scale=True, desc=name, leave=False, delay=0.1) as bar:  # fmt: skip
        for piece, total in pieces:
            bar.total = total
            write(piece)
            bar.update(len(piece))
            if bar.n > most:
                raise DataError(f"{url}: over {most:,} bytes; this is not {what}")


def _pieces(url: str, timeout: float, instead: str) -> Generator[tuple[bytes, int | None]]:
    """What comes, piece by piece, and how much it is said to be. Only errors of the network are told as
    such: those of ``write`` are its own."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            total, come = int(reply.headers.get("Content-Length") or 0) or None, 0
            while piece := reply.read(PIECE):
                come += len(piece)
                yield piece, total
            if total is not None and come < total:
                raise DataError(f"{url}: connection ended after {come:,} of {total:,} bytes; try again")
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}; it may have moved"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        host = urllib.parse.urlsplit(url).netloc
        raise DataError(
            f"no network: cannot reach {host} ({cause}); connect and try again, or {instead}"
        ) from error
