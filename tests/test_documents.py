# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every command and every Python example of the documents is run, on a small embedded sample.

A block that cannot be run here (a download, another machine) carries its reason in the document:
``<!-- not run: reason -->`` on the line before it.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "tools/*.md", "datasets/*.md", "configs/**/*.md",
                    "packaging/**/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)  # fmt: skip


def blocks(text: str, kinds: tuple[str, ...] = ("bash", "sh")) -> list[tuple[int, str, str]]:
    """Return (line number, reason not to run or "", content) of each block of these kinds."""
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() not in [f"```{kind}" for kind in kinds]:
            continue
        indent = len(line) - len(line.lstrip())
        end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
        before = next((s for s in reversed(lines[:number]) if s.strip()), "")
        reason = re.match(r"\s*<!-- not run: (.+) -->", before)
        commands = "\n".join(s[indent:] for s in lines[number + 1 : end])
        found.append((number + 1, reason.group(1) if reason else "", commands))
    return found


def test_blocks_are_found_and_reasons_read():
    text = "a\n```bash\nls\n```\n<!-- not run: a download -->\n```bash\nget\nput\n```\n"
    assert blocks(text) == [(2, "", "ls"), (6, "a download", "get\nput")]
    assert blocks("```python\nx = 1\n```\n```bash\nls\n```", ("python",)) == [(1, "", "x = 1")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_no_command_hides_in_a_block_that_is_not_bash(document):
    text = (ROOT / document).read_text()
    kinds = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M)
    hidden = [
        body for kind, body in kinds if not kind and re.search(r"^(tools/|python )", body, re.M)
    ]
    assert not hidden, hidden


def test_every_tool_is_in_the_guide():
    guide = (ROOT / "tools" / "README.md").read_text()
    missing = [p.name for p in (ROOT / "tools").glob("*.py") if p.name not in guide]
    assert not missing, f"tools/README.md does not tell of {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def test_the_readme_shows_the_package_in_use():
    """Above the fold, and with names that exist; the long test runs it."""
    ((line, reason, code),) = blocks((ROOT / "README.md").read_text(), ("python",))
    assert line < 40 and not reason
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    for node in imports:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    assert {alias.name for node in imports for alias in node.names} >= {
        "add_wsis_config", "register_weak_panoptic", "WSISTrainer"
    }  # fmt: skip


def test_no_private_words():
    """Documents, docstrings and messages use the field's words."""
    private = re.compile(r"\b(houses?|rooms?|doors?|mend(s|ed|ing)?)\b", re.I)
    texts = {str(document): (ROOT / document).read_text() for document in DOCUMENTS}
    for folder in ("wsis_d2", "tools", "datasets", "packaging"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            texts[str(path)] = "\n".join(
                node.value for node in nodes
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )  # fmt: skip
    found = {name: match.group() for name, text in texts.items() if (match := private.search(text))}
    assert found == {}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like a checkout after a (quick) ``make demo``."""
    folder = tmp_path_factory.mktemp("documents")
    for name in os.listdir(ROOT):
        if name not in ("output", "build", "wheelhouse", ".git", ".pytest_cache", ".ruff_cache"):
            (folder / name).symlink_to(ROOT / name)
    run = subprocess.run(
        [sys.executable, "tools/run_sample.py", "--output", "output/demo", "--quick"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


def runnable(commands: str) -> str:
    """The commands without what the tests themselves are part of."""
    return "\n".join(
        line for line in commands.splitlines()
        if not re.match(r"\s*(make |pip install|git clone|cd )", line)
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_and_examples_run_as_written(document, workplace):
    text = (ROOT / document).read_text()
    examples = [
        (line, reason, f"python - <<'END'\n{code}\nEND")
        for line, reason, code in blocks(text, ("python",))
    ]
    for line, reason, commands in blocks(text) + examples:
        if reason or not runnable(commands).strip():
            continue
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DETECTRON2_DATASETS": str(workplace / "output" / "demo" / "datasets"),
        }
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", runnable(commands)],
            cwd=workplace, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, (
            f"{document}:{line}: status {run.returncode}\n{commands}\n"
            f"{run.stdout[-1500:]}\n{run.stderr[-1500:]}"
        )
