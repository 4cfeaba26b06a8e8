"""Attacks on the page of ``minires play``: it holds, or there is a line that says how it fell.

    python tests/torture/page.py --seconds 30
    python tests/torture/page.py --seconds 600 --seed 7 --save page.json
    python tests/torture/page.py --only "idle" --seconds 1      # the attacks with this in their names

A small model is trained and shown by a real process. Every attack is made at least once, then again with
other random numbers until the time is over; meanwhile some connections are as slow as they can be, and a
picture is decoded that takes far longer than it may. What must hold:

    an honest request, for the page's words and for a guess, is answered within two seconds: while idle, slow
    and broken connections stay open, and after each attack
    a proper request gets its answer; a broken one a refusal in JSON, with the status that it should have
    without the token, or from another host or page, there is nothing
    memory stays below what it was in the beginning and a gigabyte; below four with the processes that decode
    threads and descriptors come back to the number of the beginning (looked at on Linux only, as memory is)
    who is slow is sent away after twenty seconds
    nothing is printed, and Ctrl-C ends the page in one line

The columns: requests or connections tried; answered, refused, without any answer, held without asking for
one; the worst time of an honest request in milliseconds; the memory of the page, and with its processes, in
megabytes. Exit status 1: it fell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / name) for name in ("tests", "benchmarks", ""))

import machine
from play.trained import a_picture, trained_run
from torture.page_pictures import BROKEN, noise, poison

ROOT = Path(__file__).resolve().parents[2]
HONEST = 2.0  # seconds
PATIENT = 60.0  # seconds after which a request counts as not answered
SENT_AWAY = 26.0  # seconds after which nobody who is slow may still be there
MEMORY, MEMORY_OF_ALL = 1e9, 4e9  # bytes more than in the beginning


@dataclass
class Answer:
    """What came back; status 0: nothing, or not all of it."""

    status: int
    content: bytes = b""

    @property
    def plain(self) -> str:
        """What is not as it should be of a refusal: it is in JSON, and has a sentence."""
        if self.status in (0, 200):
            return ""
        try:
            return "" if json.loads(self.content)["error"]["message"] else "a refusal without words"
        except (ValueError, KeyError, TypeError):
            return f"a refusal ({self.status}) that is not in JSON"


class Page:
    """The page as a process, and what is asked of it."""

    def __init__(self, run: Path, photos: Path) -> None:
        command = [sys.executable, "-m", "minires", "play", str(run), "--data", str(photos), "--no-browser"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"at http://127\.0\.0\.1:(\d+)/(\S+)/", line):
                break
        else:
            raise SystemExit("the page did not start")
        self.port, self.token = int(found[1]), found[2]
        self.process.stdout.readline()  # Ctrl-C ends it
        self.said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        self.picture = a_picture()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.said += self.process.stdout

    def connect(self, *, buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(PATIENT)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def head(self, method: str, name: str, *lines: str) -> bytes:
        first = f"{method} /{self.token}/{name} HTTP/1.1"
        return "\r\n".join([first, f"Host: 127.0.0.1:{self.port}", *lines, "", ""]).encode()

    def post(self, content: bytes, name: str = "guess") -> bytes:
        return self.head("POST", name, f"Content-Length: {len(content)}") + content

    def exchange(self, request: bytes) -> Answer:
        try:
            with self.connect() as connection:
                return ask(connection, request)
        except OSError:
            return Answer(0)

    def honest(self) -> float:
        """Seconds until an honest request is answered, the slower of two. Raises: Fell."""
        slowest = 0.0
        for request in (self.head("GET", "about"), self.post(self.picture)):
            start = time.monotonic()
            answer = self.exchange(request)
            slowest = max(slowest, seconds := time.monotonic() - start)
            if answer.status != 200 or seconds > HONEST:
                what = request.split(b" ")[1].rsplit(b"/", 1)[-1].decode()
                raise Fell(f"an honest {what} got {answer.status or 'nothing'} after {seconds:.1f} s")
        return slowest


class Fell(Exception):
    """The page did not hold."""


def ask(connection: socket.socket, request: bytes) -> Answer:
    try:
        connection.sendall(request)
    except OSError:
        pass  # it has been refused already, perhaps
    return received(connection)


def received(connection: socket.socket) -> Answer:
    """The one answer on a connection, whole."""
    content = bytearray()
    try:
        while chunk := connection.recv(1 << 16):
            content += chunk
    except OSError:
        return Answer(0)
    head, _, body = bytes(content).partition(b"\r\n\r\n")
    status, length = re.match(rb"HTTP/1\.1 (\d{3}) ", head), re.search(rb"Content-Length: (\d+)", head)
    if not status or not length or len(body) != int(length[1]):
        return Answer(0)
    return Answer(int(status[1]), body)


# --------------------------------------------------------------------------------------------- the attacks


@dataclass
class Tally:
    """What became of the requests of an attack."""

    counts: Counter[int] = field(default_factory=Counter)
    fell: list[str] = field(default_factory=list)

    def add(self, answer: Answer, right: Iterable[int], what: str) -> None:
        """Count an answer; ``right`` are the statuses it may have, 0 for none at all."""
        self.counts[answer.status] += 1
        if answer.status not in right:
            words = answer.content[:200].decode("utf-8", "replace") if answer.status not in (0, 200) else ""
            self.fell.append(f"{what} got {answer.status or 'no answer'} {words}".rstrip())
        elif answer.plain:
            self.fell.append(f"{what}: {answer.plain}")


Attack = Callable[[Page, random.Random, ExitStack, Tally], None]


def idle(count: int) -> Attack:
    """Connections that send nothing."""

    def attack(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
        for _ in range(count):
            held.enter_context(page.connect())
        tally.counts[-1] += count

    return attack


def at_once(
    requests: Callable[[Page, random.Random], list[tuple[bytes, str]]], right: Iterable[int]
) -> Attack:
    """Requests that all begin in the same moment, each in a thread."""

    def attack(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
        given = requests(page, rng)
        together = threading.Barrier(len(given))

        def one(request: tuple[bytes, str]) -> tuple[Answer, str]:
            together.wait()
            return page.exchange(request[0]), request[1]

        with ThreadPoolExecutor(len(given)) as threads:
            for answer, what in threads.map(one, given):
                tally.add(answer, right, what)

    return attack


def _two_hundred(page: Page, rng: random.Random) -> list[tuple[bytes, str]]:
    kinds = [
        (page.head("GET", ""), "the page"), (page.head("GET", "about"), "about"),
        (page.head("GET", "picture?index=0"), "a small picture"), (page.post(page.picture), "a guess"),
    ]  # fmt: skip
    return [rng.choice(kinds) for _ in range(200)]


def _long_to_decode(page: Page, rng: random.Random) -> list[tuple[bytes, str]]:
    """So long that each process that decodes is needed."""
    return [(page.post(noise(rng, 1000)), "a guess") for _ in range(8)]


def _traces_and_maps(page: Page, rng: random.Random) -> list[tuple[bytes, str]]:
    picture = json.loads(page.exchange(page.post(page.picture)).content)["picture"]
    trace, maps = f"trace?picture={picture}", f"maps?picture={picture}&label={rng.randrange(6)}"
    return [(page.head("GET", name), name) for name in [trace] * 6 + [maps] * 18]


def _large_uploads(page: Page, rng: random.Random) -> list[tuple[bytes, str]]:
    picture = noise(rng, 2580)  # 20 MB of BMP, a real picture
    return [(page.post(picture), "an upload of 20 MB") for _ in range(32)]


def _too_many(page: Page, rng: random.Random) -> list[tuple[bytes, str]]:
    return [(page.post(page.picture), "a guess")] * 500


def slow_heads(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Half a head each, and a byte now and then."""
    _drip(page, held, tally, page.head("GET", "about")[:-2], 100)


