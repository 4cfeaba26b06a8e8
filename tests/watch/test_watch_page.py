"""The page of `minires watch`: its server, and in a browser what a person sees of a run that goes on."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, screenshot, watched
from train.small_run import CONFIG, small_model, small_splits

from minires import ConfigError
from minires.train import Trainer
from minires.watch import serve
from minires.watch.reading import Reading
from minires.watch.server import Server

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 780}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@contextmanager
def served(run: Path) -> Iterator[Server]:
    with Server(Reading(run)) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def ask(server: Server, name: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, name, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def opened(browser: Any, server: Server, **options: Any) -> tuple[Any, list[str], list[str]]:
    page, errors, requests = watched(browser, **options)
    page.goto(server.url)
    page.wait_for_selector("#figures dd")
    return page, errors, requests


def test_the_server_tells_what_has_changed_and_no_more_and_only_its_own_page(finished):
    with served(finished) as server:
        status, kind, content = ask(server, f"/{server.token}/now?known=0")
        whole = json.loads(content)
        assert status == 200 and whole["state"] == "finished" and "application/json" in kind
        version = whole["version"]
        again = json.loads(ask(server, f"/{server.token}/now?known={version}")[2])
        assert again == {"version": version, "left": None}
        status, kind, content = ask(server, f"/{server.token}/samples")
        assert (status, kind) == (200, "image/png")
        assert content == (finished / "samples.png").read_bytes()
        assert ask(server, f"/{server.token}/now")[0] == 400
        assert ask(server, f"/{server.token}/../../etc/passwd")[0] == 404
        assert ask(server, f"/{server.token}/now?known=0", "POST")[0] == 405
        assert ask(server, "/wrong/now?known=0")[0] == 403
        assert ask(server, f"/{server.token}/now?known=0", Origin="http://evil.example")[0] == 403
        for name in ("", "page.js", "charts.js", "base.css", "speech.js", "dom.js"):
            assert ask(server, f"/{server.token}/{name}")[0] == 200, name


def test_a_port_that_cannot_be_used_is_said(finished):
    with served(finished) as server, pytest.raises(ConfigError, match="cannot be used"):
        serve(finished, port=server.server_port, open_browser=False, say=lambda line: None)


def test_the_page_shows_curves_layers_confusion_samples_and_report(browser, finished, tmp_path):
    with served(finished) as server:
        page, errors, requests = opened(browser, server, **DESKTOP)
        assert page.text_content("#state") == "Finished"
        metrics = Reading(finished).now()["metrics"]
        for chart in ("loss", "accuracy"):
            assert page.locator(f"#{chart} path.line").count() == 3
            assert page.locator(f"#{chart} circle").count() == 6
        assert f"validation {metrics[-1]['val_loss']:.3g}" in page.text_content("#loss .legend")
        box = page.locator("#loss svg").bounding_box()
        page.mouse.move(box["x"] + 52 + (box["width"] - 64) / 3, box["y"] + 50)  # the first epoch of three
        assert page.text_content("#loss .epoch") == "epoch 1"
        assert f"training {metrics[0]['train_loss']:.3g}" in page.text_content("#loss .legend")

        inside = json.loads((finished / "watch.json").read_text())
        names = [layer["path"] for layer in inside["layers"]]
        assert page.locator("#heat .names button").all_inner_texts() == names
        canvas = page.locator("#heat canvas")
        assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [3, 3]
        page.click("#heat .names button:has-text('fc')")
        assert page.text_content("#layer-title") == "fc (Linear): Update ratio"
        page.click("#kinds button:has-text('Gradient')")
        assert page.text_content("#layer-title") == "fc (Linear): Gradient"
        last = inside["epochs"][-1]["layers"]["gradient"][2]
        assert f"fc {last:.3g}" in page.text_content("#layer .legend")
        page.hover("#heat canvas", position={"x": 3, "y": 3})
        assert page.text_content("#scale output").startswith("conv1, epoch 1: ")

        def cells() -> list[str]:
            return [text or "0" for text in page.locator("#table td:not(.corner)").all_inner_texts()]

        for place in (2, 0):
            page.fill("#epoch", str(place))
            counts = [["0"] * 3 for _ in range(3)]
            for truth, guess, count in inside["epochs"][place]["confusion"]["cells"]:
                counts[truth][guess] = str(count)
            assert cells() == [count for row in counts for count in row]
            assert page.text_content("#confusion-epoch").startswith(f"Epoch {place + 1}: ")
        labels = page.locator("#sheet .name").all_inner_texts()
        assert labels == inside["samples"]["labels"] and len(labels) == 32
        assert "test accuracy" in page.text_content("#said")
        assert page.is_hidden("#problem") and page.is_hidden("#doubts") == (not json.loads(
            (finished / "summary.json").read_text())["warnings"])
        screenshot(page, "watch-desktop", tmp_path)
        assert not errors
        assert all(address.startswith((server.url, "data:")) for address in requests)


def test_the_page_shows_responses_and_the_ways_of_blocks(browser, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    inside = json.loads((run / "watch.json").read_text())
    inside["blocks"] = [{"path": path, "kind": "ResidualBlock"} for path in ("res2a", "res2b")]
    for number, one in enumerate(inside["epochs"]):
        one |= {"branch": [0.5 + number, 0.25], "shortcut": [2.0, None]}
    (run / "watch.json").write_text(json.dumps(inside))
    with served(run) as server:
        page, errors, _ = opened(browser, server, **DESKTOP)
        words = page.locator("#kinds button").all_inner_texts()
        assert words[5:] == ["Responses", "Branch", "Shortcut", "Branch / shortcut"]
        page.click("#kinds button:has-text('Responses')")
        assert page.locator("#heat .names button").all_inner_texts() == ["conv1", "conv2", "fc"]
        page.click("#heat .names button:has-text('conv2')")
        assert page.text_content("#layer-title") == "conv2 (Conv2d): Responses"
        assert f"conv2 {inside['epochs'][-1]['response'][1]:.3g}" in page.text_content("#layer .legend")
        page.click("#heat .names button:has-text('fc')")  # the third of three, and there are two blocks
        page.click("#kinds button:text-is('Branch')")
        assert page.text_content("#layer-title") == "res2b (ResidualBlock): Branch"
        page.click("#heat .names button:has-text('res2a')")
        page.click("#kinds button:has-text('Branch / shortcut')")
        assert page.text_content("#layer-title") == "res2a (ResidualBlock): Branch / shortcut"
        assert "res2a 1.25" in page.text_content("#layer .legend")  # 2.5 / 2
        assert page.locator("#heat .names button").all_inner_texts() == ["res2a", "res2b"]
        page.hover("#heat canvas", position={"x": 3, "y": 30})
        assert page.text_content("#scale output") == "res2b, epoch 1: –"
        page.click("#language")
        assert page.text_content("#layer-title") == "res2a (ResidualBlock): 主分支 / 捷径"
        assert not errors
    for name in ("responses", "blocks"):
        del inside[name]
    for one in inside["epochs"]:
        for name in ("response", "branch", "shortcut"):
            del one[name]
    (run / "watch.json").write_text(json.dumps(inside))  # as an older version wrote it
    with served(run) as server:
        page, errors, _ = opened(browser, server, **DESKTOP)
        assert page.locator("#kinds button").count() == 5
        assert page.text_content("#layer-title") == "conv1 (Conv2d): Update ratio" and not errors


def test_the_page_follows_a_run_that_goes_on(browser, stopped, tmp_path):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    config = CONFIG.from_dict({**CONFIG.to_dict(), "normalize": "none"})
    with served(run) as server:
        page, errors, _ = opened(browser, server, **DESKTOP)
        assert page.text_content("#state").startswith("Stopped; it can go on")
        assert page.locator("#loss circle").count() == 2
        held = Trainer(
            config, run, splits=small_splits(), model=small_model(), resume=True, progress=False,
            say=lambda line: None,
        )  # fmt: skip
        page.wait_for_selector("[data-state=running]")
        assert page.text_content("#state") == "In training"
        held.run()
        page.wait_for_selector("[data-state=finished]")
        page.wait_for_function("document.querySelectorAll('#loss circle').length === 6")
        assert page.get_attribute("#epoch", "max") in ("1", "2")
        assert not errors
    page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer any more" in page.text_content("#problem")


def test_a_run_of_which_much_is_missing_or_damaged_is_shown_and_said(browser, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("progress.json", "samples.png", "summary.json"):
        (run / name).unlink()
    (run / "watch.json").write_text("{")
    with served(run) as server:
        page, errors, _ = opened(browser, server, **DESKTOP)
        assert "Left out, as it is damaged: " in page.text_content("#doubts")
        assert "watch.json" in page.text_content("#doubts")
        assert page.text_content("#layers-none") == "This run was made before runs wrote this."
        assert page.locator("#loss circle").count() == 6 and page.is_hidden("#sheet")
        shutil.copy(finished / "watch.json", run)
        page.wait_for_selector("#layers-shown:not([hidden])")
        assert page.is_hidden("#doubts") and not errors
        (run / "metrics.csv").write_bytes(b"\xff")
        page.wait_for_selector("#doubts:not([hidden])")
        assert page.locator("#loss circle").count() == 0 and not errors


def test_it_reads_well_on_a_phone_in_the_dark_and_in_chinese(browser, finished, tmp_path):
    with served(finished) as server:
        page, errors, _ = opened(browser, server, **PHONE, color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 22, 28)"
        screenshot(page, "watch-phone-dark", tmp_path)
        page.click("#language")
        assert page.text_content("#loss-title") == "损失"
        assert page.evaluate("document.documentElement.lang") == "zh"
        left = page.evaluate("""() => {
            document.getElementById("said").remove();
            return document.body.innerText;
        }""")
        for word in ("epoch", "Loss", "training", "layer", "right", "Dark", "Gradient"):
            assert word not in left, word
        assert not errors


def test_all_can_be_reached_by_keyboard(browser, finished):
    with served(finished) as server:
        page, errors, _ = opened(browser, server, **DESKTOP)
        page.focus("#kinds button")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.get_attribute("#kinds button:nth-child(2)", "aria-checked") == "true"
        assert page.evaluate("document.activeElement.textContent") == "Gradient"  # the focus stays
        page.focus("#heat .names button:nth-child(2)")
        page.keyboard.press("Enter")
        assert page.text_content("#layer-title").startswith("conv2")
        assert page.evaluate("document.activeElement.textContent") == "conv2"
        page.focus("#epoch")
        page.keyboard.press("ArrowLeft")
        assert page.text_content("#confusion-epoch").startswith("Epoch 2")
        assert not errors


def test_names_are_text_and_no_markup(browser, finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    inside = json.loads((run / "watch.json").read_text())
    inside["classes"] = ["</script><b>x</b>", "<i>y</i>", "<img src=x>"]
    inside["layers"][0]["path"] = "<b>conv</b>"
    (run / "watch.json").write_text(json.dumps(inside))
    with served(run) as server:
        page, errors, _ = opened(browser, server, **DESKTOP)
        page.wait_for_selector("#table td")
        assert page.locator("main b, main i, #table img").count() == 0 and not errors
        assert "<b>conv</b>" in page.text_content("#heat .names")
