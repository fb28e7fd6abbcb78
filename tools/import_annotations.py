#!/usr/bin/env python
# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Import boxes, tags, points and scribbles into the own-data format; masks are dropped."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from wsis_d2.data.datasets.own.weak import read_weak_file
from wsis_d2.data.importers.coco import read_coco
from wsis_d2.data.importers.cvat import read_cvat
from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.label_studio import read_label_studio
from wsis_d2.data.importers.own_data import file_categories, read_categories, to_own_data
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.picture import Picture
from wsis_d2.data.importers.scribbles import read_scribbles
from wsis_d2.data.importers.tags import read_tags_csv
from wsis_d2.data.importers.yolo import find_yolo_classes, read_yolo, read_yolo_classes
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import check_writable
from wsis_d2.utils.json_io import write_json

EXAMPLES = """examples:
  # COCO, from CVAT, Roboflow and others; "sky" and "road" were drawn as boxes or polygons
  python tools/import_annotations.py coco --annotations instances.json --images photos \\
      --output weak.json --stuff sky road
  # labelImg, with tags of the stuff from a CSV (header: image,tags)
  python tools/import_annotations.py voc --annotations xml --images photos --tags tags.csv \\
      --output weak.json
  # boxes alone: everything outside them is one class
  python tools/import_annotations.py yolo --annotations labels --images photos \\
      --outside-boxes background --output weak.json
  # YOLO; validation gets the ids of training
  python tools/import_annotations.py yolo --annotations labels/val --images images/val \\
      --classes data.yaml --categories weak_train.json --output weak_val.json
  # labelme, X-AnyLabeling; flags of an image are its tags
  python tools/import_annotations.py labelme --annotations json --images photos --output weak.json
  # "CVAT for images 1.1"; tags of an image are its tags
  python tools/import_annotations.py cvat --annotations annotations.xml --images photos \\
      --output weak.json
  # PNG scribbles, values are lines of the class list; each stroke on a cow is one
  python tools/import_annotations.py scribbles --annotations scribbles --classes classes.txt \\
      --images photos --things cow --strokes-as-objects --output weak.json
  # Label Studio, export "JSON"; choices of an image are its tags
  python tools/import_annotations.py labelstudio --annotations tasks.json --images photos \\
      --output weak.json
"""
FORMATS = ["coco", "voc", "yolo", "labelme", "cvat", "labelstudio", "scribbles"]
# Option -> the formats that it is for.
ONLY_FOR = {
    "classes": ("yolo", "scribbles"),
    "lines": ("yolo",),
    "difficult": ("voc",),
    "corners": ("voc",),
    "bbox": ("coco", "yolo"),
    "crowds_as_objects": ("coco",),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument(
        "--annotations", required=True, help="the file, or the folder with one file per image"
    )
    parser.add_argument("--images", required=True, help="the folder of the images")
    parser.add_argument("--output", required=True, help="the own-data file to write")
    parser.add_argument("--tags", help="CSV of image tags or crop tags")
    parser.add_argument(
        "--scribbles", metavar="DIR",
        help="PNG files of scribbles, one per image: values are category ids (YOLO, or with "
        "--classes: line numbers from 0), and 255 where nothing is drawn",
    )  # fmt: skip
    parser.add_argument(
        "--strokes-as-objects", action="store_true",
        help="PNG scribbles: each stroke on a thing is an object",
    )  # fmt: skip
    parser.add_argument(
        "--things", nargs="+", default=[], metavar="NAME", help="things that have points, no boxes"
    )
    parser.add_argument(
        "--stuff", nargs="+", default=[], metavar="NAME", help="stuff classes; boxes become tags"
    )
    parser.add_argument(
        "--outside-boxes", metavar="NAME",
        help="the stuff class of everything outside all boxes, where it is one, e.g. background",
    )  # fmt: skip
    parser.add_argument(
        "--ignore", nargs="+", default=[], metavar="NAME", help="classes to leave out"
    )
    parser.add_argument(
        "--categories", help="an own-data or COCO file whose classes and ids are used, no others"
    )
    parser.add_argument("--classes", help="YOLO, scribbles: classes.txt, obj.names or data.yaml")
    parser.add_argument(
        "--lines", choices=["auto", "polygon", "pose"], default="auto",
        help="YOLO: what lines longer than a box are; auto: by data.yaml's kpt_shape (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--bbox", choices=["auto", "xywh", "xyxy"], default="auto",
        help="COCO, YOLO: what the four numbers are; auto: xywh, and an error where they look like "
        "corners (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--crowds-as-objects", action="store_true",
        help="COCO: import groups (iscrowd), such as CVAT's brush masks, as objects",
    )  # fmt: skip
    parser.add_argument(
        "--difficult", choices=["keep", "crowd", "drop"], default="keep", help="VOC (%(default)s)"
    )
    parser.add_argument(
        "--corners", choices=["auto", "inclusive", "edges"], default="auto",
        help="VOC: pixels counted from 1, both ends inside, or edges from 0 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--keep-going", action="store_true", help="drop bad records and files")
    parser.add_argument("--report", help="JSON list of all that was dropped or changed")
    parser.add_argument("--force", action="store_true", help="replace an existing --output")
    args = parser.parse_args(argv)

    for option, formats in ONLY_FOR.items():
        if option == "classes" and args.scribbles:
            continue
        if args.format not in formats and getattr(args, option) != parser.get_default(option):
            flag = "--" + option.replace("_", "-")
            raise InputError(f"{flag}: is for {' and '.join(formats)}, not for {args.format}")
    for target in filter(None, (args.output, args.report)):
        for source in filter(None, (args.annotations, args.tags, args.categories, args.classes)):
            if os.path.exists(target) and os.path.samefile(target, source):
                raise InputError(f"{target}: is an input; name another file to write")
    if os.path.isdir(args.output):
        raise InputError(f"--output {args.output}: is a folder, a file was expected")
    if os.path.exists(args.output) and not args.force:
        raise InputError(f"--output {args.output}: is there already; add --force to replace it")
    check_writable(args.output)
    log = ImportLog(args.keep_going)
    images = ImageIndex(args.images)
    known = read_categories(args.categories, log) if args.categories else None
    fixed = known is not None
    pictures, classes = _read(args, images, log, [c["name"] for c in known or []])
    known = classes if known is None else known
    if args.tags:
        names = [*(c["name"] for c in known or ()), *args.stuff]
        names += {name for picture in pictures for name, *_ in picture.boxes}
        pictures = read_tags_csv(args.tags, pictures, images, log, names)
    if args.format == "scribbles" or args.scribbles:
        pictures = _add_scribbles(args, pictures, images, log, known)
    elif args.strokes_as_objects:
        raise InputError("--strokes-as-objects: is for PNG scribbles; name them with --scribbles")
    untouched = len(images.paths) - len(pictures)
    if untouched:
        log.notes.append(f"{untouched} images of {args.images} have no annotation: not imported")
    try:
        content = to_own_data(
            pictures, log, stuff=args.stuff, things=args.things, ignore=args.ignore, known=known,
            fixed=fixed, outside=args.outside_boxes,
        )  # fmt: skip
    finally:  # where nothing is left, it tells why
        if args.report:
            report = {"dropped": log.dropped, "changed": log.changed, "notes": log.notes}
            write_json(args.report, report)
    unchecked = Path(args.output).with_name(f".{Path(args.output).name}.{os.getpid()}.unchecked")
    try:
        write_json(unchecked, content)
        try:
            # What is written loads, or this tells why.
            read_weak_file(unchecked, args.images, supervision="mixed")
        except InputError as error:
            raise InputError(str(error).replace(str(unchecked), args.output)) from None
        os.replace(unchecked, args.output)
    finally:
        unchecked.unlink(missing_ok=True)

    for line in log.lines():
        print(line)
    names = {k: [c["name"] for c in content["categories"] if c["isthing"] == k] for k in (1, 0)}
    tags = sum(len(e["image_tags"]) for e in content["images"])
    entries = [*content["images"], *content["annotations"]]
    marks = [f"{sum(len(e.get(k, ())) for e in entries)} {k}, " for k in ("points", "scribbles")]
    boxes = sum("bbox" in a for a in content["annotations"])
    without = len(content["annotations"]) - boxes
    marks += [f"{without} objects without a box, "] if without else []
    groups = sum(a.get("iscrowd", 0) for a in content["annotations"])
    if groups:
        objects = len(content["annotations"]) - groups
        advice = "; --crowds-as-objects imports groups as objects" * (args.format == "coco")
        print(
            f"{groups} of the boxes are groups (iscrowd), which are not trained on and get no "
            f"label; {objects} are objects{advice}"
        )
    print(f"things: {', '.join(names[1]) or 'none'}; stuff: {', '.join(names[0]) or 'none'}")
    if args.outside_boxes:
        print(
            f"everything outside the boxes is {args.outside_boxes}: say so where labels are made "
            f"and trained on, outside_boxes: {args.outside_boxes} in DATASETS.OWN"
        )
    elif not names[0]:
        print(
            "no stuff: a detector can be trained, a network for pixels not, as nothing tells what "
            "lies outside the boxes; add --tags, or --outside-boxes background if it is one class"
        )
    print(
        f"{args.output}: {len(content['images'])} images, {boxes} boxes, "
        f"{''.join(m for m in marks if m[0] != '0')}{tags} image tags, "
        f"{len(log.dropped)} records dropped, {len(log.changed)} changed"
    )
    return 0


def _add_scribbles(
    args: argparse.Namespace, pictures: list[Picture], images: ImageIndex, log: ImportLog,
    known: list[dict] | None,
) -> list[Picture]:  # fmt: skip
    """Add PNG scribbles to what was read."""
    names = {c["id"]: c["name"] for c in known or ()}
    if args.classes or args.format == "yolo":
        files = [args.classes] if args.classes else find_yolo_classes(args.annotations)
        names = read_yolo_classes(files)[0]
    if not names:
        raise InputError(
            "PNG scribbles: their values have no names; give --classes, a name a line from 0, or "
            "--categories, a file whose category ids they are"
        )
    folder = args.scribbles or args.annotations
    if args.scribbles and args.format == "scribbles":
        raise InputError("--scribbles: is --annotations where the format is scribbles")
    return read_scribbles(folder, pictures, images, log, names, objects=args.strokes_as_objects)


def _read(
    args: argparse.Namespace, images: ImageIndex, log: ImportLog, known: list[str]
) -> tuple[list[Picture], list[dict] | None]:
    """Read the annotations; return pictures, and the classes where the format lists them."""
    path = args.annotations
    if args.format == "coco":
        return read_coco(
            path, images, log, bbox=args.bbox, crowds_as_objects=args.crowds_as_objects,
            known=[*known, *args.stuff],
        )  # fmt: skip
    if args.format == "cvat":
        return read_cvat(path, images, log)
    if args.format == "labelstudio":
        return read_label_studio(path, images, log), None
    if args.format == "voc":
        options = {"difficult": args.difficult, "corners": args.corners}
        return read_voc(path, images, log, **options), None
    if args.format == "labelme":
        return read_labelme(path, images, log), None
    if args.format == "scribbles":
        return [], None
    files = [args.classes] if args.classes else find_yolo_classes(path)
    names, key_points = read_yolo_classes(files)
    log.notes.append(f"YOLO classes read from: {files[0]} (--classes)")
    categories, classes = file_categories(
        [{"id": k + 1, "name": name} for k, name in sorted(names.items())], str(files[0]), log
    )
    pictures = read_yolo(
        path, images, log, classes={k: classes[k + 1] for k in names}, key_points=key_points,
        lines=args.lines, bbox=args.bbox,
    )  # fmt: skip
    return pictures, categories


if __name__ == "__main__":
    main_with_errors(main)
