# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Servers that lie, break off, redirect elsewhere or never end; what they gave is not kept."""

import contextlib
import hashlib
import json
import socket
import threading

import pytest

from wsis_d2.model_zoo import download
from wsis_d2.model_zoo.download import fetch_file
from wsis_d2.model_zoo.index import read_index
from wsis_d2.utils.errors import InputError

CONTENT = b"weights" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WSIS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WSIS_D2_OFFLINE", raising=False)
    return tmp_path / "cache"


@contextlib.contextmanager
def server(answer):
    """A server on this machine that gives bytes, or what a function makes of a connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    answer(connection) if callable(answer) else connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def reply(body, *headers, status="200 OK"):
    return (
        f"HTTP/1.1 {status}\r\n{''.join(h + chr(13) + chr(10) for h in headers)}\r\n".encode()
        + body
    )


def endless(connection):
    connection.sendall(reply(b""))
    while True:
        connection.sendall(CONTENT)


def redirect(address):
    return reply(b"", f"Location: {address}", "Content-Length: 0", status="302 Found")


def kept(cache):
    return [p for p in cache.rglob("*") if p.is_file()]


BAD = {
    "no HTTP": b"220 mail.example.org ESMTP\r\n",
    "nothing": b"",
    "endless line": reply(b"", "X: " + "a" * 70_000),
    "200 headers": reply(b"", *["X: a"] * 200),
    "cut chunks": reply(b"ff\r\nabc", "Transfer-Encoding: chunked"),
    "wrong chunks": reply(b"zz\r\nabc", "Transfer-Encoding: chunked"),
    "cut": reply(CONTENT[:50], f"Content-Length: {len(CONTENT)}"),
    "other content": reply(b"x" * len(CONTENT)),
    "longer": reply(CONTENT + b"x"),
    "endless": endless,
    "to a file": redirect("file:///etc/passwd"),
    "to ftp": redirect("ftp://127.0.0.1/a"),
    "to data": redirect("data:text/plain,weights"),
    "to nothing": redirect("http://[::1"),
    "in a circle": redirect("/again"),
    "terminal": reply(b"", status="404 \x1b]0;evil\x07"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_is_refused_in_one_line_and_not_kept(cache, name):
    with server(BAD[name]) as url, pytest.raises(InputError) as told:
        fetch_file([f"{url}/a.pth"], SHA256, "a model", size=len(CONTENT))
    line = str(told.value)
    assert line.startswith(f"a model: cannot be fetched: {url}/a.pth: ") and line.isprintable()
    assert len(line) < 500 and not kept(cache)


@pytest.mark.parametrize("name", sorted(BAD.keys() - {"longer"}))
def test_an_index_is_refused_in_one_line_and_not_kept(cache, name, monkeypatch):
    monkeypatch.setattr(download, "MAX_INDEX", 1 << 20)
    with server(BAD[name]) as url, pytest.raises(InputError) as told:
        read_index(url)
    assert f"{url}/model_zoo.json: " in str(told.value) and str(told.value).isprintable()
    assert not kept(cache)


def test_a_log_in_page_takes_no_index_s_place(cache):
    good = json.dumps({"schema": 1, "models": {}}).encode()
    answers = [reply(good), reply(b"<html>Please log in</html>")]
    with server(lambda connection: connection.sendall(answers.pop(0))) as url:
        assert read_index(url) == {}
        with pytest.raises(InputError, match="no valid JSON"):
            read_index(url)
        (copy,) = kept(cache)
        assert copy.read_bytes() == good


def test_a_slow_server_is_left(monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", -10)  # as after a long time

    with server(reply(CONTENT)) as url, pytest.raises(InputError, match="fewer than 1024 bytes"):
        fetch_file([f"{url}/a.pth"], SHA256, "a model")


def test_a_redirect_from_https_to_http_is_not_followed():
    follow = download._Redirects().redirect_request
    request = download.urllib.request.Request("https://a.example/a.pth")
    with pytest.raises(OSError, match="redirects"):
        follow(request, None, 302, "Found", {}, "http://a.example/a.pth")
    assert follow(request, None, 302, "Found", {}, "https://b.example/a.pth") is not None


@pytest.mark.parametrize("mirror", ["http://[::1", "http://a.example:port/", "https://", "http://"])
def test_broken_addresses_are_passed_over(mirror):
    with server(reply(CONTENT)) as url:
        assert fetch_file([mirror, f"{url}/a.pth"], SHA256, "a model").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../a.pth"}, {"file": "/etc/passwd"}, {"file": "http://a/b"}, {"file": 5},
        {"sha256": "../" * 21 + "x"}, {"sha256": "0" * 63}, {"size": "5"}, {"size": -1},
        {"size": True}, {"mirrors": "http://a"}, {"mirrors": ["file:a"]}, {"mirrors": [5]},
        {"mirrors": ["/etc/passwd"]},
    ],
    ids=str,
)  # fmt: skip
def test_hostile_entries_of_an_index_are_refused(tmp_path, change):
    part = {"file": "a.pth", "sha256": "0" * 64}
    fields = {"checkpoint": {**part, **change}, "config": part, "metadata": part}
    (tmp_path / "model_zoo.json").write_text(json.dumps({"schema": 1, "models": {"A/b": fields}}))
    with pytest.raises(InputError, match="model_zoo.json: model A/b: checkpoint"):
        read_index(str(tmp_path))
