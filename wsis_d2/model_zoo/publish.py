# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Make a release of a trained model: stripped weights, config, classes, card, index entry."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from wsis_d2 import __version__
from wsis_d2.checkpoint.coverage import is_auxiliary
from wsis_d2.checkpoint.parts import check_trained
from wsis_d2.checkpoint.reader import model_state, read_checkpoint
from wsis_d2.checkpoint.weight_keys import only_weights
from wsis_d2.engine.run_classes import fill_classes
from wsis_d2.model_zoo.index import INDEX_NAME, SCHEMA, is_url, model_name, read_index
from wsis_d2.structures.classes import ClassTable
from wsis_d2.utils.errors import InputError, printable
from wsis_d2.utils.files import write_bytes
from wsis_d2.utils.json_io import read_json

WEIGHTS_FOLDER = "weights"
# Results of single classes stay out of the index; the card has the main ones.
_MAIN = (
    "mIoU", "APr_vol", "APr_vol_th", "APr_vol_st", "PQ", "PQ_th", "PQ_st", "SQ", "DQ", "AP", "mAP",
)  # fmt: skip


def strip_checkpoint(checkpoint: Any, path: str | Path, half: bool) -> dict[str, torch.Tensor]:
    """Return a checkpoint's parameters alone, in the order of their names.

    Args:
        checkpoint: as read; optimiser, schedule, random state and iteration are dropped, and the
            auxiliary classifier.
        path: for messages.
        half: store floating point numbers in 16 bits; loading brings them back to 32.

    Raises:
        InputError: no parameters, or a number that is not finite (in 16 bits, either).
    """
    state = {
        k: v.detach().contiguous()
        for k, v in sorted(model_state(checkpoint, path).items())
        if not is_auxiliary(k)
    }
    if half:
        for name, value in state.items():
            if value.is_floating_point():
                small = value.to(torch.float16)
                if not bool(torch.isfinite(small).all()):
                    raise InputError(f"{path}: parameter {name} does not fit into 16 bits")
                state[name] = small
    return state


def weights_bytes(state: Mapping[str, torch.Tensor]) -> bytes:
    """Return a weights file; the same parameters give the same bytes."""
    buffer = io.BytesIO()
    # A clone has a storage of its own: a view would drag its whole base along.
    torch.save({"model": {k: v.clone() for k, v in state.items()}}, buffer)
    return buffer.getvalue()


def self_contained_config(config_file: str | Path) -> CfgNode:
    """Return a run's config without paths of the machine it ran on.

    Raises:
        InputError: the file is missing or no config of this version.
    """
    from wsis_d2.config import merge_file, read_config

    if not Path(config_file).is_file():
        raise InputError(f"{config_file}: no such file, expected the config.yaml of a run")
    cfg = read_config()
    merge_file(cfg, str(config_file))
    cfg = only_weights(cfg)
    cfg.MODEL.DEVICE = "cuda"  # the CPU is taken where there is no GPU
    cfg.DATASETS.OWN, cfg.DATASETS.LABEL_STORES = [], []
    cfg.OUTPUT_DIR = "./output"
    return cfg


