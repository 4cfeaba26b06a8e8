"""The server of the page in which a run is watched; see ``local_page.server``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from minires.local_page.connections import Task
from minires.local_page.messages import Answer, Request, in_json
from minires.local_page.server import LocalServer, Table, listen, show
from minires.watch.reading import Reading, seconds_left


def serve(
    run: str | os.PathLike[str],
    *,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page in which the run in a folder is watched, until Ctrl-C; ``port`` 0 takes a free one.

    Raises: CheckpointError if there is no run in the folder; ConfigError if the port cannot be used.
    """
    reading = Reading(run)
    server = Server(reading, listen(port))
    show(
        server, f"{run} is shown at {server.url}",
        "Only this machine can open it, and the run is only read. Ctrl-C ends the page, not the run.",
        open_browser=open_browser, say=say,
    )  # fmt: skip


class Server(LocalServer):
    """The server around a :class:`Reading`."""

    def __init__(self, reading: Reading, listener: socket.socket | None = None) -> None:
        super().__init__("minires.watch", listener)
        self.reading = reading

    def table(self, request: Request) -> Table:
        """What the page asks: how the run is now, unless it knows that already, and the sample pictures."""
        reading = self.reading

        def now(content: bytes) -> Answer:
            found = reading.now()
            left = seconds_left(found)
            if request.asked("known") == found["version"]:
                return in_json({"version": found["version"], "left": left})
            return in_json({**found, "left": left})

        def samples(content: bytes) -> Answer:
            return Answer(reading.samples(), "image/png")

        return {"now": ("GET", Task(now)), "samples": ("GET", Task(samples))}
