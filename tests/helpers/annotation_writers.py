# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What annotation tools write for given boxes; independent of the readers that are tested.

The boxes come as ``{file name: (width, height, [(class, x, y, width, height), ...])}``.
"""

import json

from PIL import Image

from wsis_d2.data.importers.image_index import ImageIndex


def write_coco(folder, truth, classes, polygons=False):
    images, annotations = [], []
    for i, (name, (width, height, boxes)) in enumerate(truth.items()):
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        for label, x, y, w, h in boxes:
            shape = {"bbox": [x, y, w, h], "segmentation": [], "attributes": {"rotation": 0.0}}
            if polygons:
                shape = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": 10 + classes.index(label),
                 "area": w * h, "iscrowd": 0, **shape}
            )  # fmt: skip
    categories = [{"id": 10 + k, "name": n, "supercategory": ""} for k, n in enumerate(classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def write_voc(folder, truth, edges):
    for name, (width, height, boxes) in truth.items():
        objects = ""
        for label, x, y, w, h in boxes:
            ends = (x, y, x + w, y + h) if edges else (x + 1, y + 1, x + w, y + h)
            tags = zip(("xmin", "ymin", "xmax", "ymax"), ends, strict=True)
            inner = "".join(f"<{t}>{v}</{t}>" for t, v in tags)
            objects += f"<object><name>{label}</name><bndbox>{inner}</bndbox></object>"
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        path = folder / "voc" / (name.rsplit(".", 1)[0] + ".xml")
        path.parent.mkdir(parents=True, exist_ok=True)
        base = name.rsplit("/", 1)[-1]
        path.write_text(f"<annotation><filename>{base}</filename>{size}{objects}</annotation>")
    return folder / "voc"


def write_yolo(folder, truth, classes, polygons=False):
    for name, (width, height, boxes) in truth.items():
        lines = []
        for label, x, y, w, h in boxes:
            values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            if polygons:
                xs, ys = (x / width, (x + w) / width), (y / height, (y + h) / height)
                values = [xs[0], ys[0], xs[1], ys[0], xs[1], ys[1], xs[0], ys[1]]
            lines.append(" ".join([str(classes.index(label)), *(f"{v:.8f}" for v in values)]))
        path = folder / "yolo" / (name.rsplit(".", 1)[0] + ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder / "yolo"


def write_labelme(folder, truth):
    for name, (width, height, boxes) in truth.items():
        shapes = [
            {"label": label, "points": [[x + w, y + h], [x, y]], "shape_type": "rectangle",
             "group_id": None, "flags": {}}
            for label, x, y, w, h in boxes
        ]  # fmt: skip
        path = folder / "labelme" / (name.rsplit(".", 1)[0] + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"version": "5.4.1", "flags": {"grass": True, "rain": False}, "shapes": shapes,
                   "imagePath": "..\\photos\\" + name.replace("/", "\\"), "imageData": None,
                   "imageHeight": height, "imageWidth": width}  # fmt: skip
        path.write_text(json.dumps(content))
    return folder / "labelme"


def write_cvat(folder, truth):
    """The export "CVAT for images 1.1"; every image has the tag grass."""
    classes = sorted({b[0] for _, _, boxes in truth.values() for b in boxes})
    labels = "".join(f"<label><name>{n}</name><color>#{k:02x}ff00</color></label>"
                     for k, n in enumerate([*classes, "grass"]))  # fmt: skip
    body = ""
    for k, (name, (width, height, boxes)) in enumerate(truth.items()):
        body += f'<image id="{k}" name="{name}" width="{width}" height="{height}">'
        for label, x, y, w, h in boxes:
            ends = f'xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"'
            body += f'<box label="{label}" source="manual" occluded="0" {ends} z_order="0"></box>'
        body += '<tag label="grass" source="manual"></tag></image>'
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    (folder / "cvat.xml").write_text(
        f"<annotations><version>1.1</version>{meta}{body}</annotations>"
    )
    return folder / "cvat.xml"


def write_label_studio(folder, truth):
    """Label Studio's export "JSON" of uploaded images; every image has the choice grass."""
    tasks = []
    for k, (name, (width, height, boxes)) in enumerate(truth.items()):
        result = [
            {"id": f"r{n}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
             "original_width": width, "original_height": height, "image_rotation": 0,
             "value": {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width,
                       "height": 100 * h / height, "rotation": 0, "rectanglelabels": [label]}}
            for n, (label, x, y, w, h) in enumerate(boxes)
        ]  # fmt: skip
        result.append({"id": "c", "type": "choices", "from_name": "stuff", "to_name": "image",
                       "value": {"choices": ["grass"]}})  # fmt: skip
        upload = f"/data/upload/1/{k:08x}-{name.rsplit('/', 1)[-1]}"
        annotation = {"id": k, "was_cancelled": False, "result": result}
        tasks.append({"id": 7 + k, "data": {"image": upload}, "annotations": [annotation]})
    (folder / "tasks.json").write_text(json.dumps(tasks))
    return folder / "tasks.json"


def draw_pictures(root, *names, size=(100, 80)):
    """Draw plain pictures into a folder; return its index."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 120, 60)).save(root / name)
    return ImageIndex(root)


def coco_pair(folder, annotations, **changes):
    """A COCO file of a.png (id 1) and b.png (id 2), 100 x 80, with the class 3 cow."""
    content = {
        "images": [{"id": k, "file_name": f"{n}.png", "width": 100, "height": 80}
                   for k, n in ((1, "a"), (2, "b"))],
        "categories": [{"id": 3, "name": "cow"}],
        "annotations": [{"image_id": 1, "category_id": 3, **a} for a in annotations],
        **changes,
    }  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"