def publish(
    run: str | Path,
    name: str,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
    results: str | Path | None = None,
    run_name: str | None = None,
    stores: Sequence[str | Path] = (),
    half: bool = False,
    mirrors: Sequence[str] = (),
    license: str = "Apache-2.0",
    notes: str = "",
    commit: str | None = None,
) -> dict[str, Any]:
    """Release a run's model into a folder that serves as a model zoo.

    Args:
        run: the run's OUTPUT_DIR, with ``config.yaml`` and ``metadata.json``.
        name: id of the model, a config's path such as ``Sample-Panoptic/instance_weak``.
        output: the zoo's folder; ``model_zoo.json`` in it is made or extended.
        checkpoint: default ``model_final.pth`` in ``run``.
        results: default ``results.json`` in ``run``; metrics are left out where there is none.
        run_name: the run in ``results``; needed where it holds several.
        stores: label stores the model was trained from; their recipes go into the card.
        half: store the weights in 16 bits.
        mirrors: URLs of folders that will hold the weights too.
        license: of the weights.
        notes: a paragraph for the card: limits, data, thanks.
        commit: commit of the code.

    Returns:
        The index entry.

    Raises:
        InputError: a file of the run is missing or unusable; nothing is written then.
    """
    run, output = Path(run), Path(output)
    if not run.is_dir():
        raise InputError(f"{run}: no such folder, expected the OUTPUT_DIR of a run")
    name = model_name(name)
    if "/" not in name:
        raise InputError(f"--id {name}: expected FOLDER/NAME, as configs are named")
    bad = [m for m in mirrors if not is_url(m)]
    if bad:
        raise InputError(f"--mirror {bad[0]}: expected a URL")
    source = Path(checkpoint) if checkpoint is not None else run / "model_final.pth"
    cfg = self_contained_config(run / "config.yaml")
    metadata = read_metadata(run / "metadata.json")
    fill_classes(cfg, ClassTable.of_metadata(metadata, str(run / "metadata.json")))
    # The auxiliary classifier serves training alone.
    cfg.MODEL.SEM_SEG_HEAD.AUX_DIM = 0
    state = strip_checkpoint(read_checkpoint(source), source, half)
    wanted = check_trained(cfg, str(source), key="--checkpoint" if checkpoint else "--run")
    state = {name: state[name] for name in sorted(state.keys() & set(wanted))}
    metrics, meta = _read_metrics(results, run / "results.json", run_name)
    recipes = [_read_recipe(store) for store in stores]
    known = read_index(str(output)) if (output / INDEX_NAME).is_file() else {}

    data = weights_bytes(state)
    digest = hashlib.sha256(data).hexdigest()
    stem = f"{name.split('/')[-1]}_{digest[:8]}"
    folder = output / WEIGHTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "config": (f"{stem}.yaml", cfg.dump()),
        "metadata": (f"{stem}.json", json.dumps(metadata, indent=1) + "\n"),
    }
    write_bytes(folder / f"{stem}.pth", data)
    entry: dict[str, Any] = {
        "checkpoint": {
            "file": f"{WEIGHTS_FOLDER}/{stem}.pth",
            "sha256": digest,
            "size": len(data),
            "mirrors": [f"{m.rstrip('/')}/{stem}.pth" for m in mirrors],
        }
    }
    for part, (file, text) in texts.items():
        write_bytes(folder / file, text.encode())
        entry[part] = {
            "file": f"{WEIGHTS_FOLDER}/{file}",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "size": len(text.encode()),
        }
    entry.update(
        card=f"{WEIGHTS_FOLDER}/{stem}.md",
        metrics=metrics,
        meta=meta,
        recipe_hash=recipes[0]["hash"] if recipes else None,
        version=__version__,
        commit=commit,
        license=license,
    )
    card = model_card(name, entry, cfg, metadata, state, recipes, notes, half)
    write_bytes(folder / f"{stem}.md", card.encode())
    known[name] = entry
    content = {"schema": SCHEMA, "models": dict(sorted(known.items()))}
    write_bytes(output / INDEX_NAME, (json.dumps(content, indent=1) + "\n").encode())
    return entry


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a run's ``metadata.json``, which names the classes; InputError if it is none."""
    missing = "no such file; it holds the classes, training writes it into OUTPUT_DIR"
    metadata = read_json(path, missing=missing)
    for key in ("stuff_classes", "stuff_colors", "thing_ids"):
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key), list):
            raise InputError(f"{path}: has no list {key!r}, expected a run's metadata.json")
    return metadata


