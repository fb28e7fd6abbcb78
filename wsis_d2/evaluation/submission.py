# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Files for evaluation servers: VOC 2012 segmentation, Cityscapes semantic and instance."""

import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wsis_d2.data.datasets.builtin.metadata import CITYSCAPES_CATEGORIES, VOC_CATEGORIES
from wsis_d2.data.panoptic_format import (
    PREDICTION_FOLDER,
    PREDICTION_JSON,
    SEMANTIC_FOLDER,
    PanopticFile,
    semantic_map,
    semantic_pngs,
    semantic_table,
    write_png,
)
from wsis_d2.evaluation.image_match import RANKING_SCORES, Matcher
from wsis_d2.structures.classes import ClassTable, parse_categories
from wsis_d2.structures.labels import IGNORE, id_table
from wsis_d2.utils.errors import InputError, check_choice
from wsis_d2.utils.files import atomic_write, list_files
from wsis_d2.utils.image_io import read_label_png
from wsis_d2.utils.progress import progress


@dataclass(frozen=True)
class Server:
    """What an evaluation server takes.

    Attributes:
        classes: its classes; ``ids`` are what its files hold.
        pattern: what an image is called; group 1 is the server's name of it.
        folder: where the files lie in the archive.
        archive: ending of the archive, ``.tgz`` or ``.zip``.
        test_images: how many images its test set has.
    """

    classes: ClassTable
    pattern: re.Pattern[str]
    folder: str
    archive: str
    test_images: int

    def image_name(self, png: Path) -> str:
        """Return the server's name of an image.

        Raises:
            InputError: the name is none of this set.
        """
        match = self.pattern.match(png.stem)
        if match is None:
            raise InputError(f"{png}: not named like this server's images ({self.pattern.pattern})")
        return match[1]


_VOC = parse_categories(VOC_CATEGORIES, "VOC 2012")
_CITYSCAPES = parse_categories(CITYSCAPES_CATEGORIES, "Cityscapes")
_CITYSCAPES_NAME = re.compile(r"^([a-z-]+_\d{6}_\d{6})(_.*)?$")
SERVERS = {
    # comp6: trained on more than the challenge's own images (SBD).
    "voc": Server(
        _VOC, re.compile(r"^(\d{4}_\d{6})$"),
        "results/VOC2012/Segmentation/comp6_test_cls", ".tgz", 1456,
    ),
    "cityscapes-semantic": Server(_CITYSCAPES, _CITYSCAPES_NAME, "semantic", ".zip", 1525),
    "cityscapes-instance": Server(_CITYSCAPES, _CITYSCAPES_NAME, "instance", ".zip", 1525),
}  # fmt: skip


def voc_palette() -> list[int]:
    """Return VOC's 256 colours, flat: three bits of the index at a time fill R, G, B from above."""
    colors = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(7, -1, -1):
        for channel in range(3):
            colors[:, channel] |= ((index >> channel & 1) << bit).astype(np.uint8)
        index >>= 3
    return colors.ravel().tolist()


def write_submission(
    predictions: str | Path,
    output: str | Path,
    server: str,
    *,
    source: str = "semantic",
    score_mode: str = "score",
) -> tuple[Path, int]:
    """Write what a server takes, as a folder and as an archive beside it.

    Args:
        predictions: the folder an evaluation wrote: ``semantic_pred/`` or ``panoptic_pred.json``
            with ``panoptic_pred/``.
        output: folder to make; refused if anything is in it.
        server: a key of ``SERVERS``.
        source: for the semantic servers: the ``"semantic"`` output or the ``"panoptic"`` segments'
            union. The instance server takes the segments.
        score_mode: which score is an instance's confidence.

    Returns:
        The archive and the number of images.

    Raises:
        InputError: predictions are missing, unreadable, or not of this server's set.
    """
    check_choice("server", server, SERVERS)
    spec = SERVERS[server]
    check_choice("source", source, ("semantic", "panoptic"))
    if score_mode not in RANKING_SCORES or score_mode == "oracle":
        raise InputError(f"score mode {score_mode!r} cannot be written to a server's file")
    predictions, output = Path(predictions), Path(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output}: not empty; name a new folder, old files would be submitted")
    folder = output / spec.folder
    if server == "cityscapes-instance":
        names = _write_instances(_panoptic_file(predictions, spec), folder, spec, score_mode)
    else:
        maps = _semantic_maps(predictions, spec) if source == "semantic" else None
        if maps is None:
            maps = _union_maps(_panoptic_file(predictions, spec))
        names = []
        for png, labels in maps:
            names.append(_new_name(spec.image_name(png), names, png))
            write = _write_voc if server == "voc" else _write_label_ids
            write(folder / f"{names[-1]}.png", labels, spec.classes, png)
    if not names:
        raise InputError(f"{predictions}: no predictions in it")
    archive = Path(f"{output}{spec.archive}")
    _pack(output, archive)
    return archive, len(names)


