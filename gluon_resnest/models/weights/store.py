"""Published weights: fetched once by name and checksum, and kept for all ranks and runs."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gluon_resnest import runtime
from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError
from gluon_resnest.models.variants import Variant
from gluon_resnest.progress_bar import progress_bar

# Of the store's answer, and how long other ranks wait while one of them downloads.
_TIMEOUT_SECONDS = 60
_LOCK_SECONDS = 1800
_POLL_SECONDS = 0.2
_CHUNK = 1 << 20
# The largest published file, that of resnest269, has 445 MB.
_LARGEST_FILE = 512 << 20


def published_weights(variant: Variant, root: str | Path | None = None) -> Path:
    """Path of the published weights of `variant`, downloaded to `root` if they are not there.

    Of several processes on a host one downloads, and the others wait for it. Nothing but a file
    with the published SHA-1 ever stands under the name that is returned.

    Parameters
    ----------
    variant
        A row of :data:`~gluon_resnest.models.variants.VARIANTS`.
    root
        Folder of weights; ``$MXNET_HOME/models``, which GluonCV uses too, by default.

    Raises
    ------
    InputError
        If nothing was published, no store gives the file, it has another SHA-1, or another
        process has been downloading it for half an hour.
    """
    sha1 = variant.published.sha1
    if sha1 is None:
        raise InputError(f"no weights were published for {variant.name}")
    name = f"{variant.name}-{sha1[:8]}"
    path = Path(root or runtime.model_folder()).expanduser() / f"{name}.params"
    if _is_whole(path, sha1):
        return path
    with _locked(path.with_name(f".{name}.lock")):
        if _is_whole(path, sha1):  # another process was faster
            return path
        _clear_leftovers(path)
        failures = []
        for store in _stores(variant):
            try:
                _download(f"{store}{name}.zip", path, sha1)
                return path
            except _StoreError as error:
                failures.append(str(error))
    if path.is_file():
        failures.insert(0, f"{path} is damaged (its SHA-1 is not the published {sha1})")
    raise InputError(
        f"{'; '.join(failures)}: put the file at {path} by hand, or give its path as "
        "pretrained= or --params"
    )


def _stores(variant: Variant) -> list[str]:
    """Folders on the net, best first: GluonCV has no `fast` ones, the other none below 50."""
    mirror = runtime.model_mirror()
    if mirror:
        return [mirror]
    if "_fast" in variant.name:
        return [runtime.resnest_store()]
    return [runtime.gluoncv_store()] + ([runtime.resnest_store()] if variant.depth >= 50 else [])


class _StoreError(Exception):
    """A store did not give the file; another may."""


def _is_whole(path: Path, sha1: str) -> bool:
    if not path.is_file():
        return False
    digest = hashlib.sha1()
    try:
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest() == sha1


def _clear_leftovers(path: Path) -> None:
    """Remove what processes left that were killed in mid-download, too old to be in use."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LOCK_SECONDS:
                leftover.unlink()


def _download(url: str, path: Path, sha1: str) -> None:
    """Fetch the zip file at `url`, and put its member of `path`'s name at `path`."""
    with replacing(path) as temporary:
        archive = temporary.with_suffix(".zip")
        try:
            _fetch(url, archive)
            digest = _extract(url, archive, path.name, temporary)
        finally:
            with suppress(OSError):  # where nothing could be fetched, it is not there
                archive.unlink()
        if digest != sha1:
            raise _StoreError(f"{url} holds another file: SHA-1 {digest}, published {sha1}")


def _fetch(url: str, archive: Path) -> None:
    try:
        answer = urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _StoreError(f"cannot get {url} ({error})") from None
    length = answer.headers.get("Content-Length") or ""
    total = int(length) if length.isdigit() else None
    with answer, open(archive, "wb") as file, progress_bar(
            total=total, unit="B", desc=url.rpartition("/")[2]) as bar:
        while True:
            try:
                chunk = answer.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _StoreError(f"cannot get {url} whole ({error})") from None
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > _LARGEST_FILE:
                raise _StoreError(f"{url} is larger than any published file")
        if total is not None and file.tell() != total:
            raise _StoreError(f"cannot get {url} whole ({file.tell()} of {total} bytes)")


def _extract(url: str, archive: Path, name: str, target: Path) -> str:
    """Write member `name` of `archive` to `target`; its SHA-1."""
    digest = hashlib.sha1()
    with open(target, "wb") as file:
        try:
            with zipfile.ZipFile(archive) as members:
                if members.getinfo(name).file_size > _LARGEST_FILE:
                    raise _StoreError(f"{name} in {url} is larger than any published file")
                with members.open(name) as member:
                    for chunk in iter(lambda: member.read(_CHUNK), b""):
                        digest.update(chunk)
                        file.write(chunk)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
            raise _StoreError(f"{url} is not a zip file with {name} ({error})") from None
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever has it.

    The kernel lets go of the lock of a process that dies, so a lock file that was left behind
    stops nobody. On a file system without locks all processes go on at once: each writes a
    temporary file of its own, and the last rename wins.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise InputError(
                    f"another process has held {path} for {_LOCK_SECONDS} s and its download is "
                    "not done: end it, or put the weights there by hand") from None
            time.sleep(_POLL_SECONDS)
            continue
        except OSError:  # a file system without locks
            return descriptor
        # The holder before may have removed the file between our open() and our lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
