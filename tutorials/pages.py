"""The pages of the site in Markdown: read in the repository, too, so they link to its files.

On the site a link to a file leads to the page that is made from it. ``CONTRIBUTING.md``, ``CHANGELOG.md`` and
the reports of the lab lie outside of the site's source and are copied into it.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path

import architecture

HERE = Path(__file__).parent
MADE = "reference"  # the folder of pages and pictures that are made with the site
LAB = "benchmarks/results/lab"
COPIED = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
PICTURES = {"<!-- picture: floors -->": f"![The floors, and who imports from whom](/{MADE}/floors.png)"}

_BLOCK = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)  # of code
_LINK = re.compile(r"(?<!!)\[((?:`[^`]*`|[^][`])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def write() -> None:
    """Copy what lies outside of the site's source, and draw the pictures."""
    folder = HERE / MADE
    for name, file in COPIED.items():
        shutil.copy2(HERE.parent / file, folder / f"{name}.md")
    architecture.draw(folder / "floors.png")
    (folder / "lab").mkdir(exist_ok=True)
    for report in HERE.parent.glob(f"{LAB}/*/report.md"):
        name = report.parent.name
        shutil.copy2(report.with_name("figure.svg"), folder / "lab" / f"{name}.svg")
        text = report.read_text(encoding="utf-8").replace("(figure.svg)", f"({name}.svg)")
        # Only links lead there: it is in no table of contents.
        (folder / "lab" / f"{name}.md").write_text(f"---\norphan: true\n---\n\n{text}", encoding="utf-8")


def for_the_site(page: str, text: str) -> str:
    """A page's text with the links and pictures of the site; ``page`` is its name there: guide/results."""
    folder, name = posixpath.split(page)
    base = "" if folder == MADE and name in COPIED else posixpath.join("tutorials", folder)

    def link(found: re.Match[str]) -> str:
        words, file, anchor = found.groups(default="")
        if re.match(r"\w+:", file):
            return found[0]
        path = posixpath.normpath(posixpath.join(base, file))
        there = _page_of(path)
        if there is None:
            return words if words.strip("`").rstrip("/") == path else f"{words} (`{path}`)"
        return f"[{words}](/{there}{anchor})"

    parts = _BLOCK.split(text)
    parts[::2] = [_LINK.sub(link, part) for part in parts[::2]]
    text = "".join(parts)
    for mark, picture in PICTURES.items():
        text = text.replace(mark, picture)
    return text


def _page_of(path: str) -> str | None:
    """The source of the page that is made from a file or folder of the repository, if one is."""
    if path in COPIED.values():
        return f"{MADE}/{path.removesuffix('.md').lower()}.md"
    if found := re.fullmatch(rf"{LAB}/([\w-]+)/report\.md", path):
        return f"{MADE}/lab/{found[1]}.md"
    if path == "README.md":
        return "index.rst"
    if found := re.fullmatch(r"tutorials/(\d\d_\w+)\.py", path):
        return f"lessons/{found[1]}.rst"
    if path.startswith("tutorials/") and path.endswith(".md"):
        return path.removeprefix("tutorials/")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"{MADE}/{module}.rst" if module in architecture.INSIDE and "._" not in module else None
