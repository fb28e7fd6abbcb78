# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The model zoo's functions; names and meanings are those of :mod:`detectron2.model_zoo`."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from wsis_d2.model_zoo.download import fetch_file
from wsis_d2.model_zoo.index import PACKAGE, find_entry, model_name, places, read_index
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

SCHEME = "wsis-d2://"


def config_root() -> Path:
    """Return the folder of the recipes: in the package, or ``configs/`` of the checkout."""
    packaged = PACKAGE / "configs"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "configs"


def list_configs() -> list[str]:
    """Return the ids of all recipes; base files are left out."""
    root = config_root()
    files = sorted(root.glob("*/*.yaml"))
    return [
        f.relative_to(root).with_suffix("").as_posix() for f in files
        if not f.name.startswith("Base")
    ]  # fmt: skip


def list_released() -> list[str]:
    """Return the ids of all models whose trained weights are released."""
    return list(dict.fromkeys(name for place in places() for name in read_index(place)))


def get_config_file(config_path: str) -> str:
    """Return the path of a recipe.

    Args:
        config_path: path below ``configs/``, with or without ``.yaml``.

    Raises:
        InputError: no such recipe.
    """
    name = model_name(config_path)
    path = config_root() / f"{name}.yaml"
    if not path.is_file():
        near = [n for n in list_configs() if n.split("/")[0] == name.split("/")[0]]
        raise InputError(
            f"{config_path}: no such config in the model zoo; expected one of "
            f"{', '.join(near or list_configs())}"
        )
    return str(path)


def get_checkpoint_url(config_path: str) -> str:
    """Return the address of the trained model of a recipe: a URL, or a path if it lies on disk.

    Raises:
        NotReleasedError: there is none; says how to train it.
    """
    return find_entry(config_path).addresses("checkpoint")[0]


def _fetch(config_path: str, part: str) -> Path:
    entry = find_entry(config_path)
    found = entry.fields[part]
    return fetch_file(
        entry.addresses(part), found["sha256"], f"{entry.name}: {part}", found.get("size")
    )


def get_checkpoint_file(config_path: str) -> str:
    """Return a local, checked copy of the trained model, downloaded if it must be.

    Raises:
        NotReleasedError: there is none.
        InputError: it cannot be fetched, or its content is not the published one.
    """
    return str(_fetch(config_path, "checkpoint"))


def get_metadata_file(config_path: str) -> str:
    """Return a local, checked copy of a trained model's ``metadata.json``; errors as above."""
    return str(_fetch(config_path, "metadata"))


def get_metadata(config_path: str) -> dict[str, Any]:
    """Return what a trained model speaks of: classes, colours and ids, as in ``metadata.json``."""
    return read_json(get_metadata_file(config_path))


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Return a model's config.

    Args:
        config_path: path below ``configs/``, with or without ``.yaml``.
        trained: the config that the released model was trained with, ``MODEL.WEIGHTS`` being that
            model (fetched and checked when it is loaded); else the recipe as it lies in
            ``configs/``.

    Raises:
        InputError: no such recipe, or ``trained`` and no such release.
    """
    from wsis_d2.config import merge_file, read_config
    from wsis_d2.engine import load_cfg

    if not trained:
        return load_cfg(get_config_file(config_path))
    cfg = read_config()
    merge_file(cfg, str(_fetch(config_path, "config")), bases=False)
    _fetch(config_path, "metadata")  # small, and then it is there off line too
    cfg.MODEL.WEIGHTS = SCHEME + model_name(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> torch.nn.Module:
    """Return a model, in training mode as Detectron2's zoo does.

    Args:
        config_path: path below ``configs/``, with or without ``.yaml``.
        trained: load the released weights; else the weights that the recipe starts from.
        device: where it goes; None takes the config's, or the CPU where there is no GPU.
    """

    from wsis_d2.checkpoint.parts import load_trained
    from wsis_d2.checkpoint.start import load_for_training
    from wsis_d2.modeling.build import build_model

    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    if trained:
        load_trained(model, cfg.MODEL.WEIGHTS, key="MODEL.WEIGHTS")
    else:
        load_for_training(cfg, model)
    return model