def slow_bodies(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Large uploads that are announced, and come byte by byte."""
    _drip(page, held, tally, page.head("POST", "guess", "Content-Length: 20000000"), 100)


def _drip(page: Page, held: ExitStack, tally: Tally, start: bytes, count: int) -> None:
    slow = [held.enter_context(page.connect()) for _ in range(count)]
    for connection in slow:
        connection.sendall(start)
    for connection in slow:
        connection.sendall(b"x")
    tally.counts[-1] += count


def slow_readers(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Guesses and page files that are asked for and not read."""
    for number in range(100):
        connection = held.enter_context(page.connect(buffer=2048))
        connection.sendall(page.post(page.picture) if number % 10 == 0 else page.head("GET", "page.js"))
    tally.counts[-1] += 100


def half_closed(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """The side that sends is closed: after a whole request, a part of one, nothing."""
    whole = [page.head("GET", "about"), page.post(page.picture)]
    for number in range(60):
        request = whole[number % 2]
        cut = request[: rng.randrange(1, len(request))] if number % 3 else request
        with page.connect() as connection:
            connection.sendall(cut)
            connection.shutdown(socket.SHUT_WR)
            tally.add(received(connection), (200,) if cut == request else (400,), "half closed")
        with page.connect() as connection:
            connection.shutdown(socket.SHUT_WR)
            tally.add(received(connection), (0,), "nothing, half closed")


def resets(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Connections that are torn down in any moment."""
    for _ in range(400):
        connection = page.connect()
        request = rng.choice([b"", page.head("GET", "about"), page.post(page.picture)])
        connection.sendall(request[: rng.randrange(len(request) + 1)])
        if rng.random() < 0.1:
            time.sleep(0.002)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    tally.counts[-1] += 400


def garbage(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Bytes that are no request: random ones, other protocols, very long ones."""
    for number in range(60):
        kinds = [
            rng.randbytes(rng.randrange(1, 3000)) + b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" * 50,
            b"\r\n" * 100, b"\n" * 3, b"\0" * 70_000, b"GET " * 30_000,
            b"GET / HTTP/1.1\r\nA:" + b" \t" * 30_000 + b"\0\r\n\r\n",
            b"GET / HTTP/1.1\r\nA:" + b" " * 60_000 + b"a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]  # fmt: skip
        with page.connect() as connection:
            connection.sendall(kinds[number % len(kinds)])
            connection.shutdown(socket.SHUT_WR)
            tally.add(received(connection), (400, 403, 431, 505), "garbage")


def fuzzed(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """A proper head with some bytes changed: only where nothing that counts has changed it is answered."""
    for _ in range(300):
        request = bytearray(page.head("GET", "about", "Origin: http://127.0.0.1:" + str(page.port), "A: b"))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(request))
            how = rng.random()
            if how < 0.5:
                request[place] = rng.randrange(256)
            elif how < 0.75:
                del request[place]
            else:
                request[place:place] = rng.choice([b"\r\n", b"\n", b"\0", b" ", b"\t", b":", b"%00", b"//"])
        with page.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = received(connection)
        tally.add(answer, (200, 400, 403, 404, 405, 505), f"{bytes(request)!r}")
        needed = (f"GET /{page.token}/about HTTP/1.", f"127.0.0.1:{page.port}\r\n")
        if answer.status == 200 and not all(part.encode() in request for part in needed):
            tally.fell.append(f"answered: {bytes(request)!r}")


def strangers(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """No token, a wrong one, another host, another page; addresses that lead out."""
    good, host = page.token, f"127.0.0.1:{page.port}"
    other = good[:-1] + ("a" if good[-1] != "a" else "b")
    tokens = ("", other, good[:-1], good + "a", good.swapcase(), "%00", "..", "." + good)
    hosts = (
        "evil.example", "127.0.0.1", "", host + ".evil", "[::1]", f"localhost.:{page.port}", f"evil@{host}",
        f"127.0.0.1:{page.port + 1}",
    )  # fmt: skip
    origins = (
        "null", "http://evil.example", f"https://{host}", f"http://{host}.evil", "",
        f"http://127.0.0.1:{page.port + 1}",
    )  # fmt: skip
    paths = (
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/page.js", "....//page.js", "/etc/passwd",
        "page.js%00", "page.js/", "PAGE.JS", "page.html", "..\\server.py", "picture/../about", "a" * 5000,
    )  # fmt: skip
    queries = (
        "index=../../etc/passwd", "index=-1", "", "index=0&index=1", "index=0x0", "index=%00",
        "index=" + "9" * 1000,
    )  # fmt: skip
    files = ("", "about", "page.js", "picture?index=0")
    cases = [(f"/{token}/{name}", host, "", 403) for token in tokens for name in files]
    cases += [(f"/{good}/about", name, "", 403) for name in hosts]
    cases += [(f"/{good}/about", host, f"Origin: {name}\r\n", 403) for name in origins]
    cases += [(f"/{good}/{name}", host, "", 404) for name in paths]
    cases += [(f"/{good}/picture?{query}", host, "", 400) for query in queries]
    for path, named, more, status in cases:
        answer = page.exchange(f"GET {path} HTTP/1.1\r\nHost: {named}\r\n{more}\r\n".encode())
        tally.add(answer, (status,), f"{path[:60]} of {named} {more}")
        if good.encode() in answer.content or b"root:" in answer.content:
            tally.fell.append(f"{path[:60]}: the answer tells a secret")


def lengths(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Contents that are longer or shorter than they say, or say it twice, or not."""
    picture = page.picture
    cases = [
        ("Content-Length: 20000001", b"", 413), (f"Content-Length: {10**18}", b"x" * 100_000, 413),
        (f"Content-Length: {'9' * 4000}", b"", 400), ("Content-Length: -1", b"", 400),
        ("Content-Length: 0x10", b"", 400), ("Content-Length: +5", b"hello", 400),
        ("Content-Length: ", b"", 400), ("Content-Length: 1, 1", b"x", 400), ("X: y", b"hello", 411),
        ("Content-Length: 5\r\nContent-Length: 6", b"hello", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n", 411),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n", 411),
        ("Content-Length: 0", b"", 422), (f"Content-Length: {len(picture) + 500}", picture, 400),
        (f"Content-Length: {len(picture)}", picture + b"GET / HTTP/1.1\r\n\r\n", 200),
        (f"Content-Length: {len(picture) // 2}", picture, 422),
    ]  # fmt: skip
    for line, content, status in cases:
        with page.connect() as connection:
            connection.sendall(page.head("POST", "guess", line) + content)
            connection.shutdown(socket.SHUT_WR)
            tally.add(received(connection), (status,), line[:60])
    for size in (20_000_001, 30_000_000):  # who sends it all gets the answer all the same
        tally.add(page.exchange(page.post(bytes(size))), (413,), f"{size:,} bytes")


def pictures(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """Pictures that unfold to gigabytes, are cut off, have thousands of frames, or bytes changed."""
    for name, (make, right) in BROKEN.items():
        tally.add(page.exchange(page.post(make())), right, name)
    for _ in range(40):
        changed = bytearray(page.picture)
        for _ in range(rng.randrange(1, 20)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        tally.add(page.exchange(page.post(bytes(changed))), (200, 422), "a picture with bytes changed")


def everything(page: Page, rng: random.Random, held: ExitStack, tally: Tally) -> None:
    """All addresses with any method."""
    reading = ["", "page.js", "about", "maps", "trace", "pictures?from=0", "picture?index=0"]
    for name in [*reading, "guess", "guess_at?index=0"]:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "get"):
            known = method == ("GET" if name in reading else "POST")
            answer = page.exchange(page.head(method, name, "Content-Length: 0"))
            tally.add(answer, (200, 400, 422) if known else (405,), f"{method} {name}")
    asked = page.head("GET", "about")
    tally.add(page.exchange(asked * 50), (200,), "fifty requests on one connection")


# These send away who is slow or silent, however short the time: they come first, and Slow after them.
FLOODS: dict[str, Attack] = {
    "500 idle connections": idle(500), "500 guesses at once": at_once(_too_many, (200, 503)),
}  # fmt: skip
ATTACKS: dict[str, Attack] = {
    **FLOODS,
    "16 idle connections": idle(16), "100 idle connections": idle(100),
    "200 requests at once": at_once(_two_hundred, (200,)),
    "100 heads byte by byte": slow_heads, "100 uploads byte by byte": slow_bodies,
    "100 answers not read": slow_readers, "half closed": half_closed, "resets": resets, "garbage": garbage,
    "heads with bytes changed": fuzzed, "strangers and paths": strangers, "lengths that lie": lengths,
    "bombs and broken pictures": pictures, "methods, requests in a row": everything,
    "traces and maps at once": at_once(_traces_and_maps, (200,)),
    "32 uploads of 20 MB": at_once(_large_uploads, (200,)),
}  # fmt: skip


# ----------------------------------------------------------------------------------- what the process takes


def children(pid: int) -> list[int]:
    """The processes that a process has started, and theirs; where /proc tells."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass  # it has ended meanwhile
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Watch:
    """The memory of the page, looked at twenty times a second, and its threads and descriptors."""

    def __init__(self, pid: int) -> None:
        self.pid, self.known = pid, Path("/proc/self/statm").exists()
        self.most = self.most_of_all = 0
        self.start, self.held = resident(pid) if self.known else 0, self.count()
        if self.known:
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            own = resident(self.pid)
            self.most = max(self.most, own)
            self.most_of_all = max(self.most_of_all, own + sum(map(resident, children(self.pid))))
            time.sleep(0.05)

    def count(self) -> tuple[int, int]:
        """Threads and descriptors now."""
        if not self.known:
            return 0, 0
        return tuple(len(os.listdir(f"/proc/{self.pid}/{what}")) for what in ("task", "fd"))  # type: ignore

    def check(self) -> list[str]:
        fell = []
        for name, most, limit in (("the page", self.most, MEMORY), ("all", self.most_of_all, MEMORY_OF_ALL)):
            if most - self.start > limit:
                fell.append(f"{name} took {most / 1e6:,.0f} MB, {self.start / 1e6:,.0f} in the beginning")
        return fell

    def back(self) -> list[str]:
        """Wait until threads and descriptors are as many as in the beginning."""
        end = time.monotonic() + 10
        while any(now > then for now, then in zip(self.count(), self.held, strict=True)):
            if time.monotonic() > end:
                return [f"threads and descriptors are {self.count()}, {self.held} in the beginning"]
            time.sleep(0.1)
        return []


class Slow(threading.Thread):
    """For as long as it is let: a head, an upload and an answer, a byte a second each, and a silent one."""

    def __init__(self, page: Page) -> None:
        super().__init__(daemon=True)
        picture = json.loads(page.exchange(page.post(page.picture)).content)["picture"]
        starts = {
            "a slow head": page.head("GET", "about")[:-2], "a silent connection": b"",
            "a slow upload": page.head("POST", "guess", "Content-Length: 400000"),
            "a slow large upload": page.head("POST", "guess", "Content-Length: 20000000"),
            "a slow reader": page.head("GET", f"trace?picture={picture}"),
        }  # fmt: skip
        self.began, self.ended = time.monotonic(), {}
        self._open = {}
        for name, start in starts.items():
            self._open[name] = page.connect(buffer=2048)
            self._open[name].sendall(start)
        self._open["a slow reader"].recv(1)  # its trace is made, and holds up nobody's guess any more

    def run(self) -> None:
        while self._open:
            for name, connection in list(self._open.items()):
                try:
                    connection.settimeout(0.05)
                    if name != "a silent connection":
                        connection.sendall(b"x")
                    at_once = 1 if name == "a slow reader" else 1 << 16  # others may be told to go
                    gone = connection.recv(at_once) == b""
                except TimeoutError:
                    continue
                except OSError:
                    gone = True
                if gone:
                    self.ended[name] = time.monotonic() - self.began
                    self._open.pop(name).close()
            time.sleep(1)

    def check(self) -> list[str]:
        """Wait until all must have been sent away."""
        self.join(max(0.0, self.began + SENT_AWAY - time.monotonic()))
        return [f"{name} is still there after {SENT_AWAY:g} s" for name in self._open]


# ------------------------------------------------------------------------------------------------- together


def one_round(name: str, attack: Attack, page: Page, rng: random.Random, watch: Watch) -> dict[str, Any]:
    """Make an attack, ask honestly while its connections are held and after it; tell what became of it."""
    tally, worst = Tally(), 0.0
    watch.most = watch.most_of_all = 0
    start = time.monotonic()
    try:
        with ExitStack() as held:
            attack(page, rng, held, tally)
            worst = page.honest()
        worst = max(worst, page.honest())
    except (Fell, OSError) as error:
        tally.fell.append(str(error))
    answered = tally.counts[200]
    nothing, held_open = tally.counts[0], tally.counts[-1]
    tried = sum(tally.counts.values())
    return {
        "attack": name, "tried": tried, "answered": answered, "unanswered": nothing, "held": held_open,
        "refused": tried - answered - nothing - held_open, "worst_ms": round(1e3 * worst),
        "mb": round(watch.most / 1e6), "mb_of_all": round(watch.most_of_all / 1e6),
        "seconds": round(time.monotonic() - start, 1), "fell": tally.fell + watch.check(),
    }  # fmt: skip


def total(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rounds of each attack as one row."""
    rows: dict[str, dict[str, Any]] = {}
    for one in rounds:
        new = {**dict.fromkeys(one, 0), "attack": one["attack"], "rounds": 0, "fell": []}
        row = rows.setdefault(one["attack"], new)
        for key in ("tried", "answered", "refused", "unanswered", "held"):
            row[key] += one[key]
        for key in ("worst_ms", "mb", "mb_of_all", "seconds"):
            row[key] = max(row[key], one[key])
        row["rounds"] += 1
        row["fell"] += one["fell"]
    return list(rows.values())


COLUMNS = ("rounds", "tried", "answered", "refused", "unanswered", "held", "worst_ms", "mb", "mb_of_all")


def table(rows: list[dict[str, Any]]) -> str:
    first = max(len(row["attack"]) for row in rows)
    lines = ["attack".ljust(first) + "".join(f"{key:>11}" for key in COLUMNS)]
    lines += [row["attack"].ljust(first) + "".join(f"{row[key]:>11,}" for key in COLUMNS) for row in rows]
    return "\n".join(lines)


def end(page: Page) -> list[str]:
    """Press Ctrl-C in the middle of a picture, and look at what was printed and what is left."""
    threading.Thread(target=page.exchange, args=(page.post(poison()),), daemon=True).start()
    time.sleep(1)
    started = children(page.process.pid)
    page.process.send_signal(signal.SIGINT)
    try:
        page.process.wait(10)
    except subprocess.TimeoutExpired:
        page.process.kill()
        return ["Ctrl-C did not end it within ten seconds"]
    time.sleep(0.5)
    fell = [f"the process {child} is left" for child in started if Path(f"/proc/{child}").exists()]
    return fell + ([] if page.said == ["Stopped.\n"] else [f"it printed {''.join(page.said)[:2000]!r}"])


def torture(seconds: float, seed: int, only: str, say: Callable[[str], None]) -> dict[str, Any]:
    """All attacks at least once, then again until the time is over."""
    with tempfile.TemporaryDirectory() as folder:
        run, photos = trained_run(Path(folder) / "run"), Path(folder) / "photos"
        photos.mkdir()
        (photos / "hand.png").write_bytes(a_picture())
        page = Page(run, photos)
        try:
            return _torture(page, seconds, seed, only, say)
        finally:
            page.process.kill()


def _torture(page: Page, seconds: float, seed: int, only: str, say: Callable[[str], None]) -> dict[str, Any]:
    for requests in (_two_hundred, _long_to_decode):
        at_once(requests, (200,))(page, random.Random(0), ExitStack(), Tally())
    page.honest()  # now all has started that it starts when it is needed
    time.sleep(2.5)
    watch = Watch(page.process.pid)
    slow: Slow | None = None
    poisoned = threading.Thread(target=page.exchange, args=(page.post(poison()),), daemon=True)
    poisoned.start()  # while it is decoded, all others are
    began, rounds, number = time.monotonic(), [], 0
    chosen = {name: attack for name, attack in ATTACKS.items() if only in name}
    while number < len(chosen) or time.monotonic() - began < seconds:
        name = list(chosen)[number % len(chosen)]
        if slow is None and name not in FLOODS:
            slow = Slow(page)
            slow.start()
        rounds.append(one_round(name, chosen[name], page, random.Random(f"{seed} {number}"), watch))
        say(f"{number}: {name}: {rounds[-1]['seconds']} s")
        for one in rounds[-1]["fell"][:5]:
            say(f"  FELL: {one}")
        number += 1
        if page.process.poll() is not None:
            break
    poisoned.join(20)
    rows = total(rounds)
    fell = [f"{row['attack']}: {one}" for row in rows for one in row["fell"]]
    fell += ["a poisonous picture is never given up"] if poisoned.is_alive() else []
    fell += [*(slow.check() if slow else []), *watch.back(), *end(page)]
    return {
        "machine": machine.describe(), "seed": seed, "seconds": round(time.monotonic() - began),
        "memory_mb_at_the_start": round(watch.start / 1e6), "threads_and_descriptors": watch.held,
        "slow_sent_away_after_seconds": {k: round(v, 1) for k, v in slow.ended.items()} if slow else {},
        "attacks": [{**row, "fell": len(row["fell"])} for row in rows], "fell": fell,
    }  # fmt: skip


def main() -> int:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--seconds", type=float, default=30, help="how long (30); each attack once at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="WORD", help="the attacks with this in their names")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    result = torture(options.seconds, options.seed, options.only, lambda line: print(line, flush=True))
    print(table(result["attacks"]))
    print(f"slow ones sent away after {result['slow_sent_away_after_seconds']} s")
    for one in result["fell"][:40]:
        print(f"FELL: {one}")
    if options.save:
        options.save.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['seconds']} s, {len(result['fell'])} faults")
    return 1 if result["fell"] else 0


if __name__ == "__main__":
    sys.exit(main())
