# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A tiny project on disk: sample, label store and the output folder of a run, without training."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Paths of a sample of 6 + 4 scenes, labels with every third row ignored, and a run.

    The run's predictions are the truth of the validation scenes moved by 4 pixels, so that
    every image has a quality of its own below 1.
    """
    from wsis_d2.data.datasets.own.weak import read_weak_file
    from wsis_d2.data.datasets.sample.dataset import prepare_sample
    from wsis_d2.data.panoptic_format import PanopticFile, write_panoptic_png
    from wsis_d2.evaluation.results import make_meta, write_results_json
    from wsis_d2.report.sources import panoptic_layer
    from wsis_d2.utils.json_io import write_json
    from wsis_d2.visualization.palette import class_list
    from wsis_d2.weak_labels.store import LabelStore

    root = tmp_path_factory.mktemp("tiny")
    data = root / "wsis_sample"
    prepare_sample(data, 6, 4, 3)
    weak = read_weak_file(data / "weak_train.json", data / "images" / "train")
    truth = PanopticFile(data / "panoptic_train.json", data / "panoptic_train")
    classes = class_list(weak.classes.categories)
    store = LabelStore.create(root / "labels", {"command": "test"}, weak.classes.categories)
    for place, record in enumerate(weak.records):
        labels = panoptic_layer(truth, record["image_id"], classes)
        semantic, instance = labels.semantic.copy(), labels.instance.copy()
        semantic[:: 3 + place] = 255
        instance[:: 3 + place] = -1
        ids = [int(i) for i in np.unique(instance[instance > 0])]
        segments = [{"id": i, "category_id": int(semantic[instance == i][0])} for i in ids]
        store.write(record, semantic, instance, segments, {"boxes": len(record["annotations"])})
    store.finish()
    run = root / "run"
    folder = run / "inference" / "sample_val_full" / "panoptic_pred"
    folder.mkdir(parents=True)
    truth = PanopticFile(data / "panoptic_val.json", data / "panoptic_val")
    for key in truth:
        write_panoptic_png(folder / truth.png(key).name, np.roll(truth.ids(key), 4, axis=1))
    annotations = [
        {**a, "segments_info": [{**s, "score": 0.5} for s in truth.segments(key)]}
        for key, a in truth.annotations.items()
    ]
    content = {
        "annotations": annotations,
        "categories": truth.classes.categories,
        "images": truth.images,
    }
    write_json(folder.with_suffix(".json"), content)
    lines = [
        {"iteration": i, "total_loss": 2.0 / (i + 1), "loss_sem_seg": 1.0 / (i + 1), "lr": 0.01}
        for i in range(0, 100, 10)
    ]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {"panoptic_seg": {"PQ": 50.0, "PQ_th": 40.0, "PQ_st": 60.0}, "apr": {"APr_vol": 30.0},
               "sem_seg": {"mIoU": 70.0, "IoU-fish": 55.0}}  # fmt: skip
    meta = make_meta(supervision="weak", dataset="sample_val_full", seconds=12.0)
    write_results_json(run / "results.json", "weak", results, meta)
    return SimpleNamespace(root=root, data=data, store=root / "labels", run=run)


@pytest.fixture
def tiny_copy(tiny, tmp_path):
    """A copy of the tiny project that a test may damage."""
    shutil.copytree(tiny.root, tmp_path / "tiny")
    root = tmp_path / "tiny"
    return SimpleNamespace(
        root=root, data=root / "wsis_sample", store=root / "labels", run=root / "run"
    )
