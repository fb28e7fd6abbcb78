# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Records of registered datasets, and the supervision that each one has."""

from collections import Counter
from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog

from wsis_d2.utils.errors import InputError


def load_records(names: Iterable[str]) -> list[dict]:
    """Load datasets and note in each record, for the mapper, which one it is from.

    Raises:
        InputError: an unknown or an empty dataset.
    """
    records: list[dict] = []
    for name in names:
        if name not in DatasetCatalog.list():
            raise InputError(
                f"DATASETS: no dataset {name!r}; built-in ones are registered by "
                "wsis_d2.data.datasets, own ones by DATASETS.OWN or register_weak_panoptic"
            )
        loaded = DatasetCatalog.get(name)
        if not loaded:
            raise InputError(f"DATASETS: dataset {name!r} has no images")
        records.extend({**record, "dataset_name": name} for record in loaded)
    return records


def supervision_of(record: dict) -> str:
    """Return "weak" or "full": the record's own word, else its dataset's, else full."""
    own = record.get("supervision")
    if own is None and "dataset_name" in record:
        own = MetadataCatalog.get(record["dataset_name"]).get("supervision")
    return own or "full"


def count_supervision(records: Iterable[dict]) -> dict[str, int]:
    """Count the images of each kind: {"weak": n, "full": m}, only kinds that occur."""
    return dict(Counter(supervision_of(record) for record in records))
