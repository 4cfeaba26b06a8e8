"""`minires play RUN --data PATH`: pictures of a folder or archive are listed, and asked about by number."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from play.test_play_server import ask, exchange, refused
from play.trained import a_picture, encoded

from minires import DataError, cli, data
from minires.data import Picture
from minires.play import gallery
from minires.play.gallery import PAGE, Gallery
from minires.play.player import THUMBNAIL, Player
from minires.play.server import Server

NAMES = ["0/a.png", "3/b.jpg", "3/z/c.png", "other/broken.jpg", "other/d.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(
            a_picture() if number % 2 else encoded(Image.new("RGB", (50, 40), "teal"))
        )
    (folder / "other/broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def server(run, photos) -> Iterator[Server]:
    with Server(Player(run, data=photos)) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def test_the_pictures_are_told_with_the_class_that_a_folder_says(server, photos):
    assert ask(server, "GET", "about")[1]["pictures"] == {"source": photos.name, "count": 5}
    status, answer = ask(server, "GET", "pictures?from=0")
    assert status == 200 and (answer["from"], answer["count"], answer["page"]) == (0, 5, PAGE)
    assert [(one["index"], one["name"]) for one in answer["pictures"]] == list(enumerate(NAMES))
    assert [one["class"] for one in answer["pictures"]] == ["0", "3", "3", None, None]
    assert [one["index"] for one in ask(server, "GET", "pictures?from=3")[1]["pictures"]] == [3, 4]


def test_a_picture_asked_about_by_number_gets_the_guess_of_its_file(server, photos):
    status, answer = ask(server, "POST", "guess_at?index=1")
    assert status == 200 and (answer["name"], answer["class"]) == ("3/b.jpg", "3")
    sent = ask(server, "POST", "guess", (photos / "3/b.jpg").read_bytes())[1]
    assert answer["probabilities"] == sent["probabilities"] and answer["maps"] == sent["maps"]
    assert ask(server, "GET", f"maps?picture={answer['picture']}&label=0")[0] == 200


def test_the_small_picture_is_the_middle_of_the_file(server, photos):
    status, headers, content = exchange(server, "GET", f"/{server.token}/picture?index=1")
    assert status == 200 and headers["Content-Type"] == "image/png"
    expected = data.decode(photos / "3/b.jpg", size=THUMBNAIL)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)


@pytest.mark.parametrize(
    "method, address, status, code, says",
    [
        ("GET", "pictures", 400, "query", "must give one from"),
        ("GET", "pictures?from=-1", 400, "query", "from must be a whole number"),
        ("GET", "pictures?from=5", 422, "picture", "no picture 5; .* has 5, from 0 on"),
        ("GET", "picture?index=99999999999999999999", 400, "query", "index must be a whole number"),
        ("GET", "picture?index=../../etc/passwd", 400, "query", "index must be a whole number"),
        ("GET", "picture?index=1000", 422, "picture", "no picture 1,000"),
        ("GET", "picture?index=3", 422, "picture", "other/broken.jpg: .*not a picture"),
        ("POST", "guess_at?index=3", 422, "picture", "other/broken.jpg: .*not a picture"),
        ("POST", "guess_at?index=5", 422, "picture", "no picture 5"),
        ("GET", "guess_at?index=0", 405, "method", "answers POST only"),
    ],
)
def test_a_number_without_a_picture_is_refused(server, method, address, status, code, says):
    refused(ask(server, method, address), status, code, says)


def test_a_file_that_has_gone_is_said(server, photos):
    content = (photos / "other/d.png").read_bytes()
    (photos / "other/d.png").unlink()
    refused(ask(server, "POST", "guess_at?index=4"), 422, "picture", "other/d.png: no such file")
    (photos / "other/d.png").write_bytes(content)


def test_without_data_there_are_no_pictures(run):
    player = Player(run)
    for ask_it in (player.pictures, player.thumbnail, player.guess_at):
        with pytest.raises(DataError, match="no pictures were given; start it as `minires play RUN --data"):
            ask_it(0)


def test_fifty_thousand_pictures_are_listed_and_none_is_read(tmp_path, monkeypatch):
    read: list[str] = []

    def reading(name: str) -> bytes:
        read.append(name)
        return a_picture()

    many = [Picture(f"{k % 6}/{k}.png", lambda k=k: reading(f"{k}")) for k in range(50_000)]
    monkeypatch.setattr(gallery, "pictures_at", lambda path: many)
    found = Gallery(tmp_path, list("012345"))
    assert len(found) == 50_000 and len(json.dumps(found.page(49_000))) < 4000
    assert [one["index"] for one in found.page(49_990)["pictures"]] == list(range(49_990, 50_000))
    assert not read
    found.read(7)
    assert read == ["7"]


def test_an_archive_and_one_picture_are_taken_as_they_are(tmp_path):
    picture = encoded(Image.new("RGB", (8, 8)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("set\\Cat\\1.png", picture)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("set/cat/1.png")
        member.size = len(picture)
        tar.addfile(member, io.BytesIO(picture))
    (tmp_path / "1.png").write_bytes(picture)
    for name, label in (("a.zip", "cat"), ("a.tgz", "cat"), ("1.png", None)):
        found = Gallery(tmp_path / name, ["cat", "dog"])
        assert len(found) == 1 and found.label(0) == label and found.read(0) == picture
        assert found.source == name


def test_the_nearest_folder_with_the_name_of_a_class_says_it(tmp_path):
    picture = encoded(Image.new("RGB", (8, 8)))
    for name in ("cat/dog/1.png", "dog/cat/x/2.png", "DOG/3.png", "cats/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture)
    found = Gallery(tmp_path, ["cat", "dog"])
    labels = {found.name(k): found.label(k) for k in range(len(found))}
    assert labels == {
        "cat/dog/1.png": "dog", "dog/cat/x/2.png": "cat", "DOG/3.png": "dog", "cats/4.png": None,
    }  # fmt: skip
    found = Gallery(tmp_path, ["cat", "dog", "Dog"])  # which of the two would DOG be?
    assert [found.label(k) for k in range(len(found)) if found.name(k).startswith("DOG")] == [None]


def test_the_command_hands_the_path_on_and_names_what_is_not_there(run, tmp_path, monkeypatch, capsys):
    assert cli.main(["play", str(run), "--data", str(tmp_path / "nowhere"), "--no-browser"]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert cli.main(["play", str(run), "--data", str(tmp_path), "--no-browser"]) == 1
    assert "no picture found" in capsys.readouterr().err
