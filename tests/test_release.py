# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Version, dates and commands agree between the files that a release consists of."""

import re
import shutil
import subprocess

import yaml
from helpers.load_tool import ROOT

import wsis_d2


def test_the_version_and_its_date_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    versions = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    dated = [(version, date) for version, date in versions if date]
    assert citation["version"] == wsis_d2.__version__
    assert dated[0] == (citation["version"], str(citation["date-released"]))


def test_the_workflow_runs_targets_that_exist_on_the_pythons_of_setup_py():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    jobs = workflow["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    used = {m for command in commands for m in re.findall(r"^make (\S+)", command, re.M)}
    assert used and used <= set(targets)
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text())
    for row in jobs["test"]["strategy"]["matrix"]["include"]:
        assert row["python"] in promised
    # The wheel is installed in empty environments of the oldest and the newest.
    release = f'make wheel PYTHONS="python{promised[0]} python{promised[-1]}"'
    assert release in commands and release in (ROOT / "CONTRIBUTING.md").read_text()


def test_an_interpreter_that_is_missing_is_told_before_anything_is_built(tmp_path):
    (tmp_path / "packaging").mkdir()
    script = shutil.copy(ROOT / "packaging" / "check_wheel.sh", tmp_path / "packaging")
    (tmp_path / "dist").mkdir()
    command = ["bash", script, ".venv", "dist", "sh", "python3.99"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and (tmp_path / "dist").is_dir()
    assert run.stderr.startswith("check_wheel: python3.99 is not installed; name interpreters")


def test_forms_name_what_they_ask_for():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= set(form), path.name
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids)), path.name
        assert all(field["attributes"]["label"] for field in form["body"]), path.name


def test_hooks_call_tools_that_the_set_up_installs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    pinned = (ROOT / "requirements.txt").read_text()
    for repo in config["repos"]:
        for hook in repo["hooks"]:
            tool = hook["entry"].split()[0].rsplit("/", 1)[-1]
            assert re.search(rf"^{tool}==", pinned, re.M), tool
