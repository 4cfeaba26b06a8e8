"""What the server of `minires play` answers, and that bad requests get a sentence and cost nothing."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from play.trained import a_picture, encoded

import minires
from minires import CheckpointError, ConfigError, DataError, data, limits, train
from minires.debug.cam import activation_maps, overlay
from minires.interrupt import Stopped, as_exceptions
from minires.local_page import connections
from minires.local_page import server as local
from minires.play import decoder
from minires.play import server as serving
from minires.play.player import KEPT, Player
from minires.play.server import LARGEST, Server
from minires.tensor import no_grad


@pytest.fixture(scope="module")
def server(run) -> Iterator[Server]:
    with Server(Player(run)) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        status, answer = ask(one, "POST", "guess", a_picture())  # after all that was done to it
        assert status == 200 and len(answer["probabilities"]) == 6
        one.shutdown()


@pytest.fixture(autouse=True)
def it_lives_on(server) -> Iterator[None]:
    """After each test, whatever it did, a good question gets a good answer."""
    yield
    status, answer = ask(server, "GET", "about")
    assert status == 200 and answer["side"] == 32


def ask(
    server: Server, method: str, name: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """The status and the JSON of the answer to a request for /TOKEN/name."""
    status, _, content = exchange(server, method, f"/{server.token}/{name}", body, headers)
    return status, json.loads(content)


def exchange(
    server: Server,
    method: str,
    address: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, address, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw(server: Server, request: bytes) -> tuple[int, Any]:
    """The answer to bytes as they are."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(request)
        return received(connection)


def head(server: Server, method: str, name: str, *lines: str) -> bytes:
    """The head of a proper request."""
    first = f"{method} /{server.token}/{name} HTTP/1.1"
    return "\r\n".join([first, f"Host: 127.0.0.1:{server.server_port}", *lines, "", ""]).encode()


def received(connection: socket.socket) -> tuple[int, Any]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def refused(answer: tuple[int, Any], status: int, code: str, says: str) -> None:
    assert answer[0] == status, answer
    assert answer[1]["error"]["code"] == code
    assert re.search(says, answer[1]["error"]["message"]), answer[1]


def pixels(url: str) -> np.ndarray:
    head, content = url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# ------------------------------------------------------------------------------------------ good requests


def test_the_guess_is_that_of_minires_predict_and_the_maps_are_there(server, run):
    picture = a_picture()
    trained = train.load_model(run)
    seen = data.decode(picture, size=32)
    (expected,) = train.predict(trained.model, seen[None], trained.normalize)
    status, answer = ask(server, "POST", "guess", picture)
    assert status == 200
    assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-6)  # a plan folds batch norms
    assert np.array_equal(pixels(answer["seen"]), seen)
    found = activation_maps(trained.model, trained.normalize(seen))
    maps = answer["maps"]
    assert maps["label"] == expected.argmax() and maps["score"] == found.scores.max()
    assert [stage["size"] for stage in maps["stages"]] == [[32, 32], [16, 16], [8, 8]]
    for stage, one in zip(maps["stages"], found.stages, strict=True):
        assert stage["share"] == one.share
        assert np.array_equal(pixels(stage["overlay"]), overlay(seen, one.values))


def test_the_maps_of_another_class_are_given_for_a_picture_that_is_kept(server):
    _, answer = ask(server, "POST", "guess", a_picture())
    other = (answer["maps"]["label"] + 1) % 6
    status, maps = ask(server, "GET", f"maps?picture={answer['picture']}&label={other}")
    assert status == 200 and maps["label"] == other and maps["score"] < answer["maps"]["score"]
    shares = [stage["share"] for stage in maps["stages"]]
    assert maps["picture_share"] + sum(shares) + maps["rest_share"] == pytest.approx(maps["score"], rel=1e-9)
    for _ in range(KEPT):
        ask(server, "POST", "guess", a_picture())
    gone = ask(server, "GET", f"maps?picture={answer['picture']}&label=0")
    refused(gone, 422, "picture", f"no longer kept, only the last {KEPT} are")


def test_the_trace_of_the_picture_is_a_page_of_its_own(server):
    _, answer = ask(server, "POST", "guess", a_picture())
    status, headers, page = exchange(server, "GET", f"/{server.token}/trace?picture={answer['picture']}")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.lower().startswith(b"<!doctype html>") and b"resnet20_cifar" in page


