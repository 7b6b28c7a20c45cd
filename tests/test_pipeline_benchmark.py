"""`benchmark.py data`: real child processes, few small pictures; nothing is judged by its time."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import struct
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import run_tool
from mxnet import recordio
from PIL import Image
from test_benchmark import WELL, contestant

from benchmarks import environments, photograph_records, pipeline
from benchmarks.contest import PROGRAMS, Contestant, ContestError, ContestRecord, contest
from benchmarks.pipeline_peers import PEERS
from benchmarks.results import pipeline_results
from gluon_resnest.data.augment.autoaugment import IMAGENET_POLICY
from gluon_resnest.data.images import made_photographs
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError

IMAGES = 24


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return list(made_photographs.photographs(IMAGES))


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """A .rec of the first pictures, as the benchmark makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return photograph_records.record_file(IMAGES)


@pytest.fixture
def this_python(monkeypatch):
    """The tests' own environment, which has MXNet and Pillow, in place of the peers'."""
    monkeypatch.setattr(environments, "python", lambda name: Path(sys.executable))


def measured(capsys, records: Path, *flags: str) -> str:
    """What `benchmark.py data` prints."""
    parser = argparse.ArgumentParser()
    pipeline.add_flags(parser)
    few = ("--rec-train", str(records), "--input-size", "32", "--batch-size", "10",
           "--threads", "2", "--rounds", "1")
    pipeline.measure(parser.parse_args([*few, *flags]))
    return capsys.readouterr().out


# CPU time

BURN = "end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"


def test_cpu_time_counts_children_that_end_and_that_live_on(tmp_path):
    ending = f"""
        code = {"import time" + chr(10) + BURN!r}
        return Prepared(lambda: subprocess.run([sys.executable, "-c", code]), {{}},
                        warm_up_calls=1, calls=2)
        """
    serving = "import sys, time\nfor line in sys.stdin:\n" + textwrap.indent(
        BURN + "print(flush=True)\n", "    ")
    living = f"""
        worker = subprocess.Popen([sys.executable, "-c", {serving!r}], text=True, bufsize=1,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        def call():
            worker.stdin.write("burn\\n")
            worker.stdout.readline()
        return Prepared(call, {{}}, warm_up_calls=2, calls=1)
        """
    itself = "def call():\n" + textwrap.indent(BURN, "    ") + "return Prepared(call, {}, calls=1)"
    codes = {"ending": ending, "living": living, "itself": itself, "idle": WELL}
    found = contest([contestant(tmp_path, label, textwrap.dedent(code))
                     for label, code in codes.items()], rounds=2)
    ending, living, itself, idle = found
    assert [len(turn) for turn in ending.turns] == [2, 2]  # as the program asks for
    for record, least in ((ending, 0.4), (living, 0.2), (itself, 0.2)):
        # In steps of 10 ms; above, what starting a Python takes.
        assert all(least - 0.02 <= cpu < least + 1.5 for cpu in record.cpu_seconds), (
            record.contestant.label, record.cpu_seconds)
    assert max(idle.cpu_seconds) < 0.15
    assert all(max(record.idle_cpu_seconds) < 0.15 for record in found)


def test_work_between_the_turns_shows(tmp_path):
    code = f"""
        import threading
        def burn():
            time.sleep(0.05)  # until the turn is over
        {textwrap.indent(BURN, " " * 12).lstrip()}
        def call():
            threading.Thread(target=burn).start()
        return Prepared(call, {{}}, warm_up_calls=1, calls=1)
        """
    code = code.replace("over\n        end", "over\n            end")
    sly, well = contest([contestant(tmp_path, "sly", textwrap.dedent(code)),
                      contestant(tmp_path, "well", WELL)], rounds=2)
    # A busy machine may push a part of it into the next turn.
    assert sum(sly.idle_cpu_seconds) > 0.15
    assert sum(well.idle_cpu_seconds) < 0.1


# Results

def record(label: str, seconds: list[float], cpu: list[float], counts=None, **facts):
    one = Contestant(label, Path(sys.executable), Path(),
                     {"peer": label.split(",")[0], "threads": 2}, {})
    rounds = len(seconds)
    return ContestRecord(one, {"versions": {"mxnet": "1.9.1"}, **facts}, 50.0, 100.0,
                         [0.0] * rounds, [[one] for one in seconds], cpu, [0.0] * rounds,
                         counts or [[1000]] * rounds)


