# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""docs/method.md: its functions, keys and tests exist, and no key of the project is missing."""

import fnmatch
import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from wsis_d2.config import read_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def expand(name: str) -> list[str]:
    """Return the names that one with ``{a,b}`` stands for."""
    # Text and the insides of braces alternate.
    parts = [part.split(",") if k % 2 else [part] for k, part in enumerate(re.split(r"[{}]", name))]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def spans(text: str) -> list[str]:
    return [name for span in re.findall(r"`([^`]+)`", text) for name in expand(span)]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its first two lines."""
    section = re.split(r"^## ", TEXT, flags=re.M)
    (section,) = [s for s in section if s.startswith(f"{heading}\n")]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


PAPER = rows("The paper")
SILENT = rows("Where the paper is silent")
ADDITIONS = rows("Additions, not in the paper")
CODE = {
    **{name: "paper" for _, _, code, _, _ in PAPER for name in spans(code)},
    **{name: "addition" for _, code, _, _ in ADDITIONS for name in spans(code)},
}
TESTS = sorted({name for row in PAPER + ADDITIONS for name in spans(row[-1])})
# Everything in the document that is written as a key.
KEYS = {n for n in spans(TEXT) if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*(\.\*)?", n)}


def flat(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_names_are_expanded():
    assert expand("a") == ["a"]
    assert expand("A.{B,C}") == ["A.B", "A.C"]
    assert expand("{A,B}.{C,D}") == ["A.C", "A.D", "B.C", "B.D"]


def test_tables_are_read():
    assert len(PAPER) > 30 and len(ADDITIONS) > 15 and len(SILENT) > 5
    assert all(len(row) == 5 for row in PAPER) and all(len(row) == 4 for row in ADDITIONS)


@pytest.mark.parametrize("name", CODE)
def test_code_exists(name):
    module, _, names = name.partition(":")
    found = importlib.import_module(f"wsis_d2.{module}")
    assert names, name
    for part in names.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("name", [name for name, kind in CODE.items() if kind == "addition"])
def test_an_addition_says_so(name):
    module, _, names = name.partition(":")
    module = importlib.import_module(f"wsis_d2.{module}")
    own = functools.reduce(getattr, names.split("."), module)
    firsts = [" ".join((inspect.getdoc(thing) or "").split("\n")[:6]) for thing in (module, own)]
    assert any(re.search("additions?, not in the paper", text, re.I) for text in firsts)


@pytest.mark.parametrize("name", TESTS)
def test_test_exists(name):
    assert (ROOT / "tests" / name).is_file()


def test_every_row_has_a_test():
    assert [row[1] for row in PAPER + ADDITIONS if not spans(row[-1])] == []


def test_keys_exist():
    known = set(flat(read_config()))
    named = {key for row in PAPER for key in spans(row[3])}
    named |= {key for row in SILENT for key in spans(row[0])}
    named |= {key for row in ADDITIONS for key in spans(row[2])}
    missing = [key for key in sorted(named | {k for k in KEYS if "." in k})
               if not fnmatch.filter(known, key)]  # fmt: skip
    assert missing == []


def test_no_key_is_missing():
    own = set(flat(read_config())) - set(flat(get_cfg()))
    missing = [key for key in sorted(own) if not any(fnmatch.fnmatch(key, k) for k in KEYS)]
    assert missing == [], "tell in docs/method.md what they are of"
