"""A server on this machine, for tests of what is fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextmanager
def serving() -> Iterator[Callable[..., str]]:
    """Yield what starts a server that answers every request with what it is given, and gives its address."""
    running = []

    def start(content: bytes = b"", status: int = 200, length: int | str | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if length != "unknown":
                    self.send_header("Content-Length", str(len(content) if length is None else length))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/archive.zip"

    try:
        yield start
    finally:
        for server, thread in running:
            server.shutdown()
            thread.join()
            server.server_close()
