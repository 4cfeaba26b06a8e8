"""The server of the page where pictures are shown to a trained model; see ``local_page.server``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from minires import backend
from minires.interrupt import raise_what_came
from minires.local_page.connections import Task
from minires.local_page.messages import Answer, Request, in_json, whole
from minires.local_page.server import LocalServer, Table, listen, show
from minires.play.player import Player

LARGEST = 20_000_000  # bytes of an upload


def serve(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    port: int = 0,
    device: str = "cpu",
    open_browser: bool = True,
    changes: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page for the trained model ``run`` until Ctrl-C; ``port`` 0 takes a free one.

    With ``data``, a folder, zip, tar or picture file, the page shows the pictures that are there. ``changes``
    of the model, as ``minires.intervene`` takes them, hold as long as it is served, and the page says so.

    Raises: CheckpointError if ``run`` is no trained model; ConfigError if its pictures are not square, or the
    port or the device cannot be used, or the changes cannot be; DataError if there are no pictures at
    ``data``.
    """
    listener = listen(port)  # first, as what is to be said of the port is soon known
    try:
        player = Player(run, device=device, data=data, changes=changes)
        with backend.before_compiling(say):
            player.warm_up()
        raise_what_came()
    except BaseException:
        listener.close()
        raise
    for one in player.changes:
        say(f"changed: {one}")
    server = Server(player, listener)
    show(
        server, f"{player.trained.name} from {run} waits for pictures at {server.url}",
        "Only this machine can open it, and nothing is written to disk. Ctrl-C ends it.",
        open_browser=open_browser, say=say,
    )  # fmt: skip


class Server(LocalServer):
    """The server around a :class:`Player`."""

    def __init__(self, player: Player, listener: socket.socket | None = None) -> None:
        super().__init__("minires.play", listener)
        self.player = player

    def close(self) -> None:
        """Give back what reads pictures."""
        self.player.close()

    def table(self, request: Request) -> Table:
        """What the page asks the player."""
        player = self.player

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

        return {
            "about": ("GET", Task(about, quick=True)),
            "guess": ("POST", Task(guess, most=LARGEST)),
            "maps": ("GET", Task(maps)),
            "pictures": ("GET", Task(pictures, quick=True)),
            "picture": ("GET", Task(picture)),
            "guess_at": ("POST", Task(guess_at)),
            "trace": ("GET", Task(trace, heavy=True)),
        }
