"""Published weights: fetched once, by name and checksum, or a plain error and no file."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import io
import os
import threading
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest

import gluon_resnest
from gluon_resnest import runtime
from gluon_resnest.errors import InputError
from gluon_resnest.models import VARIANTS, Variant, save_weights
from gluon_resnest.models.weights import store
from gluon_resnest.models.weights.store import published_weights

CONTENT = b"weights" * 999


def with_sha1(name: str, sha1: str | None) -> Variant:
    variant = VARIANTS[name]
    return replace(variant, published=replace(variant.published, sha1=sha1))


SHA1 = hashlib.sha1(CONTENT).hexdigest()
VARIANT = with_sha1("resnest50", SHA1)
NAME = f"resnest50-{SHA1[:8]}"
PAGE = f"/gluon/models/{NAME}.zip"


def zipped(content: bytes = CONTENT, name: str = f"{NAME}.params", **kwargs) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **kwargs) as archive:
        archive.writestr(name, content)
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """On this machine: answers with what is in `pages`, and counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.promise = 0
        self.delay = 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        time.sleep(self.server.delay)
        page = self.server.pages.get(self.path)
        if page is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(page) + self.server.promise))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A store in the place of all others, by MXNET_GLUON_REPO."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("MXNET_GLUON_REPO", server.address)
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_comes_from_the_store_once(server, tmp_path, monkeypatch):
    server.pages[PAGE] = zipped()
    root = tmp_path / "cache"
    assert published_weights(VARIANT, root) == root / f"{NAME}.params"
    assert (root / f"{NAME}.params").read_bytes() == CONTENT
    assert names(root) == [f"{NAME}.params"]  # no lock, no archive, no temporary file
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9")  # gone; the cache suffices
    assert published_weights(VARIANT, root).read_bytes() == CONTENT
    assert server.asked == [PAGE]


def test_pretrained_is_the_published_file(server, tmp_path, monkeypatch):
    net = gluon_resnest.get_model("resnest14")
    net.initialize()
    save_weights(net, tmp_path / "made.params")
    content = (tmp_path / "made.params").read_bytes()
    sha1 = hashlib.sha1(content).hexdigest()
    monkeypatch.setitem(VARIANTS, "resnest14", with_sha1("resnest14", sha1))
    name = f"resnest14-{sha1[:8]}"
    server.pages[f"/gluon/models/{name}.zip"] = zipped(content, f"{name}.params")
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "home"))
    loaded = gluon_resnest.get_model("resnest14", pretrained=True)
    assert np.array_equal(loaded.fc.weight.data().asnumpy(), net.fc.weight.data().asnumpy())
    assert names(tmp_path / "home" / "models") == [f"{name}.params"]


def test_ranks_that_start_together_download_once(server, tmp_path):
    server.pages[PAGE] = zipped()
    server.delay = 0.5
    found = []
    ranks = [threading.Thread(target=lambda: found.append(published_weights(VARIANT, tmp_path)))
             for _ in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert found == [tmp_path / f"{NAME}.params"] * 8
    assert server.asked == [PAGE]
    assert names(tmp_path) == [f"{NAME}.params"]


def test_a_lock_of_the_dead_stops_nobody_and_that_of_the_living_not_for_ever(
        server, tmp_path, monkeypatch):
    server.pages[PAGE] = zipped()
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.3)
    lock = tmp_path / f".{NAME}.lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=rf"another process has held .*{lock.name} for 0.3 s"):
            published_weights(VARIANT, tmp_path)
    assert server.asked == []
    assert names(tmp_path) == [lock.name]  # left behind, as by a process that was killed
    fresh, old = (tmp_path / f".{NAME}.params.{rank}.zip" for rank in (1, 2))
    for leftover in (fresh, old):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    monkeypatch.setattr(store, "_LOCK_SECONDS", 60)
    published_weights(VARIANT, tmp_path)
    assert names(tmp_path) == [fresh.name, f"{NAME}.params"]


