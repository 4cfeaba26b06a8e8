"""How Sphinx makes the site: ``python -m sphinx tutorials OUT``. Lessons are run, an error stops the build.

Nothing is loaded from a network, neither while building nor while reading.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import minires
from minires.lab import find

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pages  # noqa: E402  # it lies beside this file

LESSONS = sorted(HERE.glob("[0-9][0-9]_*.py"))

project = "minires"
copyright = "the authors of minires, MIT licence"
version = release = minires.__version__
extensions = ["sphinx.ext.autodoc", "sphinx_gallery.gen_gallery", "myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["GALLERY_HEADER.rst", "lessons/index.rst"]
suppress_warnings = ["sphinx_gallery.duplicate_filename"]  # a lesson and its copy in lessons/

sphinx_gallery_conf = {
    "examples_dirs": ".",
    "gallery_dirs": "lessons",
    "filename_pattern": r"[\\/]\d\d_",
    "ignore_pattern": r"(architecture|conf|pages)\.py",
    "within_subsection_order": "FileNameSortKey",
    "copyfile_regex": "(?!)",
    "abort_on_example_error": True,
    "capture_repr": (),
    "download_all_examples": False,
    "write_computation_times": False,  # that page loads its scripts from a network
    "show_signature": False,
    "doc_module": ("minires",),
}

autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Array": "Array"}  # not what it stands for
add_module_names = False
highlight_language = "none"  # formulas; a lesson's code says itself that it is Python
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = "minires"
html_static_path = ["site.css"]
html_favicon = "icon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = html_domain_indices = False  # the search finds names, too
html_show_sphinx = False
pygments_style = "default"
pygments_dark_style = "github-dark"


# ------------------------------------------------------------------------------------------ the index page


def title_and_summary(lesson: Path) -> tuple[str, str]:
    """The first line of a lesson's docstring, and the paragraph below it."""
    title, _, rest = (ast.get_docstring(ast.parse(lesson.read_text(encoding="utf-8"))) or "").partition("\n")
    return title, " ".join(rest.split("\n\n")[1].split())


def seconds(lesson: Path) -> str:
    """How long the lesson took when this site was made."""
    page = (HERE / "lessons" / lesson.name).with_suffix(".rst").read_text(encoding="utf-8")
    found = re.search(r"Total running time of the script:\*\* \((\d+) minutes ([\d.]+) seconds\)", page)
    taken = 60 * int(found[1]) + float(found[2]) if found else 0.0
    return f"{taken:.0f} s" if taken >= 10 else f"{taken:.1f} s"


class Lessons(SphinxDirective):
    """``.. lessons:: 1 4`` lists the lessons 1 to 4 with picture, title, summary and time."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        first, last = map(int, self.arguments)
        lines = []
        for lesson in LESSONS:
            if first <= int(lesson.name[:2]) <= last:
                self.env.note_dependency(str(HERE / "lessons" / f"{lesson.stem}.rst"))
                title, summary = title_and_summary(lesson)
                lines += [
                    ".. container:: lesson", "",
                    f"   .. image:: /lessons/images/thumb/sphx_glr_{lesson.stem}_thumb.png",
                    f"      :alt: A picture of the lesson {title}",
                    f"      :target: lessons/{lesson.stem}.html", "",
                    f"   :doc:`{title} </lessons/{lesson.stem}>`", "",
                    f"   {summary} *Runs in {seconds(lesson)}.*", "",
                ]  # fmt: skip
        return self.parse_text_to_nodes("\n".join(lines))


LAB = re.compile(r"\b[Ll]ab (P\d+)\b")
LESSON = re.compile(r"\b[Ll]esson (\d\d)\b")
FORMULA = re.compile(r"^(?!\.\. )(.*\S)?::\n\n(?=    \S)", re.MULTILINE)


def finish_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Give a page in Markdown the links of the site."""
    if Path(app.env.doc2path(page)).suffix == ".md":
        source[0] = pages.for_the_site(page, source[0])


def finish_lesson(app: Sphinx, page: str, source: list[str]) -> None:
    """Make "lesson 03" a link where another lesson says it, and "lab P3" one to its report, and say of a
    formula that it is not Python."""
    names = {lesson.name[:2]: lesson.stem for lesson in LESSONS}

    def link(found: re.Match[str]) -> str:
        name = names.get(found[1])
        return f":doc:`{found[0]} </lessons/{name}>`" if name and not page.endswith(name) else found[0]

    def report(found: re.Match[str]) -> str:
        page = f"reference/lab/{find(found[1]).name}-quick"
        return f":doc:`{found[0]} </{page}>`" if (HERE / f"{page}.md").exists() else found[0]

    def formula(found: re.Match[str]) -> str:
        return (f"{found[1]}:\n\n" if found[1] else "") + ".. code-block:: none\n\n"

    if page.startswith("lessons/"):
        prose = re.split(r"(^\.\. code-block::.*\n(?:(?: .*)?\n)*)", source[0], flags=re.MULTILINE)
        prose[::2] = [LESSON.sub(link, part) for part in prose[::2]]
        prose[::2] = [LAB.sub(report, part) for part in prose[::2]]
        prose[::2] = [FORMULA.sub(formula, part) for part in prose[::2]]
        source[0] = "".join(prose)


