"""Weights in GluonCV's ``.params`` format: loading, saving, and the published files."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnest import runtime
from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError
from gluon_resnest.models.variants import Variant

_TIMEOUT_SECONDS = 60


def load_weights(
    net: HybridBlock, path: str | Path, ctx: mx.Context | list[mx.Context] | None = None
) -> None:
    """Load a ``.params`` file of this network, GluonCV's or the ResNeSt repository's.

    Everything is compared before anything is set, so a wrong file leaves `net` as it was.

    Raises
    ------
    InputError
        If the file is missing, is no ``.params`` file, or holds other names or shapes than `net`,
        or values that are not finite.
    """
    path = Path(path)
    arrays = read_params(path)
    expected = net._collect_params_with_prefix()
    _compare(path, {name: value.shape for name, value in arrays.items()},
             {name: parameter.shape for name, parameter in expected.items()})
    for name, value in arrays.items():
        if not np.isfinite(value.asnumpy()).all():
            raise InputError(f"{path} is damaged: {name} holds values that are no finite numbers")
    ctx = ctx or mx.cpu()
    for name, parameter in expected.items():
        parameter._load_init(arrays[name], ctx, cast_dtype=True)


def read_params(path: str | Path) -> dict[str, mx.nd.NDArray]:
    """Arrays of a ``.params`` file by name, on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}: check the path given with --params or pretrained=")
    try:
        arrays = mx.nd.load(str(path))
    except (mx.MXNetError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} is not a .params file, or is damaged ({reason})") from None
    if not isinstance(arrays, dict) or not arrays:
        raise InputError(f"{path} holds no named arrays, so it is not a .params file of a network")
    return arrays


def classes_in(arrays: dict[str, mx.nd.NDArray], path: str | Path) -> int:
    """Number of classes of the classifier whose weights these are."""
    if "fc.weight" not in arrays:
        raise InputError(f"{path} has no classifier weights fc.weight: not a network of this kind")
    return arrays["fc.weight"].shape[0]


def _compare(path: Path, found: dict[str, tuple], expected: dict[str, tuple]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [f"{name} is {found[name]} in the file, {expected[name]} in the network"
              for name in expected if name in found and found[name] != expected[name]]
    faults = ([f"lacks {len(missing)} ({', '.join(missing[:3])})"] if missing else []) + (
        [f"has {len(extra)} unknown ({', '.join(extra[:3])})"] if extra else []) + (
        [f"differs in {len(shapes)} shapes ({'; '.join(shapes[:3])})"] if shapes else [])
    if faults:
        raise InputError(
            f"{path} is not of this model: of {len(expected)} arrays it {', '.join(faults)}; "
            "check --model, and --classes if only fc differs"
        )


def save_weights(net: HybridBlock, path: str | Path) -> None:
    """Write the parameters of `net` under GluonCV's keys; the file appears whole or not at all."""
    with replacing(path) as temporary:
        net.save_parameters(str(temporary))


def published_weights(variant: Variant, root: str | Path | None = None) -> Path:
    """Path of the published weights of `variant`, downloaded to `root` if they are not there.

    The model store is that of GluonCV; the environment variable MXNET_GLUON_REPO names a mirror.

    Raises
    ------
    InputError
        If nothing was published, the download fails, or the file has another SHA-1.
    """
    if variant.sha1 is None:
        raise InputError(f"no weights were published for {variant.name}")
    stem = f"{variant.name}-{variant.sha1[:8]}"
    path = Path(root or runtime.model_folder()).expanduser() / f"{stem}.params"
    if not path.is_file():
        _download(f"{runtime.model_store()}gluon/models/{stem}.zip", path)
    digest = hashlib.sha1(path.read_bytes()).hexdigest()
    if digest != variant.sha1:
        raise InputError(f"{path} is damaged: SHA-1 {digest}, published {variant.sha1}; delete it "
                         "and try again")
    return path


def _download(url: str, path: Path) -> None:
    """Fetch a zip file that holds `path`'s name, and put that member at `path`."""
    with replacing(path) as temporary:
        archive = temporary.with_suffix(".zip")
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
                archive.write_bytes(answer.read())
            with zipfile.ZipFile(archive) as members:
                temporary.write_bytes(members.read(path.name))
        except (urllib.error.URLError, TimeoutError, zipfile.BadZipFile, KeyError) as error:
            raise InputError(
                f"cannot get {url} ({error}): put the file at {path} by hand, or give its path "
                "as pretrained= or --params"
            ) from None
        finally:
            if os.path.exists(archive):
                archive.unlink()
