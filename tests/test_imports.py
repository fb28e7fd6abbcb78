# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What is imported is what setup.py promises, on every Python that it promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.load_tool import ROOT

SOURCES = sorted(
    path for folder in ("wsis_d2", "tools", "datasets") for path in (ROOT / folder).rglob("*.py")
)
# What builds and installs runs on the user's Python too.
BUILD_FILES = [ROOT / "setup.py", *sorted((ROOT / "packaging").rglob("*.py"))]
# Name of the module where it is not the package's.
MODULE_OF = {"opencv-python-headless": "cv2", "pydensecrf2": "pydensecrf", "kornia-rs": "kornia_rs"}
# The user's own (README.md), and what Detectron2 itself needs.
DETECTRON2 = {
    "torch", "torchvision", "detectron2", "PIL", "matplotlib", "fvcore", "iopath", "yacs", "yaml",
    "omegaconf", "tensorboard", "termcolor", "cloudpickle",
}  # fmt: skip
# New in Python 3.11, 3.12 or 3.13.
NEW_MODULES = {"tomllib"}
NEW_NAMES = {
    "hashlib.file_digest", "contextlib.chdir", "datetime.UTC", "enum.StrEnum", "enum.verify",
    "enum.ReprEnum", "enum.member", "enum.nonmember", "typing.Self", "typing.LiteralString",
    "typing.Never", "typing.assert_never", "typing.assert_type", "typing.reveal_type",
    "typing.Required", "typing.NotRequired", "typing.Unpack", "typing.TypeVarTuple",
    "typing.override", "typing.TypeAliasType", "typing.TypeIs", "typing.ReadOnly", "math.cbrt",
    "math.exp2", "math.sumprod", "math.fma", "operator.call", "asyncio.TaskGroup",
    "asyncio.timeout", "asyncio.Runner", "logging.getLevelNamesMapping", "sys.exception",
    "sys.monitoring", "itertools.batched", "os.process_cpu_count", "os.listdrives",
    "inspect.getmembers_static", "copy.replace", "calendar.Month", "warnings.deprecated",
    "re.NOFLAG", "collections.abc.Buffer", "uuid.uuid7", "queue.ShutDown",
}  # fmt: skip
NEW_METHODS = {"add_note", "full_match", "binomialvariate"}
# Of functions and methods by these names; tarfile's filters came with 3.10.12 and 3.11.4.
NEW_KEYWORDS = {
    "extract": {"filter"}, "extractall": {"filter"}, "unpack_archive": {"filter"},
    "rmtree": {"onexc"}, "TemporaryDirectory": {"delete"},
    "NamedTemporaryFile": {"delete_on_close"}, "ProcessPoolExecutor": {"max_tasks_per_child"},
    "relative_to": {"walk_up"}, "read_text": {"newline"}, "add_argument": {"deprecated"},
    "exists": {"follow_symlinks"}, "is_file": {"follow_symlinks"}, "is_dir": {"follow_symlinks"},
    "glob": {"case_sensitive", "recurse_symlinks", "include_hidden"},
    "rglob": {"case_sensitive", "recurse_symlinks"}, "dataclass": {"weakref_slot"},
    "Popen": {"process_group"}, "run": {"process_group"},
}  # fmt: skip
NEW_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}


def setup_lists() -> tuple[set[str], set[str]]:
    """Modules of install_requires and of extras_require."""
    call = next(
        node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )  # fmt: skip
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    always = ast.literal_eval(options["install_requires"])
    extras = sum(ast.literal_eval(options["extras_require"]).values(), [])
    return tuple(
        {MODULE_OF.get(name, name) for name in (re.split(r"[<>=~\[]", line)[0] for line in lines)}
        for lines in (always, extras)
    )


def imported(tree: ast.AST) -> set[str]:
    """Packages that a piece of code imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def parse(paths: list[Path]) -> dict[str, ast.Module]:
    """Trees of files by their path in the checkout, by Python 3.10's grammar."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(), feature_version=(3, 10))
        for path in paths
    }


@pytest.fixture(scope="module")
def trees():
    return parse(SOURCES)


def test_every_package_that_is_imported_is_listed(trees):
    always, extras = setup_lists()
    known = sys.stdlib_module_names | DETECTRON2 | always | {"wsis_d2"}
    # An extra may be asked for where it is used, never when a module is loaded.
    loaded = {
        (path, package)
        for path, tree in trees.items()
        for statement in tree.body
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        for package in imported(statement) - known
        if not isinstance(statement, ast.Try)
    }
    assert loaded == set()
    anywhere = {(p, n) for p, tree in trees.items() for n in imported(tree) - known - extras}
    assert anywhere == set()


def test_nothing_is_newer_than_the_oldest_python(trees):
    found = []
    for path, tree in (trees | parse(BUILD_FILES)).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = {f"{node.value.id}.{node.attr}"}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                names = set()
            new = bool(names & NEW_NAMES)
            new |= isinstance(node, ast.Name) and node.id in NEW_BUILTINS
            new |= isinstance(node, ast.Attribute) and node.attr in NEW_METHODS
            new |= isinstance(node, getattr(ast, "TryStar", ()))
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                keywords = {keyword.arg for keyword in node.keywords}
                new |= bool(keywords & NEW_KEYWORDS.get(name, set()))
            if new:
                found.append(f"{path}:{node.lineno}")
        found += [path for name in imported(tree) & NEW_MODULES if name]
    assert found == []


def test_importing_the_package_registers_all_that_is_its_own():
    code = """
import wsis_d2
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from wsis_d2.data.mappers.build import DATASET_MAPPER_REGISTRY
for registry, names in (
    (DatasetCatalog.list(), ["sample_train_weak", "sample_val_full",
                             "voc_2012_trainaug_panoptic_weak",
                             "cityscapes_fine_panoptic_train_weak"]),
    (DATASET_MAPPER_REGISTRY, ["PanopticMapper", "TagMapper", "TagRegionMapper"]),
    (META_ARCH_REGISTRY, ["WeakPanopticRCNN", "TagClassifier", "TagSegmenter"]),
    (BACKBONE_REGISTRY, ["build_resnet_any_backbone", "build_resnet_any_fpn_backbone"]),
    (SEM_SEG_HEADS_REGISTRY, ["PSPHead"]),
):
    for name in names:
        assert name in registry, name
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
