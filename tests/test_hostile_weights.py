"""Weight files made to crash, to hang or to take all memory: refused in one line, soon."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from conftest import run_tool

from gluon_resnest.errors import InputError
from gluon_resnest.models.weights.files import read_params

# Prints the error, the seconds and the megabytes that reading a file takes.
PROGRAM = """
import resource, sys, time
from gluon_resnest.errors import InputError
from gluon_resnest.models.weights.files import read_params

before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read_params(sys.argv[1])
    print("accepted")
except InputError as error:
    print(error)
print(time.process_time() - started)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def cost(path: Path, folder: Path) -> tuple[str, float, float]:
    """Outcome, seconds of the processor and megabytes of reading `path`."""
    program = folder / "read.py"
    program.write_text(PROGRAM)
    lines = run_tool(program, path).stdout.splitlines()
    assert len(lines) == 3, lines
    return lines[0], float(lines[1]), float(lines[2])


def torch_zip(path: Path, content: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, member in members.items():
            archive.writestr(f"archive/data/{name[1:]}", member)
    return path


@pytest.fixture
def no_dimensions(tmp_path: Path) -> Path:
    """A .params file with an array of -1 dimensions, at which MXNet's reader crashes."""
    path = tmp_path / "bad.params"
    path.write_bytes(struct.pack("<3QIii", 0x112, 0, 1, 0xF993FAC9, 0, -1)
                     + struct.pack("<iii", 1, 0, 0) + struct.pack("<2Q", 1, 9) + b"fc.weight")
    return path


@pytest.mark.parametrize("command", [
    ("scripts/convert_weights.py", "FILE", "out.params", "--model", "resnest14"),
    ("scripts/predict.py", "--model", "resnest14", "--params", "FILE", "photo.png"),
    ("scripts/export_model.py", "--model", "resnest14", "--params", "FILE", "--output", "out"),
    ("train_imagenet.py", "--model", "resnest14", "--params", "FILE", "--no-cuda"),
    ("train_imagenet.py", "--model", "resnest14", "--teacher", "resnest14", "--teacher-params",
     "FILE", "--no-cuda"),
], ids=["convert", "predict", "export", "train", "teacher"])
def test_minus_one_dimensions(
    no_dimensions: Path, digits: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """In a process of its own, which MXNet's reader would end."""
    words = [no_dimensions if word == "FILE" else word for word in command]
    if "train_imagenet.py" in words:
        words += ["--rec-train", digits / "train.rec", "--save-dir", tmp_path / "run",
                  "--input-size", "32"]
    done = run_tool(*words, code=2)
    assert done.stderr.splitlines()[-1] == (
        f"error: {no_dimensions} is not a .params file of MXNet 1.9 with names, or is damaged "
        "(array 0 has -1 dimensions): copy or write it again")
    assert "Traceback" not in done.stderr


def test_tensors_on_the_same_bytes(tmp_path: Path) -> None:
    """4,000 tensors of the same 8 MB were 32 GB."""
    size = 2 << 20
    header = json.dumps({f"tensor{i}": {"dtype": "F32", "shape": [size], "data_offsets":
                                        [0, 4 * size]} for i in range(4000)}).encode()
    path = tmp_path / "overlap.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * size))
    outcome, seconds, megabytes = cost(path, tmp_path)
    assert "overlap.safetensors is not a PyTorch state dict, or is damaged" in outcome
    assert "lie on the same bytes" in outcome
    assert seconds < 5
    assert megabytes < 100


@pytest.mark.parametrize(("entry", "words"), [
    ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "t has 4 of 8 bytes"),
    ({"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "t lies outside of the file"),
    ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "t has no shape or place"),
    ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "t has no shape or place"),
    ({"dtype": "F32", "shape": [1] * 33, "data_offsets": [0, 4]}, "t has no shape or place"),
    ({"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}, "t is of I8, not of F32, F64, F16,"),
    ({"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}, "a number of 31 digits"),
])
def test_entries_of_safetensors_that_cannot_be(tmp_path: Path, entry: dict, words: str) -> None:
    header = json.dumps({"t": entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(InputError, match=words):
        read_params(path)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize(("pattern", "count"), [(b"}", 31_000_000), (b"(", 31_000_000),
                                               (b"]q\0", 10_000_000)])
def test_millions_of_empty_objects(
    tmp_path: Path, kind: str, pattern: bytes, count: int
) -> None:
    """31 MB of empty dictionaries took 40 s and 1.5 GB."""
    content = b"\x80\x02" + pattern * count + b"."
    path = tmp_path / "many.pth"
    if kind == "zip":
        torch_zip(path, content)
    else:
        path.write_bytes(content)
    outcome, seconds, megabytes = cost(path, tmp_path)
    assert "its pickle has more than 1,000,000 opcodes" in outcome
    assert seconds < 10
    assert megabytes < 300


# Leaves tuples on the stack and in the memo, each of the one before twice: the last, place 40, has
# 2^40 parts. `h\x28` gets it.
DOUBLED = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (number, number, number + 1)
                             for number in range(40))


@pytest.mark.parametrize("content", [
    b"}h\x28K\x01s.",  # a key, which is hashed
    b"}(h\x28K\x01u.",
    b"ccollections\nOrderedDict\n)Rh\x28K\x01s.",
    b"h\x28.",
    b"}X\x01\0\0\0ah\x28s.",
    b"h\x28Q.",
    b"(X\x07\0\0\0storageh\x28h\x28h\x28h\x28tQ.",
    b"}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(h\x28K\0h\x28h\x28tRs.",
    b"ccollections\nOrderedDict\n(h\x28tR.",
])
def test_tuples_within_each_other_many_times(tmp_path: Path, content: bytes) -> None:
    """To hash or to print one would take for ever."""
    path = torch_zip(tmp_path / "tuples.pth", b"\x80\x02" + DOUBLED + content)
    outcome, seconds, _ = cost(path, tmp_path)
    assert outcome.startswith(f"{path} ")
    assert "opcode" not in outcome
    assert len(outcome) < 400
    assert seconds < 5


def tensor(key: str, values: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Opcodes of a float32 tensor on storage `key`."""
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(*of: int) -> bytes:
        return b"(" + b"".join(pickle.LONG1 + bytes([8]) + struct.pack("<q", n) for n in of) + b"t"

    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n"
            + text(key) + text("cpu") + b"J" + struct.pack("<i", values) + b"tQK\0"
            + numbers(*shape) + numbers(*strides) + b"\x89)tR")


def test_tensors_that_repeat_a_value(tmp_path: Path) -> None:
    """A tensor of 10^12 values, all on the same four bytes."""
    content = b"\x80\x02}X\x01\0\0\0a" + tensor("0", 1, (10**6, 10**6), (0, 0)) + b"s."
    path = torch_zip(tmp_path / "repeat.pth", content, _0=bytes(4))
    with pytest.raises(InputError, match=r"tensors of 4,000,000,000,000 bytes in a file of \d+"):
        read_params(path)


def test_storages_of_more_than_the_file(tmp_path: Path) -> None:
    content = b"\x80\x02}X\x01\0\0\0a" + tensor("0", 2**30, (1,), (1,)) + b"s."
    path = torch_zip(tmp_path / "huge.pth", content, _0=bytes(4))
    with pytest.raises(InputError, match=r"storages of 4,294,967,296 bytes in a file of \d+"):
        read_params(path)


def test_long_names_are_cut_in_errors(tmp_path: Path) -> None:
    name = b"x" * 1_000_000
    for content in (b"c" + name + b"\nf\n.",
                    b"}X" + struct.pack("<I", len(name)) + name + b"K\x01s."):
        with pytest.raises(InputError) as caught:
            read_params(torch_zip(tmp_path / "long.pth", b"\x80\x02" + content))
        assert len(str(caught.value)) < 500
    header = json.dumps({name.decode(): {"dtype": "F32", "shape": [1], "data_offsets": [0, 9]}})
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(InputError) as caught:
        read_params(path)
    assert len(str(caught.value)) < 500
