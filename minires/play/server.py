"""A server for one person on this machine: a page where pictures are shown to a trained model.

It listens on 127.0.0.1 only. Every address begins with a random token, so that other programs and other
pages in the browser, which do not know it, get nothing; requests that name another host (DNS rebinding) or
come from another page are refused as well, and no answer may be read across origins. What is sent is read
only after its length is known to be allowed. Each connection carries one request, has to send it in a given
time, and is one of a limited number. Addresses are looked up in a table; none is a path in a file system.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from minires import backend
from minires.errors import ConfigError, MiniresError
from minires.play.player import Player

LARGEST = 20_000_000  # bytes of an upload
PATIENCE = 20.0  # seconds in which a request must be here, and again an answer fetched
LINGER = 2.0  # seconds for which the rest of a refused request is thrown away
CONNECTIONS = 16  # at once
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(
    run: str | os.PathLike[str],
    *,
    port: int = 0,
    device: str = "cpu",
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page for the trained model ``run`` until Ctrl-C; ``port`` 0 takes a free one.

    Raises: CheckpointError if ``run`` is no trained model; ConfigError if its pictures are not square, or the
    port or the device cannot be used.
    """
    player = Player(run, device=device)
    with backend.before_compiling(say):
        player.warm_up()
    with Server(player, port) as server:
        try:
            say(f"{player.trained.name} from {run} waits for pictures at {server.url}")
            say("Only this machine can open it, and nothing is written to disk. Ctrl-C ends it.")
            if open_browser:  # in a thread of its own: some browsers keep their caller until they are closed
                threading.Thread(target=_open, args=(server.url, say), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            say("Stopped.")


def _open(url: str, say: Callable[[str], None]) -> None:
    if not webbrowser.open(url):
        say("No browser was found; open the address above yourself.")


class Server(ThreadingHTTPServer):
    """The server around a :class:`Player`; ``url`` is the address of its page, token included.

    Raises: ConfigError if the port cannot be used.
    """

    daemon_threads = True  # a slow client does not hold up the end of the program

    def __init__(self, player: Player, port: int = 0) -> None:
        if not 0 <= port < 65536:
            raise ConfigError(f"port is {port}; it must be from 1 to 65535, or 0 for a free one")
        self.player, self.token = player, secrets.token_urlsafe(24)
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used: {error.strerror or error}; choose another, or 0 for a free one"
            ) from error
        self.origins = {f"http://{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.url = f"http://127.0.0.1:{self.server_port}/{self.token}/"
        self.files = {
            "" if file.name == "page.html" else file.name: (TYPES[Path(file.name).suffix], file.read_bytes())
            for file in (resources.files("minires.play") / "page").iterdir()
        }

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, as HTTPServer does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up where too many are busy already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show the traceback of our own mistakes; a client that went away is none."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Refusal(Exception):
    """A request that is not answered: the HTTP status, a word for the page, and a sentence for people."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


class Punctual(io.RawIOBase):
    """What comes in on a connection until the time is up; then TimeoutError."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.connection, self.end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One request: checked, answered, and the connection closed."""

    server: Server
    server_version, sys_version = "minires", ""
    error_content_type = "application/json"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(Punctual(self.connection, PATIENCE))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the page says what happened."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_GET

    def _handle(self) -> None:
        try:
            answer = self._answer()
        except Refusal as refusal:
            self._refuse(refusal)
        except MiniresError as error:
            self._refuse(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", str(error)))
        except MemoryError:
            message = "this machine has too little memory for this picture; make the picture smaller"
            self._refuse(Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "memory", message))
        except OSError:
            raise  # the client went away
        except Exception as error:
            message = f"minires made a mistake: {type(error).__name__}: {error}"
            self._refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "mistake", message))
            raise
        else:
            self._send(HTTPStatus.OK, *answer)

    def _answer(self) -> tuple[str, bytes, dict[str, str]]:
        """The content type, the content, and headers that differ from the usual ones."""
        try:
            address = urlsplit(self.path)
        except ValueError:
            raise Refusal(HTTPStatus.BAD_REQUEST, "query", "this address cannot be read") from None
        name = self._checked(address.path)
        player = self.server.player
        if name in self.server.files:
            self._only("GET")
            return *self.server.files[name], {}
        if name == "guess":
            self._only("POST")
            return "application/json", _json(player.guess(self._body())), {}
        if name not in ("about", "maps", "trace"):
            raise Refusal(HTTPStatus.NOT_FOUND, "unknown", "there is nothing at this address")
        self._only("GET")
        if name == "about":
            return "application/json", _json(player.about()), {}
        picture = self._asked(address.query, "picture")
        if name == "maps":
            label = self._asked(address.query, "label")
            return "application/json", _json(player.maps(picture, _whole("label", label))), {}
        # That page is one file with scripts and styles in it, and says itself what it may do.
        return "text/html", player.trace(picture), {"Content-Security-Policy": "frame-ancestors 'none'"}

    def _checked(self, path: str) -> str:
        """The part of the address behind the token, once it is clear that our own page asks."""
        origin = self.headers.get("Origin")
        if f"http://{self.headers.get('Host', '')}" not in self.server.origins or (
            origin is not None and origin not in self.server.origins
        ):
            raise Refusal(HTTPStatus.FORBIDDEN, "origin", "only the page on this machine may ask this")
        token, _, name = path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode("latin-1", "replace"), self.server.token.encode()):
            message = "the token in this address is wrong; use the address that minires play has printed"
            raise Refusal(HTTPStatus.FORBIDDEN, "token", message)
        return name

    def _only(self, method: str) -> None:
        if self.command != method:
            message = f"this address answers {method} only, not {self.command}"
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method", message, Allow=method)

    def _asked(self, query: str, name: str) -> str:
        try:
            values = parse_qs(query, max_num_fields=8).get(name, [])
        except ValueError:
            values = []
        if len(values) != 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, "query", f"the address must give one {name}")
        return values[0]

    def _body(self) -> bytes:
        """What was sent, of a length that was announced and is allowed."""
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            message = "the length of the picture must be given in advance, with Content-Length"
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "length", message)
        if (size := _whole("Content-Length", length)) > LARGEST:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "large",
                f"this file has {size:,} bytes, more than the {LARGEST:,} that are taken; make it smaller",
            )  # fmt: skip
        try:
            content = self.rfile.read(size)
        except TimeoutError:
            message = f"the picture did not arrive within {PATIENCE:g} seconds; send it again"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "slow", message) from None
        if len(content) < size:
            message = f"only {len(content):,} of {size:,} bytes arrived; send the picture again"
            raise Refusal(HTTPStatus.BAD_REQUEST, "short", message)
        return content

    # ------------------------------------------------------------------------------------- what goes out

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is not even a proper request: called by the base class."""
        status = HTTPStatus(code)
        self._refuse(Refusal(status, "request", message or status.phrase))

    def _refuse(self, refusal: Refusal) -> None:
        content = _json({"error": {"code": refusal.code, "message": refusal.message}})
        self._send(refusal.status, "application/json", content, refusal.headers)
        # Closing a connection on which there is something unread would reset it, answer and all.
        self.connection.shutdown(socket.SHUT_WR)
        rest = Punctual(self.connection, LINGER)
        try:
            while rest.read(1 << 16):
                pass
        except OSError:
            pass

    def _send(self, status: HTTPStatus, kind: str, content: bytes, headers: dict[str, str]) -> None:
        self.connection.settimeout(PATIENCE)
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode()


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refusal(HTTPStatus.BAD_REQUEST, "query", f"{name} must be a whole number, not {text[:40]!r}")
    return int(text)
