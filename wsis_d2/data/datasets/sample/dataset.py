# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The embedded sample: drawn scenes written as an own-data set, with truth beside it.

Layout under ``$DETECTRON2_DATASETS/wsis_sample`` (``python datasets/prepare_sample.py``)::

    images/{train,val}/0001.png ...
    weak_train.json             boxes, image tags, crop tags: all that weak training may see
    weak_val.json
    full_train.json             the same images and boxes with masks (COCO instances)
    panoptic_train.json + panoptic_train/   COCO panoptic truth
    panoptic_val.json + panoptic_val/
    manifest.json               recipe and checksums; written last
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsis_d2.data.datasets.sample.scenes import (
    HEIGHT,
    STUFF,
    THINGS,
    WIDTH,
    Difficulty,
    Scene,
    draw_scene,
)
from wsis_d2.structures.segments import id_picture, segment_sizes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import list_files
from wsis_d2.utils.progress import progress

VERSION = 3
FOLDER = "wsis_sample"
PREPARE_COMMAND = "python datasets/prepare_sample.py"

# File category ids are not contiguous, as in COCO, so that a forgotten mapping shows.
_COLORS = ((255, 140, 0), (0, 80, 0), (255, 0, 255), (170, 200, 230), (60, 160, 60), (40, 120, 200),
           (160, 60, 60))  # fmt: skip
CATEGORIES: list[dict[str, Any]] = [
    {"id": cid, "name": name, "supercategory": kind, "isthing": int(kind == "thing"),
     "color": list(color)}
    for cid, name, kind, color in zip(
        (1, 2, 3, 11, 12, 13, 14), THINGS + STUFF, ["thing"] * 3 + ["stuff"] * 4, _COLORS,
        strict=True)
]  # fmt: skip
_THING_CATEGORY = [c["id"] for c in CATEGORIES if c["isthing"]]
_STUFF_CATEGORY = [c["id"] for c in CATEGORIES if not c["isthing"]]

# Six crops of 72 x 64 (height x width), 3 columns x 2 rows, by the rule for fixed crops:
# n = ceil(L / c), overlap = ceil((n c - L) / (n - 1)), start k at k (c - overlap).
CROP_HEIGHT, CROP_WIDTH = 72, 64
CROPS = [(x, y, CROP_WIDTH, CROP_HEIGHT) for x in (0, 48, 96) for y in (0, 56)]
# A person tags what can be seen: a class of fewer pixels than this in a crop has no tag there.
MIN_TAG_PIXELS = 32

_PARTS = (
    "images", "weak_train.json", "weak_val.json", "full_train.json", "panoptic_train",
    "panoptic_train.json", "panoptic_val", "panoptic_val.json",
)  # fmt: skip


