"""The site is made from the lessons and the docstrings, and every page of it works without a network.

A site takes minutes to make, for each lesson is run. MINIRES_SITE names a folder that holds one
(made by python -m sphinx tutorials FOLDER); MINIRES_SCREENSHOTS a folder for pictures of its pages.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser import chromium, screenshot, watched
from lessons import LESSONS, ROOT, TUTORIALS, cells

import minires

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 800}}
DARK = {**DESKTOP, "color_scheme": "dark"}

# How wide the page is; the theme makes what is too wide for a phone scroll inside its column.
WIDTH = """Math.max(document.documentElement.scrollWidth, ...[...document.querySelectorAll(".content")]
    .map(column => column.scrollWidth - column.clientWidth + innerWidth))"""


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    """Make a site in folder/html from folder/tutorials, as the command does, with warnings as errors."""
    for name in ("sphinx", "sphinx_gallery", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install '.[docs]'), so no site can be made")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "tutorials", "html"]
    paths = os.pathsep.join([str(Path(minires.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)


def copied(folder: Path, *left_out: str) -> Path:
    """Copy the source of the site into a folder, and what its pages take from around it."""
    made = shutil.ignore_patterns("lessons", "reference", "__pycache__", *left_out)
    shutil.copytree(TUTORIALS, folder / "tutorials", ignore=made)
    shutil.copytree(ROOT / "benchmarks/results", folder / "benchmarks/results")
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    return folder / "tutorials"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of a site: the one that MINIRES_SITE names, else one made now from a copy of tutorials/."""
    if "MINIRES_SITE" in os.environ:
        return Path(os.environ["MINIRES_SITE"])
    folder = tmp_path_factory.mktemp("site")
    copy = copied(folder)
    before = set(copy.iterdir())
    run = make(folder)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {path.name for path in set(copy.iterdir()) - before} <= {"lessons", "reference", "__pycache__"}
    return folder / "html"


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served, on this machine only."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def pages(site: Path) -> list[str]:
    """Every page, as a path below the site."""
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


# -------------------------------------------------------------------------------------- without a browser


def test_every_lesson_and_every_module_has_its_page(site):
    there = set(pages(site))
    assert {f"lessons/{path.stem}.html" for path in LESSONS} <= there
    modules = {module.name for module in pkgutil.walk_packages(minires.__path__, "minires.")}
    modules = {name for name in modules if "._" not in name}
    assert {f"reference/{name}.html" for name in modules} <= there
    article = (site / "api.html").read_text(encoding="utf-8").partition("<article")[2]
    listed = re.findall(r'href="reference/(minires[\w.]*)\.html"', article.partition("</article>")[0])
    assert modules <= set(listed)


def test_the_guide_leads_to_the_pages_of_the_site(site):
    there = {path.stem for path in (TUTORIALS / "guide").glob("*.md")}
    assert there and {f"guide/{name}.html" for name in there} <= set(pages(site))
    models = (site / "guide/models.html").read_text(encoding="utf-8")
    assert 'href="../reference/minires.models.vgg.html"' in models  # in the repository a link to the file
    assert "tests/models/test_vgg.py" in models and 'href="../../tests' not in models
    text = (site / "guide/architecture.html").read_text(encoding="utf-8")
    assert re.search(r'<img [^>]*src="\.\./_images/floors\.png"', text)
    assert 'href="results.html#bfloat16"' in (site / "guide/gpu.html").read_text(encoding="utf-8")
    for name in ("contributing", "changelog"):
        assert f"reference/{name}.html" in pages(site)


def test_every_lesson_was_run(site):
    for path in LESSONS:
        text = (site / "lessons" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert len(re.findall(r'<img [^>]*src="[^"]*_images/sphx_glr_', text)) >= 2, path.name
        assert re.search(r"Total running time of the script:</strong> \(\d+ minutes [\d.]+ seconds\)", text)
        assert text.count("open: ") >= 3


def test_nothing_is_loaded_from_elsewhere(site):
    wrong = []
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|link|iframe|source|video|audio|object|embed)\b[^>]*>", text)
        loads = [found for tag in tags for found in re.findall(r"(?:src|href|srcset|data)=\"([^\"]*)", tag)]
        if path.suffix == ".css":
            loads = re.findall(r"url\(\s*[\"']?([^)\"']*)", text) + re.findall(
                r"@import\s+[\"']([^\"']*)", text
            )
        wrong += [f"{path.relative_to(site)}: {x}" for x in loads if re.match(r"(\w+:)?//", x)]
    assert not wrong, "\n".join(wrong)


def test_the_notebooks_hold_the_cells_of_the_lessons(site):
    for lesson in LESSONS:
        (path,) = site.glob(f"_downloads/*/{lesson.stem}.ipynb")
        book = json.loads(path.read_text(encoding="utf-8"))
        assert book["nbformat"] == 4
        code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
        expected = [cell.code.strip() for cell in cells(lesson) if cell.code.strip()]
        assert code == expected, f"{lesson.name} is not the one that the site was made from"
        prose = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] != "code")
        assert all(f"# {cell.heading}" in prose for cell in cells(lesson) if cell.heading)
        (program,) = site.glob(f"_downloads/*/{lesson.name}")
        assert program.read_text(encoding="utf-8") == lesson.read_text(encoding="utf-8")