def _read_metrics(
    given: str | Path | None, default: Path, run_name: str | None
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Return the main numbers and the meta of the run in a results file; empty without a file."""
    from wsis_d2.evaluation.results import read_results_json

    path = Path(given) if given is not None else default
    if given is None and run_name is None and not path.is_file():
        return {}, {}
    runs = read_results_json(path)["runs"]
    if run_name is None and len(runs) == 1:
        run_name = next(iter(runs))
    if run_name not in runs:
        raise InputError(
            f"{path}: holds the runs {', '.join(runs)}; name the model's with --run-name"
        )
    run = runs[run_name]
    metrics = {
        task: {k: round(v, 2) for k in _MAIN if isinstance(v := values.get(k), int | float)}
        for task, values in run.items()
        if task != "meta" and isinstance(values, dict)
    }
    keep = ("supervision", "dataset", "variant", "seed")
    meta = {k: run["meta"].get(k) for k in keep}
    return {task: values for task, values in metrics.items() if values}, meta


def _read_recipe(path: str | Path) -> dict[str, Any]:
    from wsis_d2.weak_labels.store import LabelStore

    store = LabelStore.open(path)
    return {
        "hash": store.recipe_hash,
        "recipe": store.recipe,
        "images": len(store.image_ids()),
    }


def model_card(
    name: str,
    entry: Mapping[str, Any],
    cfg: CfgNode,
    metadata: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    recipes: Sequence[Mapping[str, Any]],
    notes: str,
    half: bool,
) -> str:
    """Return a model's card as Markdown: what it is, what it was made from, how good it is."""
    things = set(metadata["thing_ids"])
    names = [escape(printable(str(name))) for name in metadata["stuff_classes"]]
    count = sum(v.numel() for v in state.values())
    lines = [
        f"# {name}",
        "",
        f"{cfg.MODEL.META_ARCHITECTURE}, stage {cfg.MODEL.WSIS.STAGE}; {count:,} numbers"
        f"{' in 16 bits' if half else ''}, {entry['checkpoint']['size'] / 2**20:.1f} MiB, SHA-256 "
        f"`{entry['checkpoint']['sha256']}`.",
        "",
        "Things: " + (", ".join(n for i, n in enumerate(names) if i in things) or "none") + ".  ",
        "Stuff: " + (", ".join(n for i, n in enumerate(names) if i not in things) or "none") + ".",
        "",
        "## Use",
        "",
        "```python",
        "from wsis_d2 import model_zoo",
        "",
        f'model = model_zoo.get("{name}", trained=True).eval()',
        "```",
        "",
        f"On pictures: `tools/demo.py --model {name} --input PICTURE --output FOLDER`.",
        "",
        "## Data",
        "",
        f"Trained on {', '.join(cfg.DATASETS.TRAIN) or 'unknown'} "
        f"({entry['meta'].get('supervision') or 'supervision unknown'}).",
    ]
    for recipe in recipes:
        text = json.dumps(recipe["recipe"], indent=1, sort_keys=True)
        lines += [
            "",
            f"Pseudo labels of {recipe['images']} images, recipe `{recipe['hash']}`:",
            "",
            "```json",
            text,
            "```",
        ]
    lines += ["", "## Quality", ""]
    if entry["metrics"]:
        lines += [
            f"Measured on {entry['meta'].get('dataset')}, one run, seed "
            f"{entry['meta'].get('seed')}; percent.",
            "",
            "| task | metric | value |",
            "|---|---|---|",
        ]
        lines += [
            f"| {task} | {metric} | {value:.1f} |"
            for task, values in entry["metrics"].items()
            for metric, value in values.items()
        ]
    else:
        lines.append("Not measured.")
    code = f"wsis_d2 {entry['version']}"
    code += f", commit `{entry['commit']}`" if entry.get("commit") else ""
    lines += ["", "## Code and licence", "", f"{code}. Weights: {entry['license']}."]
    if notes:
        lines += ["", "## Notes", "", notes]
    return "\n".join(lines) + "\n"