# The machine halves its speed in the second round. CPU time does not care.
OURS = record("ours", [1.0, 2.0, 1.0], [1.6, 1.6, 1.6])
DECODER = record("decode", [0.5, 1.0, 0.8], [0.8, 0.8, 0.8])
NONE = record("gluon, 0 workers", [5.0, 8.0, 6.0], [6.4, 6.4, 8.0])
TWO = record("gluon, 2 workers", [3.0, 8.0, 4.0], [7.2, 7.2, 7.2], decoding_threads=1)


def test_pipelines_are_compared_round_by_round():
    ours, decoder, none, two = pipeline_results([OURS, DECODER, NONE, TWO], 1000, "ours", "decode")
    assert (ours.images_per_second, ours.cpu_ms) == (1000, pytest.approx(1.6))
    assert ours.decode_share == pytest.approx(0.5)  # 0.5, 0.5, 0.8
    assert decoder.decode_share == 1
    assert (two.images_per_second, two.cpu_ms) == (250, pytest.approx(7.2))
    assert (two.time_ratio.median, two.time_ratio.least, two.time_ratio.most) == (4, 3, 4)
    assert two.cpu_ratio.median == pytest.approx(4.5)
    assert (none.time_ratio.median, none.cpu_ratio.median) == (5, pytest.approx(4))
    # Each of a peer's ratios is that of its best form.
    assert pipeline.best_forms([ours, decoder, none, two]) == {"gluon": {
        "time_ratio": 4, "time_form": "gluon, 2 workers",
        "cpu_ratio": pytest.approx(4), "cpu_form": "gluon, 0 workers"}}


def test_every_image_is_counted():
    short = record("short", [1.0, 1.0, 1.0], [1.0] * 3, counts=[[1000], [999], [1000]])
    with pytest.raises(ContestError, match="short gave 999 images in round 2, where the records "
                                           "hold 1,000"):
        pipeline_results([OURS, DECODER, short], 1000, "ours", "decode")


def test_table_of_pipelines(monkeypatch, capsys, records):
    few = [record(one.contestant.label, one.turns and [turn[0] for turn in one.turns],
                  one.cpu_seconds, [[IMAGES]] * 3, **one.facts)
           for one in (OURS, DECODER, NONE, TWO)]
    few[3].idle_cpu_seconds[0] = 2.16
    monkeypatch.setattr(pipeline, "contest", lambda contestants, rounds: few)
    monkeypatch.setattr(pipeline, "available_peers", lambda: ["gluon", "imagerecorditer"])
    monkeypatch.setattr(pipeline, "peer_contestants", lambda case, names: [])
    lines = measured(capsys, records, "--augmentation", "recipe", "--markdown").splitlines()
    assert "recipe, 32 px, batch 10, 1 round of 24 images" in lines[2]
    assert lines[4:10] == [
        "| contestant | images/s | +- % | CPU ms | time / ours | CPU time / ours | % of decode |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| ours | 24 | 25.0 | 66.67 | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 50 |",
        "| decode | 30 | 15.6 | 33.33 | 0.50 (0.50-0.80) | 0.50 (0.50-0.50) | 100 |",
        "| gluon, 0 workers | 4 | 12.5 | 266.67 | 5.00 (4.00-6.00) | 4.00 (4.00-5.00) | 12 |",
        "| gluon, 2 workers | 6 | 31.2 | 300.00 | 4.00 (3.00-4.00) | 4.50 (4.50-4.50) | 17 |",
    ]
    assert [line.strip() for line in lines[11:]] == [
        "gluon at its best: time / ours 4.00 (gluon, 2 workers), CPU time / ours 4.00 (gluon, 0 "
        "workers)",
        "gluon, 2 workers: decodes in 1 thread, for it takes half of the cores at most",
        "gluon, 2 workers: worked in the others' turns, 10% of its CPU time; the figures above "
        "are not to be trusted",
        "left out, for another version of Python: torchvision, timm",
        "ours: mxnet 1.9.1",
    ]


# Pipelines

@pytest.mark.slow
def test_pipelines_of_mxnet(this_python, capsys, records):
    found = json.loads(measured(capsys, records, "--augmentation", "recipe", "--peer",
                                "imagerecorditer", "gluon", "--json"))
    assert (found["images"], found["augmentation"], found["threads"]) == (IMAGES, "recipe", 2)
    lines = {one["contestant"]: one for one in found["contestants"]}
    assert list(lines) == [
        "ours", "decode", "imagerecorditer", "imagerecorditer, uint8", "imagerecorditer, ctx cpu",
        "imagerecorditer, ctx cpu, uint8", "gluon, 0 workers", "gluon, 2 workers"]
    check(lines)
    assert set(found["best"]) == {"imagerecorditer", "gluon"}
    assert lines["imagerecorditer, ctx cpu"]["decoding_threads"] == 2
    assert lines["imagerecorditer"]["versions"]["mxnet"] == "1.9.1"
    # The workers' time is in it: this process would take next to nothing.
    assert lines["gluon, 2 workers"]["cpu_ms"] > 0.3 * lines["gluon, 0 workers"]["cpu_ms"]