def test_the_page_says_what_the_model_is(server):
    assert ask(server, "GET", "about") == (
        200, {"model": "resnet20_cifar", "dataset": "hands", "classes": list("012345"), "side": 32,
              "pictures": None, "changes": []},
    )  # fmt: skip


def test_what_is_changed_of_the_model_is_said_and_is_what_answers(run):
    trained = train.load_model(run)
    player = Player(run, changes={"res3b": "drop"})
    before = player._scores.state_dict()
    player.warm_up()
    assert player.changes == ("res3b: dropped: its shortcut + 0 x its branch",)
    assert player.about()["changes"] == [
        {"en": "res3b: dropped: its shortcut + 0 x its branch", "zh": "res3b：去掉：捷径 + 0 × 分支"}
    ]
    answer = player.guess(a_picture())
    seen = data.decode(a_picture(), size=32)
    (plain,) = train.predict(trained.model, seen[None], trained.normalize)
    with minires.intervene(trained.model, {"res3b": "drop"}):
        (expected,) = train.predict(trained.model, seen[None], trained.normalize)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    assert not np.allclose(plain, expected, atol=1e-4)
    assert "res3b" in packed_table(player.trace(answer["picture"]))["changes"][0][0]
    player.close()
    assert all(np.array_equal(player.trained.model.state_dict()[n], a) for n, a in before.items())
    with pytest.raises(ConfigError, match="no module 'res9'"):
        Player(run, changes={"res9": 0})


def packed_table(page):
    chunk = re.search(rb'id="chunk0">([^<]*)<', page)[1]
    return json.loads(zlib.decompress(base64.b64decode(chunk)))


@pytest.mark.parametrize(
    "name, kind",
    [
        ("", "text/html"),
        ("page.js", "text/javascript"),
        ("page.css", "text/css"),
        ("words.js", "text/javascript"),
        ("base.css", "text/css"),
        ("speech.js", "text/javascript"),
    ],
)
def test_the_files_of_the_page_are_there_and_may_load_nothing_else(server, name, kind):
    status, headers, content = exchange(server, "GET", f"/{server.token}/{name}")
    assert status == 200 and content and headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_many_at_once_get_the_same_answer_whatever_the_settings_of_other_threads(server):
    _, alone = ask(server, "POST", "guess", a_picture())
    answers: list[Any] = []
    with no_grad():
        threads = [
            threading.Thread(target=lambda: answers.append(ask(server, "POST", "guess", a_picture())))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [status for status, _ in answers] == [200] * 6
    assert all(answer["probabilities"] == alone["probabilities"] for _, answer in answers)
    assert all(answer["maps"] == alone["maps"] for _, answer in answers)


def gif() -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), exif=exif)


ODD = {
    "animated": gif,
    "CMYK": lambda: encoded(Image.new("CMYK", (40, 40), (255, 0, 0, 0)), "JPEG"),
    "16 bits": lambda: encoded(Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40)),
    "turned by EXIF": turned,
    "alpha": lambda: encoded(Image.new("RGBA", (40, 20), (10, 20, 30, 100))),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_decoded_as_minires_predict_does(server, run, kind):
    picture = ODD[kind]()
    trained, seen = train.load_model(run), data.decode(picture, size=32)
    status, answer = ask(server, "POST", "guess", picture)
    assert status == 200 and np.array_equal(pixels(answer["seen"]), seen)
    (expected,) = train.predict(trained.model, seen[None], trained.normalize)
    assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-6)  # a plan folds batch norms


# ------------------------------------------------------------------------------------------- bad pictures


