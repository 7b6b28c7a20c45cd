"""Fuzzers of what holds training data: records, indexes, lists and image files."""

from __future__ import annotations

import contextlib
import io
import random
import runpy
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzing import NUMBERS, fuzz, inputs, mutate, mutate_text, mutations
from image_kinds import write_kinds
from PIL import Image

from gluon_resnest.data.images.decoding import check_header, decode
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.data.records.packing import PackOptions, image_bytes, pack
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.recordio import MAGIC_BYTES
from gluon_resnest.data.records.verification import verify
from gluon_resnest.errors import InputError

CLIENT = runpy.run_path(str(Path(__file__).parents[2] / "clients" / "classify.py"))
Problem, read_as_client = CLIENT["Problem"], CLIENT["read"]

# Words in place of a field of a list or an index.
WORDS = ("", " ", "0", "1", "-1", "00", "3", "+1", "1e30", "1e39", "0.5", "nan", "inf", "²", "٣",
         "1_0", "9" * 18, "9" * 19, "9" * 5000, "1" + "0" * 17, str(2**63), str(2**64), "0x1", "a",
         "\0", "\ufeff", "\u2028", "\x85", "\udcff", "é", "x" * 70_000, "../photos/a/0.png",
         "/dev/zero", "/dev/null", "/dev/stdin", "pipe", ".", "..", "", "/", "a/0.png", "a/0.png ",
         *map(str, NUMBERS))


@pytest.fixture
def photos_folder(photos, tmp_path) -> Path:
    """Two classes of small images, and a record file of them: a.rec and its companions."""
    for number in range(6):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.{('png', 'jpg')[number // 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[number % 2][: 20 + number, :30]).save(path)
    pack(tmp_path / "photos", tmp_path / "a", PackOptions(shuffle=False))
    return tmp_path / "photos"


def attempt(*steps) -> None:
    """Take every step; raise the last InputError."""
    refusal = None
    for step in steps:
        try:
            step()
        except InputError as error:
            refusal = error
    if refusal is not None:
        raise refusal


# ---- records ----


def read_records(path: Path) -> None:
    """As a file with an index, as one without, and record by record."""
    attempt(lambda: verify(path, path.with_name("a.idx")), lambda: verify(path),
            lambda: read_all(path, path.with_name("a.idx")), lambda: read_all(path, None))
    path.with_suffix(".idx").unlink(missing_ok=True)


def read_all(path: Path, index: Path | None) -> None:
    with RecordFile(path, index) as records:
        refusal = None
        for position in range(min(len(records), 50)):
            try:
                decode(records.read(position).payload)
            except InputError as error:
                refusal = error
        if refusal is not None:
            raise refusal


def mutate_record(content: bytes, rng: random.Random) -> bytes:
    """Of three changes one aims at a record's header: magic number, length, flag, label or id."""
    if rng.random() < 0.67:
        return mutate(content, rng, [content])
    places = [at for at in range(0, len(content), 4) if content[at : at + 4] == MAGIC_BYTES]
    changed = bytearray(content)
    place = rng.choice(places) + 4 * rng.randrange(8)
    number = rng.choice((*NUMBERS, rng.getrandbits(32))) & 0xFFFFFFFF
    changed[place : place + 4] = struct.pack("<I", number)
    return bytes(changed)


def test_rec(photos_folder, tmp_path, seed):
    content = (tmp_path / "a.rec").read_bytes()
    counts = fuzz(read_records, mutations([content], inputs(), seed, mutate_record), tmp_path,
                  ".rec")
    assert min(counts["accepted"], counts["refused"]) > 0


# ---- indexes ----


def read_index(path: Path) -> None:
    record_file = path.with_name("a.rec")
    attempt(lambda: verify(record_file, path), lambda: read_all(record_file, path))


def test_idx(photos_folder, tmp_path, seed):
    content = (tmp_path / "a.idx").read_bytes()

    def change(content: bytes, rng: random.Random) -> bytes:
        return (mutate(content, rng, [content]) if rng.random() < 0.5 else
                mutate_text(content, rng, WORDS))

    counts = fuzz(read_index, mutations([content], inputs(), seed, change), tmp_path, ".idx")
    assert min(counts["accepted"], counts["refused"]) > 0


# ---- lists ----


def read_list(path: Path) -> None:
    """Pack it; what was written has no fault, and its own list can be packed again."""
    root, output = path.with_name("photos"), path.with_name("out")
    options = PackOptions(overwrite=True, shuffle=False)
    pack(path, output, options, root)
    report = verify(f"{output}.rec")
    assert not report.faults, report.faults
    pack(f"{output}.lst", path.with_name("again"), options, root)
    for ending in ("rec", "idx", "lst"):
        assert Path(f"{output}.{ending}").read_bytes() == (
            path.with_name(f"again.{ending}").read_bytes())


def test_lst(photos_folder, tmp_path, seed):
    content = (tmp_path / "a.lst").read_bytes()

    def change(content: bytes, rng: random.Random) -> bytes:
        return (mutate(content, rng, [content]) if rng.random() < 0.3 else
                mutate_text(content, rng, WORDS))

    counts = fuzz(read_list, mutations([content], inputs(), seed, change), tmp_path, ".lst")
    assert min(counts["accepted"], counts["refused"]) > 0


# ---- images ----


def read_picture(path: Path) -> None:
    """Decode, pack and look at the header; the client gives the same pixels, if it gives any."""
    content = path.read_bytes()
    try:
        pixels = decode(content)
    except InputError:
        pixels = None
    else:
        check_header(content)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.size > 0
    try:
        others = read_as_client(path)
    except Problem:
        others = None
    if pixels is not None and others is not None:
        np.testing.assert_array_equal(pixels, others)
    with contextlib.suppress(InputError):  # records hold not every format as it is
        image_bytes(path, PackOptions())
    attempt(lambda: image_bytes(path, PackOptions(resize=16, quality=80)),
            lambda: read_image(path))


def with_right_checksums(content: bytes) -> bytes:
    """A PNG whose chunks' CRCs fit, so that a reader looks at what they hold."""
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        length = struct.unpack_from(">I", fixed, at)[0]
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(bytes(fixed[at + 4 : end])))
        at = end + 4
    return bytes(fixed)


def test_images(photos, tmp_path, seed):
    (tmp_path / "kinds").mkdir()
    kinds = write_kinds(tmp_path / "kinds", np.ascontiguousarray(photos[0][100:140, 200:253]))
    samples = [path.read_bytes() for path, _ in kinds]
    buffer = io.BytesIO()
    Image.fromarray(photos[1]).save(buffer, "JPEG", quality=80, progressive=True)
    samples.append(buffer.getvalue())

    def change(content: bytes, rng: random.Random) -> bytes:
        changed = mutate(content, rng, samples)
        return with_right_checksums(changed) if changed[:4] == b"\x89PNG" else changed

    counts = fuzz(read_picture, mutations(samples, inputs(), seed, change), tmp_path)
    assert min(counts["accepted"], counts["refused"]) > 0
