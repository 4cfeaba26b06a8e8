"""One HTTP request as bytes, read strictly, and one answer as bytes.

A request that two readers could understand in two ways is refused: two lengths, a folded line, a NUL byte, a
line that ends in "\\n" alone. So is an address that names a server of its own (``GET http://...``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

LONGEST_HEAD = 65_536  # bytes; a browser sends the cookies of every other program on this machine, too
END = re.compile(rb"\r?\n\r?\n")  # of a head
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Server": "minires",
    "Connection": "close",
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
JSON = "application/json"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIRST = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/(\d)\.(\d)")
_LINE = re.compile(rf"({_TOKEN}):([^\x00-\x08\x0a-\x1f\x7f]*)")  # no two parts that could share a space
_ONCE = ("host", "content-length", "transfer-encoding", "origin")


class Refusal(Exception):
    """A request that is not answered: the HTTP status, a word for the page, and a sentence for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass(frozen=True)
class Request:
    """What was asked: method, the two parts of the address, headers by their names in small letters."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    def asked(self, name: str) -> str:
        """The one value of ``name`` in the address. Raises: Refusal if there is none, or several."""
        try:
            values = parse_qs(self.query, max_num_fields=8).get(name, [])
        except ValueError:
            values = []
        if len(values) != 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, "query", f"the address must give one {name}")
        return values[0]

    def length(self, most: int) -> int:
        """How many bytes of content were announced. Raises: Refusal if they were not, or are too many."""
        text = self.headers.get("content-length")
        if text is None or "transfer-encoding" in self.headers:
            message = "the length of the picture must be given in advance, with Content-Length"
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "length", message)
        if (size := whole("Content-Length", text)) > most:
            message = f"this file has {size:,} bytes, more than the {most:,} that are taken; make it smaller"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "large", message)
        return size


def parse(head: bytes) -> Request:
    r"""The request with this head, the empty line at its end included.

    Raises: Refusal if it is no request that everybody would read in the same way.

    >>> parse(b"GET /a/b?c=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    Request(method='GET', path='/a/b', query='c=1', headers={'host': 'localhost'})
    """
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    found = _FIRST.fullmatch(first)
    if found is None:
        raise _improper("its first line is not METHOD /ADDRESS HTTP/1.1")
    method, target, major, _ = found.groups()
    if major != "1":
        message = f"this is HTTP {major}; only HTTP 1 is answered here"
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "request", message)
    if not target.startswith("/") or "#" in target:
        raise _improper("its address must begin with / and have no #")
    headers: dict[str, str] = {}
    for line in lines:
        if (pair := _LINE.fullmatch(line)) is None:
            raise _improper(f"this line of its head is not NAME: VALUE: {line[:40]!r}")
        name = pair[1].lower()
        if name in headers and name in _ONCE:
            raise _improper(f"it has the header {pair[1][:40]} twice")
        headers[name] = pair[2].strip(" \t")
    path, _, query = target.partition("?")
    return Request(method, path, query, headers)


def whole(name: str, text: str) -> int:
    """A whole number that somebody sent. Raises: Refusal.

    >>> whole("label", "12")
    12
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refusal(HTTPStatus.BAD_REQUEST, "query", f"{name} must be a whole number, not {text[:40]!r}")
    return int(text)


def _improper(why: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "request", f"this is no proper HTTP request: {why}")


@dataclass(frozen=True)
class Answer:
    """What is sent back; ``headers`` are those that differ from the usual ones."""

    content: bytes
    kind: str = JSON
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)

    def message(self, *, head_only: bool = False) -> bytes:
        """All of it as bytes, or the head alone."""
        kind = self.kind if self.kind.startswith("image/") else f"{self.kind}; charset=utf-8"
        own = {"Content-Type": kind, "Content-Length": str(len(self.content))}
        lines = [f"{name}: {value}" for name, value in {**HEADERS, **self.headers, **own}.items()]
        head = "\r\n".join([f"HTTP/1.1 {self.status.value} {self.status.phrase}", *lines, "", ""])
        return head.encode("latin-1") + (b"" if head_only else self.content)


def in_json(content: Mapping[str, Any]) -> Answer:
    """An answer for the page's scripts."""
    return Answer(json.dumps(content, allow_nan=False).encode())


def refused(refusal: Refusal) -> Answer:
    """The refusal in words, as an answer."""
    content = {"error": {"code": refusal.code, "message": refusal.message}}
    return Answer(json.dumps(content).encode(), JSON, refusal.status, refusal.headers)
