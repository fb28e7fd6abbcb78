# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""PEP 517 backend: v0.6's source distribution in, a wheel ``detectron2`` out.

Pure Python; needs neither torch nor a compiler. ``DETECTRON2_SDIST`` names an archive on disk to
use instead of a download; ``PIP_INDEX_URL`` and ``PIP_EXTRA_INDEX_URL`` choose the package index.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from rules import RULES  # noqa: E402

REQUIREMENT = "pb1-detectron2==0.6"
ARCHIVE = "pb1-detectron2-0.6.tar.gz"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# Upstream's own list, less what only its caffe2 export and config printing use.
_PROJECT = """\
[build-system]
requires = ["setuptools>=70"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "{version}"
description = "Detectron2 v0.6, repackaged for a current Python stack (no compiled operators)"
license = {{ file = "LICENSE" }}
requires-python = ">=3.10"
dependencies = [
    "cloudpickle", "fvcore>=0.1.5,<0.1.6", "hydra-core>=1.1", "iopath>=0.1.7", "matplotlib",
    "numpy", "omegaconf>=2.1", "Pillow>=7.1", "pycocotools>=2.0.2", "tabulate", "tensorboard",
    "termcolor>=1.1", "tqdm>4.29.0", "yacs>=0.1.8",
]

[tool.setuptools]
include-package-data = false

[tool.setuptools.packages.find]
include = ["detectron2*"]

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""

# Small projects that upstream installs inside the package too.
_PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}


def download(folder: Path) -> Path:
    """Return the path of the source distribution, downloaded into ``folder``.

    Raises RuntimeError naming the file where its hash is wrong or the download failed.
    """
    given = os.environ.get("DETECTRON2_SDIST")
    if given:
        archive = Path(given)
        if not archive.is_file():
            raise RuntimeError(f"DETECTRON2_SDIST={given}: no such file")
    else:
        command = [sys.executable, "-m", "unearth", "--no-binary", "-d", str(folder)]
        for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
            for url in os.environ.get(variable, "").split():
                command += ["-i", url]
        run = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True)
        archive = folder / ARCHIVE
        if run.returncode or not archive.is_file():
            raise RuntimeError(
                f"{REQUIREMENT}: the source distribution could not be downloaded "
                f"(check the network, or set DETECTRON2_SDIST to the file {ARCHIVE}):\n"
                f"{run.stderr.strip()[-2000:]}"
            )
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{archive.name}: sha256 is {found}, expected {SHA256}; not used")
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Unpack ``archive``, whose hash is known, below ``folder``."""
    # Python 3.10 before 3.10.12 and 3.11 before 3.11.4, Debian 12's among them, know no filter.
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as file:
        file.extractall(folder, **options)


def make_tree(archive: Path, folder: Path, version: str) -> Path:
    """Unpack ``archive`` below ``folder``, apply the rules, return the tree ready to be built."""
    unpack(archive, folder)
    tree = folder / ARCHIVE.removesuffix(".tar.gz")
    for rule in RULES:
        rule.apply(tree)
    shutil.copy(HERE / "_no_operators.py", tree / "detectron2" / "_no_operators.py")
    for name, source in _PROJECTS.items():
        shutil.copytree(tree / source, tree / "detectron2" / "projects" / name)
    for name in ("setup.py", "setup.cfg"):
        (tree / name).unlink()
    shutil.rmtree(tree / "pb1_detectron2.egg-info")
    (tree / "pyproject.toml").write_text(_PROJECT.format(version=version), encoding="utf-8")
    return tree


def project_version() -> str:
    """The version that pyproject.toml beside this file states."""
    for line in (HERE / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise RuntimeError("pyproject.toml: no line 'version = ...'")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 517 hook. The wheel appears under its final name only once it is whole."""
    from setuptools import build_meta

    target = Path(wheel_directory).resolve()
    with tempfile.TemporaryDirectory(prefix="detectron2-") as name:
        folder = Path(name)
        tree = make_tree(download(folder), folder, project_version())
        before = os.getcwd()
        os.chdir(tree)
        try:
            wheel = build_meta.build_wheel(str(folder))
        finally:
            os.chdir(before)
        part = target / f"{wheel}.part{os.getpid()}"
        try:
            shutil.copyfile(folder / wheel, part)
            os.replace(part, target / wheel)
        finally:
            part.unlink(missing_ok=True)
    return wheel


def build_sdist(sdist_directory, config_settings=None):
    """PEP 517 hook: there is nothing of our own to distribute as source."""
    raise NotImplementedError("packaging/detectron2 builds wheels only")
