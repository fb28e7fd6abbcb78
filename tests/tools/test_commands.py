# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every command that a document names can be started as it is written there."""

import ast
import os
import re
import subprocess
import sys

import pytest
from helpers.load_tool import ROOT

COMMANDS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("prepare_*.py")])
DOCUMENTS = [
    path for pattern in ("*.md", "*/README.md", "configs/*/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
]  # fmt: skip


def git_modes() -> dict[str, str]:
    """Path below the root to its mode in git."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-s", "tools", "datasets"],
        capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("no checkout of git")
    rows = (line.split(None, 3) for line in listed.stdout.splitlines())
    return {path: mode for mode, _, _, path in rows}


def test_every_command_is_executable_in_git():
    modes = git_modes()
    names = {path.relative_to(ROOT).as_posix() for path in COMMANDS} & set(modes)
    assert len(names) > 20
    assert {name: modes[name] for name in names if modes[name] != "100755"} == {}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_is_a_program(path):
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env python\n") and os.access(path, os.X_OK)
    assert any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test)
               for node in ast.parse(text).body)  # fmt: skip


def test_documents_name_commands_that_are_there():
    known = {path.relative_to(ROOT).as_posix() for path in COMMANDS}
    named = {}
    for document in DOCUMENTS:
        for name in re.findall(
            r"(?<![\w/.-])((?:tools|datasets)/[a-z_0-9]+\.py)\b", document.read_text()
        ):
            named.setdefault(name, document.name)
    assert len(named) > 15
    assert {name: where for name, where in named.items() if name not in known} == {}


@pytest.mark.parametrize("name", ["tools/import_annotations.py", "datasets/prepare_sample.py"])
def test_a_command_starts_as_documents_call_it(name):
    """By its own name; that all others have a sound --help is tested without a process each."""
    python = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}"}
    run = subprocess.run(
        [str(ROOT / name), "--help"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0 and "usage:" in run.stdout, run.stderr
