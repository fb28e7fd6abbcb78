# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The three ways in which the operators can be unusable, each told as itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wsis_d2.layers import _extension


@pytest.fixture(autouse=True)
def fresh():
    _extension._load.cache_clear()
    yield
    _extension._load.cache_clear()


def test_not_built(monkeypatch):
    monkeypatch.setattr(_extension, "library_path", lambda: None)
    with pytest.raises(_extension.ExtensionNotBuiltError, match="not built.*pip install"):
        _extension.require_extension()


def test_built_for_another_torch(monkeypatch, tmp_path):
    library = tmp_path / "_C.so"
    library.write_bytes(b"\x7fELF of another torch")
    monkeypatch.setattr(_extension, "library_path", lambda: library)
    monkeypatch.setattr(_extension, "build_info", lambda: {"torch": "2.5.0"})
    with pytest.raises(_extension.ExtensionMismatchError, match=r"torch 2\.5\.0 and this is torch"):
        _extension.require_extension()


def test_built_without_cuda(monkeypatch):
    monkeypatch.setattr(_extension, "_load", lambda: None)
    monkeypatch.setattr(_extension, "build_info", lambda: {"torch": torch.__version__})
    _extension.require_extension(torch.device("cpu"))
    with pytest.raises(_extension.ExtensionWithoutCudaError, match="FORCE_CUDA=1"):
        _extension.require_extension(torch.device("cuda"))


def test_a_damaged_build_info_is_no_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(_extension, "_PACKAGE", tmp_path)
    (tmp_path / "_build_info.json").write_text("{half")
    assert _extension.build_info() == {}
    (tmp_path / "_build_info.json").write_text(json.dumps({"torch": "2.9"}))
    assert _extension.build_info()["torch"] == "2.9"


def test_detectron2_missing_or_old_is_told_with_the_command(monkeypatch):
    from wsis_d2.utils import requirements

    monkeypatch.setattr(requirements, "detectron2_version", lambda: None)
    with pytest.raises(ImportError, match="pip install ./packaging/detectron2"):
        requirements.check_detectron2()
    monkeypatch.setattr(requirements, "detectron2_version", lambda: "0.5")
    with pytest.raises(ImportError, match="found 0.5"):
        requirements.check_detectron2()
    for good in ("0.6", "0.6+wsis1", "0.7", "1.0"):
        monkeypatch.setattr(requirements, "detectron2_version", lambda good=good: good)
        requirements.check_detectron2()


def refused_setup(folder):
    """What setup.py says, where it refuses with the modules of ``folder``."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parents[2] / "setup.py"), "--version"],
        capture_output=True, text=True, env={"PYTHONPATH": str(folder), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert run.returncode != 0 and "Traceback" not in run.stderr
    return run.stderr


def test_setup_without_torch_says_so_in_one_sentence(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch')")
    assert "needs torch to build" in refused_setup(tmp_path)


def test_setup_with_the_setuptools_of_a_new_python_3_10_says_so(tmp_path):
    # It knows no bdist_wheel, and would fail in the middle.
    for name, text in {
        "__init__": "__version__ = '65.5.0'\nfind_packages = setup = None",
        "command/__init__": "",
        "command/build_py": "build_py = object",
    }.items():
        file = tmp_path / "setuptools" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    said = refused_setup(tmp_path)
    assert "setuptools 70 or newer" in said and "found 65.5.0" in said and "pip install" in said