@pytest.mark.parametrize("augmentation", ["crop", "evaluation"])
@pytest.mark.parametrize(("program", "form"), [
    ("run_image_record_iter", {"dtype": "float32", "ctx": "gpu"}),
    ("run_image_record_iter", {"dtype": "uint8", "ctx": "cpu"}),
    ("run_gluon_loader", {"workers": 0}),
    ("run_our_pipeline", {"part": "pipeline"}),
])
def test_programs_give_every_image(monkeypatch, records, program, form, augmentation):
    """In this process, which is faster than a contest; 24 images do not fill up batches of 10."""
    monkeypatch.syspath_prepend(PROGRAMS)
    prepared = importlib.import_module(program).prepare({
        "records": str(records), "augmentation": augmentation, "input_size": 32,
        "batch_size": 10, "threads": 2, "classes": 1000, **form})
    assert [prepared.call(), prepared.call()] == [IMAGES, IMAGES]


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["crop", "recipe", "evaluation"])
@pytest.mark.skipif(not environments.is_made("torch"), reason="the peers' environment is not made")
def test_pipelines_on_pillow(capsys, records, augmentation):
    found = json.loads(measured(capsys, records, "--augmentation", augmentation, "--peer",
                                "torchvision", "timm", "--json"))
    lines = {one["contestant"]: one for one in found["contestants"]}
    assert list(lines)[2:] == ["torchvision, 1 process", "torchvision, 2 workers",
                               "timm, 1 process", "timm, 2 workers"]
    check(lines)
    assert lines["timm, 1 process"]["versions"]["timm"] == "1.0.31"
    for library in ("torchvision", "timm"):
        assert (lines[f"{library}, 2 workers"]["cpu_ms"]
                > 0.3 * lines[f"{library}, 1 process"]["cpu_ms"])


def check(lines: dict[str, dict]) -> None:
    """What every contestant's line must hold; the images are counted by pipeline_results."""
    for label, line in lines.items():
        assert line["images_per_second"] == pytest.approx(IMAGES / line["seconds"][0])
        assert line["cpu_ms"] == pytest.approx(line["cpu_seconds"][0] / IMAGES * 1e3)
        assert 0.2 < line["cpu_ms"] < 1000, label
        assert line["time_ratio"]["median"] == pytest.approx(
            line["seconds"][0] / lines["ours"]["seconds"][0])
        assert line["decode_share"] == pytest.approx(
            lines["decode"]["seconds"][0] / line["seconds"][0])
        assert line["idle_share"] * line["cpu_seconds"][0] < 0.1, label
        assert line["versions"]["python"].startswith("3.")


@pytest.mark.parametrize(("augmentation", "steps"), [
    ("crop", ["read", "decode", "draw", "crop, resize, flip", "copy"]),
    ("recipe", ["read", "decode", "draw", "crop, resize, flip", "AutoAugment", "jitter, lighting",
                "copy"]),
    ("evaluation", ["read", "decode", "resize, crop", "copy"]),
])
def test_stages(capsys, records, augmentation, steps):
    found = json.loads(measured(capsys, records, "--stages", "--augmentation", augmentation,
                                "--json"))
    assert list(found["steps"]) == steps
    assert all(0 <= ms < 500 for ms in found["steps"].values())
    assert found["steps"]["decode"] > found["steps"]["copy"]
    assert 0 < found["loader"] < 500
    text = measured(capsys, records, "--stages", "--augmentation", augmentation)
    assert text.splitlines()[3].split() == ["step", "ms", "an", "image", "%", "of", "the", "sum"]
    assert [line.rsplit(None, 2)[0] for line in text.splitlines()[4:-2]] == [
        *steps, "sum", "loader"]


@pytest.mark.parametrize(("flags", "words"), [
    (["--stages", "--peer", "gluon"], "--stages is of our own pipeline: leave --peer gluon out"),
    (["--batch-size", "25"], "--batch-size 25 is more than the 24 images of"),
    (["--input-size", "7"], "--input-size 7 is too small: at least 8"),
    (["--rec-train", "nowhere.rec"], "nowhere.rec does not exist"),
])
def test_bad_input_is_named(capsys, records, flags, words):
    with pytest.raises(InputError, match=words):
        measured(capsys, records, *flags)