# -------------------------------------------------------------------------------------------- the reference


def modules(package: str) -> list[str]:
    """A package and every module in it and in its packages, but those that begin with an underscore."""
    found = importlib.import_module(package)
    inside = pkgutil.walk_packages(found.__path__, f"{package}.") if hasattr(found, "__path__") else []
    return [package, *(module.name for module in inside if "._" not in module.name)]


def write_reference(app: Sphinx) -> None:
    """One page per module, each of them from its docstrings."""
    folder = HERE / "reference"
    folder.mkdir(exist_ok=True)
    for name in modules("minires")[1:]:
        path, text = folder / f"{name}.rst", f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"
        package, _, last = name.rpartition(".")
        if not isinstance(getattr(importlib.import_module(package), last, None), ModuleType):
            text += "   :no-index:\n"  # a function has the name of its module, and is found under it
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    pages.write()


class Modules(SphinxDirective):
    """``.. modules:: minires.tensor minires.ops`` lists these and the modules inside, with a first line."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        lines = []
        for name in [module for package in self.arguments[0].split() for module in modules(package)]:
            module = importlib.import_module(name)
            self.env.note_dependency(str(module.__file__))
            first = " ".join(plain((module.__doc__ or "").strip().split("\n\n")[0]).split())
            lines += [f":doc:`{name} </reference/{name}>`", f"   {first}", ""]
        return self.parse_text_to_nodes("\n".join(lines))


FIELD = re.compile(r"\*?(Math|Shapes|Units|Backward|Raises|Sources?|Differs)\*?:(?: (.*))?")
ARGUMENT = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")
MARKUP = re.compile(r"(``.*?``|:\w+:`.*?`|(?<!\w)\*\w+\*(?!\w))", re.DOTALL)


def plain(text: str) -> str:
    """Our docstrings are plain text, in which a star multiplies: escape what only looks like markup."""
    parts = MARKUP.split(text)
    parts[::2] = [re.sub(r"[*|](?=\S)|(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def to_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into reST: an indented formula becomes a literal block, "Shapes: ..." a field, and
    lines on arguments a list. An example is left as it is."""
    done: list[str] = []
    for block in "\n".join(lines).strip("\n").split("\n\n"):
        rows = block.split("\n")
        if all(row.startswith("  ") for row in rows):
            done += ["::", "", *rows, ""]
            continue
        if block.startswith(">>> "):
            done += [*rows, ""]
            continue
        if ARGUMENT.match(block):
            for row in plain(block).split("\n"):
                argument = ARGUMENT.match(row)
                done.append(f"* ``{argument[1]}``: {argument[2]}" if argument else f"  {row.lstrip()}")
            done.append("")
            continue
        done += _paragraph(rows)
    lines[:] = done


def _paragraph(rows: list[str]) -> list[str]:
    """A paragraph with its fields; what stands indented below "Math:" alone is a formula."""
    done: list[str] = []
    margin, formula = "", False
    for row, escaped in zip(rows, plain("\n".join(rows)).split("\n"), strict=True):
        if field := FIELD.match(escaped):
            done += [""] * (margin == "" or formula) + [f":{field[1]}: {field[2] or ''}"]
            margin, formula = "   ", not field[2]
            done += [f"{margin}::", ""] * formula
        elif formula and row.startswith("  "):
            done.append(margin + row)
        else:
            done += [""] * formula + [margin + escaped]
            formula = False
    return [*done, ""]


def name_aliases(app: Sphinx, *described: Any) -> tuple[str | None, str | None]:
    """Write ``Array | None`` as it is: Sphinx shows an alias in a union as the object it made of it."""
    clean = [re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text or "") or None for text in described[-2:]]
    return clean[0], clean[1]


def setup(app: Sphinx) -> None:
    """Connect what is written above to Sphinx."""
    app.add_directive("lessons", Lessons)
    app.add_directive("modules", Modules)
    app.connect("builder-inited", write_reference)
    app.connect("source-read", finish_lesson)
    app.connect("source-read", finish_page)
    app.connect("autodoc-process-docstring", to_rst)
    app.connect("autodoc-process-signature", name_aliases)
