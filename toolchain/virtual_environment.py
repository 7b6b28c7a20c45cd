"""Create .venv with pip in it, also where Python comes without ensurepip.

Debian's python3 has `venv` but not `ensurepip` (that is in python3-venv). There pip's own wheel is
run to install itself: the one in Debian's package python3-pip-whl, which `apt-get download` gets
without being root, or the one of the package index that PIP_INDEX_URL names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import ssl
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from toolchain.install_progress import InstallError, InstallProgress

# 25.0 is the last pip for Python 3.8; constraints.txt names the same version.
PIP_VERSION = "25.0.1"
PIP_WHEEL = f"pip-{PIP_VERSION}-py3-none-any.whl"
PIP_WHEEL_SHA256 = "c46efd13b6aa8279f33f2864459c8ce587ea6a1a59ee20de055868d8f7688f7f"
DEBIAN_PACKAGE = "python3-pip-whl"
_TIMEOUT = 60  # seconds without an answer from the index


def create(venv: Path, progress: InstallProgress) -> None:
    """Make `venv` anew with the running Python, and pip in it."""
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        # install.log alone is ours: it is begun before the environment.
        if {path.name for path in venv.iterdir()} != {"install.log"}:
            raise InstallError(f"{venv} holds other things than a virtual environment, and would "
                               "be deleted: name another folder with --venv")
    shutil.rmtree(venv, ignore_errors=True)
    # Run inside another virtual environment, sys.executable would be that one's link.
    python = getattr(sys, "_base_executable", None) or sys.executable
    progress.run([python, "-m", "venv", "--without-pip", venv])
    if importlib.util.find_spec("ensurepip"):
        progress.run([venv / "bin/python", "-m", "ensurepip"])
    else:
        index = os.environ.get("PIP_INDEX_URL")
        wheel = download_pip(index, venv) if index else debian_pip(venv, progress)
        progress.run([venv / "bin/python", wheel / "pip", "install", "--no-index", wheel])
        wheel.unlink()


def debian_pip(folder: Path, progress: InstallProgress) -> Path:
    """Fetch pip's wheel from Debian's package of it, without installing the package."""
    remedy = ("`apt-get install python3-venv` (after `apt-get update`), or name a package index "
              "in PIP_INDEX_URL")
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise InstallError(f"this Python has no ensurepip to set up pip with: {remedy}")
    scratch = folder / DEBIAN_PACKAGE
    scratch.mkdir()
    try:
        progress.run(["apt-get", "download", DEBIAN_PACKAGE], cwd=scratch)
        progress.run(["dpkg-deb", "-x", next(scratch.glob("*.deb")), scratch])
        wheel = next(scratch.glob("usr/share/python-wheels/pip-*.whl"))
        return wheel.replace(folder / wheel.name)
    except (InstallError, StopIteration):
        raise InstallError("this Python has no ensurepip, and the Debian package "
                           f"{DEBIAN_PACKAGE} cannot be downloaded: {remedy}") from None
    finally:
        shutil.rmtree(scratch)


def download_pip(index: str, folder: Path) -> Path:
    """Fetch pip's wheel from a package index into `folder` and check its SHA-256."""
    index = index.rstrip("/") + "/pip/"
    remedy = ("or install the Debian package python3-venv, or name a reachable index in "
              "PIP_INDEX_URL")
    try:
        page = _fetch(index).decode(errors="replace")
        link = re.search(rf'href="([^"]*{re.escape(PIP_WHEEL)})[#"]', page)
        if link is None:
            raise InstallError(f"{index} does not offer {PIP_WHEEL}; {remedy[3:]}")
        content = _fetch(urllib.parse.urljoin(index, link.group(1)))
    except OSError as error:  # urllib's errors are among them
        raise InstallError(f"cannot download pip from {index} ({error}): check the network, "
                           f"{remedy}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != PIP_WHEEL_SHA256:
        raise InstallError(f"{PIP_WHEEL} from {index} has SHA-256 {digest}, not "
                           f"{PIP_WHEEL_SHA256}; it is not the file that was released")
    wheel = folder / PIP_WHEEL
    wheel.write_bytes(content)
    return wheel


def _fetch(url: str) -> bytes:
    certificates = os.environ.get("PIP_CERT") or None
    context = ssl.create_default_context(cafile=certificates) if url.startswith("https") else None
    request = urllib.request.Request(url, headers={"Accept": "text/html, */*"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context) as answer:
        return answer.read()