def _new_name(name: str, names: list[str], png: Path) -> str:
    if name in names:
        raise InputError(f"{png}: image {name} is predicted twice")
    return name


def _semantic_maps(predictions: Path, spec: Server) -> Iterator[tuple[Path, np.ndarray]]:
    folder = predictions / SEMANTIC_FOLDER
    files = semantic_pngs(folder)
    if not files:
        raise InputError(
            f"{folder}: no PNGs; expected the semantic output that tools/train_net.py --eval-only"
            " writes, or use --source panoptic"
        )
    table = semantic_table(folder, spec.classes)
    for path in progress(files, desc="writing"):
        yield path, table[read_label_png(path)]


def _union_maps(file: PanopticFile) -> Iterator[tuple[Path, np.ndarray]]:
    for key in progress(list(file), desc="writing"):
        yield file.png(key), semantic_map(file.ids(key), file.segments(key), file.classes)


def _panoptic_file(predictions: Path, spec: Server) -> PanopticFile:
    file = PanopticFile(predictions / PREDICTION_JSON, predictions / PREDICTION_FOLDER)
    return file.in_classes(spec.classes)


def _label_ids(labels: np.ndarray, classes: ClassTable, png: Path) -> np.ndarray:
    """Return the server's label ids; no class becomes 0 (background or unlabeled)."""
    table = id_table(dict(enumerate(classes.ids)), rest=0)
    bad = (labels >= len(classes)) & (labels != IGNORE)
    if bad.any():
        raise InputError(
            f"{png}: class number {labels[bad][0]}, expected 0 to {len(classes) - 1} or 255"
        )
    return table[labels]


def _write_label_ids(path: Path, labels: np.ndarray, classes: ClassTable, png: Path) -> None:
    write_png(path, _label_ids(labels, classes, png))


def _write_voc(path: Path, labels: np.ndarray, classes: ClassTable, png: Path) -> None:
    picture = Image.fromarray(_label_ids(labels, classes, png)).convert("P")
    picture.putpalette(voc_palette())
    with atomic_write(path) as file:
        picture.save(file, format="PNG")


def _write_instances(file: PanopticFile, folder: Path, spec: Server, score_mode: str) -> list[str]:
    """Write NAME.txt with lines "masks/NAME_K.png labelID confidence" and the 0/255 masks."""
    matcher = Matcher(file.classes)
    names: list[str] = []
    for key in progress(list(file), desc="writing"):
        png = file.png(key)
        name = _new_name(spec.image_name(png), names, png)
        names.append(name)
        ids, segments = file.ids(key), file.segments(key)
        # The matcher checks ids, pixels and scores; the truth it is given is all void.
        match = matcher(np.zeros_like(ids), [], ids, segments, pred_name=str(png))
        scores = match.scores.get(score_mode)
        if scores is None:
            raise InputError(f"{file.json_file}: image_id {key} lacks scores.{score_mode}")
        lines: list[str] = []
        for segment, class_id, score in zip(segments, match.pred_class, scores, strict=True):
            if not file.classes.isthing[class_id]:
                continue
            mask = f"masks/{name}_{len(lines):03d}.png"
            write_png(folder / mask, (ids == segment["id"]).astype(np.uint8) * 255)
            lines.append(f"{mask} {file.classes.ids[class_id]} {score:.6f}\n")
        with atomic_write(folder / f"{name}.txt") as text:
            text.write("".join(lines).encode())
    return names


def _pack(folder: Path, archive: Path) -> None:
    files = list_files(folder, "**/*")
    with atomic_write(archive) as target:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(target, "w") as packed:
                for path in files:
                    # Pictures are compressed already.
                    with packed.open(path.relative_to(folder).as_posix(), "w") as entry:
                        with open(path, "rb") as content:
                            shutil.copyfileobj(content, entry)
            return
        with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as packed:
            for path in files:
                packed.add(path, path.relative_to(folder).as_posix())
