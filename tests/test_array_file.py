"""Files of arrays against MXNet's own, byte by byte, and against damaged ones."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from gluon_resnest.checkpoints import array_file
from gluon_resnest.checkpoints.array_file import read_arrays, write_arrays
from gluon_resnest.errors import InputError
from gluon_resnest.models import get_model

KINDS = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")


def random_array(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.normal(0, 30, shape) % 100).astype(kind)


def written_by_mxnet(path: Path, arrays: dict[str, np.ndarray]) -> bytes:
    mx.nd.save(str(path), {name: mx.nd.array(array, dtype=array.dtype)
                           for name, array in arrays.items()})
    return path.read_bytes()


def expect_alike(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One file by each; each reads the other's."""
    expected = written_by_mxnet(tmp_path / "mxnet.params", arrays)
    digest = write_arrays(tmp_path / "ours.params", arrays)
    assert (tmp_path / "ours.params").read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()
    found = read_arrays(tmp_path / "mxnet.params", digest)
    loaded = mx.nd.load(str(tmp_path / "ours.params"))
    assert list(found) == list(arrays)
    assert len(loaded) == len(arrays)
    for name, array in arrays.items():
        for other in (found[name], loaded[name].asnumpy()):
            assert other.dtype == array.dtype
            np.testing.assert_array_equal(other, array)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_number_and_shape(tmp_path: Path, rng, kind: str) -> None:
    shapes = [(1,), (7,), (3, 5), (2, 3, 1, 1), (1,) * 8, (0,), (3, 0), (4, 3, 2, 2, 3)]
    expect_alike(tmp_path, {f"array{i}": random_array(rng, kind, shape)
                            for i, shape in enumerate(shapes)})


def test_all_kinds_in_one_file(tmp_path: Path, rng) -> None:
    expect_alike(tmp_path, {f"{kind} Größe": random_array(rng, kind, (5, 3)) for kind in KINDS})