def test_command_line_names_it_in_one_line():
    done = run_tool("scripts/benchmark.py", "data", "--peer", "keras", code=2)
    assert done.stderr.startswith("error: argument --peer: invalid choice: 'keras'")
    assert done.stderr.count("\n") == 1


def test_contestant_that_dies_is_named(monkeypatch, capsys, records):
    monkeypatch.setattr(environments, "python", lambda name: Path("/bin/false"))
    with pytest.raises(ContestError, match=r"gluon, 0 workers died .* to answer 'prepare'"):
        measured(capsys, records, "--peer", "gluon")


# What the programs bring along

def test_peers_have_the_same_policy(monkeypatch, pictures):
    monkeypatch.syspath_prepend(PROGRAMS)
    import autoaugment_pillow
    assert autoaugment_pillow.POLICY == [[tuple(step) for step in pair]
                                         for pair in IMAGENET_POLICY]
    image = Image.open(io.BytesIO(pictures[0]))
    for pair in autoaugment_pillow.POLICY:
        monkeypatch.setattr(autoaugment_pillow, "POLICY",
                            [[(name, 1.0, level) for name, _, level in pair]])
        changed = autoaugment_pillow.augmented(image)
        assert (changed.size, changed.mode) == (image.size, "RGB")
        assert not np.array_equal(changed, image)


def test_record_reader_without_mxnet(monkeypatch, tmp_path, pictures, rng):
    """As MXNet writes them: plain, with labels in front, and cut where they hold the magic."""
    magic = struct.pack("<I", 0xCED7230A)
    payloads = [pictures[0], magic * 3 + b"end", rng.bytes(99) + magic, b""]
    writer = recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    for key, payload in enumerate(payloads):
        label = 7 if key % 2 else np.array([7.0])
        writer.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), payload))
    writer.close()
    monkeypatch.syspath_prepend(PROGRAMS)
    from record_reader import Records
    found = Records(str(tmp_path / "a.rec"))
    assert [found[position] for position in range(len(found))] == [(one, 7) for one in payloads]


def test_every_program_of_a_peer_is_there():
    for peer in PEERS.values():
        assert (PROGRAMS / peer.program).is_file()
        forms = peer.forms(3)
        assert len(forms) > 1
        assert all(form["workers"] in (0, 3) for form in forms.values() if "workers" in form)


# Photographs

def test_photographs_are_of_their_seed_and_number_alone(pictures):
    assert made_photographs.photograph(5) == pictures[5]
    assert made_photographs.photograph(5, seed=1) != pictures[5]
    assert len(set(pictures)) == IMAGES


def test_photographs_are_like_imagenets(pictures):
    sizes = [len(content) for content in pictures]
    assert min(sizes) >= made_photographs.LEAST_BYTES
    assert max(sizes) <= made_photographs.MOST_BYTES
    assert 95_000 < np.mean(sizes) < 112_000
    slopes = []
    for content in pictures:
        image = Image.open(io.BytesIO(content))
        assert image.format == "JPEG"
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
        assert 325 <= min(image.size) <= 400
        assert 490 <= max(image.size) <= 500
        slopes.append(spectral_slope(np.asarray(image.convert("L"), float)))
    # Amplitude 1 / f^a with a about 1, from 0.8 to 1.5 in photographs; white noise has 0.
    assert 0.8 < -np.mean(slopes) < 1.5


def spectral_slope(grey: np.ndarray) -> float:
    """d log amplitude / d log frequency of the middle square, by octaves."""
    side = 256
    top, left = (np.array(grey.shape) - side) // 2
    square = grey[top : top + side, left : left + side]
    window = np.hanning(side)
    amplitude = np.abs(np.fft.fft2((square - square.mean()) * window * window[:, None]))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    octaves = 2.0 ** np.arange(-6, -1)
    means = [np.log(amplitude[(low <= frequency) & (frequency < 2 * low)].mean())
             for low in octaves]
    return np.polyfit(np.log(octaves), means, 1)[0]


def test_records_are_made_once_and_whole(monkeypatch, tmp_path, records, pictures):
    with RecordFile(records) as found:
        assert [found.read(position).payload for position in range(len(found))] == pictures
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(photograph_records, "photographs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        photograph_records.record_file(IMAGES)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.setattr(photograph_records, "photographs", lambda count, seed: iter(pictures))
    made = photograph_records.record_file(IMAGES)
    assert made.read_bytes() == records.read_bytes()
    monkeypatch.setattr(photograph_records, "photographs", interrupted)
    assert photograph_records.record_file(IMAGES) == made  # nothing is made again


def interrupted(count: int, seed: int):
    yield b"the first"
    raise KeyboardInterrupt