def test_a_lesson_that_fails_stops_the_making(tmp_path):
    tutorials = copied(tmp_path, "[0-9][0-9]_*.py")
    lesson = '"""\n01 · Broken\n===========\n\nIt fails.\n"""\n\nassert 1 + 1 == 3, "not so"\n'
    (tutorials / "01_broken.py").write_text(lesson, encoding="utf-8")
    run = make(tmp_path)
    assert run.returncode != 0 and "not so" in run.stdout + run.stderr
    assert not (tmp_path / "html/index.html").exists()


# ---------------------------------------------------------------------------------------------- in a browser


def test_every_page_works_and_is_no_wider_than_the_window(site, address, browser):
    page, errors, requests = watched(browser, **DESKTOP)
    wide = []
    for path in pages(site):
        page.goto(address + path)
        # What is far below is loaded when it is scrolled to.
        page.evaluate("for (const image of document.images) image.loading = 'eager'")
        page.wait_for_function("[...document.images].every(image => image.complete)")
        broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert not broken, f"{path}: {broken}"
        assert (
            page.title().strip() and page.locator("article :is(h1, h2)").count() or path == "search.html"
        ), path
        assert not errors, f"{path}: {errors}"
        for viewport in (PHONE["viewport"], DESKTOP["viewport"], {"width": 1400, "height": 900}):
            page.set_viewport_size(viewport)
            width = page.evaluate(WIDTH)
            wide += [f"{path}: {width} of {viewport['width']} px"] if width > viewport["width"] else []
    assert not wide, "\n".join(wide)
    assert not [url for url in requests if not url.startswith((address, "data:"))]


def test_every_link_inside_leads_somewhere(site):
    dead = []
    for path in pages(site):
        text = (site / path).read_text(encoding="utf-8")
        for link in re.findall(r'<a\b[^>]*href="([^"]*)"', text):
            target = link.partition("#")[0].partition("?")[0]
            if target and not re.match(r"\w+:", target) and not ((site / path).parent / target).exists():
                dead.append(f"{path} -> {link}")
    assert not dead, "\n".join(dead)


def test_the_search_finds_pages_and_they_open(address, browser):
    page, errors, _ = watched(browser, **DESKTOP)
    page.goto(address)
    page.locator("input[name=q]").first.fill("batch norm")
    page.keyboard.press("Enter")
    results = page.locator("#search-results ul.search li")
    page.locator(".search-summary", has_text="matching the search query").wait_for()
    titles = results.locator("> a").all_inner_texts()
    assert len(titles) >= 5
    assert any(title.startswith("04 ") for title in titles) and any("batch_norm" in title for title in titles)
    results.locator("> a", has_text=re.compile("^04 ")).first.click()
    page.locator("h1", has_text="04").wait_for()
    assert "batch norm" in page.locator("article").inner_text().lower()
    assert not errors


def test_the_search_finds_nothing_for_nonsense(address, browser):
    page, _, _ = watched(browser, **DESKTOP)
    page.goto(address + "search.html?q=qwertzuiop")
    page.locator("#search-results", has_text="did not match any documents").wait_for()


def test_the_index_tells_the_way(address, browser):
    page, _, _ = watched(browser, **DESKTOP)
    page.goto(address)
    cards = page.locator(".lesson")
    assert cards.count() == len(LESSONS)
    for number, card in enumerate(cards.all(), 1):
        assert re.match(rf"\s*{number:02} · .*Runs in \d+(\.\d)? s\.", card.inner_text(), re.DOTALL)
    cards.first.locator("p a").click()
    page.locator("h1", has_text="01").wait_for()


def test_a_lesson_links_to_the_lessons_and_functions_it_names(address, browser):
    page, _, _ = watched(browser, **DESKTOP)
    page.goto(address + f"lessons/{LESSONS[1].stem}.html")
    page.locator("article p a", has_text="lesson 01").first.click()
    page.locator("h1", has_text="01").wait_for()
    page.locator(".highlight a[href*='minires.tensor.Tensor']").first.click()
    page.locator("h1", has_text="minires.tensor").wait_for()


@pytest.mark.parametrize("look", ["desktop", "phone", "dark"])
def test_what_it_looks_like(site, address, browser, tmp_path, look):
    page, _, _ = watched(browser, **{"desktop": DESKTOP, "phone": PHONE, "dark": DARK}[look])
    # Pictures of all lessons are made for a person who looks at them.
    lessons = LESSONS if "MINIRES_SCREENSHOTS" in os.environ else LESSONS[3:4]
    chosen = [f"lessons/{path.stem}.html" for path in lessons]
    others = ["results", "models", "commands", "debugger", "architecture"]
    chosen += ["index.html", "api.html", "reference/minires.ops.batch_norm.html"]
    for path in chosen + [f"guide/{name}.html" for name in others]:
        page.goto(address + path)
        name = path.removesuffix(".html").replace("/", "_")
        assert screenshot(page, f"site_{look}_{name}", tmp_path).stat().st_size > 10_000
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", background)[:3])) < 150 if look == "dark" else True
