"""Files that ask for gigabytes of pixels: refused by every tool, from their headers."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from conftest import run_tool
from PIL import Image

from gluon_resnest.data.augment.transforms import TrainTransform
from gluon_resnest.data.images.decoding import check_header, decode
from gluon_resnest.data.images.image_limits import MOST_PIXELS
from gluon_resnest.data.loading.labelled_images import TrainLoader
from gluon_resnest.data.records.packing import write_record
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError

# Peak memory of a call beyond what it found, in MB.
MEASURED = """
import resource, sys
from pathlib import Path
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.errors import InputError
decode(Path(sys.argv[1]).read_bytes())  # what libraries take once
content = Path(sys.argv[2]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(content)
    said = "accepted"
except InputError as error:
    said = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, said)
"""


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG of any size by its header."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0,
                                                               0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 9, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def changed(content: bytes, place: int, format_: str, *values: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(format_, changed, place, *values)
    return bytes(changed)


def bombs() -> dict[str, bytes]:
    """A small file of each format, whose header asks for 20,000 x 20,000 pixels or so."""
    jpeg, gif, webp, bmp, jp2 = map(saved, ("JPEG", "GIF", "WEBP", "BMP", "JPEG2000"))
    tiff = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(tiff, "TIFF", compression="group4")
    progressive = saved("JPEG", progressive=True)
    size = jp2.index(b"ihdr") + 4
    code = jp2.index(b"\xff\x51") + 6
    jp2 = changed(changed(jp2, size, ">II", 20_000, 20_000), code, ">II", 20_000, 20_000)
    lossless = saved("WEBP", lossless=True)
    return {
        "jpg": changed(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 20_000, 20_000),
        "progressive.jpg": changed(progressive, progressive.index(b"\xff\xc2") + 5, ">HH", 20_000,
                                   20_000),
        "png": png(20_000, 20_000), "long.png": png(1, 1 << 28), "tif": tiff.getvalue(),
        "gif": changed(gif, 6, "<HH", 20_000, 20_000),
        "webp": changed(webp, webp.index(b"\x9d\x01\x2a") + 3, "<HH", 16_383, 16_383),
        "lossless.webp": changed(lossless, lossless.index(b"VP8L") + 9, "<I",
                                 16_382 | 16_382 << 14),
        "bmp": changed(bmp, 18, "<ii", 20_000, 20_000), "ppm": b"P6 20000 20000 255\n" + bytes(99),
        "jp2": jp2,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_a_bomb_of_each_format_is_refused_from_its_header(name, tmp_path):
    content = bombs()[name]
    assert len(content) < 20_000
    for refuse in (decode, check_header):
        with pytest.raises(InputError, match="pixels are more than the 134,217,728"):
            refuse(content)
    (tmp_path / "small").write_bytes(saved({"tif": "TIFF", "jp2": "JPEG2000", "ppm": "PPM"}.get(
        name, name.rpartition(".")[2].upper().replace("JPG", "JPEG"))))
    (tmp_path / "bomb").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "small", tmp_path / "bomb"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    megabytes, _, said = done.stdout.partition(" ")
    assert int(megabytes) < 10, said


def test_a_tile_of_a_tiff_may_not_be_larger_than_an_image():
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1,  # 16 x 16, grey, as it is
            322: 60_000, 323: 60_000, 324: 8, 325: 4}  # one tile, of 4 bytes at offset 8
    content = b"II*\0" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()) + bytes(4)
    with pytest.raises(InputError, match="its 60000 x 60000 pixels are more than"):
        decode(content)


def test_the_limit_is_one_number():
    small = png(200, 100, bytes(201) * 100)
    assert decode(small, most_pixels=20_000).shape == (100, 200, 3)
    with pytest.raises(InputError, match="its 200 x 100 pixels are more than the 19,999 that are"):
        decode(small, most_pixels=19_999)
    assert MOST_PIXELS == 2**27


@pytest.fixture
def record(tmp_path) -> Path:
    """A record file of three images, the second a PNG of a gigapixel."""
    zeros = zlib.compressobj(9)
    row = bytes(32_001)
    packed = b"".join(zeros.compress(row) for _ in range(32_000)) + zeros.flush()
    bomb = png(32_000, 32_000)
    at = bomb.index(b"IDAT") - 4
    bomb = bomb[:at] + struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(
        ">I", zlib.crc32(b"IDAT" + packed)) + bomb[-12:]
    offset, lines = 0, []
    with open(tmp_path / "a.rec", "wb") as file:
        for key, payload in enumerate((saved("PNG"), bomb, saved("JPEG"))):
            lines.append(f"{key}\t{offset}\n")
            offset += write_record(file, key, 0.0, payload)
    (tmp_path / "a.idx").write_text("".join(lines))
    (tmp_path / "photos" / "grey").mkdir(parents=True)
    (tmp_path / "photos" / "grey" / "bomb.png").write_bytes(bomb)
    return tmp_path / "a.rec"


# 2 GB of memory are plenty for the tools, and less than the bomb takes.
LIMITED = ("import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_DATA, (2 << 30,) * 2); "
           "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")


def limited(*words: object, code: int) -> str:
    done = run_tool("-c", LIMITED, *words, code=code, timeout=60)
    return done.stdout + done.stderr


def test_tools_refuse_a_bomb_in_a_second(record):
    said = limited("scripts/pack_records.py", "--verify", record, code=1)
    assert "key 1, position 1: is no image: its 32000 x 32000 pixels are more than" in said
    assert "3 records, 1 fault" in said
    for words in ([], ["--resize", 32], ["--quality", 90]):
        said = limited("scripts/pack_records.py", record.with_name("photos"),
                       record.with_name("b"), *words, code=2)
        assert "bomb.png: its 32000 x 32000 pixels are more than the 134,217,728" in said
        assert not list(record.parent.glob("b.*"))


def test_training_leaves_a_bomb_out(record):
    with RecordFile(record) as records:
        loader = TrainLoader(records, TrainTransform(32), 3, classes=1, threads=2,
                             max_bad_records=0.5)
        assert sum(len(batch.labels) for batch in loader.epoch(0)) == 3
        (fault,) = loader.bad_records.take_untold()
    assert fault.position == 1
    assert fault.reason == ("is no image: its 32000 x 32000 pixels are more than the 134,217,728 "
                            "that are decoded; shrink it")