@pytest.mark.parametrize("arrays", [
    {},
    {"": np.zeros(1, np.float32)},
    {"odd": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)},
])
def test_degenerate_files(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    expect_alike(tmp_path, arrays)


def test_arrays_that_lie_otherwise_in_memory(tmp_path: Path, rng) -> None:
    plain = random_array(rng, "float32", (6, 8))
    frozen = plain.copy()
    frozen.setflags(write=False)
    expect_alike(tmp_path, {"turned": plain.T, "every other": plain[::2, ::-1], "frozen": frozen,
                            "column": plain[:, 3], "fortran": np.asfortranarray(plain)})
    write_arrays(tmp_path / "big-endian.params", {"a": plain.astype(">f4")})
    assert (tmp_path / "big-endian.params").read_bytes() == written_by_mxnet(
        tmp_path / "mxnet.params", {"a": plain})


@pytest.mark.parametrize(("chunk", "small"), [(1000, 100), (64, 1), (1, 1 << 20), (7, 1000)])
def test_in_pieces_of_any_size(
    tmp_path: Path, rng, monkeypatch: pytest.MonkeyPatch, chunk: int, small: int
) -> None:
    monkeypatch.setattr(array_file, "_CHUNK", chunk)
    monkeypatch.setattr(array_file, "_SMALL", small)
    expect_alike(tmp_path, {str(size): random_array(rng, "float32", (size,))
                            for size in (1, 24, 25, 26, 249, 250, 251, 600)})


def test_more_than_a_chunk(tmp_path: Path, rng) -> None:
    expect_alike(tmp_path, {"small": np.ones(3, np.float32),
                            "large": rng.random((5, 1 << 20), np.float32)})  # 20 MiB


def test_a_system_that_takes_a_part_at_a_time(
    tmp_path: Path, rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def write(self, content):
            return super().write(memoryview(content)[:1000])

    monkeypatch.setattr(array_file, "open", lambda path, mode, buffering: Slow(path, mode),
                        raising=False)
    expect_alike(tmp_path, {"a": random_array(rng, "float32", (50_001,)),
                            "b": random_array(rng, "float64", (1000,))})


def test_files_of_networks(tmp_path: Path) -> None:
    net = get_model("resnest14", classes=3)
    net.initialize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.save_parameters(str(tmp_path / "net.params"))
    arrays = read_arrays(tmp_path / "net.params")
    assert {name: array.shape for name, array in arrays.items()} == {
        name: parameter.shape for name, parameter in net._collect_params_with_prefix().items()}
    write_arrays(tmp_path / "again.params", arrays)
    assert (tmp_path / "again.params").read_bytes() == (tmp_path / "net.params").read_bytes()


@pytest.mark.parametrize("older", [False, True], ids=["before 0.12", "before 1.0"])
@pytest.mark.parametrize("kind", KINDS[:5])
def test_older_files_as_mxnet_reads_them(tmp_path: Path, rng, kind: str, older: bool) -> None:
    arrays = {"arg:fc_weight": random_array(rng, kind, (2, 3, 1, 1)),
              "aux:mean": random_array(rng, kind, (5,))}
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        content += struct.pack("<Ii", 0xF993FAC8, array.ndim) + struct.pack(
            f"<{array.ndim}q", *array.shape) if older else struct.pack(
            f"<I{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<iii", 1, 0, KINDS.index(kind)) + array.tobytes()
    content += struct.pack("<Q", len(arrays))
    for name in arrays:
        content += struct.pack("<Q", len(name)) + name.encode()
    path = tmp_path / "old.params"
    path.write_bytes(content)
    found, loaded = read_arrays(path), mx.nd.load(str(path))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        for other in (found[name], loaded[name].asnumpy()):
            assert other.dtype == array.dtype
            np.testing.assert_array_equal(other, array)


def test_what_is_read_can_be_written_to_and_is_aligned(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.params", {"odd": np.zeros(3, np.uint8), "b": np.zeros(3)})
    array = read_arrays(tmp_path / "a.params")["b"]
    array += 1
    assert array.flags.aligned
    assert array.flags.owndata


@pytest.mark.parametrize(("arrays", "message"), [
    ({"a": np.float32(1)}, r"a has 0 dimensions: .* give it the shape \(1,\)"),
    ({"a": np.zeros(())}, "a has 0 dimensions"),
    ({"good": np.zeros(1), "a": np.zeros(1, bool)}, "a is of bool: .*float32"),
    ({"a": np.zeros(1, complex)}, "a is of complex128"),
    ({"a": np.array([None])}, "a is of object"),
    ({"a\0b": np.zeros(1)}, "holds a zero byte"),
])
def test_refuses_what_the_format_cannot_hold(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        write_arrays(tmp_path / "a.params", arrays)
    assert not isinstance(caught.value, InputError)  # nobody's input is to blame
    assert list(tmp_path.iterdir()) == []


def number_read(path: Path) -> int | None:
    """How many arrays were read, or None if the file was refused: there is no third way."""
    try:
        return len(read_arrays(path))
    except InputError:
        return None


class TestDamagedFiles:
    """Each is an InputError of one line that names the file; or the file is read to its end."""

    ARRAYS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),  # noqa: RUF012
              "fc.bias": np.arange(2, dtype=np.float64), "count": np.arange(1)}

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        write_arrays(tmp_path / "a.params", self.ARRAYS)
        return tmp_path / "a.params"

    def expect(self, path: Path, message: str, sha256: str | None = None) -> None:
        with pytest.raises(InputError, match=message) as caught:
            read_arrays(path, sha256)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_cut_anywhere(self, path: Path) -> None:
        content = path.read_bytes()
        for size in range(len(content)):
            path.write_bytes(content[:size])
            self.expect(path, "ends within")
        path.write_bytes(content + b"\0")
        self.expect(path, "1 bytes follow its end")

    def test_any_byte_replaced(self, path: Path, rng) -> None:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        for place in range(len(content)):
            damaged = bytearray(content)
            damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            self.expect(path, "sha256 differs", digest)
            # Read where it is a number, a letter of a name or the place of a device.
            assert number_read(path) in (None, len(self.ARRAYS))

    def test_garbage(self, path: Path, rng) -> None:
        content = path.read_bytes()
        for _ in range(300):
            start = int(rng.integers(0, len(content)))
            path.write_bytes(content[:start] + rng.bytes(int(rng.integers(0, 200))))
            number_read(path)

    @pytest.mark.parametrize(("place", "value", "message"), [
        (0, struct.pack("<Q", 0x113), "begins otherwise"),
        (8, struct.pack("<Q", 1), "begins otherwise"),
        (16, struct.pack("<Q", 1 << 62), "it says it has 4,611,686,018,427,387,904 arrays"),
        (16, struct.pack("<Q", 4), "array 3 has|ends within array 3"),
        (24, struct.pack("<I", 0xF993FACB), "array 0 begins with 0xf993facb"),
        (28, struct.pack("<i", 3), "storage 3"),
        (28, struct.pack("<i", -1), "storage -1"),
        (32, struct.pack("<i", 0), "0 dimensions"),
        (32, struct.pack("<i", -1), "-1 dimensions"),
        (32, struct.pack("<i", 1 << 30), "dimensions"),
        (36, struct.pack("<q", 1 << 62), "ends within array 0"),
        (36, struct.pack("<q", -2), "shape"),
        (36, struct.pack("<qq", 0, (1 << 63) - 1), "array 1 begins|too big"),
        (60, struct.pack("<i", 7), "kind 7"),
    ])
    def test_numbers_that_cannot_be(
        self, path: Path, place: int, value: bytes, message: str
    ) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:place] + value + content[place + len(value):])
        self.expect(path, message)

    def test_sizes_that_no_file_has(self, path: Path) -> None:
        write_arrays(path, {"n" * 4097: np.zeros(1)})
        self.expect(path, "it says that a name has 4,097 bytes")
        one = struct.pack("<I2I", 2, 0, 0) + struct.pack("<iii", 1, 0, 0)
        path.write_bytes(struct.pack("<QQQ", 0x112, 0, 1_000_000) + one * 1_000_000)
        self.expect(path, "it says it has 1,000,000 arrays")

    def test_two_arrays_of_a_name_and_names_that_are_no_text(self, path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"fc.bias", b"fc.\xff\xff\xff\xff"))
        self.expect(path, "utf-8")
        write_arrays(path, {"a": np.zeros(1), "b": np.ones(1)})
        path.write_bytes(path.read_bytes()[:-1] + b"a")
        self.expect(path, "two arrays 'a'")

    def test_other_files_of_mxnet(self, path: Path) -> None:
        mx.nd.save(str(path), [mx.nd.ones(3)])
        self.expect(path, "its arrays have no names")
        mx.nd.save(str(path), {"a": mx.nd.ones((2, 2)).tostype("csr")})
        self.expect(path, r"array 0 is sparse \(csr\); save it as array.tostype\('default'\)")
        mx.nd.save(str(path), {"a": mx.nd.ones((2, 2)).tostype("row_sparse")})
        self.expect(path, r"array 0 is sparse \(row_sparse\)")
        with mx.util.np_shape(True):
            mx.nd.save(str(path), {"a": mx.nd.ones(3)})
        self.expect(path, "array 0 was saved under mx.util.np_shape")

    def test_no_file(self, tmp_path: Path) -> None:
        self.expect(tmp_path / "none.params", "cannot read .*: No such file")
        self.expect(tmp_path, "cannot read .*: Is a directory")
