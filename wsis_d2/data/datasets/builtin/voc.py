# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pascal VOC 2012 and SBD: official layout to boxes, tags and COCO panoptic truth.

Rules, beside the releases' own:

* Truth of an image that both have is VOC's. ``trainaug`` is VOC train plus every image of SBD's
  train and val lists that is not in VOC val: 10 582 images.
* Boxes are the tight boxes of the instance masks, first and last pixel included, no margin.
* Void (255: VOC's border pixels and its difficult objects) stays void; a difficult object that VOC
  masked as void therefore has no box. Truncated objects are ordinary ones: their box is that of
  the part in the picture.
* An object takes the class that most of its pixels have. Its pixels of another class, and thing
  pixels that belong to no object, become void and are counted.
* SBD has no void border and keeps objects in ``GTinst``, whose ``Categories`` may list objects
  without a pixel; those are skipped. ``sbd_void`` paints a void border of that many pixels on each
  side of its boundaries, as VOC has it.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from scipy import sparse

from wsis_d2.data.datasets.builtin.metadata import VOC_CATEGORIES
from wsis_d2.data.datasets.builtin.preparation import Converted, ImageJob
from wsis_d2.data.datasets.builtin.preparation_command import expect_count
from wsis_d2.data.datasets.builtin.segments import image_size, read_labels
from wsis_d2.structures.segments import segment_sizes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import opened_png
from wsis_d2.utils.matlab import read_matlab

FOLDER = "wsis_voc_2012"
PREPARE_COMMAND = "python datasets/prepare_voc.py"
VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_URL = "http://home.bharathh.info/pubs/codes/SBD/download.html"
LIST_LENGTHS = {"train": 1464, "val": 1449, "trainaug": 10582, "test": 1456}
SBD_LENGTHS = {"train": 8498, "val": 2857}
NUM_CLASSES = 21
VOID = 255
# VOC's colours of values; black may be a palette's rest.
_COLORS = {tuple(c["color"]): c["id"] for c in VOC_CATEGORIES if c["id"]} | {(224, 224, 192): VOID}


def find_voc(root: str | Path) -> Path:
    """Return the VOC 2012 folder under ``root``: ``VOCdevkit/VOC2012``, or ``VOC2012``."""
    root = Path(root)
    plain = root / "VOC2012"
    return plain if plain.is_dir() else root / "VOCdevkit" / "VOC2012"


def read_list(path: str | Path, what: str) -> list[str]:
    """Return the names of an official list: first word of each line, blank lines skipped.

    Raises:
        InputError: the list is missing, no text, or names an image twice.
    """
    try:
        names = [
            line.split()[0]
            for line in Path(path).read_text("utf-8-sig").splitlines()
            if line.strip()
        ]
    except FileNotFoundError:
        raise InputError(f"{path}: list missing; unpack {what}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no list of names ({error}); unpack {what} again") from None
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{path}: {twice[0]} is listed twice; take the official list of {what}")
    return names


def split_lists(voc: Path, sbd: Path | None, *, partial_tree: bool) -> dict[str, list[str]]:
    """Return the images of ``train``, ``val``, ``trainaug`` (with SBD), ``test`` (if it is there).

    Args:
        voc: folder VOC2012.
        sbd: folder ``benchmark_RELEASE/dataset``, or None.
        partial_tree: allow other counts than the official ones.
    """
    segmentation = voc / "ImageSets" / "Segmentation"
    lists = {
        name: read_list(segmentation / f"{name}.txt", f"VOC 2012 trainval ({VOC_URL})")
        for name in ("train", "val")
    }
    if both := set(lists["train"]) & set(lists["val"]):
        raise InputError(f"{segmentation}: {min(both)} is in train.txt and in val.txt")
    if sbd is not None:
        extra = set()
        for name, length in SBD_LENGTHS.items():
            names = read_list(sbd / f"{name}.txt", f"SBD ({SBD_URL})")
            hint = f"take {sbd / f'{name}.txt'} from the official archive"
            expect_count(f"SBD {name}", len(names), length, partial=partial_tree, hint=hint)
            extra.update(names)
        lists["trainaug"] = sorted((extra | set(lists["train"])) - set(lists["val"]))
    if (segmentation / "test.txt").exists():
        lists["test"] = read_list(segmentation / "test.txt", f"VOC 2012 test ({VOC_URL})")
    for name, names in lists.items():
        expect_count(
            f"VOC 2012 {name}", len(names), LIST_LENGTHS[name], partial=partial_tree,
            hint=f"take {segmentation} from the official archive",
        )  # fmt: skip
    return lists


def make_jobs(voc: Path, sbd: Path | None, lists: dict[str, list[str]]) -> list[ImageJob]:
    """Return one job for each image of any list; VOC's truth where it has one, none for test."""
    own, bare = {*lists["train"], *lists["val"]}, set(lists.get("test", ()))
    jobs = []
    for name in sorted(own.union(*lists.values())):
        if name in own:
            parts = ("SegmentationClass", "SegmentationObject")
            truth = tuple(str(voc / part / f"{name}.png") for part in parts)
        elif name in bare:
            truth = ()
        else:
            truth = tuple(str(sbd / part / f"{name}.mat") for part in ("cls", "inst"))
        jobs.append(ImageJob(name, (str(voc / "JPEGImages" / f"{name}.jpg"), *truth)))
    return jobs


def converter(*, tags: str = "stuff", sbd_void: int = 0) -> Callable[[ImageJob], Converted]:
    """Return the picklable conversion of one image.

    Args:
        tags: "stuff" (paper 1: things have boxes) or "all" classes of the image.
        sbd_void: half width of the void border of SBD's objects, 0 for none.
    """
    return partial(_convert, tags=tags, sbd_void=sbd_void)


def _convert(job: ImageJob, *, tags: str, sbd_void: int) -> Converted:
    height, width = image_size(job.sources[0])
    entry = {
        "id": job.image_id,
        "file_name": f"{job.image_id}.jpg",
        "height": height,
        "width": width,
    }
    if len(job.sources) == 1:
        return Converted(image=entry, tags=[], annotations=[])
    image, first, second = job.sources
    counts: Counter[str] = Counter()
    if first.endswith(".png"):
        semantic = read_labels(first, "VOC class map")
        objects = read_labels(second, "VOC object map")
        for path, labels in ((first, semantic), (second, objects)):
            check_palette(path, labels)
        classes = None
        counts["voc"] = 1
    else:
        semantic = read_sbd(first, "GTcls")[0]
        objects, classes, boundaries = read_sbd(second, "GTinst")
        if sbd_void and boundaries is not None and boundaries.shape == semantic.shape:
            size = 2 * sbd_void - 1
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
            border = cv2.dilate(boundaries.astype(np.uint8), kernel) > 0
            semantic = np.where(border, VOID, semantic)
        counts["sbd"] = 1
    for path, labels in ((first, semantic), (second, objects)):
        if labels.shape != (height, width):
            raise InputError(
                f"{path}: {labels.shape[1]}x{labels.shape[0]} pixels, but {image} has "
                f"{width}x{height}; both must come from the official archives"
            )
    wrong = np.unique(semantic[(semantic >= NUM_CLASSES) & (semantic != VOID)])
    if wrong.size:
        raise InputError(
            f"{first}: class {wrong[0]}, expected 0..20 or 255; take the file as it was released"
        )
    segment_ids, found = fuse(semantic, objects, classes, counts)
    sizes = segment_sizes(segment_ids)
    segments = [{"id": 1, "category_id": 0, "iscrowd": 0}] if 1 in sizes else []
    segments += [{"id": i, "category_id": c, "iscrowd": 0} for i, c in found]
    annotations = [{"bbox": sizes[i][1], "category_id": c, "iscrowd": 0} for i, c in found]
    present = {s["category_id"] for s in segments}
    return Converted(
        image=entry,
        tags=sorted(present if tags == "all" else present & {0}),
        annotations=annotations,
        segment_ids=segment_ids,
        segments=segments,
        counts=counts,
    )


def fuse(
    semantic: np.ndarray, objects: np.ndarray, classes: np.ndarray | None, counts: Counter
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Join a class map and an object map.

    Args:
        semantic: int (H, W), 0 background, 1..20, 255 void.
        objects: int (H, W), 0 none, 1.. objects, 255 void.
        classes: class of object k at k - 1 (SBD), or None: the class that most of the object's
            pixels have (VOC). SBD's class map is followed where its list is out of range.
        counts: receives how many pixels and objects did not fit.

    Returns:
        Segment ids (H, W), 0 void, 1 background, k + 1 object k; and the (segment id, class) of
        the objects that have pixels, in the order of the objects.
    """
    segment_ids = np.zeros(semantic.shape, np.int32)
    segment_ids[(semantic == 0) & (objects == 0)] = 1
    found = []
    for number in np.unique(objects):
        if number in (0, VOID):
            continue
        mask = objects == number
        votes = np.bincount(semantic[mask], minlength=VOID + 1)[1:NUM_CLASSES]
        own = int(votes.argmax()) + 1 if votes.any() else 0
        if (
            classes is not None
            and number <= len(classes)
            and 1 <= classes[number - 1] < NUM_CLASSES
        ):
            own = int(classes[number - 1])
        mask &= semantic == own
        if own == 0 or not mask.any():
            counts["objects_without_pixels"] += 1
            continue
        segment_ids[mask] = number + 1
        found.append((int(number) + 1, own))
    lost = int(((segment_ids == 0) & (semantic != VOID) & (objects != VOID)).sum())
    if lost:
        counts["void_by_disagreement_pixels"] += lost
    return segment_ids, found


def check_palette(path: str, labels: np.ndarray) -> None:
    """Refuse a PNG whose colours are VOC's of other values: programs that make PNGs smaller
    renumber palettes, which keeps the colours alone.

    Raises:
        InputError: naming a value and what its colour stands for.
    """
    with opened_png(path, check=False) as image:
        palette = image.getpalette("RGB") or [] if image.mode == "P" else []
    for value in np.unique(labels[labels < len(palette) // 3]).tolist():
        meant = _COLORS.get(tuple(palette[3 * value : 3 * value + 3]), value)
        if meant != value:
            raise InputError(
                f"{path}: value {value} has the colour of value {meant} in VOC, so its palette was "
                "renumbered; take the file as it was released"
            )


def read_sbd(path: str, name: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Read one SBD file.

    Args:
        path: ``cls/*.mat`` or ``inst/*.mat``.
        name: its variable, "GTcls" or "GTinst".

    Returns:
        Segmentation int32 (H, W); classes of the objects int (N,) or None; union of all
        boundaries bool (H, W) or None where the file has none.

    Raises:
        InputError: missing, broken, or without that variable.
    """
    hint = f"unpack SBD again ({SBD_URL})"
    try:
        struct = read_matlab(path, [name], "missing")[name][0, 0]
        segmentation = np.asarray(struct["Segmentation"]).astype(np.int32)
        names = struct.dtype.names
        classes = boundaries = None
        if "Categories" in names:
            classes = np.asarray(struct["Categories"]).astype(np.int64).reshape(-1)
        for cell in np.asarray(struct["Boundaries"]).reshape(-1) if "Boundaries" in names else ():
            if cell.shape == segmentation.shape:
                part = _positive(cell) if sparse.issparse(cell) else np.asarray(cell) > 0
                boundaries = part if boundaries is None else boundaries | part
    except InputError as error:
        raise InputError(f"{error}; {hint}") from None
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no SBD file with {name}.Segmentation ({error}); {hint}"
        ) from None
    return segmentation, classes, boundaries


def _positive(array: sparse.csc_matrix) -> np.ndarray:
    """Return where a sparse array of a file is positive, bool (H, W).

    scipy's own conversion writes past the end of the array that it makes where places are wrong.
    """
    ends, rows = array.indptr, array.indices
    if ends[0] != 0 or (np.diff(ends) < 0).any() or ends[-1] > min(len(rows), len(array.data)):
        raise ValueError("a sparse array whose columns do not follow one another")
    rows = rows[: ends[-1]]
    if len(rows) and rows.min() < 0:
        raise ValueError("a sparse array with a place outside")
    found = np.zeros(array.shape, bool)
    found[rows, np.repeat(np.arange(array.shape[1]), np.diff(ends))] = array.data[: ends[-1]] > 0
    return found
