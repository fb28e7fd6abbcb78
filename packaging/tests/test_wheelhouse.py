# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The wheelhouse: what counts as there already, and parts that can be put together again."""

import importlib.util
import subprocess
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location(
    "wheelhouse", Path(__file__).resolve().parents[1] / "wheelhouse.py"
)
wheelhouse = importlib.util.module_from_spec(spec)
sys.modules["wheelhouse"] = wheelhouse
spec.loader.exec_module(wheelhouse)


def test_names_are_read_from_list_and_freeze(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("Package    Version\n---------- -------\nopencv_Python  4\nnumpy  2.1\n")
    assert wheelhouse.read_names(listing) == {"opencv-python", "numpy"}
    listing.write_text("Pillow==13.0.0\nzope.interface==5\n")
    assert wheelhouse.read_names(listing) == {"pillow", "zope-interface"}


def test_requirements_without_comments():
    pinned = wheelhouse.read_requirements(wheelhouse.ROOT / "requirements.txt")
    assert any(line.startswith("torch==") for line in pinned)
    assert all("==" in line and "#" not in line for line in pinned)


def test_parts_are_small_and_join_to_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(wheelhouse, "PART_BYTES", 1000)
    source = tmp_path / "source"
    source.mkdir()
    contents = {
        "large-1.0-py3-none-any.whl": bytes(i % 251 for i in range(2500)),
        "b-1.0-py3-none-any.whl": b"b" * 700,
        "c-2.0.tar.gz": b"c" * 300,
        "d-1.0-py3-none-any.whl": b"d" * 600,
    }
    for name, data in contents.items():
        (source / name).write_bytes(data)
    output = tmp_path / "out"
    parts = wheelhouse.split(list(source.iterdir()), output)
    for part in parts:
        assert sum(f.stat().st_size for f in part.iterdir()) <= 1000
    (output / "part1" / "join.sh").write_text(wheelhouse.JOIN)
    subprocess.run(["bash", str(output / "part1" / "join.sh")], check=True)
    joined = {f.name: f.read_bytes() for f in (output / "wheels").iterdir()}
    assert joined == contents
