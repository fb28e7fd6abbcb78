# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""From the official downloads to the paper's tables, by the commands of the two guides.

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

    def train(self, recipe: str, *options: str) -> dict:
        """Train a recipe; return its results."""
        self(f"tools/train_net.py --config-file configs/{recipe}.yaml", *SHORT, *options)
        text = (REPOSITORY / "configs" / f"{recipe}.yaml").read_text()
        output = re.search(r'OUTPUT_DIR: "(.+)"', text)[1]
        (run,) = json.loads((self.folder / output / "results.json").read_text())["runs"].values()
        return run

    def table(self, name: str) -> list[dict]:
        return list(csv.DictReader((self.folder / "output" / "tables" / f"{name}.csv").open()))


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
    for command in ("datasets/prepare_voc.py", "datasets/prepare_coco.py --year 2014"):
        workplace(f"{command} --workers 1 --allow-partial")
        workplace(f"{command} --allow-partial --check")
    for name in ("voc_2012_trainaug_panoptic", "coco_2014_vocclasses"):
        store = name.removesuffix("_panoptic")
        workplace(
            f"tools/make_weak_labels.py boxes --dataset {name}_weak --workers 1"
            f" --output output/labels/{store}"
        )
    workplace.train(
        "COCO-SemanticSegmentation/pspnet_R_50_weak", *SMALL, "MODEL.WEIGHTS", "",
        "SOLVER.BASE_LR", "1e-9",
    )  # fmt: skip
    boxes = workplace.train("PascalVOC-Detection/faster_rcnn_R_18", *BOXES)
    assert "AP" in boxes["bbox"]
    for kind in ("weak", "full"):
        semantic = workplace.train(f"PascalVOC-SemanticSegmentation/pspnet_R_18_{kind}", *SMALL)
        assert semantic["meta"]["supervision"] == kind
        panoptic = workplace.train(f"PascalVOC-PanopticSegmentation/wsis_R_18_{kind}", *SMALL)
        assert {"APr_10_th", "APr_90_th", "APr_vol_th"} <= panoptic["apr"].keys()
    workplace("tools/make_tables.py output/voc --backbone R_18 --output output/tables")
    first = row(workplace.table("table_1"), "Ours, without COCO")
    second = [row(workplace.table("table_2"), f"Ours, {k} without COCO") for k in ("weak", "full")]
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
    workplace("datasets/prepare_cityscapes.py --workers 1 --allow-partial")
    workplace("datasets/prepare_cityscapes.py --allow-partial --check")
    recipe = "Cityscapes-TagClassifier/tag_classifier_R_18"
    workplace.train(recipe, "SOLVER.BASE_LR", "0.001")
    labels = (
        f" --config-file configs/{recipe}.yaml"
        " --classifier output/cityscapes/tags_R_18/model_final.pth --output output/labels/"
    )
    workplace(
        "tools/make_weak_labels.py all --dataset cityscapes_fine_panoptic_train_weak --workers 1"
        f"{labels}cityscapes_fine_train"
    )
    workplace(
        "tools/make_weak_labels.py tags --dataset cityscapes_extra_weak --workers 1"
        f"{labels}cityscapes_extra"
    )
    workplace.train("Cityscapes-Detection/faster_rcnn_R_18", *BOXES)
    workplace(
        "tools/train_iterative.py --rounds 6"
        " --config-file configs/Cityscapes-SemanticSegmentation/pspnet_R_18_weak.yaml"
        " MODEL.WSIS.DETECTOR_WEIGHTS output/cityscapes/detector_R_18/model_final.pth",
        *SHORT, *SMALL,
    )  # fmt: skip
    workplace.train("Cityscapes-SemanticSegmentation/pspnet_R_18_full", *SMALL)
    weak = workplace.train("Cityscapes-PanopticSegmentation/wsis_R_18_weak", *SMALL)
    assert {"APr_50", "APr_95_st", "APr_vol_th-by-oracle"} <= weak["apr"].keys()
    workplace.train("Cityscapes-PanopticSegmentation/wsis_R_18_full", *SMALL)
    workplace("tools/make_tables.py output/cityscapes --backbone R_18 --output output/tables")
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
