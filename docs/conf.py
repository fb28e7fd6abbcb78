# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Sphinx configuration: ``make docs`` builds without a network, and every warning is an error.

What the READMEs beside the code say is not said again here. A page takes a whole README, or one
section of it, by a link of its own paragraph after the line ``<!-- include -->``; links between
documents lead to the page that holds their target.
"""

import os
import re
from pathlib import Path

from mdit_py_plugins.anchors.index import slugify
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

project = "wsis_d2"
author = "wsis_d2 contributors"
project_copyright = author
release = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "wsis_d2" / "__init__.py").read_text(), re.M
).group(1)
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.apidoc",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"wsis_d2 {release}"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

apidoc_modules = [
    {
        "path": "../wsis_d2",
        "destination": "api",
        "max_depth": 2,
        "separate_modules": False,
        "module_first": True,
        "automodule_options": {"members", "show-inheritance"},
    }
]
autodoc_default_options = {"ignore-module-all": True}  # a class is in its own module alone
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

# A paragraph that is one link, after the line that asks for its target.
INCLUDE = re.compile(r"^<!-- include -->\n\[[^]]*\]\(([^)#\s]+)(?:#([^)\s]+))?\)$", re.M)
LINK = re.compile(r"\[([^]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)


def section(text: str, anchor: str | None) -> str:
    """Return a README without its title, or one section of it with its heading."""
    if anchor is None:
        return re.sub(r"\A# .+\n", "", text)
    lines, level, kept, fenced = text.splitlines(), 0, [], False
    for line in lines:
        fenced ^= line.startswith("```")
        heading = None if fenced else re.match(r"(#+) (.+)", line)
        if heading and level and len(heading.group(1)) <= level:
            break
        if heading and not level and slugify(heading.group(2)) == anchor:
            level = len(heading.group(1))
        if level:
            kept.append(line)
    if not level:
        raise ExtensionError(f"a page includes the section {anchor}, which does not exist")
    return "\n".join(kept) + "\n"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {slugify(heading) for heading in headings}


def pages() -> dict[Path, list[tuple[str, set[str]]]]:
    """Which pages hold which files: file to (page, anchors of what it holds)."""
    found: dict[Path, list[tuple[str, set[str]]]] = {}
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found.setdefault(page, []).append((page.name, anchors(text)))
        for target, anchor in INCLUDE.findall(text):
            file = (DOCS / target).resolve()
            held = section(file.read_text(encoding="utf-8"), anchor or None)
            found.setdefault(file, []).append((page.name, anchors(held)))
    return found


PAGES = pages()


def link_from(folder: Path, target: str, anchor: str) -> str | None:
    """Return a document's link as one of a page in this folder; None: there is no page for it."""
    if re.match(r"[a-z]+:", target) or not target:
        return target + anchor
    file = (folder / target).resolve()
    if file.is_dir() and (file / "README.md").is_file():
        file = file / "README.md"
    holders = PAGES.get(file, [])
    for page, held in holders:
        if not anchor or anchor[1:] in held:
            return page + anchor
    if holders:
        raise ExtensionError(f"{folder}: {file.relative_to(ROOT)} has no section {anchor}")
    if not file.exists():
        raise ExtensionError(f"{folder}: a document links to {target}, which does not exist")
    if file.is_dir():
        return None
    path = os.path.relpath(file, DOCS)
    # A document that no page holds is a file to look at.
    return f"path:{path}" if file.suffix == ".md" else path + anchor


def with_links(text: str, folder: Path) -> str:
    """Rewrite the links outside blocks of code."""

    def rewritten(match: re.Match) -> str:
        link = link_from(folder, match[2], match[3] or "")
        return match[1] if link is None else f"[{match[1]}]({link})"

    parts, last = [], 0
    for block in [*FENCE.finditer(text), None]:
        end = block.start() if block else len(text)
        parts.append(LINK.sub(rewritten, text[last:end]))
        if block:
            parts.append(block.group())
            last = block.end()
    return "".join(parts)


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    page = DOCS / f"{docname}.md"
    if not page.is_file():
        return
    pieces, last = [], 0
    for match in INCLUDE.finditer(content[0]):
        pieces.append(with_links(content[0][last : match.start()], DOCS))
        file = (DOCS / match[1]).resolve()
        app.env.note_dependency(str(file), docname=docname)
        held = section(file.read_text(encoding="utf-8"), match[2])
        # Links within the file itself may lead to a section on another page.
        held = re.sub(r"\]\(#", f"]({file.name}#", held)
        pieces.append(with_links(held, file.parent))
        last = match.end()
    pieces.append(with_links(content[0][last:], DOCS))
    content[0] = "".join(pieces)


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
