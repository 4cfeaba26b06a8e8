"""The page of `minires play` in a browser: files, drawings and the camera get the answers of the library."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, screenshot, watched
from PIL import Image
from play.trained import a_picture, encoded

from minires import data, models, train
from minires.data import Normalize
from minires.debug.cam import activation_maps
from minires.play.player import Player
from minires.play.server import LARGEST, Server
from minires.train import Trained, load_model, save_model

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 780}, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--use-fake-device-for-media-stream") as one:
        yield one


@pytest.fixture(scope="module")
def server(run) -> Iterator[Server]:
    with Server(Player(run)) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def opened(browser: Any, server: Server, **options: Any) -> tuple[Any, list[str], list[str]]:
    page, errors, requests = watched(browser, **options)
    page.goto(server.url)
    page.wait_for_selector("#model:not(:empty)")
    return page, errors, requests


def choose(page: Any, content: bytes, name: str = "hand.jpg") -> None:
    page.set_input_files("#chosen", {"name": name, "mimeType": "image/jpeg", "buffer": content})


def answered(page: Any, number: int = 1) -> None:
    """Wait for the answer to the picture with this number."""
    page.wait_for_selector(f"#trace[href='trace?picture={number}']")
    page.wait_for_selector("body:not(.working)")


def number_of(server: Server) -> int:
    """The number that the next picture will have."""
    return max(map(int, server.player._pictures), default=0) + 1


def test_a_file_gets_the_guess_of_minires_predict_its_maps_and_its_trace(browser, server, run, tmp_path):
    page, errors, requests = opened(browser, server, **DESKTOP)
    picture, number = a_picture(), number_of(server)
    choose(page, picture)
    answered(page, number)

    trained: Trained = load_model(run)
    seen = data.decode(picture, size=32)
    (expected,) = train.predict(trained.model, seen[None], trained.normalize)
    best = int(expected.argmax())
    percent = [f"{100 * share:.1f}%" for share in expected]
    assert page.text_content("#guess") == f"{best}, with {percent[best]} probability"
    bars = page.locator("#bars button").all()
    shown = [[bar.locator(part).text_content() for part in (".name", ".figure")] for bar in bars]
    assert shown == [[str(k), percent[k]] for k in np.argsort(-expected, kind="stable")]

    found = activation_maps(trained.model, trained.normalize(seen))
    stages = page.locator("#stages button")
    assert [name.split("–")[0].strip() for name in stages.all_inner_texts()] == ["conv1", "res3a", "res4a"]
    assert page.text_content("#map-caption").endswith("a map of 8 × 8 places")
    figures = [float(text.replace("−", "-")) for text in page.locator("#sums .figure").all_inner_texts()]
    shares = [found.picture_share, *(one.share for one in found.stages), found.rest_share]
    assert figures == [round(share, 3) for share in [*shares, found.scores[best]]]

    before = page.get_attribute("#map", "src")
    stages.first.click()
    assert page.text_content("#map-caption").endswith("a map of 32 × 32 places")
    assert page.get_attribute("#map", "src") not in (before, page.get_attribute("#seen", "src"))
    page.uncheck("#lay")
    assert page.get_attribute("#map", "src") == page.get_attribute("#seen", "src")
    page.check("#lay")

    other = page.locator("#bars button").nth(1)
    name = other.get_attribute("data-label")
    other.click()
    page.wait_for_selector(f"#maps-title:has-text('“{name}”')")
    score = activation_maps(trained.model, trained.normalize(seen), int(name)).scores[int(name)]
    assert page.text_content("#shares-title").endswith(f": {score:.3f}")
    assert page.text_content("#guess").startswith(f"{best}, with")
    screenshot(page, "play-desktop", tmp_path)

    with page.context.expect_page() as event:
        page.click("#trace")
    trace = event.value
    trace.wait_for_load_state()
    trace.wait_for_selector("text=resnet20_cifar")
    screenshot(trace, "play-trace", tmp_path)
    assert not errors
    assert all(address.startswith((server.url, "data:", "blob:")) for address in requests)


def test_it_can_be_used_by_keyboard_alone(browser, server):
    page, errors, _ = opened(browser, server, **DESKTOP)
    number = number_of(server)
    page.focus("#tab-file")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#canvas") and not page.is_visible("#drop")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "canvas"
    page.keyboard.press("Space")
    for _ in range(6):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    answered(page, number)
    seen = server.player._pictures[str(number)].astype(int)
    assert seen[12, 16].sum() < seen[28, 28].sum() - 100  # the stroke went up from the middle
    page.focus("#bars button")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#bars li:nth-child(2) button[aria-pressed=true]")
    page.wait_for_selector("body:not(.working)")
    assert page.evaluate("document.activeElement.dataset.label")  # the focus stays where it was
    page.focus("#stages [aria-checked=true]")
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#map-caption").endswith("a map of 16 × 16 places")
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    assert not errors


def test_a_drawing_is_looked_at_when_the_stroke_ends(browser, server, tmp_path):
    page, errors, _ = opened(browser, server, **DESKTOP)
    page.click("#tab-draw")
    number = number_of(server)
    page.evaluate("document.getElementById('colour').value = '#ff0000'")

    def at(x: float, y: float) -> tuple[float, float]:
        box = page.locator("#canvas").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    page.mouse.move(*at(0.1, 0.25))
    page.mouse.down()
    page.mouse.move(*at(0.9, 0.25), steps=5)
    page.mouse.up()
    answered(page, number)
    seen = server.player._pictures[str(number)].astype(int)  # 32 x 32
    assert (seen[8, 5:27] - [255, 0, 0]).__abs__().max() < 40 and seen[24].min() > 180
    screenshot(page, "play-drawing", tmp_path)
    page.click("#clear")
    page.mouse.click(*at(0.5, 0.5))
    answered(page, number + 1)
    seen = server.player._pictures[str(number + 1)].astype(int)
    assert seen[8].min() > 180 and seen[16, 16, 1] < 40
    assert not errors


def test_the_camera_gives_pictures(browser, server, tmp_path):
    page, errors, _ = opened(browser, server, **DESKTOP, permissions=["camera"])
    number = number_of(server)
    page.click("#tab-camera")
    page.click("#start")
    page.wait_for_selector("#shoot:not([disabled])")
    page.click("#shoot")
    answered(page, number)
    assert server.player._pictures[str(number)].std() > 5  # the fake camera shows a pattern
    screenshot(page, "play-camera", tmp_path)
    page.click("#tab-file")
    assert page.evaluate("document.getElementById('video').srcObject") is None
    assert not errors


def test_a_refused_camera_is_said(browser, server):
    page, errors, _ = opened(browser, server, **DESKTOP)
    page.click("#tab-camera")
    page.click("#start")
    page.wait_for_selector("#problem:not([hidden])")
    assert re.search("camera.*use a file", page.text_content("#problem"))
    assert page.is_disabled("#shoot") and not errors


def test_a_bad_file_is_explained_and_the_next_one_works(browser, server):
    page, errors, requests = opened(browser, server, **DESKTOP)
    choose(page, b"not a picture")
    page.wait_for_selector("#problem:not([hidden])")
    assert "not a picture in a known format" in page.text_content("#problem")
    assert errors and all("422" in error for error in errors)  # which the browser itself logs
    errors.clear()
    asked = len(requests)
    choose(page, bytes(LARGEST + 100_000))
    page.wait_for_selector("#problem:has-text('20.1 MB')")
    assert len(requests) == asked  # it is not even sent
    number = number_of(server)
    choose(page, a_picture())
    answered(page, number)
    assert page.is_hidden("#problem") and not errors


def test_a_server_that_has_ended_is_said(browser, run):
    server = Server(Player(run))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page, _, _ = opened(browser, server, **DESKTOP)
    server.shutdown()
    server.server_close()
    thread.join()
    choose(page, a_picture())
    page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer any more" in page.text_content("#problem")


def test_a_dropped_picture_is_taken(browser, server):
    page, errors, _ = opened(browser, server, **DESKTOP)
    number = number_of(server)
    drop = """(bytes) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "hand.png", { type: "image/png" }));
        const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
        document.getElementById("drop").dispatchEvent(drop);
    }"""
    page.evaluate(drop, list(a_picture()))
    answered(page, number)
    assert not errors


def test_it_reads_well_on_a_phone_in_the_dark_and_in_chinese(browser, server, tmp_path):
    page, errors, _ = opened(browser, server, **PHONE, color_scheme="dark")
    number = number_of(server)
    choose(page, a_picture())
    answered(page, number)
    for tab in ("draw", "camera", "file"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 22, 28)"
    screenshot(page, "play-phone-dark", tmp_path)
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.click("#language")
    assert page.text_content("#answer-title") == "它的猜测" and "概率" in page.text_content("#guess")
    assert page.evaluate("document.documentElement.lang") == "zh"
    left = page.evaluate("document.body.innerText")
    for word in ("Show", "Probability", "score", "picture", "places"):
        assert word not in left
    screenshot(page, "play-phone-chinese", tmp_path)
    page.click("#language")
    assert page.text_content("#answer-title") == "Its guess" and not errors


@pytest.fixture
def photos(tmp_path) -> Path:
    """Thirty pictures in class folders, one of them broken, one with a name that could be markup."""
    folder = tmp_path / "photos"
    for number in range(30):
        path = folder / str(number % 3) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (40, 30), (number * 8, 90, 200 - number * 6))))
    (folder / "0/00.png").write_bytes(b"no picture")
    (folder / "2/29.png").rename(folder / "a&lt;29.png")
    return folder


def test_the_pictures_of_a_folder_are_shown_and_a_click_asks(browser, run, photos, tmp_path):
    with Server(Player(run, data=photos)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, errors, requests = opened(browser, server, **DESKTOP)
        page.wait_for_selector("#pictures:not([hidden])")
        assert page.text_content("#pictures-title") == "Pictures of photos: 1 to 24 of 30"
        page.wait_for_selector("#strip .broken")
        assert page.locator("#strip .broken img").get_attribute("alt") == "Picture 0/00.png cannot be read"
        assert errors and all("422" in error for error in errors)  # which the browser itself logs
        errors.clear()
        assert page.locator("#strip li").count() == 24
        assert len([one for one in requests if "picture?index=" in one]) <= 24
        third = page.locator("#strip button").nth(2)
        assert third.locator("img").get_attribute("alt") == "Picture 0/06.png"
        assert third.locator(".name").text_content() == "0"

        page.wait_for_load_state("networkidle")
        before = len(requests)
        page.locator("#strip button").nth(1).focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")  # the third, by keyboard
        answered(page, 1)
        assert third.get_attribute("aria-pressed") == "true"
        seen = data.decode(photos / "0/06.png", size=32)
        assert np.array_equal(server.player._pictures["1"], seen)
        label = page.text_content("#guess").split(",")[0]
        same = "Its folder says the same." if label == "0" else "Its folder says “0”."
        assert page.text_content("#truth") == same
        assert not [one for one in requests[before:] if "picture?index=" in one]  # none is fetched anew
        screenshot(page, "play-strip", tmp_path)

        page.click("#later")
        page.wait_for_selector("#pictures-title:has-text('25 to 30 of 30')")
        assert page.is_disabled("#later")
        last = page.locator("#strip button").last
        assert last.get_attribute("title") == last.text_content() == "a&lt;29.png"  # text, and no markup
        last.click()
        answered(page, 2)
        assert page.is_hidden("#truth")  # no folder says what it is
        page.click("#language")
        assert page.text_content("#pictures-title") == "photos 中的图片：第 25 至 30 张，共 30 张"
        assert last.locator("img").get_attribute("alt") == "图片 a&lt;29.png"
        for number, first in (("7", 7), ("1000", 30), ("-3", 1)):
            page.fill("#number", number)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#pictures-title:has-text('第 {first} 至')")
        page.click("#later")
        page.wait_for_selector("#pictures-title:has-text('第 25 至')")
        page.click("#earlier")
        page.wait_for_selector("#pictures-title:has-text('第 1 至')")
        page.wait_for_selector("#strip .broken")
        errors.clear()
        choose(page, a_picture())  # a file of one's own, as ever
        answered(page, 3)
        assert page.locator("#strip [aria-pressed=true]").count() == 0
        assert not errors
        server.shutdown()


def test_the_strip_fits_on_a_phone(browser, run, photos, tmp_path):
    with Server(Player(run, data=photos / "1")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, errors, _ = opened(browser, server, **PHONE)
        page.wait_for_selector("#strip li")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.is_hidden("#turn")  # ten pictures are one page
        page.wait_for_load_state("networkidle")
        screenshot(page, "play-strip-phone", tmp_path)
        assert not errors
        server.shutdown()


def test_names_of_classes_are_text_and_many_are_folded(browser, tmp_path, run):
    trained = load_model(run)
    names = tuple(f"</script><b>{k}</b>" for k in range(12))
    many = Trained(
        models.build("resnet20_cifar", classes=12).eval(), "resnet20_cifar", {}, names,
        Normalize([0.5] * 3, [0.25] * 3), (32, 32), "<i>hands</i>",
    )  # fmt: skip
    save_model(tmp_path / "model.safetensors", many)
    assert trained.classes != names
    with Server(Player(tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, errors, _ = opened(browser, server, **DESKTOP)
        choose(page, encoded(Image.fromarray(np.full((40, 40, 3), 90, np.uint8))))
        answered(page)
        assert "<i>hands</i>" in page.text_content("#model")
        assert page.text_content("#guess").startswith("</script><b>")
        assert page.locator("#bars li").count() == 10 and page.locator("main b").count() == 0
        page.click("#more")
        assert page.locator("#bars li").count() == 12
        server.shutdown()
    assert not errors