@pytest.mark.parametrize(("page", "words"), [
    (zipped(b"others"), rf"{PAGE} holds another file: SHA-1 \w+, published {SHA1}"),
    (b"<html>Sign in to the network</html>", "is not a zip file with"),
    (zipped(name="other.params"), "is not a zip file with .* no item named"),
    (zipped()[:-40], "is not a zip file with"),
    (zipped().replace(CONTENT[:70], b"\0" * 70), "Bad CRC-32"),
    (zipped(bytes(1 << 20), compression=zipfile.ZIP_DEFLATED), "larger than any published file"),
    (zipped() + bytes(1 << 20), "larger than any published file"),
    (None, r"cannot get http://127.0.0.1:\d+/gluon/models/resnest50-.*zip .*404"),
])
def test_what_is_not_the_file_never_gets_its_name(server, tmp_path, monkeypatch, page, words):
    if page is not None:
        server.pages[PAGE] = page
    monkeypatch.setattr(store, "_LARGEST_FILE", 100_000)
    with pytest.raises(InputError, match=words) as caught:
        published_weights(VARIANT, tmp_path)
    assert str(caught.value).endswith(
        f": put the file at {tmp_path / NAME}.params by hand, or give its path as pretrained= or "
        "--params")
    assert names(tmp_path) == []


def test_a_connection_that_ends_early_and_a_dead_store(server, tmp_path, monkeypatch):
    server.pages[PAGE] = zipped()
    server.promise = 5
    with pytest.raises(InputError, match=r"cannot get http.*whole"):
        published_weights(VARIANT, tmp_path)
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot get http://127.0.0.1:9/gluon/models/resnest50-"):
        published_weights(VARIANT, tmp_path)
    assert names(tmp_path) == []


def test_a_damaged_file_in_the_cache_is_replaced_or_named(server, tmp_path):
    path = tmp_path / f"{NAME}.params"
    path.write_bytes(b"half")
    with pytest.raises(InputError, match=rf"{NAME}.params is damaged \(its SHA-1 .*; cannot get"):
        published_weights(VARIANT, tmp_path)
    assert path.read_bytes() == b"half"
    server.pages[PAGE] = zipped()
    assert published_weights(VARIANT, tmp_path).read_bytes() == CONTENT


def test_each_store_is_asked_for_what_it_has(server, tmp_path, monkeypatch):
    monkeypatch.delenv("MXNET_GLUON_REPO")
    monkeypatch.setattr(runtime, "_GLUONCV_STORE", f"{server.address}/cv/")
    monkeypatch.setenv("ENCODING_REPO", f"{server.address}/authors")
    asked = {
        "resnest14": ["/cv/gluon/models/resnest14-"],
        "resnest50": ["/cv/gluon/models/resnest50-", "/authors/resnest50-"],
        "resnest50_fast_2s2x40d": ["/authors/resnest50_fast_2s2x40d-"],
    }
    for name, places in asked.items():
        server.asked.clear()
        with pytest.raises(InputError, match="cannot get"):
            published_weights(VARIANTS[name], tmp_path)
        sha1 = VARIANTS[name].published.sha1
        assert server.asked == [f"{place}{sha1[:8]}.zip" for place in places]
    server.pages[f"/authors/{NAME}.zip"] = zipped()
    assert published_weights(VARIANT, tmp_path).read_bytes() == CONTENT
    with pytest.raises(InputError, match="no weights were published for resnest50"):
        published_weights(with_sha1("resnest50", None), tmp_path)
    monkeypatch.delenv("ENCODING_REPO")
    assert runtime.resnest_store().startswith("https://github.com/zhanghang1989/ResNeSt/releases/")


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    server.pages[PAGE] = zipped()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot write .*file/.*Not a directory|File exists"):
        published_weights(VARIANT, tmp_path / "file")
