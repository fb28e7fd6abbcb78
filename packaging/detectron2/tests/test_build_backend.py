# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The build backend: its rules, its hash check, and what an interruption leaves."""

import importlib.util
import io
import re
import sys
import tarfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(f"d2_packaging_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


rules = load("rules")
backend = load("build_backend")


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The real source distribution, or a skip where the package index cannot be reached."""
    pytest.importorskip("unearth")
    try:
        return backend.download(tmp_path_factory.mktemp("sdist"))
    except RuntimeError as error:
        if "sha256" in str(error):
            raise
        pytest.skip(f"source distribution not to be had: {error}"[:300])


# What each rule must do, written by hand: (rule number, line before, line after).
CASES = [
    (0, "def f(interp=Image.LINEAR):", "def f(interp=Image.BILINEAR):"),
    (1, "x = np.zeros(2, dtype=np.int)\ny = np.int(3)", "x = np.zeros(2, dtype=int)\ny = int(3)"),
    (2, "ids = np.loadtxt(f, dtype=np.str)", "ids = np.loadtxt(f, dtype=str)"),
    (3, "a.astype(np.bool)\n# a.astype(np.bool)", "a.astype(bool)\n# a.astype(bool)"),
    (4, "np.float\n" * 7, "float\n" * 7),
    (5, "np.bool np.bool np.bool np.bool_ np.int64", "bool bool bool np.bool_ np.int64"),
    (6, "dtype=np.bool", "dtype=bool"),
    (7, "np.bool, np.bool, np.bool", "bool, bool, bool"),
    *[
        (
            number,
            "import torch\nfrom detectron2 import _C\n",
            "import torch\ntry:\n    from detectron2 import _C\nexcept ImportError:\n"
            "    from detectron2._no_operators import _C\n",
        )
        for number in (8, 9, 10)
    ],
    (
        11,
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:  # its C++ part is not built: the plain COCOeval gives the same\n"
        "    COCOeval_opt = COCOeval\n",
    ),
    (12, "import os\nimport pkg_resources\n", "import os\nfrom importlib import resources\n"),
    (
        13,
        'f = pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
        'os.path.join("configs", config_path)\n    )\n',
        'f = str(resources.files("detectron2.model_zoo") / "configs" / config_path)\n',
    ),
    (
        14,
        "y, x = torch.meshgrid(shifts_y, shifts_x)",
        'y, x = torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
    ),
]


def test_every_rule_has_a_case_and_a_reason():
    assert sorted(number for number, _, _ in CASES) == list(range(len(rules.RULES)))
    assert all(len(rule.why) > 20 for rule in rules.RULES)


@pytest.mark.parametrize("number,before,after", CASES)
def test_rule(tmp_path, number, before, after):
    rule = rules.RULES[number]
    file = tmp_path / rule.path
    file.parent.mkdir(parents=True)
    file.write_text(before)
    rule.apply(tmp_path)
    assert file.read_text() == after


@pytest.mark.parametrize("number", range(len(rules.RULES)))
def test_a_rule_that_matches_too_often_or_too_rarely_stops_the_build(tmp_path, number):
    rule = rules.RULES[number]
    file = tmp_path / rule.path
    file.parent.mkdir(parents=True)
    before = CASES[number][1]
    for text in ("nothing to see\n", before + "\n" + before):
        file.write_text(text)
        with pytest.raises(rules.RuleError, match=re.escape(rule.path)):
            rule.apply(tmp_path)
        assert file.read_text() == text, "a rule that failed must not write"
    file.unlink()
    with pytest.raises(rules.RuleError, match="not in the source tree"):
        rule.apply(tmp_path)


def test_wrong_hash_is_refused(tmp_path, monkeypatch):
    fake = tmp_path / backend.ARCHIVE
    with tarfile.open(fake, "w:gz") as file:
        file.addfile(tarfile.TarInfo("pb1-detectron2-0.6/setup.py"), io.BytesIO(b""))
    monkeypatch.setenv("DETECTRON2_SDIST", str(fake))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(RuntimeError, match="sha256 is [0-9a-f]{64}, expected 5d2e9e51"):
        backend.build_wheel(wheels)
    assert list(wheels.iterdir()) == []


def test_unpacking_on_a_python_without_filters(tmp_path, monkeypatch):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as file:
        entry = tarfile.TarInfo("folder/name.py")
        entry.size = 4
        file.addfile(entry, io.BytesIO(b"pass"))
    extractall = tarfile.TarFile.extractall

    def before_3_11_4(self, path=".", members=None, *, numeric_owner=False):
        extractall(self, path, members, numeric_owner=numeric_owner)

    backend.unpack(archive, tmp_path / "new")
    monkeypatch.setattr(tarfile.TarFile, "extractall", before_3_11_4)
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    backend.unpack(archive, tmp_path / "old")
    for name in ("new", "old"):
        assert (tmp_path / name / "folder" / "name.py").read_text() == "pass"


def test_missing_archive_is_named(monkeypatch):
    monkeypatch.setenv("DETECTRON2_SDIST", "nowhere.tar.gz")
    with pytest.raises(RuntimeError, match="nowhere.tar.gz: no such file"):
        backend.download(Path("."))


def test_an_interruption_leaves_no_wheel(tmp_path, monkeypatch, archive):
    monkeypatch.setenv("DETECTRON2_SDIST", str(archive))

    copy = backend.shutil.copyfile

    def interrupt(source, target, **options):
        if ".whl" not in str(target):
            return copy(source, target, **options)
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(backend.shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        backend.build_wheel(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_rules_fit_the_source_distribution(tmp_path, archive):
    tree = backend.make_tree(archive, tmp_path, "0.6")
    for file in tree.glob("detectron2/**/*.py"):
        text = file.read_text()
        compile(text, str(file), "exec")
        assert not re.search(r"\bnp\.(bool|int|float|str|object)\b", text), file
        assert "pkg_resources" not in text, file
