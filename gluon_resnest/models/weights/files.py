"""Weights of a network, from any kind of file: reading, checking, loading, saving."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from gluon_resnest.atomic import replacing
from gluon_resnest.checkpoints.array_file import read_arrays, write_arrays
from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import kaiming
from gluon_resnest.models.weights import torch_names
from gluon_resnest.models.weights.input_channels import (
    INPUT_WEIGHT,
    adapt_input_weight,
    check_adaptable,
    held_channels,
)
from gluon_resnest.models.weights.torch_pickle import shown_name

# First bytes of MXNet's files of arrays.
_PARAMS_START = (0x112).to_bytes(8, "little")
_CLASSIFIER = ("fc.weight", "fc.bias")
# Names in symbols, which count the layers of a kind instead of naming their attributes.
_FLAT_CLASSIFIER = ("dense0_weight", "dense0_bias")
_FLAT_INPUT = "conv0_weight"


def load_weights(
    net: HybridBlock,
    path: str | Path,
    ctx: mx.Context | list[mx.Context] | None = None,
    reset_classifier: bool = False,
    adapt_input: bool = False,
) -> None:
    """Load the weights of this network from a file of any known format.

    Known by their content are ``.params`` files of this package, GluonCV and the ResNeSt
    repository, exported ``-0000.params`` files, and PyTorch state dicts (``.pth``,
    ``.safetensors``) named as the ResNeSt repository and timm name them. Everything is compared
    before anything is set, so a wrong file leaves `net` as it was.

    Parameters
    ----------
    net
        Network of :func:`~gluon_resnest.models.get_model`; it needs no initialisation.
    path
        File of weights.
    ctx
        Where to put them: by default where `net` is already, else on the CPU.
    reset_classifier
        Take all weights but the classifier's, whatever shape that has in the file, and initialise
        the classifier of `net`, if it has one, afresh.
    adapt_input
        Take weights for RGB images where `net` takes another number of channels, by the rule of
        :func:`~gluon_resnest.models.weights.input_channels.adapt_input_weight`; the log says so.

    Raises
    ------
    InputError
        If the file is missing or damaged, or holds other names or shapes than `net`, or values
        that are not finite.
    """
    load_arrays(net, read_params(path), path, ctx, reset_classifier, adapt_input)


def load_arrays(
    net: HybridBlock,
    arrays: Mapping[str, np.ndarray],
    origin: str | Path,
    ctx: mx.Context | list[mx.Context] | None = None,
    reset_classifier: bool = False,
    adapt_input: bool = False,
) -> None:
    """:func:`load_weights` of arrays that are in memory already; `origin` is for errors."""
    matched = match_arrays(net, arrays, origin, reset_classifier, adapt_input)
    parameters = net._collect_params_with_prefix()
    for key, array in matched.items():
        parameters[key]._load_init(mx.nd.array(array, dtype=array.dtype), ctx, cast_dtype=True)
    if reset_classifier:
        for key in set(_CLASSIFIER) & set(parameters):
            parameter = parameters[key]
            where = ctx or (mx.cpu() if parameter._data is None else parameter.list_ctx())
            parameter.initialize(ctx=where, default_init=kaiming(), force_reinit=True)


def match_arrays(
    net: HybridBlock,
    arrays: Mapping[str, np.ndarray],
    origin: str | Path,
    reset_classifier: bool = False,
    adapt_input: bool = False,
) -> dict[str, np.ndarray]:
    """Arrays of a file under Gluon's keys, each of the file's and the network's used once.

    Parameters
    ----------
    net, arrays, origin, reset_classifier, adapt_input
        As for :func:`load_arrays`; `arrays` under the file's own names.

    Returns
    -------
    dict
        float32 arrays by key, of the shapes of `net`.

    Raises
    ------
    InputError
        If names or shapes differ, or values are not finite.
    """
    expected = net._collect_params_with_prefix()
    names = _names_in_file(net, arrays)
    if reset_classifier:
        dropped = {*_CLASSIFIER, *(_flat_prefix(arrays) + name for name in _FLAT_CLASSIFIER)}
        names = {key: name for key, name in names.items() if name not in dropped}
        arrays = {name: array for name, array in arrays.items() if name not in dropped}
    found = {name: tuple(array.shape) for name, array in arrays.items()}
    wanted = {name: expected[key].shape for key, name in names.items()}
    channels, at_input = expected[INPUT_WEIGHT].shape[1], names[INPUT_WEIGHT]
    held = held_channels(found.get(at_input, ()), wanted[at_input])
    # A file of another model is called that, whatever its channels.
    _compare(origin, found, wanted if held is None else {**wanted, at_input: found[at_input]})
    matched = {}
    for key, name in names.items():
        with np.errstate(over="ignore"):  # of a float64: it becomes infinite and is refused
            matched[key] = np.asarray(arrays[name], dtype=np.float32)
        if not np.isfinite(matched[key]).all():
            raise InputError(
                f"{origin} is damaged: {name} holds values that are no finite numbers")
    if held != channels:
        check_adaptable(origin, held, channels, adapt_input)
        matched[INPUT_WEIGHT] = adapt_input_weight(matched[INPUT_WEIGHT], channels)
    return matched


def read_params(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of a file of any known format, under the file's own names."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}: check the path given with --params or pretrained=")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        if start.startswith(_PARAMS_START):
            return _read_gluon(path)
        if torch_names.recognises(start):
            return torch_names.read_state_dict(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    kind = ("an empty file" if not start else "a web page" if start.lstrip().startswith(b"<") else
            "no file of weights, or damaged")
    raise InputError(f"{path} is {kind}: weights are .params files of Gluon, .pth and "
                     ".safetensors files of PyTorch; fetch or convert it again")


def _read_gluon(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path)  # strictly: MXNet's own reader crashes on some damaged files
    if not arrays:
        raise InputError(f"{path} holds no named arrays, so it is not a .params file of a network")
    if "arg:layer1_0_conv1_weight" in arrays:
        raise InputError(f"{path} belongs to a graph for inference, without normalisation: give "
                         "the .params file it was exported from, or export with --graph plain")
    # Exported files say of each array whether it is learnt or a running statistic.
    return {name[4:] if name.startswith(("arg:", "aux:")) else name: array
            for name, array in arrays.items()}


def classes_in(arrays: Mapping[str, np.ndarray], path: str | Path) -> int:
    """Number of classes of the classifier whose weights these are, as a file names them."""
    for name in (_CLASSIFIER[0], _flat_prefix(arrays) + _FLAT_CLASSIFIER[0]):
        if name in arrays and arrays[name].ndim == 2:
            return arrays[name].shape[0]
    raise InputError(f"{path} has no classifier weights fc.weight: not a network of this kind")


def input_channels_in(arrays: Mapping[str, np.ndarray], path: str | Path) -> int:
    """Channels of the images that these weights are for, as a file names them."""
    for name in (INPUT_WEIGHT, _flat_prefix(arrays) + _FLAT_INPUT):
        if name in arrays and arrays[name].ndim == 4:
            return arrays[name].shape[1]
    raise InputError(f"{path} has no weights {INPUT_WEIGHT} of a stem: not a network of this kind")


def save_weights(net: HybridBlock, path: str | Path) -> None:
    """Write the parameters of `net` under GluonCV's keys; the file appears whole or not at all."""
    with replacing(path) as temporary:
        try:
            net.save_parameters(str(temporary))
        except mx.MXNetError as error:  # how MXNet says that a disk is full
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"cannot write {path}: is the disk full? ({reason})") from None