def bomb(side: int) -> bytes:
    """A real PNG of side x side black pixels, some kilobytes long."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    content = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", content) + chunk(b"IEND", b"")


BAD = {
    "nothing": (lambda: b"", "the file is empty"),
    "text": (lambda: b"#!/bin/sh\necho hello\n" * 50, "not a picture in a known format"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture in a known format"),
    "truncated": (lambda: a_picture()[:-700], "(?i)truncated"),
    "a head alone": (lambda: a_picture()[:40], "the file sent: cannot read"),
    "a bomb": (lambda: bomb(20_000), "more than 64,000,000 pixels"),
    "a small bomb": (lambda: bomb(9_000), "9000 x 9000 pixels are more than the limit"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_refused_with_the_cause(server, kind):
    make, says = BAD[kind]
    refused(ask(server, "POST", "guess", make()), 422, "picture", says)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="memory of a process is read as on Linux")
def test_a_bomb_costs_no_memory(server):
    from torture.attempts import descendants, peak_kilobytes  # not to be imported everywhere

    content = bomb(13_000)  # more than the page takes, less than Pillow refuses by itself
    assert len(content) < 100_000
    ask(server, "POST", "guess", a_picture())
    before = {pid: peak_kilobytes(pid) for pid in descendants(os.getpid())}
    assert len(before) > 1  # one that decodes
    for _ in range(3):
        ask(server, "POST", "guess", content)
    more = {pid: peak_kilobytes(pid) - before.get(pid, 0) for pid in descendants(os.getpid())}
    assert len(before.keys() & more.keys()) > 1
    assert max(more.values()) < 40_000, more  # kilobytes; it would unfold to 169 MB


def test_a_file_that_is_too_large_is_refused_unread(server):
    head = f"POST /{server.token}/guess HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n"
    start = time.monotonic()
    answer = raw(server, f"{head}Content-Length: {LARGEST + 1}\r\n\r\n".encode())  # and nothing follows
    refused(answer, 413, "large", r"20,000,001 bytes, more than the 20,000,000")
    assert time.monotonic() - start < connections.PATIENCE / 2
    refused(
        raw(server, f"{head}Content-Length: {10**18}\r\n\r\n".encode()),
        413,
        "large",
        "this file has 1,000,000,000,000,000,000 bytes",
    )


def test_the_answer_reaches_who_sends_a_large_file_all_the_same(server):
    refused(ask(server, "POST", "guess", bytes(LARGEST + 5_000_000)), 413, "large", "25,000,000 bytes")


@pytest.mark.parametrize(
    "headers, status, code, says",
    [
        ("", 411, "length", "length of the picture must be given"),
        ("Transfer-Encoding: chunked\r\n", 411, "length", "length of the picture must be given"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", 411, "length", "must be given"),
        ("Content-Length: -1\r\n", 400, "query", "must be a whole number, not '-1'"),
        ("Content-Length: 1e3\r\n", 400, "query", "must be a whole number, not '1e3'"),
        (f"Content-Length: {'9' * 5000}\r\n", 400, "query", "must be a whole number"),
    ],
)
def test_the_length_must_be_known(server, headers, status, code, says):
    head = f"POST /{server.token}/guess HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n{headers}\r\n"
    refused(raw(server, head.encode() + b"5\r\nhello\r\n"), status, code, says)


def test_what_arrives_too_slowly_or_not_at_all_is_given_up(server, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.6)
    head = (
        f"POST /{server.token}/guess HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Length: 500"
    )
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        for _ in range(4):  # a drop now and then does not gain time
            connection.sendall(b"x")
            time.sleep(0.1)
        response = http.client.HTTPResponse(connection)
        response.begin()
        refused(
            (response.status, json.loads(response.read())), 408, "slow", "did not arrive within 0.6 seconds"
        )
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(b"GET / HT")
        response = http.client.HTTPResponse(connection)
        response.begin()
        refused((response.status, json.loads(response.read())), 408, "slow", "the request did not arrive")
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        assert connection.recv(100) == b""  # who sends nothing gets nothing
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(f"{head}\r\n\r\nhello".encode())
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        refused((response.status, json.loads(response.read())), 400, "short", "only 5 of 500 bytes arrived")


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=30)


def test_connections_that_send_nothing_cost_no_request_anything(server):
    """A browser opens some before it needs them; these make room, the oldest first."""
    with contextlib.ExitStack() as opened:
        idle = [opened.enter_context(connect(server)) for _ in range(connections.CONNECTIONS)]
        start = time.monotonic()
        for _ in range(4):
            assert ask(server, "GET", "about")[0] == 200
        assert time.monotonic() - start < connections.PATIENCE / 4
        refused(received(idle[0]), 503, "busy", "many others have come; try again in a moment")
        idle[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)
        idle[-1].settimeout(30)
        idle[-1].sendall(head(server, "GET", "about"))  # one that waited until it was needed
        assert received(idle[-1])[0] == 200


def test_who_has_been_answered_makes_room_first(server, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 2)
    with contextlib.ExitStack() as opened:
        idle, asking = (opened.enter_context(connect(server)) for _ in range(2))
        asking.sendall(head(server, "GET", "about"))
        assert received(asking)[0] == 200  # and does not close its side
        assert ask(server, "GET", "about")[0] == 200
        idle.settimeout(0.1)
        with pytest.raises(TimeoutError):
            idle.recv(1)


def test_a_burst_of_newcomers_takes_the_places_of_those_that_send_nothing(server):
    with contextlib.ExitStack() as opened:
        for _ in range(connections.CONNECTIONS + 100):
            opened.enter_context(connect(server))
        assert ask(server, "GET", "about")[0] == 200  # they are all taken in
        asking = [opened.enter_context(connect(server)) for _ in range(200)]
        for one in asking:
            one.sendall(head(server, "GET", "about"))
        assert [received(one)[0] for one in asking] == [200] * 200


def test_two_hundred_requests_at_once_are_all_answered(server):
    with contextlib.ExitStack() as opened:
        asking = [opened.enter_context(connect(server)) for _ in range(200)]
        for number, connection in enumerate(asking):
            body = a_picture()
            request = head(server, "POST", "guess", f"Content-Length: {len(body)}") + body
            connection.sendall(request if number % 4 == 0 else head(server, "GET", "about"))
        assert [received(one)[0] for one in asking] == [200] * 200


def test_beyond_what_may_wait_a_request_is_told_to_come_again(server, monkeypatch):
    monkeypatch.setattr(connections, "WORKING", 2)
    going = threading.Event()
    monkeypatch.setattr(server.player, "maps", lambda picture, label: {"waited": going.wait(20)})
    with contextlib.ExitStack() as opened:
        waiting = [opened.enter_context(connect(server)) for _ in range(2)]
        for one in waiting:
            one.sendall(head(server, "GET", "maps?picture=1&label=0"))
        until(lambda: ask(server, "GET", "maps?picture=1&label=0")[0] == 503)
        status, headers, content = exchange(server, "GET", f"/{server.token}/maps?picture=1&label=0")
        refused((status, json.loads(content)), 503, "busy", "2 requests wait already; try again in a moment")
        assert headers["Retry-After"] == "2"
        assert ask(server, "GET", "about")[0] == 200  # what needs no work is answered
        going.set()
        assert [received(one)[0] for one in waiting] == [200, 200]


def test_beyond_all_connections_a_newcomer_is_told_so(server, monkeypatch):
    going, begun = threading.Event(), threading.Semaphore(0)

    def maps(picture: str, label: int) -> dict[str, bool]:
        begun.release()
        return {"waited": going.wait(20)}

    monkeypatch.setattr(server.player, "maps", maps)
    with contextlib.ExitStack() as opened:
        waiting = [opened.enter_context(connect(server)) for _ in range(2)]
        for one in waiting:
            one.sendall(head(server, "GET", "maps?picture=1&label=0"))
        assert begun.acquire(timeout=10) and begun.acquire(timeout=10)
        monkeypatch.setattr(connections, "CONNECTIONS", 2)
        refused(ask(server, "GET", "about"), 503, "busy", "2 connections are open")
        going.set()
        assert [received(one)[0] for one in waiting] == [200, 200]


def test_only_some_large_uploads_are_in_memory_at_once(server, monkeypatch):
    monkeypatch.setattr(connections, "SMALL", 100_000)
    monkeypatch.setattr(connections, "WAIT", 0.5)
    request = head(server, "POST", "guess", "Content-Length: 200000")
    with contextlib.ExitStack() as opened:
        coming = [opened.enter_context(connect(server)) for _ in range(connections.LARGE)]
        for one in coming:
            one.sendall(request)
        time.sleep(0.2)
        refused(raw(server, request), 503, "busy", "other large pictures are being sent")
        assert ask(server, "POST", "guess", a_picture())[0] == 200  # for a small one there is room
        for one in coming:
            one.sendall(bytes(200_000))
        assert [received(one)[0] for one in coming] == [422] * connections.LARGE
    assert raw(server, request + bytes(200_000))[0] == 422


def test_an_answer_that_nobody_fetches_is_given_up(server, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    monkeypatch.setattr(server.player, "trace", lambda picture: bytes(30_000_000))
    with contextlib.ExitStack() as opened:
        for _ in range(connections.HEAVY):
            opened.enter_context(connect(server)).sendall(head(server, "GET", "trace?picture=1"))
        time.sleep(0.2)
        monkeypatch.setattr(connections, "PATIENCE", 20.0)
        status, _, content = exchange(server, "GET", f"/{server.token}/trace?picture=1")
        assert status == 200 and len(content) == 30_000_000  # in its turn


def test_a_picture_that_takes_for_ever_is_given_up_and_others_are_decoded(server, monkeypatch):
    assert ask(server, "POST", "guess", a_picture())[0] == 200  # the other process has started
    monkeypatch.setattr(decoder, "SECONDS", 0.3)
    start = time.monotonic()
    answer = ask(server, "POST", "guess", many_scans())
    refused(answer, 422, "picture", "takes more than 0.3 seconds, and was stopped")
    assert time.monotonic() - start < 5
    monkeypatch.setattr(decoder, "SECONDS", 10.0)
    assert ask(server, "POST", "guess", a_picture())[0] == 200


def test_when_a_process_that_decodes_dies_the_next_picture_gets_a_new_one(server):
    assert ask(server, "POST", "guess", a_picture())[0] == 200
    for one in server.player._decoder._all:
        if one._process is not None:
            one._process.kill()
            one._process.wait()
    assert ask(server, "POST", "guess", a_picture())[0] == 200
    answers: list[Any] = []
    slow = many_scans()
    asking = threading.Thread(target=lambda: answers.append(ask(server, "POST", "guess", slow)))
    asking.start()
    time.sleep(0.5)
    for one in server.player._decoder._all:
        if one._process is not None:
            one._process.kill()
    asking.join()
    refused(answers[0], 422, "picture", "the library that decodes it gave up")
    assert ask(server, "POST", "guess", a_picture())[0] == 200


def test_what_the_process_that_decodes_says_is_not_believed(server, monkeypatch):
    pretends = "import sys; sys.stdout.write('.' + chr(1) + chr(9) * 8 + 'x'); sys.stdout.flush()"
    monkeypatch.setattr(limits, "_PROGRAM", pretends)
    one = decoder.Decoder(1)
    with pytest.raises(
        DataError, match="hand: cannot read this picture: the library that decodes it gave up"
    ):
        one.decode(a_picture(), name="hand", size=32)
    monkeypatch.setattr(limits, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(DataError, match=r"process that reads files of others does not start \(status 3\)"):
        one.decode(a_picture(), name="hand", size=32)
    one.close()


def many_scans() -> bytes:
    """A JPEG in which a scan of a progressive picture is repeated as often as it may be: long to decode."""
    picture = encoded(Image.new("L", (7000, 7000)), "JPEG", progressive=True, quality=1)
    scans = [one.start() for one in re.finditer(rb"\xff\xda", picture)]
    return picture[: scans[1]] + picture[scans[1] : scans[2]] * 450 + picture[scans[1] :]


# --------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/guess", "/wrong/", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"]
)
def test_without_the_token_there_is_nothing(server, path):
    status, _, content = exchange(server, "GET", path)
    refused((status, json.loads(content)), 403, "token", "token in this address is wrong")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..\\..\\etc\\passwd",
        "page.html", "/etc/passwd", "page/page.js", "server.py", "page.js%00",
        "maps/../page.js", "favicon.ico", "PAGE.JS",
    ],
)  # fmt: skip
def test_no_address_is_a_path_in_the_file_system(server, name):
    refused(ask(server, "GET", name), 404, "unknown", "nothing at this address")


@pytest.mark.parametrize(
    "method, name, right",
    [("GET", "guess", "POST"), ("PUT", "guess", "POST"), ("POST", "", "GET"), ("POST", "about", "GET"),
     ("DELETE", "maps", "GET"), ("OPTIONS", "guess", "POST")],
)  # fmt: skip
def test_a_wrong_method_is_told_the_right_one(server, method, name, right):
    status, headers, content = exchange(server, method, f"/{server.token}/{name}", b"x")
    refused((status, json.loads(content)), 405, "method", f"answers {right} only, not {method}")
    assert headers["Allow"] == right


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Origin": "http://evil.example"}, {"Origin": "null"}],
)
def test_other_hosts_and_other_pages_are_refused(server, headers):
    for method, name in (("GET", ""), ("POST", "guess")):
        answer = ask(server, method, name, a_picture(), headers)
        refused(answer, 403, "origin", "only the page on this machine")


@pytest.mark.parametrize(
    "name, status, says",
    [
        ("maps", 400, "must give one picture"),
        ("maps?picture=1", 400, "must give one label"),
        ("maps?picture=1&picture=2&label=0", 400, "must give one picture"),
        ("maps?picture=1&label=two", 400, "label must be a whole number, not 'two'"),
        ("maps?picture=../../etc/passwd&label=0", 422, "no longer kept"),
        ("trace?picture=zzz", 422, "no longer kept"),
        ("maps?" + "&".join(f"a{i}=1" for i in range(50)), 400, "must give one picture"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(server, name, status, says):
    refused(ask(server, "GET", name), status, "query" if status == 400 else "picture", says)


def test_a_class_that_does_not_exist_is_named(server):
    _, answer = ask(server, "POST", "guess", a_picture())
    wrong = ask(server, "GET", f"maps?picture={answer['picture']}&label=6")
    refused(wrong, 422, "picture", "label is 6; the model has classes 0 to 5")


@pytest.mark.parametrize(
    "request_line", [b"", b"GET\r\n\r\n", b"BREW /coffee HTTP/1.1\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_request_is_survived(server, request_line):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(request_line)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert not request_line or b'"error"' in answer


@pytest.mark.parametrize(
    "lines, status, says",
    [
        ("GET http://127.0.0.1/ HTTP/1.1", 400, "must begin with /"),  # whose Host would count?
        ("GET * HTTP/1.1", 400, "must begin with /"),
        ("GET /a#b HTTP/1.1", 400, "have no #"),
        ("GET /a b HTTP/1.1", 400, "first line"),
        ("GET  /a HTTP/1.1", 400, "first line"),
        ("G\0T /a HTTP/1.1", 400, "first line"),
        ("GET /\0 HTTP/1.1", 400, "first line"),
        ("GET /é HTTP/1.1", 400, "first line"),
        ("GET /a", 400, "first line"),
        ("GET /a HTTP/2.0", 505, "only HTTP 1"),
        ("GET /a HTTP/1.1\r\nX: a\r\n folded", 400, "not NAME: VALUE: ' folded'"),
        ("GET /a HTTP/1.1\r\nContent-Length : 3", 400, "not NAME: VALUE"),
        ("GET /a HTTP/1.1\r\nX: a\0b", 400, "not NAME: VALUE"),
        ("GET /a HTTP/1.1\r\nX: a\rY: b", 400, "not NAME: VALUE"),
        ("GET /a HTTP/1.1\nX: a", 400, "first line"),
        ("GET /a HTTP/1.1\n\nX: a", 400, "first line"),
        ("GET /a HTTP/1.1\r\n: a", 400, "not NAME: VALUE"),
        ("POST /a HTTP/1.1\r\nContent-Length: 3\r\ncontent-length: 4", 400, "content-length twice"),
        ("POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3", 400, "Content-Length twice"),
        ("GET /a HTTP/1.1\r\nHost: a\r\nHost: b", 400, "Host twice"),
        ("GET /a HTTP/1.1\r\nOrigin: a\r\nOrigin: b", 400, "Origin twice"),
        ("GET /a HTTP/1.1\r\nX: " + "a" * 70_000, 431, "more than 65,536 bytes"),
        ("GET /" + "a" * 70_000 + " HTTP/1.1", 431, "more than 65,536 bytes"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(server, lines, status, says):
    refused(raw(server, f"{lines}\r\n\r\n".encode()), status, "request", says)


def test_a_second_request_on_a_connection_is_not_answered(server):
    with connect(server) as connection:
        connection.sendall(head(server, "GET", "about") * 2)
        connection.shutdown(socket.SHUT_WR)  # half closed: the answer comes all the same
        content = b"".join(iter(lambda: connection.recv(4096), b""))
    assert content.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in content


def test_what_follows_a_picture_is_no_part_of_it_and_no_request(server):
    picture = a_picture()
    request = head(server, "POST", "guess", f"Content-Length: {len(picture)}") + picture
    status, answer = raw(server, request + head(server, "GET", "about"))
    assert status == 200 and "probabilities" in answer


def test_a_head_is_answered_without_content_and_a_promise_is_given_where_asked(server):
    with connect(server) as connection:
        connection.sendall(head(server, "HEAD", "about"))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 405 ") and answer.endswith(b"\r\n\r\n")
    picture = a_picture()
    lines = (f"Content-Length: {len(picture)}", "Expect: 100-continue")
    with connect(server) as connection:
        connection.sendall(head(server, "POST", "guess", *lines))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(picture)
        assert received(connection)[0] == 200
    refused(
        raw(server, head(server, "POST", "guess", "Content-Length: 30000000", lines[1])), 413, "large", ""
    )


def test_our_own_mistake_is_said_and_the_server_lives_on(server, monkeypatch, capfd):
    def broken(picture: str) -> bytes:
        raise TypeError("oh")

    monkeypatch.setattr(server.player, "trace", broken)
    refused(ask(server, "GET", "trace?picture=1"), 500, "mistake", "TypeError: oh")
    time.sleep(0.1)
    assert "TypeError: oh" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------ start and end


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32


def test_what_cannot_be_served_is_refused(server, run, tmp_path):
    with pytest.raises(CheckpointError, match="model.safetensors"):
        Player(tmp_path)
    with pytest.raises(ConfigError, match=f"port {server.server_port} cannot be used: .*choose another"):
        local.listen(server.server_port)
    with pytest.raises(ConfigError, match="port is 70000; it must be from 1 to 65535"):
        local.listen(70000)
    with pytest.raises(ConfigError, match="port is 80000"):
        serving.serve(tmp_path, port=80000)
    with pytest.raises(ConfigError, match="cannot be used"):  # before a model is looked for
        serving.serve(tmp_path, port=server.server_port)


def test_it_says_its_address_and_ctrl_c_ends_it_in_one_line(run):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from minires.play import serve\n"
        "serve(sys.argv[1], open_browser=False, say=lambda line: print(line, flush=True))"
    )
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd=run,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        lines = (line for line in program.stdout if not line.startswith("compiling"))
        first, second = next(lines), next(lines)
        found = re.fullmatch(
            r"resnet20_cifar from .* waits for pictures at http://127\.0\.0\.1:(\d+)/(\S+)/\n", first
        )
        assert found and second.endswith("Ctrl-C ends it.\n")
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", f"/{found[2]}/about")
        assert json.loads(connection.getresponse().read())["model"] == "resnet20_cifar"
        idle = socket.create_connection(("127.0.0.1", int(found[1])))  # it does not hold up the end
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=20)
        idle.close()
    assert (out, err, program.returncode) == ("Stopped.\n", "", 0)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def ask_on(port: int, token: str) -> None:
    """Ask without a pause until nobody answers."""
    request = f"GET /{token}/about HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with contextlib.suppress(OSError):
        while True:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                while connection.recv(65536):
                    pass


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)]
)
def test_the_program_ends_with_the_status_of_the_signal(number, status, run):
    with subprocess.Popen(
        [sys.executable, "-m", "minires", "play", str(run), "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}, cwd=run,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        line = next(line for line in program.stdout if "waits for pictures" in line)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/(\S+)/", line)
        assert found and next(program.stdout).endswith("Ctrl-C ends it.\n")
        askers = [threading.Thread(target=ask_on, args=(int(found[1]), found[2])) for _ in range(3)]
        for asker in askers:
            asker.start()
        time.sleep(0.3)
        program.send_signal(number)
        out, err = program.communicate(timeout=20)
        for asker in askers:
            asker.join()
    assert program.returncode == status
    assert (out, err) == (("Stopped.\n", "") if not status else ("", f"minires: stopped by {number.name}\n"))


def test_a_signal_that_a_library_swallowed_while_it_starts_ends_it(run, monkeypatch):
    def swallowed(self: Player) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Player, "warm_up", swallowed)
    monkeypatch.setattr(Server, "serve_forever", lambda self: pytest.fail("it does not begin"))
    with as_exceptions(), pytest.raises(Stopped):
        serving.serve(run, say=lambda line: None, open_browser=False)


def test_pictures_that_are_none_are_told_before_the_page_is_there(run, tmp_path):
    (tmp_path / "table.dat").write_bytes(b"1, 2, 3" * 20)
    for path in (tmp_path, tmp_path / "table.dat"):
        with pytest.raises(DataError, match="table.dat: cannot read this picture"):
            serving.serve(run, data=path, say=lambda line: None, open_browser=False)


def test_the_browser_is_opened_and_its_absence_said(run, monkeypatch):
    opened, said = [], []
    ended = threading.Event()

    def no_browser(url: str) -> bool:
        opened.append(url)
        return False

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("No browser"):
            ended.set()

    def until_then(self: Server) -> None:
        assert ended.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(local.webbrowser, "open", no_browser)
    monkeypatch.setattr(Server, "serve_forever", until_then)
    serving.serve(run, say=say)
    assert said[-1] == "Stopped." and opened[0] in next(line for line in said if "waits for pictures" in line)
