#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Import boxes and tags from annotation tools into the own-data format; masks are left behind."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.data.datasets.own.weak import read_weak_file
from wsis_d2.data.importers.base import (
    ImageIndex,
    ImportLog,
    read_categories,
    to_own_data,
    write_json,
)
from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.per_image import (
    read_labelme,
    read_voc,
    read_yolo,
    read_yolo_classes,
)
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError

EXAMPLES = """examples:
  # CVAT or Label Studio, COCO export; "sky" and "road" were drawn as boxes or polygons
  python tools/import_annotations.py coco --annotations instances.json --images photos \\
      --output weak.json --stuff sky road
  # labelImg, with tags of the stuff from a CSV (header: image,tags)
  python tools/import_annotations.py voc --annotations xml --images photos --tags tags.csv \\
      --output weak.json
  # YOLO; validation gets the ids of training
  python tools/import_annotations.py yolo --annotations labels/val --images images/val \\
      --classes data.yaml --categories weak_train.json --output weak_val.json
  # labelme; flags of an image are its tags
  python tools/import_annotations.py labelme --annotations json --images photos --output weak.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=["coco", "voc", "yolo", "labelme"])
    parser.add_argument(
        "--annotations", required=True, help="the COCO file, or the folder of one file an image"
    )
    parser.add_argument("--images", required=True, help="the folder of the images")
    parser.add_argument("--output", required=True, help="the own-data file to write")
    parser.add_argument("--tags", help="CSV of image tags or crop tags")
    parser.add_argument(
        "--stuff", nargs="+", default=[], metavar="NAME", help="stuff classes; boxes become tags"
    )
    parser.add_argument(
        "--ignore", nargs="+", default=[], metavar="NAME", help="classes to leave out"
    )
    parser.add_argument(
        "--categories", help="an own-data or COCO file whose classes and ids are used, no others"
    )
    parser.add_argument("--classes", help="YOLO: classes.txt, obj.names or data.yaml")
    parser.add_argument(
        "--difficult", choices=["keep", "crowd", "drop"], default="keep", help="VOC (%(default)s)"
    )
    parser.add_argument(
        "--corners", choices=["auto", "inclusive", "edges"], default="auto",
        help="VOC: numbered from 1 with both ends inside, or edges from 0 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--keep-going", action="store_true", help="drop bad records and files")
    parser.add_argument("--report", help="JSON list of all that was dropped or changed")
    parser.add_argument("--force", action="store_true", help="replace an existing --output")
    args = parser.parse_args(argv)

    for target in filter(None, (args.output, args.report)):
        for source in filter(None, (args.annotations, args.tags, args.categories, args.classes)):
            if os.path.exists(target) and os.path.samefile(target, source):
                raise InputError(f"{target}: is an input; name another file to write")
    if os.path.isdir(args.output):
        raise InputError(f"--output {args.output}: is a folder, a file was expected")
    if os.path.exists(args.output) and not args.force:
        raise InputError(f"--output {args.output}: is there already; add --force to replace it")
    log = ImportLog(args.keep_going)
    images = ImageIndex(args.images)
    known = read_categories(args.categories) if args.categories else None
    fixed = known is not None
    if args.format == "coco":
        pictures, categories = read_coco(args.annotations, images, log)
        known = categories if known is None else known
    elif args.format == "voc":
        pictures = read_voc(
            args.annotations, images, log, difficult=args.difficult, corners=args.corners
        )
    elif args.format == "yolo":
        classes = read_yolo_classes(args.classes or _yolo_classes(args.annotations))
        pictures = read_yolo(args.annotations, images, log, classes=classes)
        if known is None:
            known = [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    else:
        pictures = read_labelme(args.annotations, images, log)
    if args.tags:
        pictures = read_tags_csv(args.tags, pictures, images, log)
    content = to_own_data(
        pictures, log, stuff=args.stuff, ignore=args.ignore, known=known, fixed=fixed
    )
    untouched = len(images.paths) - len(pictures)
    if untouched:
        log.notes.append(f"{untouched} images of {args.images} have no annotation: not imported")
    if args.report:
        report = {"dropped": log.dropped, "changed": log.changed, "notes": log.notes}
        write_json(report, args.report)
    unchecked = Path(args.output).with_name(f".{Path(args.output).name}.{os.getpid()}.unchecked")
    try:
        write_json(content, unchecked)
        read_weak_file(unchecked, args.images)  # what is written loads, or this tells why
        os.replace(unchecked, args.output)
    finally:
        unchecked.unlink(missing_ok=True)

    for line in log.lines():
        print(line)
    names = {k: [c["name"] for c in content["categories"] if c["isthing"] == k] for k in (1, 0)}
    tags = sum(len(e["image_tags"]) for e in content["images"])
    print(f"things: {', '.join(names[1]) or 'none'}; stuff: {', '.join(names[0]) or 'none'}")
    print(
        f"{args.output}: {len(content['images'])} images, {len(content['annotations'])} boxes, "
        f"{tags} image tags, {len(log.dropped)} records dropped"
    )
    return 0


def _yolo_classes(annotations: str) -> Path:
    """Find the class names where YOLO's tools put them."""
    folder = Path(annotations)
    folders = [folder, *list(folder.resolve().parents)[:2]]
    for place in folders:
        for name in ("classes.txt", "obj.names", "data.yaml", "dataset.yaml"):
            if (place / name).is_file():
                return place / name
    raise InputError(
        f"--annotations {annotations}: no classes.txt, obj.names or data.yaml there or above; "
        "name it with --classes"
    )


if __name__ == "__main__":
    main_with_errors(main)
