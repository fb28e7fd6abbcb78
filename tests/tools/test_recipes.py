# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""From the official downloads to the paper's tables, by the command lists of configs/README.md.

The trees have the official layouts and a few tiny pictures, the networks are the light recipes',
trained for two iterations: what is tested is that each command finds what the one before it left,
and that every number lands in its cell.
"""

import csv
import json
import re
import tarfile
import zipfile

import pytest
from helpers.load_tool import load_tool
from helpers.official_trees import (
    REPOSITORY,
    make_cityscapes,
    make_coco,
    make_voc,
    registered_under,
    run_prepare,
)

from wsis_d2.weak_labels.store import LabelStore

pytestmark = pytest.mark.long

# Instead of the recipes' lengths and sizes.
SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
SMALL = ["INPUT.CROP.SIZE", "[65, 65]", "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128",
         "MODEL.SEMANTIC.TILE_SIZE", "65"]  # fmt: skip
BOXES = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128"]


class Workplace:
    """A checkout with data sets; runs its commands, in this process."""

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir()

    def __call__(self, command: str, *options: str) -> None:
        script, *arguments = command.split()
        folder, name = script.removesuffix(".py").split("/")
        arguments += options
        if folder == "datasets":
            run_prepare(name, *arguments, "--root", self.data)
        else:
            assert not load_tool(name).main(arguments)

    def follow(self, title: str) -> list[str]:
        """Run the list of a section of configs/README.md, light and short; return its commands."""
        text = (REPOSITORY / "configs" / "README.md").read_text()
        block = text.split(f"## {title}\n")[1].split("```bash\n")[1].split("```")[0]
        lines = block.replace("\\\n", " ").splitlines()
        assert lines[0].startswith(". .venv/bin/activate") and lines[1].startswith("export ")
        commands = [re.sub(r"^python ", "", line) for line in lines[2:] if line[0] != "#"]
        for command in commands:
            command = command.replace("R_101", "R_18").replace("--workers 8", "--workers 1")
            if command.startswith("datasets/"):
                self(f"{command} --allow-partial")
                self(f"{command} --allow-partial --check")
            else:
                self(command, *_short(command))
        return commands

    def run(self, folder: str) -> dict:
        """The results of the one run in a folder."""
        path = self.folder / "output" / folder / "results.json"
        (run,) = json.loads(path.read_text())["runs"].values()
        return run

    def table(self, name: str) -> list[dict]:
        return list(csv.DictReader((self.folder / "output" / "tables" / f"{name}.csv").open()))


def _short(command: str) -> list[str]:
    """What makes a training short and small."""
    if not command.startswith("tools/train_"):
        return []
    if "TagClassifier" in command:
        return [*SHORT, "SOLVER.BASE_LR", "0.001"]
    return [*SHORT, *(BOXES if "Detection/" in command else SMALL)]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    place = Workplace(tmp_path)
    with registered_under(place.data):
        yield place


def row(rows: list[dict], method: str) -> dict:
    return next(r for r in rows if r["method"] == method)


def test_voc_from_download_to_tables(workplace):
    make_voc(workplace.data)
    make_coco(workplace.data, "2014")
    # The test archive brings images and a list alone.
    voc = workplace.data / "VOCdevkit" / "VOC2012"
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2008_000009\n")
    (voc / "JPEGImages" / "2008_000009.jpg").symlink_to(voc / "JPEGImages" / "2007_000001.jpg")
    commands = workplace.follow("Day one on Pascal VOC 2012")
    assert len(commands) == 18
    assert "AP" in workplace.run("voc/detector_R_18")["bbox"]
    for kind in ("weak", "full", "coco_weak_voc_weak", "coco_full_voc_full"):
        semantic, panoptic = (
            workplace.run(f"voc/{x}_R_18_{kind}") for x in ("semantic", "panoptic")
        )
        assert semantic["meta"]["supervision"] == kind.split("_")[-1]
        assert {"APr_10_th", "APr_90_th", "APr_vol_th"} <= panoptic["apr"].keys()
    for number in range(3):
        labels = f"semantic_R_18_weak_rounds/round_{number}/labels/voc_2012_trainaug_panoptic_weak"
        store = LabelStore.open(workplace.folder / "output" / "voc" / labels)
        assert len(store.image_ids()) == 4 and (store.semantic("2007_000001")[:, -1] == 0).any()
    first = row(workplace.table("table_1"), "Ours, without COCO")
    second = [
        row(workplace.table(table), f"Ours, {kind} {coco} COCO")
        for table in ("table_2", "table_2_by_mean_confidence")
        for kind in ("weak", "full")
        for coco in ("with", "without")
    ]
    assert first["val weak paper"] == "74.3" and first["val weak mean"] and first["val full mean"]
    for line in second:
        assert all(line[f"{column} mean"] for column in ("AP^r 0.5", "0.9", "AP^r vol", "PQ"))

    model = "output/voc/panoptic_R_18_weak"
    workplace(
        "tools/train_net.py --eval-only"
        " --config-file configs/PascalVOC-PanopticSegmentation/wsis_R_18_weak.yaml"
        f" MODEL.WEIGHTS {model}/model_final.pth OUTPUT_DIR output/test",
        "DATASETS.TEST", "('voc_2012_test',)", *SMALL,
    )  # fmt: skip
    workplace(
        "tools/make_submission.py voc --predictions output/test/inference/voc_2012_test"
        " --output output/voc_server"
    )
    with tarfile.open(workplace.folder / "output" / "voc_server.tgz") as archive:
        assert archive.getnames() == ["results/VOC2012/Segmentation/comp6_test_cls/2008_000009.png"]


def test_cityscapes_from_download_to_tables(workplace):
    make_cityscapes(workplace.data)
    commands = workplace.follow("Day one on Cityscapes")
    assert len(commands) == 10
    stores = [
        f"cityscapes/semantic_R_18_weak/round_{k}/labels/cityscapes_extra_weak" for k in range(6)
    ]
    for path in ("labels/cityscapes_extra", *stores):
        store = LabelStore.open(workplace.folder / "output" / path)
        assert len(store.image_ids()) == 2
        for image_id in store.image_ids():
            semantic = store.semantic(image_id)
            assert ((semantic >= 11) & (semantic < 19)).any(), path  # things are learnt there too
            assert (store.instance(image_id)[0] == -1).all()
    assert store.recipe["clean"]["fill"] and not store.recipe["clean"]["prior"]
    weak = workplace.run("cityscapes/panoptic_R_18_weak")
    assert {"APr_50", "APr_95_st", "APr_vol_th-by-oracle"} <= weak["apr"].keys()
    points = workplace.table("figure_6")
    for panel in ("Semantic segmentation (IoU)", "Instance segmentation (PQ)"):
        rounds = {p["round"] for p in points if p["panel"] == panel and p["line"] == "stuff"}
        assert rounds == set("012345")
    for column in ("weak mean", "full mean"):
        assert row(workplace.table("table_4"), "Ours, stuff")[column]
    for name, method in (("table_5", "Ours, weak, ImageNet"), ("table_6", "Oracle")):
        line = row(workplace.table(name), method)
        assert line["AP^r vol st mean"] and line["PQ mean"]

    model = "output/cityscapes/panoptic_R_18_weak"
    workplace(
        "tools/train_net.py --eval-only"
        " --config-file configs/Cityscapes-PanopticSegmentation/wsis_R_18_weak.yaml"
        f" MODEL.WEIGHTS {model}/model_final.pth OUTPUT_DIR output/test",
        "DATASETS.TEST", "('cityscapes_fine_panoptic_test',)", *SMALL,
    )  # fmt: skip
    predictions = "output/test/inference/cityscapes_fine_panoptic_test"
    for kind, suffix in (("semantic", ".png"), ("instance", ".txt")):
        workplace(
            f"tools/make_submission.py cityscapes-{kind} --predictions {predictions}"
            f" --output output/{kind}"
        )
        with zipfile.ZipFile(workplace.folder / "output" / f"{kind}.zip") as archive:
            assert f"{kind}/berlin_000000_000010{suffix}" in archive.namelist()
