"""A server for one person on this machine: the base of the pages that commands open in the browser.

It listens on 127.0.0.1 only. Every address begins with a random token, so that other programs and other
pages in the browser, which do not know it, get nothing; requests that name another host (DNS rebinding) or
come from another page are refused as well, and no answer may be read across origins. What is sent is read
only after its length is known to be allowed. Addresses are looked up in a table; none is a path in a file
system. What is limited, and how, stands in ``connections``.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Self

from minires.errors import ConfigError
from minires.interrupt import Stopped, as_calls, status
from minires.local_page.connections import Connections, Task, more_descriptors
from minires.local_page.messages import Answer, Refusal, Request

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
Table = Mapping[str, tuple[str, Task]]  # by name: the method, and what is done


def listen(port: int = 0) -> socket.socket:
    """A socket of this machine alone that listens at ``port``, 0 for a free one.

    Raises: ConfigError if the port cannot be used.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"port is {port}; it must be from 1 to 65535, or 0 for a free one")
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigError(
            f"port {port} cannot be used: {error.strerror or error}; choose another, or 0 for a free one"
        ) from error


def show(server: LocalServer, *lines: str, open_browser: bool, say: Callable[[str], None]) -> None:
    """Say the lines, open the page, and answer until Ctrl-C.

    Raises: Stopped if another signal ends it.
    """
    more_descriptors()
    with server:
        try:
            for line in lines:
                say(line)
            if open_browser:  # in a thread of its own: some browsers keep their caller until they are closed
                threading.Thread(target=_open, args=(server.url, say), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt as stop:
            if status(stop) != status(KeyboardInterrupt()):  # told to end by another than Ctrl-C
                raise
            say("Stopped.")


def _open(url: str, say: Callable[[str], None]) -> None:
    if not webbrowser.open(url):
        say("No browser was found; open the address above yourself.")


class LocalServer:
    """Serves the files in the folder ``page`` of a package, and what :meth:`table` has; ``url`` is the
    address of its page, token included.

    The files of this package's own ``page`` are there, too. ``listener`` is what :func:`listen` gives;
    without one a free port is taken.
    """

    def __init__(self, package: str, listener: socket.socket | None = None) -> None:
        self.token = secrets.token_urlsafe(24)
        self._listener = listen() if listener is None else listener
        self.server_address = self._listener.getsockname()
        self.server_port: int = self.server_address[1]
        self.origins = {f"http://{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"
        self.files = {
            "" if file.name == "page.html" else file.name: Answer(
                file.read_bytes(), TYPES[Path(file.name).suffix]
            )
            for package in ("minires.local_page", package)
            for file in (resources.files(package) / "page").iterdir()
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended, self._done = asyncio.Event(), threading.Event()

    def table(self, request: Request) -> Table:
        """What is at which address, beside the files of the page."""
        return {}

    def close(self) -> None:
        """Give back what the page needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()

    def serve_forever(self) -> None:
        """Answer until :meth:`shutdown` is called in another thread, or a signal comes.

        Raises: Stopped with the number of the signal.
        """
        came: list[int] = []

        def told(number: int) -> None:
            came.append(number)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._ended.set)

        try:
            with as_calls(told):
                asyncio.run(self._serve(came))
        finally:
            self._done.set()
        if came:
            raise Stopped(number=came[0])

    async def _serve(self, came: list[int]) -> None:
        self._loop = asyncio.get_running_loop()
        if not came:
            await Connections(self._listener, self.find).serve(self._ended)

    def shutdown(self) -> None:
        """End :meth:`serve_forever`, and wait until it has."""
        if self._loop is not None and not self._done.is_set():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._done.wait()

    def server_close(self) -> None:
        """Give back the port, and what the page needed."""
        self._listener.close()
        self.close()

    def find(self, request: Request) -> Task:
        """What a request asks for. Raises: Refusal if it may not, or there is no such thing."""
        name = self._checked(request)

        def page(content: bytes) -> Answer:
            return self.files[name]

        addresses = {**{one: ("GET", Task(page, quick=True)) for one in self.files}, **self.table(request)}
        if name not in addresses:
            raise Refusal(HTTPStatus.NOT_FOUND, "unknown", "there is nothing at this address")
        method, task = addresses[name]
        if request.method != method:
            message = f"this address answers {method} only, not {request.method[:40]}"
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method", message, Allow=method)
        return task

    def _checked(self, request: Request) -> str:
        """The part of the address behind the token, once it is clear that our own page asks."""
        origin = request.headers.get("origin")
        if f"http://{request.headers.get('host', '')}" not in self.origins or (
            origin is not None and origin not in self.origins
        ):
            raise Refusal(HTTPStatus.FORBIDDEN, "origin", "only the page on this machine may ask this")
        token, _, name = request.path[1:].partition("/")
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            message = "the token in this address is wrong; use the address that was printed"
            raise Refusal(HTTPStatus.FORBIDDEN, "token", message)
        return name