def prepare_sample(
    output: str | os.PathLike, train: int = 240, val: int = 60, seed: int = 0
) -> bool:
    """Write the sample; do nothing where it is complete and of the same recipe.

    Each file depends on ``seed``, its split and its number alone, so a larger sample begins with
    the pictures of a smaller one. Files are made in a temporary folder and moved in place, the
    manifest last: a killed run leaves no sample that looks complete.

    Args:
        output: the folder that becomes ``wsis_sample``; other files in it are left alone.
        train, val: number of scenes, both at least 1.
        seed: not negative.

    Returns:
        True if files were written, False if the sample was up to date.

    Raises:
        InputError: a number out of range, or ``output`` holds files of these names that this
            command did not write.
    """
    if train < 1 or val < 1 or seed < 0:
        raise InputError(
            f"prepare_sample: --train {train} --val {val} --seed {seed}: expected at least one "
            "scene in each split and a seed that is not negative"
        )
    output = Path(output)
    recipe = {
        "generator": VERSION,
        "train": train,
        "val": val,
        "seed": seed,
        "difficulty": asdict(Difficulty()),
    }
    manifest_file = output / "manifest.json"
    if check_sample(output, recipe) is None:
        (output / ".incomplete").unlink(missing_ok=True)  # of a run that ended at its last step
        return False
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; expected a folder to write the sample to")
    if not manifest_file.exists() and not (output / ".incomplete").exists():
        foreign = [part for part in _PARTS if (output / part).exists()]
        if foreign:
            raise InputError(
                f"{output}: holds {foreign[0]} without a manifest.json, so it is not a sample of "
                "this command; remove it or name another folder with --output"
            )
    scratch = output / f".tmp-{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        _write_split(scratch, "train", train, seed)
        _write_split(scratch, "val", val, seed)
        (output / ".incomplete").touch()
        manifest_file.unlink(missing_ok=True)
        for part in _PARTS:
            target = output / part
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(scratch / part, target)
        manifest = {"recipe": recipe, "files": _checksums(output)}
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(scratch / "manifest.json", manifest_file)
        (output / ".incomplete").unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def check_sample(output: str | os.PathLike, recipe: dict | None = None) -> str | None:
    """Compare a sample with its manifest, every checksum.

    Args:
        output: the sample's folder.
        recipe: the recipe that it must have; None takes any.

    Returns:
        None if all is as written, else what is wrong in one sentence.
    """
    output = Path(output)
    try:
        manifest = json.loads((output / "manifest.json").read_text())
        files, found = dict(manifest["files"]), manifest["recipe"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return f"{output}: no complete sample; make it with: {PREPARE_COMMAND}"
    if recipe is not None and found != recipe:
        return f"{output}: a sample of another recipe, {found}"
    actual = _checksums(output)
    for name in sorted(files.keys() | actual.keys()):
        if files.get(name) != actual.get(name):
            what = "is missing" if name not in actual else "differs from the manifest"
            return f"{output / name}: {what}; make it anew with: {PREPARE_COMMAND}"
    return None


def _checksums(output: Path) -> dict[str, str]:
    files = [output / p for p in _PARTS if (output / p).is_file()]
    files += [f for p in _PARTS for f in list_files(output / p, "**/*")]
    return {
        f.relative_to(output).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(files)
    }


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    image_root, panoptic_root = root / "images" / split, root / f"panoptic_{split}"
    image_root.mkdir(parents=True)
    panoptic_root.mkdir()
    number = {"train": 0, "val": 1}[split]
    images, masks, panoptic = [], [], []
    boxes: list[dict] = []
    for k in progress(range(count), desc=f"drawing {split}"):
        scene = draw_scene(np.random.default_rng([seed, number, k]))
        image_id = number * 100000 + k + 1
        name = f"{k + 1:04d}.png"
        entry = {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}
        crop_tags = [{"box": list(c), "tags": _crop_tags(scene, c)} for c in CROPS]
        image_tags = sorted({t for c in crop_tags for t in c["tags"]})
        images.append({**entry, "image_tags": image_tags, "crop_tags": crop_tags})
        segment_map, segments = panoptic_truth(scene)
        panoptic.append({"image_id": image_id, "file_name": name, "segments_info": segments})
        for segment in segments:
            if segment["category_id"] in _THING_CATEGORY:
                box = {
                    "id": len(boxes) + 1, "image_id": image_id, "bbox": segment["bbox"],
                    "category_id": segment["category_id"], "iscrowd": 0,
                }  # fmt: skip
                boxes.append(box)
                mask = {"segmentation": _rle(segment_map == segment["id"])}
                masks.append({**box, "area": segment["area"], **mask})
        _write_png(image_root / name, scene.image)
        _write_png(panoptic_root / name, id_picture(segment_map))
    info = {"description": f"wsis_d2 embedded sample, {split}, drawn", "version": str(VERSION)}
    bare = [{k: v for k, v in e.items() if not k.endswith("_tags")} for e in images]
    weak = {"images": images, "annotations": boxes}
    files = {f"weak_{split}": weak, f"panoptic_{split}": {"images": bare, "annotations": panoptic}}
    if split == "train":
        files["full_train"] = {"images": images, "annotations": masks}
    for name, content in files.items():
        whole = {"info": info, "categories": CATEGORIES, **content}
        (root / f"{name}.json").write_text(json.dumps(whole) + "\n")


def _crop_tags(scene: Scene, crop: tuple[int, int, int, int]) -> list[int]:
    x, y, w, h = crop
    window = np.s_[y : y + h, x : x + w]
    stuff = scene.stuff[window][scene.instance[window] == 0]
    counts = np.bincount(stuff, minlength=len(STUFF))
    return [_STUFF_CATEGORY[k] for k in np.flatnonzero(counts >= MIN_TAG_PIXELS)]


def panoptic_truth(scene: Scene) -> tuple[np.ndarray, list[dict]]:
    """Return a scene's truth: (H, W) int32 segment ids, all > 0, and COCO ``segments_info``."""
    ids = np.where(scene.instance > 0, 256 + scene.instance, scene.stuff.astype(np.int32) + 1)
    segments = []
    for sid, (area, box) in segment_sizes(ids).items():
        category = (
            _THING_CATEGORY[scene.things[sid - 257]] if sid > 256 else _STUFF_CATEGORY[sid - 1]
        )
        segments.append(
            {"id": sid, "category_id": category, "area": area, "bbox": box, "iscrowd": 0}
        )
    return ids.astype(np.int32), segments


def _rle(mask: np.ndarray) -> dict:
    """Uncompressed COCO run lengths, columns first, starting with a run of zeros."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def _write_png(path: Path, rgb: np.ndarray) -> None:
    # OpenCV's own writer does not tell what the system refused.
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes())


def register_all_sample(root: str | os.PathLike) -> None:
    """Register ``sample_train_weak``, ``sample_train_full`` and ``sample_val_full``.

    The files need not be there yet; loading a missing one names the command that makes it.

    Args:
        root: the folder that holds ``wsis_sample``, that is ``$DETECTRON2_DATASETS``.
    """
    from wsis_d2.data.datasets.own.custom import register_weak_panoptic

    base = Path(root) / FOLDER
    for name, json_name, split, supervision in (
        ("sample_train_weak", "weak_train.json", "train", "weak"),
        ("sample_train_full", "full_train.json", "train", "full"),
        ("sample_val_full", "weak_val.json", "val", "full"),
    ):
        register_weak_panoptic(
            name,
            classes=CATEGORIES,
            json=str(base / json_name),
            images=str(base / "images" / split),
            panoptic_json=str(base / f"panoptic_{split}.json"),
            panoptic_dir=str(base / f"panoptic_{split}"),
            supervision=supervision,
            prepare_command=PREPARE_COMMAND,
        )
