# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Names of others in pages, tables and lines: text they stay, wherever they stand."""

import csv
import io
from html.parser import HTMLParser

import numpy as np
import pytest

from wsis_d2.evaluation.run_tables import csv_text, markdown_table
from wsis_d2.report.html import write_report
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.palette import class_list

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!--",
    "]]><svg/onload=alert(1)>",
    "@@DATA@@",
    "javascript:alert(1)",
    "\u2028\u2029\u202e",
    "\ud800",
    "&lt;b&gt; &amp; \\u003cscript>",
    "__proto__",
]


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))
        assert not any(name.startswith("on") for name, _ in attrs)
        for name, value in attrs:
            if name in ("src", "href"):
                assert value.startswith(("#", "data:"))

    def handle_endtag(self, tag):
        self.found.append((f"/{tag}",))

    def handle_comment(self, data):
        self.found.append(("comment",))

    def handle_data(self, data):
        self.texts.append(data)


def page(folder, text):
    """A page in which a text stands wherever one may."""
    image = np.zeros((4, 5, 3), np.uint8)
    labels = np.zeros((4, 5), np.uint8)
    classes = class_list(
        [{"id": k, "name": name, "isthing": 1 - k} for k, name in enumerate((text, "sky"))]
    )
    layers = {"image": image, text: LabelLayer(labels, labels.astype(np.int32)),
              "annotation": AnnotationLayer([[0, 0, 2, 2]], [0], tags=[1])}  # fmt: skip
    items = [{"name": text, "layers": layers, "scores": {text: 1.0}, "caption": text,
              "classes": [text]}]  # fmt: skip
    table = {"title": text, "columns": [text, text], "rows": [[text, text]] * 20, "note": text}
    series = [{"name": text, "x": [1, 2], "y": [1, 2]}]
    curve = {"title": text, "x_label": text, "y_label": text, "series": series, "note": text}
    bars = {"title": text, "labels": [text], "series": [{"name": text, "values": [1.0]}],
            "unit": text, "note": text}  # fmt: skip
    written = write_report(
        folder / "page.html", text, items, classes=classes, subtitle=text, tables=[table],
        curves=[curve], bars=[bars], sort=text, footer=text,
    )  # fmt: skip
    return written.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_page_has_the_elements_that_it_has_with_harmless_names(tmp_path, text):
    for part in ("harmless", "hostile"):
        (tmp_path / part).mkdir()
    harmless = Elements(page(tmp_path / "harmless", "harmless"))
    hostile = Elements(page(tmp_path / "hostile", text))
    assert hostile.found == harmless.found
    if text.isprintable() and "\\u" not in text:
        assert text in "".join(hostile.texts)


def test_pictures_are_found_whatever_the_page_is_called(tmp_path):
    image = np.zeros((4, 5, 3), np.uint8)
    name = "100% #1 ?.html"
    text = write_report(
        tmp_path / name, "a", [{"name": "a", "layers": {"image": image}}]
    ).read_text(encoding="utf-8")
    assert (tmp_path / "100% #1 ?_files").is_dir()
    assert '"src":"100%25%20%231%20%3F_files/' in text


def test_cells_that_a_spreadsheet_would_compute_stay_texts():
    row = ["=HYPERLINK(1)", "+1+1", "@a", "-a", "-1.5", "a", 2.0, "\t=1"]
    (_, found) = csv.reader(io.StringIO(csv_text(["a"] * 8, [row])))
    assert found == ["'=HYPERLINK(1)", "'+1+1", "'@a", "'-a", "-1.5", "a", "2.0", "'\t=1"]


def test_names_do_not_break_a_markdown_table():
    text = markdown_table(["a", "b"], [["x | y\n<script>", "1"]])
    assert text.splitlines()[-1] == r"| x \| y\n&lt;script&gt; | 1 |"
