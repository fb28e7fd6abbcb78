# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The pages are built without a warning, and the notebook runs."""

import json
import os
import subprocess
import sys

import pytest
from helpers.load_tool import ROOT

NOTEBOOK = ROOT / "docs" / "photograph.ipynb"


def test_the_notebook_has_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.long
def test_the_notebook_runs_and_shows_pictures(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5


@pytest.mark.long
def test_pages_are_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [
        sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html",
        "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "html"),
    ]  # fmt: skip
    run = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    page = (tmp_path / "html" / "api" / "wsis_d2.layers.html").read_text()
    assert "mean_field" in page
