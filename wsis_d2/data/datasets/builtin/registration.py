# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The paper's datasets, registered under ``DETECTRON2_DATASETS``.

Every set has a weak and a full twin of the same images. The records of the weak twin come from
``weak_SPLIT.json`` alone, which holds no mask and no path of one; its metadata names the truth for
evaluation. Nothing is read at registration: a set that was not prepared says so, with the command
that prepares it, when its records are asked for.
"""

from pathlib import Path

from detectron2.data import MetadataCatalog

from wsis_d2.data.datasets.builtin import cityscapes, coco, voc
from wsis_d2.data.datasets.builtin.metadata import (
    CITYSCAPES_CATEGORIES,
    CITYSCAPES_EXTRAS,
    VOC_CATEGORIES,
    VOC_EXTRAS,
)
from wsis_d2.data.datasets.own.custom import register_weak_panoptic
from wsis_d2.structures.classes import parse_categories


def register_all_builtin(root: str | Path) -> list[str]:
    """Register VOC 2012, COCO's images with VOC classes, and Cityscapes.

    Args:
        root: the folder that ``DETECTRON2_DATASETS`` names.

    Returns:
        The registered names.
    """
    return register_all_voc(root) + register_all_coco(root) + register_all_cityscapes(root)


def register_all_voc(root: str | Path) -> list[str]:
    """Register ``voc_2012_{train,trainaug,val}_panoptic_{weak,full}`` and ``voc_2012_test``."""
    folder, images = Path(root) / voc.FOLDER, voc.find_voc(root) / "JPEGImages"
    names = []
    for split in ("train", "trainaug", "val"):
        names += _register_twins(
            f"voc_2012_{split}_panoptic", folder, split, "panoptic", images,
            VOC_CATEGORIES, VOC_EXTRAS, voc.PREPARE_COMMAND,
        )  # fmt: skip
    register_weak_panoptic(
        "voc_2012_test",
        classes=parse_categories(VOC_CATEGORIES, "VOC 2012"),
        json=folder / "weak_test.json",
        images=images,
        prepare_command=f"{voc.PREPARE_COMMAND} (after unpacking VOC's test archive)",
        **VOC_EXTRAS,
    )
    return [*names, "voc_2012_test"]


def register_all_coco(root: str | Path) -> list[str]:
    """Register ``coco_{2014,2017}_vocclasses[_train,_val]_{weak,full}``; no suffix: train + val."""
    names = []
    for year in ("2014", "2017"):
        for split, suffix in (("trainval", ""), ("train", "_train"), ("val", "_val")):
            names += _register_twins(
                f"coco_{year}_vocclasses{suffix}", Path(root) / coco.output_folder(year), split,
                "panoptic", Path(root) / "coco", VOC_CATEGORIES, VOC_EXTRAS,
                f"{coco.PREPARE_COMMAND} --year {year}",
            )  # fmt: skip
    return names


def register_all_cityscapes(root: str | Path) -> list[str]:
    """Register ``cityscapes_fine_panoptic_{train,val}_*``, ``cityscapes_extra_*`` and the test set.

    The metadata of ``cityscapes_extra_*`` has ``has_boxes`` False: its boxes are not complete, so
    nothing may be concluded there from the absence of one, and no objects are labelled.
    """
    folder, images = Path(root) / cityscapes.FOLDER, Path(root) / "cityscapes" / "leftImg8bit"
    names = []
    for split, stem in (
        ("train", "cityscapes_fine_panoptic_train"),
        ("val", "cityscapes_fine_panoptic_val"),
        ("extra", "cityscapes_extra"),
    ):
        twins = _register_twins(
            stem, folder, split, f"panoptic_{split}", images / cityscapes.SPLITS[split][0],
            CITYSCAPES_CATEGORIES, CITYSCAPES_EXTRAS,
            f"{cityscapes.PREPARE_COMMAND} --splits {split}",
        )  # fmt: skip
        names += twins
        for name in twins:
            MetadataCatalog.get(name).set(has_boxes=split != "extra")
    register_weak_panoptic(
        "cityscapes_fine_panoptic_test",
        classes=parse_categories(CITYSCAPES_CATEGORIES, "Cityscapes"),
        json=folder / "weak_test.json",
        images=images / "test",
        prepare_command=f"{cityscapes.PREPARE_COMMAND} --splits test",
        **CITYSCAPES_EXTRAS,
    )
    return [*names, "cityscapes_fine_panoptic_test"]


def _register_twins(stem, folder, split, png_folder, images, categories, extras, command):
    names = []
    for supervision in ("weak", "full"):
        names.append(f"{stem}_{supervision}")
        register_weak_panoptic(
            names[-1],
            classes=parse_categories(categories, stem),
            json=folder / f"weak_{split}.json",
            images=images,
            panoptic_json=folder / f"panoptic_{split}.json",
            panoptic_dir=folder / png_folder,
            supervision=supervision,
            prepare_command=command,
            **extras,
        )
    return names
