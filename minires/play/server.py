"""A server for one person on this machine: a page where pictures are shown to a trained model.

It listens on 127.0.0.1 only. Every address begins with a random token, so that other programs and other
pages in the browser, which do not know it, get nothing; requests that name another host (DNS rebinding) or
come from another page are refused as well, and no answer may be read across origins. What is sent is read
only after its length is known to be allowed. Addresses are looked up in a table; none is a path in a file
system. What is limited, and how, stands in ``connections``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from pathlib import Path

from minires import backend
from minires.errors import ConfigError
from minires.interrupt import Stopped, as_calls, raise_what_came, status
from minires.play.connections import Connections, Task, more_descriptors
from minires.play.messages import Answer, Refusal, Request, in_json, whole
from minires.play.player import Player

LARGEST = 20_000_000  # bytes of an upload
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def serve(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    port: int = 0,
    device: str = "cpu",
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page for the trained model ``run`` until Ctrl-C; ``port`` 0 takes a free one.

    With ``data``, a folder, zip, tar or picture file, the page shows the pictures that are there.

    Raises: CheckpointError if ``run`` is no trained model; ConfigError if its pictures are not square, or the
    port or the device cannot be used; DataError if there are no pictures at ``data``.
    """
    listener = listen(port)  # first, as what is to be said of the port is soon known
    try:
        player = Player(run, device=device, data=data)
        with backend.before_compiling(say):
            player.warm_up()
        raise_what_came()
    except BaseException:
        listener.close()
        raise
    more_descriptors()
    with Server(player, listener) as server:
        try:
            say(f"{player.trained.name} from {run} waits for pictures at {server.url}")
            say("Only this machine can open it, and nothing is written to disk. Ctrl-C ends it.")
            if open_browser:  # in a thread of its own: some browsers keep their caller until they are closed
                threading.Thread(target=_open, args=(server.url, say), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt as stop:
            if status(stop) != status(KeyboardInterrupt()):  # told to end by another than Ctrl-C
                raise
            say("Stopped.")


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


def _open(url: str, say: Callable[[str], None]) -> None:
    if not webbrowser.open(url):
        say("No browser was found; open the address above yourself.")


class Server:
    """The server around a :class:`Player`; ``url`` is the address of its page, token included.

    ``listener`` is what :func:`listen` gives; without one a free port is taken.
    """

    def __init__(self, player: Player, listener: socket.socket | None = None) -> None:
        self.player, self.token = player, secrets.token_urlsafe(24)
        self._listener = listen() if listener is None else listener
        self.server_address = self._listener.getsockname()
        self.server_port: int = self.server_address[1]
        self.origins = {f"http://{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"
        self.files = {
            "" if file.name == "page.html" else file.name: Answer(
                file.read_bytes(), TYPES[Path(file.name).suffix]
            )
            for file in (resources.files("minires.play") / "page").iterdir()
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended, self._done = asyncio.Event(), threading.Event()

    def __enter__(self) -> Server:
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
        """Give back the port, and what reads pictures."""
        self._listener.close()
        self.player.close()

    def find(self, request: Request) -> Task:
        """What a request asks for. Raises: Refusal if it may not, or there is no such thing."""
        name = self._checked(request)
        player = self.player

        def page(content: bytes) -> Answer:
            return self.files[name]

        def about(content: bytes) -> Answer:
            return in_json(player.about())

        def guess(content: bytes) -> Answer:
            return in_json(player.guess(content))

        def maps(content: bytes) -> Answer:
            return in_json(player.maps(request.asked("picture"), number("label")))

        def trace(content: bytes) -> Answer:
            # That page is one file with scripts and styles in it, and says itself what it may do.
            policy = {"Content-Security-Policy": "frame-ancestors 'none'"}
            return Answer(player.trace(request.asked("picture")), "text/html", headers=policy)

        def number(name: str) -> int:
            return whole(name, request.asked(name))

        def pictures(content: bytes) -> Answer:
            return in_json(player.pictures(number("from")))

        def picture(content: bytes) -> Answer:
            return Answer(player.thumbnail(number("index")), "image/png")

        def guess_at(content: bytes) -> Answer:
            return in_json(player.guess_at(number("index")))

        addresses = {
            **{name: ("GET", Task(page, quick=True)) for name in self.files},
            "about": ("GET", Task(about, quick=True)),
            "guess": ("POST", Task(guess, most=LARGEST)),
            "maps": ("GET", Task(maps)),
            "pictures": ("GET", Task(pictures, quick=True)),
            "picture": ("GET", Task(picture)),
            "guess_at": ("POST", Task(guess_at)),
            "trace": ("GET", Task(trace, heavy=True)),
        }
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
            message = "the token in this address is wrong; use the address that minires play has printed"
            raise Refusal(HTTPStatus.FORBIDDEN, "token", message)
        return name
