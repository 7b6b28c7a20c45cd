"""Fuzzers of the files that weights come in: `.params`, `.safetensors` and `.pth`."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import mxnet as mx
import numpy as np
from fuzzing import NUMBERS, fuzz, inputs, mutate, mutations

import gluon_resnest
from gluon_resnest.checkpoints.array_file import write_arrays
from gluon_resnest.errors import InputError
from gluon_resnest.models import load_weights
from gluon_resnest.models.weights.files import classes_in, load_arrays, read_params
from gluon_resnest.models.weights.torch_names import write_state_dict

SMALL = "resnest14_1s1x4d"
DATA = Path(__file__).parents[1] / "data"
# What pickles of tensors are made of: opcodes, and a few that are not allowed in them.
OPCODES = b"\x80\x02().]}0cqhrjNKMJGXtabsueR\x85\x86\x87\x88\x89\x8aQ2\x94\x93\x8c\x8dio"


def read(path: Path) -> None:
    """Read a file and all values in it; offer them to a network, which may not want them."""
    arrays = read_params(path)
    for array in arrays.values():
        array.astype(np.float32)
    with contextlib.suppress(InputError):
        load_arrays(gluon_resnest.get_model(SMALL, classes=classes_in(arrays, path)), arrays, path)


def load(path: Path) -> None:
    """Load a file into the network that it is of."""
    load_weights(gluon_resnest.get_model(SMALL, classes=3), path)


def numbered(content: bytes, rng: random.Random, samples: Sequence[bytes]) -> bytes:
    """A mutation; often of a number in the header, where sizes and shapes stand."""
    if rng.random() < 0.5:
        return mutate(content, rng, samples)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        size = rng.choice((4, 8))
        place = rng.randrange(0, min(len(changed), 160), 4)
        number = rng.choice((*NUMBERS, (1 << 64) - 2, 3, 32, 33)) & ((1 << 8 * size) - 1)
        changed[place : place + size] = number.to_bytes(size, "little")
    return bytes(changed)


def params_samples(folder: Path) -> list[bytes]:
    """Small files of each form, and one of a network."""
    named = {"fc.weight": mx.nd.ones((3, 4)), "bn1.beta": mx.nd.ones(3, dtype="float16"),
             "n": mx.nd.ones((1, 2, 1, 1), dtype="int8")}
    found = []
    for name, content in (("named", named), ("list", list(named.values())), ("sparse", {
            "a": mx.nd.ones((2, 2)).tostype("csr")})):
        mx.nd.save(str(folder / name), content)
        found.append((folder / name).read_bytes())
    array = struct.pack("<I2I3i", 2, 2, 1, 1, 0, 0) + bytes(8)
    older = struct.pack("<Ii2q3i", 0xF993FAC8, 2, 2, 1, 1, 0, 0) + bytes(8)
    found += [struct.pack("<3Q", 0x112, 0, 1) + old + struct.pack("<2Q", 1, 1) + b"a"
              for old in (array, older)]
    return found


def test_params(tmp_path: Path, seed: int) -> None:
    samples = params_samples(tmp_path)
    counts = fuzz(read, mutations(samples, inputs(), seed,
                                  lambda content, rng: numbered(content, rng, samples)),
                  tmp_path, ".params")
    assert min(counts["accepted"], counts["refused"]) > 0


def test_params_of_a_network(tmp_path: Path, seed: int) -> None:
    net = gluon_resnest.get_model(SMALL, classes=3)
    write_arrays(tmp_path / "whole", {key: np.zeros(parameter.shape, np.float32) for key, parameter
                                      in net._collect_params_with_prefix().items()})
    content = (tmp_path / "whole").read_bytes()
    fuzz(load, mutations([content], max(20, inputs() // 10), seed,
                         lambda content, rng: numbered(content, rng, [content])), tmp_path)


def changed_entry(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with fields of its header exchanged, and the length that then fits."""
    if rng.random() < 0.4:
        return mutate(content, rng, [content])
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice((1, 1, 2))):
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        strange = rng.choice((0, -1, 1, 2**31, 2**63, 10**30, 0.5, None, True, "4", [], {}, 1e308,
                              "x" * 999, [2**62, 4], [0, 2**62], [[1]], [1] * 40))
        kind = rng.randrange(4)
        if kind == 0:
            entry["shape"] = strange
        elif kind == 1:
            entry["data_offsets"] = rng.choice((strange, [0, strange], [0, len(body)], [8, 4]))
        elif kind == 2:
            entry["dtype"] = rng.choice((strange, "F8_E4M3", "BOOL", "F64", "BF16", "F32"))
        else:
            header[rng.choice(("n" * 5000, "\n", "", "fc.weight"))] = rng.choice((strange, entry))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_safetensors(tmp_path: Path, seed: int) -> None:
    content = (DATA / "torch_tiny.safetensors").read_bytes()
    counts = fuzz(read, mutations([content], inputs(), seed, changed_entry), tmp_path,
                  ".safetensors")
    assert min(counts["accepted"], counts["refused"]) > 0


def changed_pickle(content: bytes, rng: random.Random) -> bytes:
    """Opcodes, numbers and parts of a pickle exchanged or repeated."""
    if rng.random() < 0.4:
        return mutate(content, rng, [content])
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(changed))
        kind = rng.randrange(3)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.choice(OPCODES)])
        elif kind == 1:
            changed[place:place] = bytes([rng.choice(OPCODES)]) * rng.choice((1, 2, 100, 100_000))
        else:
            start = rng.randrange(len(changed))
            changed[place:place] = changed[start : start + rng.choice((2, 8, 64))]
    return bytes(changed)


def pth_files(count: int, seed: int, written: bytes) -> Iterator[bytes]:
    """Mutations of zip archives, of the pickles in them, and of older files."""
    rng = random.Random(seed)
    legacy = (DATA / "torch_legacy.pth").read_bytes()
    archives = [(DATA / "torch_checkpoint.pth").read_bytes(), written]
    for number in range(count):
        archive = archives[number // 3 % 2]
        if number % 3 == 0:
            yield changed_pickle(legacy, rng)
        elif number % 3 == 1:
            yield mutate(archive, rng, archives)
        else:
            buffer = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
                for name in old.namelist():
                    part = old.read(name)
                    new.writestr(name, changed_pickle(part, rng) if name.endswith("data.pkl")
                                 else part)
            yield buffer.getvalue()


def test_pth(tmp_path: Path, seed: int) -> None:
    write_state_dict(tmp_path / "written", {"fc.weight": np.ones((3, 4)), "bn1.gamma": np.ones(2)})
    written = (tmp_path / "written").read_bytes()
    counts = fuzz(read, pth_files(inputs(), seed, written), tmp_path, ".pth")
    assert min(counts["accepted"], counts["refused"]) > 0
