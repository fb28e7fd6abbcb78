# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Public functions and methods of the package say their types; mypy (``make lint``) checks them."""

import ast
from collections.abc import Iterator

from helpers.load_tool import ROOT


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST, bool]]:
    """Yield name, node and whether it is in a class, of what a user may call."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((n, f, True) for n, f, _ in public_functions(node.body, f"{node.name}."))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield prefix + node.name, node, False
        elif isinstance(node, ast.If | ast.Try):
            yield from public_functions(node.body, prefix)


def missing_types(node: ast.FunctionDef, in_class: bool) -> list[str]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    if in_class and not static:
        arguments = arguments[1:]  # self or cls
    arguments += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
    missing = [a.arg for a in arguments if a.annotation is None]
    if node.returns is None and node.name != "__init__":
        missing.append("return")
    return missing


def test_public_functions_are_typed():
    found = []
    for path in sorted((ROOT / "wsis_d2").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node, in_class in public_functions(tree.body):
            if missing := missing_types(node, in_class):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}: {missing}")
    assert found == []


def test_an_untyped_function_is_found():
    code = (
        "class A:\n def f(self, x, *y: int) -> int: ...\n def _g(self, x): ...\ndef h(z: int): ..."
    )
    found = {
        name: missing_types(node, in_class)
        for name, node, in_class in public_functions(ast.parse(code).body)
    }
    assert found == {"A.f": ["x"], "h": ["return"]}
