# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The order of the package's folders: imports point down, and nothing imports in a circle."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up. A module imports from its own folder and from those below it.
FOLDERS = [
    "utils",
    "structures",
    "layers",
    "config_checks",
    "config",
    "planning",
    "visualization",
    "weak_labels",
    "data",
    "modeling",
    "checkpoint",
    "evaluation",
    "engine",
    "relabeling",
    "model_zoo",
    "inference",
    "report",
    "export",
]


# A command (python -m) that looks at everything; nothing imports it.
COMMANDS = {"wsis_d2.utils.collect_env"}


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "wsis_d2").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(name: str) -> set[str]:
    """What a module imports of the package, at any depth: an import in a function counts."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import, line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return {module for module in found if module in MODULES} - {name}


GRAPH = {name: _imports(name) for name in MODULES}


def _folder(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph as the names along it, empty where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            found = visit(other, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        found = visit(name, [])
        if found:
            return found
    return []


def test_the_search_finds_a_circle():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_files_import_each_other():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    # A package's own file gathers what lies in it; a module may name its package.
    graph = {
        name: {other for other in others if not (other in packages and name.startswith(other))}
        for name, others in GRAPH.items()
        if name != "wsis_d2"
    }
    graph = {name: {o for o in others if o in graph} for name, others in graph.items()}
    assert _circle(graph) == []


def test_every_folder_has_its_folder():
    assert sorted({_folder(name) for name in MODULES} - {""}) == sorted(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_down(folder):
    upwards = [
        f"{name} -> {other}"
        for name, others in GRAPH.items()
        for other in others
        if _folder(name) == folder
        and name not in COMMANDS
        and _folder(other) in FOLDERS
        and FOLDERS.index(_folder(other)) > FOLDERS.index(folder)
    ]
    assert upwards == []


def test_nothing_imports_a_command():
    assert not [name for name, others in GRAPH.items() if others & COMMANDS]


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = {
    title: walk.split("\n1. ", 1)[1]
    for title, walk in (
        part.split("\n", 1) for part in re.split(r"^### ", CONTRIBUTING, flags=re.M)[1:]
    )
}


def test_contributing_tells_the_order():
    section = CONTRIBUTING.split("\n## The order of the folders\n")[1]
    assert re.split(r",\s+", section.split("```")[1].strip()) == FOLDERS


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_names_what_is_there(title):
    steps = re.split(r"^\d\. ", WALKS[title], flags=re.M)
    folders = [re.match(r"\*\*(\w+)\.\*\*", step).group(1) for step in steps]
    assert len(folders) > 2 and len(set(folders)) == len(folders)
    for folder, step in zip(folders, steps, strict=True):
        named = re.findall(r"`([\w/]+)\.py(?::([\w.]+))?`", step)
        assert named and {path.split("/")[0] for path, _ in named} == {folder}
        for path, names in named:
            module = importlib.import_module("wsis_d2." + path.replace("/", "."))
            functools.reduce(getattr, filter(None, names.split(".")), module)


def test_there_are_three_walks():
    assert len(WALKS) == 3
