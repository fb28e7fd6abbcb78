# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Recognise the files of other tools and formats, to say which export or reader takes them."""

from typing import Any

_VIA = 'choose "Export Annotations (COCO format)" in its menu instead'
_READ = "read it with: tools/import_annotations.py {}"


def what_it_is(content: Any) -> str | None:
    """Say whose JSON this is and which reader or export to choose; None where it is unknown."""
    entry = content[0] if isinstance(content, list) and content else None
    if isinstance(entry, dict):
        if isinstance(entry.get("data"), dict) and ("annotations" in entry or "result" in entry):
            return f"it is Label Studio JSON; {_READ.format('labelstudio')}"
        if "annotation_id" in entry and "image" in entry and "annotations" not in entry:
            return 'it is Label Studio JSON-MIN; export "JSON" instead'
        if "annotations" in entry and ("image" in entry or "imagefilename" in entry):
            return "it is CreateML JSON; export Pascal VOC or YOLO instead"
        if "regions" in entry and "filename" in entry:
            return f"it is VIA (VGG Image Annotator) JSON; {_VIA}"
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("shapes"), list):
        return f"it is labelme JSON; {_READ.format('labelme')}"
    if isinstance(content.get("images"), list) and isinstance(content.get("categories"), list):
        annotations = content.get("annotations")
        first = annotations[0] if isinstance(annotations, list) and annotations else None
        if isinstance(first, dict) and "segments_info" in first:
            return (
                "it is COCO panoptic JSON, which is truth and no weak annotation; export instances"
            )
        return f"it is COCO JSON; {_READ.format('coco')}"
    if isinstance(content.get("objects"), list) and "size" in content:
        return 'it is Supervisely JSON; run its app "Export to COCO" instead'
    if isinstance(content.get("classes"), list) and "tags" in content and "shapes" not in content:
        return 'it is the meta.json of Supervisely; run its app "Export to COCO" instead'
    if "item" in content and isinstance(content.get("annotations"), list):
        return "it is Darwin (V7) JSON; export the release as COCO instead"
    if "categories" in content and isinstance(content.get("items"), list):
        return 'it is Datumaro JSON; export "COCO 1.0" instead'
    via = content.get("_via_img_metadata", content)
    values = list(via.values()) if isinstance(via, dict) else []
    if "_via_settings" in content or (
        values and all(isinstance(v, dict) and "regions" in v and "filename" in v for v in values)
    ):
        return f"it is VIA (VGG Image Annotator) JSON; {_VIA}"
    return None


def what_xml_it_is(root: Any) -> str | None:
    """As :func:`what_it_is`, of an XML file's root element."""
    if root.tag == "annotation":
        return f"it is Pascal VOC XML; {_READ.format('voc')}"
    if root.tag == "annotations" and root.find("image") is not None:
        return f'it is "CVAT for images" XML; {_READ.format("cvat")}'
    if root.tag == "annotations" and root.find("track") is not None:
        return 'it is "CVAT for video" XML; export "CVAT for images 1.1" instead'
    return None