def save_arrays(arrays: Mapping[str, np.ndarray], path: str | Path, layout: str) -> None:
    """Write arrays under Gluon's keys as a file for others.

    Parameters
    ----------
    arrays
        From :func:`match_arrays`.
    path
        File that appears, read back and found equal, or not at all.
    layout
        ``"gluon"``: a ``.params`` file for GluonCV, the ResNeSt repository and this package;
        ``"pytorch"``: a state dict for timm and the ResNeSt repository's PyTorch networks.
    """
    with replacing(path) as temporary:
        if layout == "pytorch":
            torch_names.write_state_dict(temporary, arrays)
        else:
            write_arrays(temporary, arrays)
        written = read_params(temporary)
        for key, array in arrays.items():
            name = torch_names.torch_name(key) if layout == "pytorch" else key
            if not np.array_equal(written.pop(name), array):
                raise RuntimeError(f"{name} was not written as it was")
        if written:
            raise RuntimeError(f"{', '.join(written)} were written without being asked for")


def _names_in_file(net: HybridBlock, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What a file calls each key of `net`, in the naming that its other names follow."""
    expected = net._collect_params_with_prefix()
    if arrays and not any("." in name for name in arrays):
        prefix = _flat_prefix(arrays)
        return {key: prefix + parameter.name[len(net.prefix):]
                for key, parameter in expected.items()}
    if "bn1.weight" in arrays:
        return {key: torch_names.torch_name(key) for key in expected}
    return {key: key for key in expected}


def _flat_prefix(arrays: Mapping[str, np.ndarray]) -> str:
    """Prefix of the network that a symbol's parameters come from, such as `resnest_`."""
    return os.path.commonprefix(list(arrays))  # noqa: RUF071 (characters are meant, not folders)


def _compare(
    origin: str | Path, found: dict[str, tuple], expected: dict[str, tuple]
) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [f"{name} is {found[name]} in the file, {expected[name]} in the network"
              for name in expected if name in found and found[name] != expected[name]]
    named = [shown_name(name) for name in extra[:3]]
    faults = ([f"lacks {len(missing)} ({', '.join(missing[:3])})"] if missing else []) + (
        [f"has {len(extra)} unknown ({', '.join(named)})"] if extra else []) + (
        [f"differs in {len(shapes)} shapes ({'; '.join(shapes[:3])})"] if shapes else [])
    if faults:
        raise InputError(
            f"{origin} is not of this model: of {len(expected)} arrays it {', '.join(faults)}; "
            "check --model, and --classes if only fc differs"
        )
