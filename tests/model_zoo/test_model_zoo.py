# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Releases are made, found, fetched and checked; what is not released is said."""

import functools
import hashlib
import http.server
import json
import shutil
import threading

import pytest
import torch
from helpers.load_tool import ROOT, load_tool

from wsis_d2 import model_zoo
from wsis_d2.engine.run_classes import trained_classes
from wsis_d2.model_zoo.download import fetch_file
from wsis_d2.model_zoo.index import PACKAGE, NotReleasedError, read_index
from wsis_d2.utils.errors import InputError

NAME = "Sample-Panoptic/tiny_semantic"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WSIS_D2_CACHE", str(tmp_path / "cache"))
    for name in ("WSIS_D2_MODEL_ZOO", "WSIS_D2_OFFLINE", "WSIS_D2_TRUST_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """OUTPUT_DIR of a model with random weights, as training leaves it."""
    from detectron2.modeling import build_model

    from wsis_d2.engine import load_cfg, write_metadata
    from wsis_d2.evaluation.results import make_meta, write_results_json

    folder = tmp_path_factory.mktemp("run")
    config = str(ROOT / "configs" / f"{NAME}.yaml")
    overrides = ["OUTPUT_DIR", str(folder), "DATASETS.LABEL_STORES",
                 "[['sample_train_weak', '/home/somebody/labels']]"]  # fmt: skip
    cfg = load_cfg(config, overrides)
    torch.manual_seed(1)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 5}
    torch.save(state, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    write_metadata(cfg)
    meta = make_meta(supervision="weak", dataset="sample_val_full", seed=1)
    results = {"sem_seg": {"mIoU": 70.123, "IoU-fish": 50.0}}
    write_results_json(folder / "results.json", "weak", results, meta)
    return folder


@pytest.fixture(scope="module")
def zoo(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    arguments = ["--run", str(run), "--id", NAME, "--output", str(folder), "--notes", "A test."]
    assert load_tool("publish_model").main(arguments) == 0
    return folder


def serve(folder):
    """Serve a folder over HTTP on this machine; return (server, URL)."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def test_release_holds_parameters_alone_and_no_path(run, zoo):
    entry = read_index(str(zoo))[NAME]
    data = (zoo / entry["checkpoint"]["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["checkpoint"]["sha256"]
    assert entry["checkpoint"]["sha256"][:8] in entry["checkpoint"]["file"]
    released = torch.load(zoo / entry["checkpoint"]["file"], weights_only=True)
    trained = torch.load(run / "model_final.pth", weights_only=True)["model"]
    # The optimiser and the auxiliary classifier, which serves training alone, are gone.
    inference = {k for k in trained if ".aux_" not in k}
    assert list(released) == ["model"] and set(released["model"]) == inference < set(trained)
    assert all(torch.equal(v, trained[k]) for k, v in released["model"].items())
    everything = [p.read_text() for p in zoo.rglob("*") if p.suffix in (".md", ".json", ".yaml")]
    assert not any("/home/" in text or str(run) in text for text in everything)
    card = (zoo / entry["card"]).read_text()
    for word in ("70.1", "A test.", "fish", "sky", entry["checkpoint"]["sha256"], "seed 1"):
        assert word in card
    assert entry["metrics"] == {"sem_seg": {"mIoU": 70.12}}


@pytest.mark.parametrize(
    ("task", "metric"), [("bbox", "AP"), ("tags", "mAP"), ("segm", "AP"), ("sem_seg", "mIoU")]
)
def test_the_card_has_the_numbers_of_every_task(run, tmp_path, task, metric):
    """A detector is measured by boxes alone, a classifier by tags."""
    from wsis_d2.evaluation.results import make_meta, write_results_json

    meta = make_meta(supervision="weak", dataset="sample_val_full")
    results = {task: {metric: 41.23, f"{metric}-fish": 50.0}}
    write_results_json(tmp_path / "results.json", "weak", results, meta)
    arguments = ["--run", str(run), "--id", NAME, "--output", str(tmp_path / "zoo"),
                 "--results", str(tmp_path / "results.json")]  # fmt: skip
    assert load_tool("publish_model").main(arguments) == 0
    entry = read_index(str(tmp_path / "zoo"))[NAME]
    assert entry["metrics"] == {task: {metric: 41.23}}
    card = (tmp_path / "zoo" / entry["card"]).read_text()
    assert f"| {task} | {metric} | 41.2 |" in card and "Not measured" not in card


def test_same_run_gives_the_same_release_and_half_is_smaller(run, zoo, tmp_path):
    publish = load_tool("publish_model").main
    publish(["--run", str(run), "--id", NAME, "--output", str(tmp_path), "--notes", "A test."])
    assert read_index(str(tmp_path))[NAME]["checkpoint"] == read_index(str(zoo))[NAME]["checkpoint"]
    publish(["--run", str(run), "--id", "Other/half", "--output", str(tmp_path), "--half"])
    models = read_index(str(tmp_path))
    assert set(models) == {NAME, "Other/half"}
    sizes = [models[n]["checkpoint"]["size"] for n in ("Other/half", NAME)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("over_http", [False, True])
def test_release_is_resolved_and_gives_the_models_output(run, zoo, monkeypatch, over_http):
    from detectron2.modeling import build_model

    from wsis_d2.checkpoint.parts import load_trained
    from wsis_d2.engine import load_cfg

    server, url = serve(zoo) if over_http else (None, str(zoo))
    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", url)
    try:
        address = model_zoo.get_checkpoint_url(NAME + ".yaml")
        assert address.startswith(url) and address.endswith(".pth")
        model = model_zoo.get(NAME, trained=True, device="cpu").eval()
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
    if over_http:
        # The server is gone: index and weights come from the cache now, and off line too.
        monkeypatch.setenv("WSIS_D2_OFFLINE", "1")
        model = model_zoo.get(NAME, trained=True, device="cpu").eval()
    cfg = load_cfg(str(run / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    expected = build_model(cfg).eval()
    load_trained(expected, str(run / "model_final.pth"), key="a test")
    image = torch.randint(0, 255, (3, 65, 81), dtype=torch.uint8)
    with torch.no_grad():
        found = model([{"image": image}])[0]["sem_seg"]
        assert torch.equal(found, expected([{"image": image}])[0]["sem_seg"])
    metadata = model_zoo.get_metadata(NAME)
    assert metadata["stuff_classes"][0] == "fish"
    # What a run asks that begins with it.
    assert trained_classes(f"wsis-d2://{NAME}").names == metadata["stuff_classes"]


def test_what_is_not_released_is_said(zoo, monkeypatch):
    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", str(zoo))
    name = "PascalVOC-PanopticSegmentation/wsis_R_101_weak"
    with pytest.raises(RuntimeError, match=f"{name}.*not? .*released.*train_net.py"):
        model_zoo.get_checkpoint_url(name)
    with pytest.raises(NotReleasedError):
        model_zoo.get(name, trained=True)
    assert NAME in model_zoo.list_released()


def test_every_recipe_is_found_and_unknown_ones_are_named():
    names = model_zoo.list_configs()
    assert NAME in names and len(names) > 10
    assert all(model_zoo.get_config_file(n).endswith(f"{n}.yaml") for n in names)
    with pytest.raises(InputError, match="tiny_semantic"):
        model_zoo.get_config_file("Sample-Panoptic/nothing.yaml")
    for name in ("../secret", "/etc/passwd", ""):
        with pytest.raises(InputError, match="below configs"):
            model_zoo.get_config_file(name)


def test_mirrors_are_tried_in_order_and_hashes_rule(tmp_path):
    good = tmp_path / "good"
    good.mkdir()
    (good / "m.pth").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    server, url = serve(good)
    try:
        (tmp_path / "good" / "forged.pth").write_bytes(b"forged!")
        addresses = [f"{url}/missing.pth", f"{url}/forged.pth", f"{url}/m.pth"]
        path = fetch_file(addresses, digest, "m")
        assert path.read_bytes() == b"weights"
        with pytest.raises(InputError, match="missing.pth.*404.*forged.pth.*SHA-256"):
            fetch_file(addresses[:2], "0" * 64, "m")
        # A damaged copy in the cache is noticed and replaced.
        path.write_bytes(b"damaged")
        assert fetch_file(addresses, digest, "m").read_bytes() == b"weights"
    finally:
        server.shutdown()
        server.server_close()
    cached = {p.name for p in (tmp_path / "cache" / "models").iterdir()}
    assert cached == {f"{digest}.pth"}  # neither a forged file nor half a download is kept


def test_offline_without_a_cached_copy(monkeypatch):
    monkeypatch.setenv("WSIS_D2_OFFLINE", "1")
    with pytest.raises(InputError, match="WSIS_D2_OFFLINE"):
        fetch_file(["http://127.0.0.1:9/m.pth"], "0" * 64, "m")
    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="no earlier copy"):
        model_zoo.get_checkpoint_url(NAME)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m["checkpoint"].update(file="../../etc/passwd"), "leaves the zoo"),
        (lambda m: m["checkpoint"].update(file="/etc/passwd"), "leaves the zoo"),
        (lambda m: m["checkpoint"].update(sha256="xyz"), "no SHA-256"),
        (lambda m: m["checkpoint"].update(mirrors=["ftp://x/m.pth"]), "mirrors"),
        (lambda m: m.pop("config"), "config has no 'file'"),
    ],
)
def test_hostile_index_is_refused(zoo, tmp_path, monkeypatch, damage, message):
    content = json.loads((zoo / "model_zoo.json").read_text())
    damage(content["models"][NAME])
    (tmp_path / "model_zoo.json").write_text(json.dumps(content))
    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", str(tmp_path))
    with pytest.raises(InputError, match=message):
        model_zoo.get_checkpoint_url(NAME)


def test_forged_weights_are_not_loaded(zoo, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(zoo, tmp_path / "zoo")
    entry = read_index(str(zoo))[NAME]
    with open(tmp_path / "zoo" / entry["checkpoint"]["file"], "ab") as file:
        file.write(b"x")
    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", str(tmp_path / "zoo"))
    with pytest.raises(InputError, match="not the published one"):
        model_zoo.get(NAME, trained=True)


def test_detectron2_loads_models_of_the_zoo_by_id(zoo, monkeypatch):
    from wsis_d2.checkpoint.reader import load_file

    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", str(zoo))
    cfg = model_zoo.get_config(NAME, trained=True)
    assert cfg.MODEL.WEIGHTS == f"wsis-d2://{NAME}"
    state = load_file(cfg.MODEL.WEIGHTS)
    assert len(state["model"]) > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--run", "nowhere"], "nowhere"),
        (["--id", "../x"], "below configs"),
        (["--id", "plain"], "FOLDER/NAME"),
        (["--checkpoint", "none.pth"], "none.pth"),
        (["--run-name", "other"], "--run-name"),
        (["--store", "no_store"], "no_store"),
        (["--mirror", "not a url"], "--mirror"),
    ],
)
def test_publishing_bad_input_writes_nothing(run, tmp_path, change, message):
    arguments = ["--run", str(run), "--id", NAME, "--output", str(tmp_path / "zoo"), *change]
    with pytest.raises(InputError, match=message):
        load_tool("publish_model").main(arguments)
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("name", sorted(read_index(str(PACKAGE))))
def test_every_model_in_the_package_is_built_by_the_present_code(name, monkeypatch):
    """Its config has only keys that there are, its weights fill it, and it predicts."""
    monkeypatch.setenv("WSIS_D2_OFFLINE", "1")
    model = model_zoo.get(name, trained=True, device="cpu").eval()
    image = torch.rand(3, 64, 80) * 255
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 64, "width": 80}])
    ids, segments = output["panoptic_seg"]
    assert ids.shape == (64, 80) and {s["id"] for s in segments} == set(ids.unique().tolist())


def test_a_named_run_must_be_in_a_file(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("results.json"))
    with pytest.raises(InputError, match=r"results\.json"):
        load_tool("publish_model").main(
            ["--run", str(folder), "--id", NAME, "--output", str(tmp_path / "zoo"),
             "--run-name", "weak"]
        )  # fmt: skip
    assert not (tmp_path / "zoo").exists()
