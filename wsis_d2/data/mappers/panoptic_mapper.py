# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""One mapper for weak and for full supervision: image, boxes and maps under one transform."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Instances

from wsis_d2.data.augmentations import build_train_augmentations
from wsis_d2.data.datasets.own.custom import dataset_classes
from wsis_d2.data.mappers.build import DATASET_MAPPER_REGISTRY
from wsis_d2.data.mappers.regions import UNKNOWN, annotation_regions
from wsis_d2.data.panoptic_format import read_panoptic_png
from wsis_d2.data.records import supervision_of
from wsis_d2.structures.annotation import AnnotatedClasses, stuff_crops
from wsis_d2.structures.labels import IGNORE
from wsis_d2.structures.stages import stage_named
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import image_tensor, read_record
from wsis_d2.weak_labels.store import LabelStore

_MASK_FIELDS = ("pan_seg_file_name", "sem_seg_file_name", "segments_info")


@DATASET_MAPPER_REGISTRY.register()
class PanopticMapper:
    """Makes a sample from a weak or a full record.

    While training:

    1. Read the image.
    2. Read the maps: a weak record's from its dataset's label store, a full record's from its
       panoptic PNG. A weak record that names a mask is refused.
    3. Draw one transform, apply it to image, boxes and maps.
    4. Give ``image`` uint8 (3, H, W); ``instances`` with ``gt_boxes`` and ``gt_classes`` (thing
       indices 0..T-1; crowds left out); ``sem_seg`` int64 (H, W), unified ids, 255 ignore;
       ``inst_seg`` int64 (H, W), index into ``inst_classes`` (int64, unified ids), -1 ignore;
       ``supervision``; of a weak record, where losses read tags and boxes, what
       :func:`wsis_d2.data.mappers.regions.annotation_regions` gives; and where the detector's
       boxes are wanted, ``detector_image`` (the whole image) and ``transforms``.

    While testing, the image as it is.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        thing_ids: Sequence[int],
        num_classes: int,
        label_stores: dict[str, str | None],
        with_maps: bool = True,
        with_detector_image: bool = False,
        with_regions: bool = False,
    ) -> None:
        """
        Args:
            is_train: training or testing.
            augmentations: applied in order while training.
            image_format: channel order, "BGR" or "RGB".
            thing_ids: ascending unified ids of the things.
            num_classes: number of unified classes.
            label_stores: dataset name to the label store of its weak records, or None.
            with_maps: whether samples need maps (a detector does not).
            with_detector_image: whether samples need the untouched image.
            with_regions: whether weak samples need their windows, tags and boxes.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.thing_index = {int(c): k for k, c in enumerate(thing_ids)}
        self.num_classes = num_classes
        self.label_stores = dict(label_stores)
        self.with_maps = with_maps
        self.with_detector_image = with_detector_image
        self.with_regions = with_regions
        self._open_stores: dict[str, LabelStore] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        options = cfg.MODEL.WSIS
        stage = stage_named(options.STAGE)
        names = cfg.DATASETS.TRAIN if is_train else ()
        return {
            "is_train": is_train,
            "augmentations": build_train_augmentations(cfg) if is_train else [],
            "image_format": cfg.INPUT.FORMAT,
            "thing_ids": options.THING_IDS,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "label_stores": {n: MetadataCatalog.get(n).get("label_store") for n in names},
            "with_maps": "semantic" in stage.parts,
            "with_detector_image": stage.joint and options.TRAIN_BOXES == "detector",
            "with_regions": options.ANNOTATION_LOSS_WEIGHT > 0 and "semantic" in stage.trained,
        }

    def check(self, records: Sequence[dict]) -> None:
        """Make sure before training that labels can be learned from.

        Raises:
            InputError: a weak record has no label made from its annotation, naming the image and
                the command that makes it; or labels and truth hold things alone.
        """
        if not self.with_maps:
            return
        for record in records:
            if supervision_of(record) == "weak":
                self._store(record).check(record)
        if not any(self._may_show_stuff(record) for record in records):
            names = ", ".join(sorted({str(record.get("dataset_name")) for record in records}))
            raise InputError(
                f"{names}: no image is labelled with any stuff, so a network would see things "
                "everywhere; tag the stuff of the images, or, where all that lies outside the "
                "boxes is one class, name it: import_annotations.py and make_weak_labels.py "
                "--outside-boxes NAME, outside_boxes: NAME in DATASETS.OWN"
            )

    def _may_show_stuff(self, record: dict) -> bool:
        """Whether a record's tags, truth, dataset or labels speak of any stuff."""
        if supervision_of(record) == "full":
            segments = record.get("segments_info")  # a record without any is refused later
            return segments is None or any(
                s["category_id"] not in self.thing_index for s in segments
            )
        if any(tag not in self.thing_index for tag in record.get("image_tags") or ()):
            return True
        if MetadataCatalog.get(record["dataset_name"]).get("outside_boxes", "ignore") != "ignore":
            return True
        semantic = self._store(record).semantic(record["image_id"])
        return any(c not in self.thing_index for c in np.unique(semantic).tolist() if c != IGNORE)

    def __call__(self, record: dict) -> dict:
        """Map a dataset dict to a sample."""
        sample = {k: v for k, v in record.items() if k not in _MASK_FIELDS + ("annotations",)}
        image = read_record(record, self.image_format)
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])
        if not self.is_train:
            sample["image"] = image_tensor(image)
            return sample
        sample["supervision"] = supervision_of(record)
        self._refuse_masks(record, sample["supervision"])
        maps = None
        if self.with_maps:
            semantic, instance, classes = self._maps(record, sample["supervision"])
            maps, table = _pack(semantic, instance)
        aug_input = T.AugInput(image, sem_seg=maps)
        transforms = self.augmentations(aug_input)
        sample["image"] = image_tensor(aug_input.image)
        sample["instances"] = self._boxes(record, transforms, aug_input.image.shape[:2])
        if self.with_maps:
            semantic, instance = _unpack(aug_input.sem_seg, table)
            sample["sem_seg"] = torch.from_numpy(semantic)
            sample["inst_seg"] = torch.from_numpy(instance)
            sample["inst_classes"] = torch.tensor(classes, dtype=torch.int64)
        if self.with_regions and sample["supervision"] == "weak":
            sample.update(self._regions(record, transforms))
        if self.with_detector_image:
            sample["detector_image"] = image_tensor(image)
            sample["transforms"] = transforms
        return sample

    def _refuse_masks(self, record: dict, supervision: str) -> None:
        if supervision != "weak":
            return
        found = [k for k in _MASK_FIELDS if k in record]
        found += [k for a in record["annotations"] for k in ("segmentation",) if k in a]
        if found:
            raise InputError(
                f"{record['file_name']}: a weak record with the mask field {found[0]!r}; weak "
                "records hold boxes and tags alone: remove it, or give the record supervision full"
            )

    def _store(self, record: dict) -> LabelStore:
        name = record["dataset_name"]
        if name not in self._open_stores:
            path = self.label_stores.get(name)
            if not path:
                raise InputError(
                    f"{record['file_name']}: dataset {name!r} has no label store; make one with "
                    f"tools/make_weak_labels.py all --dataset {name} --output STORE and name it: "
                    f"DATASETS.LABEL_STORES \"[['{name}', 'STORE']]\" (own data: labels=STORE)"
                )
            store, classes = LabelStore.open(path), dataset_classes(name)
            self._open_stores[name] = store if classes is None else store.in_classes(classes)
        return self._open_stores[name]

    def _maps(self, record: dict, supervision: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return semantic (H, W), instance (H, W) indices with -1, and the instances' classes."""
        if supervision == "weak":
            store = self._store(record)
            semantic = store.semantic(record["image_id"])
            ids, segments = store.instance(record["image_id"])
            source = f"{store.path}: the label of image {record['image_id']!r}"
        else:
            if "pan_seg_file_name" not in record:
                raise InputError(
                    f"{record['file_name']}: a full record without pan_seg_file_name; register "
                    "its dataset with panoptic_json and panoptic_dir"
                )
            source = record["pan_seg_file_name"]
            ids = read_panoptic_png(source).astype(np.int64)
            segments = record["segments_info"]
            unknown = np.setdiff1d(ids, [0, *(s["id"] for s in segments)])
            if len(unknown):
                raise InputError(
                    f"{source}: holds segment id {unknown[0]}, which the panoptic JSON does not "
                    "list for this image; prepare the dataset again"
                )
            semantic = _paint(ids, segments, [s["category_id"] for s in segments], IGNORE)
        size = (record["height"], record["width"])
        if semantic.shape != size or ids.shape != size:
            raise InputError(f"{source} has size {semantic.shape}, the image has {size}")
        things = [
            s for s in segments if s["category_id"] in self.thing_index and not s.get("iscrowd", 0)
        ]
        classes = [int(s["category_id"]) for s in things]
        instance = _paint(ids, things, range(len(things)), -1)
        stuff = [c for c in range(self.num_classes) if c not in self.thing_index]
        for category in stuff:
            region = semantic == category
            if region.any():
                instance[region] = len(classes)
                classes.append(category)
        return semantic, instance, classes

    def _boxes(self, record: dict, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
        annotations = []
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            kept = {k: annotation[k] for k in ("bbox", "bbox_mode")}
            kept["category_id"] = self._thing(annotation["category_id"], record)
            kept = utils.transform_instance_annotations(copy.deepcopy(kept), transforms, size)
            annotations.append(kept)
        return utils.filter_empty_instances(utils.annotations_to_instances(annotations, size))

    def _regions(self, record: dict, transforms: T.TransformList) -> dict:
        """What tags and boxes say, for the losses that read them; see ``annotation_regions``."""
        annotation = AnnotatedClasses.of_dataset(MetadataCatalog.get(record["dataset_name"]))
        windows = []
        things = annotation.thing_ids
        crops = stuff_crops(record, things)
        if not crops:
            target = torch.full((self.num_classes,), UNKNOWN)  # nobody has tagged its stuff
            windows.append(((0, 0, record["width"], record["height"]), target))
        for x0, y0, x1, y1, tags in crops:
            target = torch.zeros(self.num_classes)
            target[list(annotation.outside_classes)] = UNKNOWN
            target[list(tags)] = 1.0
            windows.append(((x0, y0, x1, y1), target))
        return annotation_regions(record, windows, transforms, things, annotation.has_boxes)

    def _thing(self, category: int, record: dict) -> int:
        if category not in self.thing_index:
            raise InputError(
                f"{record['file_name']}: a box of class {category}, which is no thing; expected "
                f"one of {sorted(self.thing_index)}"
            )
        return self.thing_index[category]


def _paint(
    ids: np.ndarray, segments: Sequence[dict], values: Sequence[int], rest: int
) -> np.ndarray:
    """(H, W) int64 with each segment's value where its id is, ``rest`` elsewhere."""
    keys = np.array([s["id"] for s in segments], dtype=np.int64)
    table = np.append(np.asarray(list(values), dtype=np.int64), rest)
    if not len(keys):
        return np.full(ids.shape, rest, dtype=np.int64)
    order = np.argsort(keys)
    place = np.searchsorted(keys, ids, sorter=order).clip(max=len(keys) - 1)
    index = order[place]
    return table[np.where(keys[index] == ids, index, len(keys))]


def _pack(semantic: np.ndarray, instance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join two maps to one, so that one interpolation moves both.

    Returns:
        (H, W) uint8 (float32 where there are more than 256 pairs) index of the pixel's pair, and
        the (K, 2) pairs.
    """
    base = int(instance.max()) + 2
    code = semantic.astype(np.int64) * base + instance + 1
    present = np.flatnonzero(np.bincount(code.ravel(), minlength=256 * base))
    table = np.zeros(256 * base, dtype=np.int64)
    table[present] = np.arange(len(present))
    packed = table[code]
    pairs = np.stack([present // base, present % base - 1], axis=1)
    return packed.astype(np.uint8 if len(present) <= 256 else np.float32), pairs


def _unpack(packed: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.asarray(packed).astype(np.int64)
    return pairs[:, 0][index], pairs[:, 1][index]
