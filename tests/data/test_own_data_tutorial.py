# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The own-data tutorial of datasets/README.md: each of its commands, in order, as written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tutorial_blocks():
    text = (ROOT / "datasets" / "README.md").read_text()
    parts = re.split(r"^## ", text, flags=re.M)
    section = next(p for p in parts if p.startswith("Your own data"))
    return re.findall(r"^```bash\n(.*?)^```", section, re.S | re.M)


@pytest.mark.long
def test_tutorial_runs_as_written(tmp_path):
    blocks = tutorial_blocks()
    assert len(blocks) >= 7
    for name in ("tools", "configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    # "python" is the interpreter of this test
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for block in blocks:
        if "review.json" in block:  # which a person exports from the page
            manifest = json.loads((tmp_path / "mydata/labels/manifest.json").read_text())
            first = json.loads((tmp_path / "mydata/train.json").read_text())["images"][0]["id"]
            review = {"kind": "wsis_d2 review", "recipe": manifest["recipe_hash"],
                      "images": [{"image_id": first, "verdict": "full"}]}  # fmt: skip
            (tmp_path / "review.json").write_text(json.dumps(review))
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, block + run.stdout[-2000:] + run.stderr[-2000:]
    results = json.loads((tmp_path / "mydata" / "panoptic" / "results.json").read_text())
    (measured,) = results["runs"].values()
    assert 0 <= measured["panoptic_seg"]["PQ"] <= 100
    assert (tmp_path / "mydata" / "report.html").stat().st_size > 1000
    # What the review marks comes first among the images to annotate next.
    names = {i["id"]: i["file_name"] for i in json.loads(
        (tmp_path / "mydata/train.json").read_text())["images"]}  # fmt: skip
    suggested = (tmp_path / "mydata/next.txt").read_text().split()
    assert len(suggested) == 10 and suggested[0] == names[first]
