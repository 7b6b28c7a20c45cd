"""Fuzz the readers of exported files: model.json, -symbol.json and .onnx.

    python tests/fuzz/exported_files.py symbol --count 500 --seed 0

Each input is an export with one file changed at random, and its digests renewed. A worker process
loads it and runs it on an image. An input passes if it is refused in one line or accepted; it
fails with a traceback, a signal, more than 10 s or more than 1 GB. A failed input is repeated
alone by `--first NUMBER --count 1`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

MOST_SECONDS, MOST_BYTES = 10, 1 << 30
_START_SECONDS = 120  # of a worker: MXNet's import and two exports
SIZE, CLASSES = 32, 3
FORMS = {"card": ("symbol", "onnx"), "symbol": ("symbol", "int8"), "onnx": ("onnx", "onnx-int8")}
STRANGE = [None, True, False, -1, 0, 1, 2, 7, 255, 10 ** 6, 2 ** 31, 2 ** 63, 10 ** 40, 0.5, -1e-9,
           1e308, float("nan"), float("inf"), "", "0", "-1", "(0, 0)", "(99999, 1)", "\u0000", "é",
           "../x", "a" * 5000, [], {}, [[[]]], [0, 0, 0], {"op": "null"}]
OPERATORS = ["_Native", "_NDArray", "Custom", "_foreach", "_while_loop", "Pooling", "Convolution",
             "Reshape", "null", "BatchNorm", "_sg_mkldnn_conv", "Deconvolution", "_contrib_TVMOp"]


# ---- changes ----


def change_json(value, rng: random.Random):
    """A few random places of a JSON value replaced, removed, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        holder, key = rng.choice(places)
        act = rng.random()
        if act < 0.45:
            holder[key] = copy.deepcopy(rng.choice(STRANGE))
        elif act < 0.6:
            del holder[key]
        elif act < 0.8:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[f"{key}{rng.choice(['', '2', '/x'])}"] = holder[key]
    return value


def _places(value):
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def change_bytes(content: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """Bits turned, bytes replaced, parts removed or repeated, in the first `within` bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(min(within or len(changed), len(changed)) or 1)
        act = rng.random()
        if act < 0.4:
            changed[place:place + 1] = bytes([(changed[place] if changed else 0)
                                              ^ 1 << rng.randrange(8)])
        elif act < 0.6:
            changed[place:place + 1] = bytes([rng.choice([0, 0x7F, 0x80, 0xFF, ord("9")])])
        elif act < 0.75:
            del changed[place:place + rng.choice([1, 4, 100])]
        elif act < 0.9:
            changed[place:place] = changed[place:place + rng.choice([1, 4, 100])]
        else:
            del changed[place:]
    return bytes(changed)


def change_graph(graph: dict, rng: random.Random) -> dict:
    """A symbol with numbers in attributes, operators and references changed."""
    graph = copy.deepcopy(graph)
    for _ in range(rng.choice([1, 1, 2])):
        node = rng.choice(graph["nodes"])
        while node["op"] == "null" and rng.random() < 0.7:
            node = rng.choice(graph["nodes"])
        inner = node["subgraphs"][0]["nodes"] if "subgraphs" in node else []
        if inner and rng.random() < 0.5:
            node = rng.choice(inner)
        attributes, act = node.get("attrs", {}), rng.random()
        if act < 0.45 and attributes:
            name = rng.choice(list(attributes))
            number = rng.choice(["0", "1", "2", "3", "-1", "16", "64", "99999999", "2147483648",
                                 "1e30", "nan"])
            attributes[name] = rng.choice([number, f"({number}, {number})", f"({number}, 1)",
                                           "True", "False", "", "max", "x"])
        elif act < 0.6:
            node["op"] = rng.choice([*OPERATORS, rng.choice(graph["nodes"])["op"]])
        elif act < 0.8 and node["inputs"]:
            source = rng.choice(node["inputs"])
            source[rng.randrange(3)] = rng.choice([0, 1, 2, 5, 50, -1, len(graph["nodes"]),
                                                   2 ** 31, 2 ** 32 + 1])
        elif act < 0.9:
            rng.choice(graph["heads"])[rng.randrange(3)] = rng.choice(
                [0, 1, 7, 99, -1, len(graph["nodes"]) - 2, 2 ** 31])
        else:
            node["inputs"] = node["inputs"][:-1] if rng.random() < 0.5 else node["inputs"] * 2
    return graph


def change_model(content: bytes, rng: random.Random) -> bytes:
    """An ONNX model with attributes, operators, shapes and names changed."""
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    for _ in range(rng.choice([1, 1, 2])):
        act, node = rng.random(), rng.choice(graph.node)
        if act < 0.4 and node.attribute:
            one = rng.choice(node.attribute)
            number = rng.choice([0, 1, -1, 2, 7, 99, 2 ** 31, 2 ** 62])
            if one.ints:
                one.ints[rng.randrange(len(one.ints))] = number
            else:
                one.i = number
        elif act < 0.55:
            node.op_type = rng.choice(["Loop", "If", "ConstantOfShape", "Tile", "Expand", "Pad",
                                       "Resize", "Range", "Conv", "Relu", "Nothing"])
        elif act < 0.7 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                [*rng.choice(graph.node).output, "data", "", "none"])
        elif act < 0.85:
            value = rng.choice(graph.initializer)
            if value.dims:
                value.dims[rng.randrange(len(value.dims))] = rng.choice(
                    [0, 1, -1, 2 ** 31, 2 ** 62])
        elif act < 0.9:
            value = rng.choice(graph.initializer)
            value.data_location = onnx.TensorProto.EXTERNAL
            value.external_data.add(key="location", value=rng.choice(
                ["../model.json", "model.json", "/etc/passwd"]))
        elif act < 0.95:
            model.opset_import[0].version = rng.choice([0, 1, 7, 23, 99, -1])
        else:
            side = rng.choice(graph.input[0].type.tensor_type.shape.dim)
            side.dim_value = rng.choice([0, 1, -1, 2 ** 40])
    return model.SerializeToString()


def change_file(kind: str, folder: Path, rng: random.Random) -> None:
    """Change the one file of `kind` in an export, and the digests in its card."""
    from gluon_resnest.deploy.card import sha256

    card_file = folder / "model.json"
    card = json.loads(card_file.read_text(encoding="utf-8"))
    file = {"card": card_file, "symbol": folder / "net-symbol.json",
            "onnx": folder / "net.onnx"}[kind]
    content, act = file.read_bytes(), rng.random()
    if kind == "onnx":
        # The nodes come first.
        changed = (change_model(content, rng) if act < 0.6 else
                   change_bytes(content, rng, within=40_000 if act < 0.9 else None))
    elif act < 0.3:
        changed = change_bytes(content, rng)
    elif kind == "symbol" and act < 0.75:
        changed = json.dumps(change_graph(json.loads(content), rng)).encode()
    else:
        changed = json.dumps(change_json(json.loads(content), rng)).encode()
    file.unlink()  # the others are links
    file.write_bytes(changed)
    if file != card_file:
        card["files"][file.name] = sha256(file)
        card_file.unlink()
        card_file.write_text(json.dumps(card), encoding="utf-8")


# ---- the worker ----


def export_all(kind: str, folder: Path) -> list[Path]:
    """An export in each format that `kind` is a file of."""
    import mxnet as mx
    import numpy as np

    import gluon_resnest
    from gluon_resnest.deploy import Description, export

    mx.random.seed(0)
    net = gluon_resnest.get_model("resnest14", classes=CLASSES)
    net.initialize()
    crops = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    for form in FORMS[kind]:
        export(net, folder / form, Description("net", SIZE, 0.875, ("a", "b", "é")), crops, form,
               calibration=crops, least_agreement=0)
    return [folder / form for form in FORMS[kind]]


def outcome(folder: Path) -> str:
    """Load what is in a folder and run it: "accepted", "refused", or a traceback."""
    import numpy as np

    from gluon_resnest.classifier import load_classifier
    from gluon_resnest.errors import InputError

    try:
        load_classifier(str(folder))(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    except InputError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except Exception:
        return traceback.format_exc()
    return "accepted"


def work(kind: str, seed: int, first: int, count: int) -> None:
    """Say a line of JSON before each input, and one with its outcome after it."""
    # MXNet and ONNX Runtime write to these as well.
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as scratch:
        exports = export_all(kind, Path(scratch))
        for number in range(first, first + count):
            rng, folder = random.Random(f"{kind} {seed} {number}"), Path(scratch) / "changed"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for file in exports[number % len(exports)].iterdir():
                os.link(file, folder / file.name)
            change_file(kind, folder, rng)
            said.write(json.dumps({"begun": number}) + "\n")
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
            before = _memory("VmRSS")
            found = outcome(folder)
            grown = _memory("VmHWM") - before
            if grown > MOST_BYTES:
                found = f"took {grown >> 20} MB, and was {found}"
            said.write(json.dumps({"done": number, "outcome": found}) + "\n")


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith(name))
    return int(line.split()[1]) << 10


# ---- the parent ----


def fuzz(kind: str, count: int, seed: int = 0, first: int = 0) -> tuple[Counter, dict[int, str]]:
    """Counts of the outcomes, and what went wrong with each input that failed."""
    counts: Counter = Counter()
    failures: dict[int, str] = {}
    number, end = first, first + count
    while number < end:
        worker = subprocess.Popen(
            [sys.executable, __file__, kind, "--worker", "--seed", str(seed), "--first",
             str(number), "--count", str(end - number)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        begun = False
        while number < end:
            ready, _, _ = select.select([worker.stdout], [], [],
                                        MOST_SECONDS if begun else _START_SECONDS)
            line = worker.stdout.readline() if ready else b""
            if not line:
                worker.kill()
                code = worker.wait()
                if not begun:
                    raise RuntimeError(f"the worker ended with {code} before input {number}")
                failures[number] = (f"ended by signal or exit code {code}" if ready else
                                    f"more than {MOST_SECONDS} s")
                number += 1
                break
            report = json.loads(line)
            begun = "begun" in report
            if "done" in report:
                if report["outcome"] in ("accepted", "refused"):
                    counts[report["outcome"]] += 1
                else:
                    failures[report["done"]] = report["outcome"]
                number = report["done"] + 1
        worker.stdout.close()
        worker.wait()
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=list(FORMS))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.kind, args.seed, args.first, args.count)
        return
    counts, failures = fuzz(args.kind, args.count, args.seed, args.first)
    for number, reason in failures.items():
        print(f"input {number}: {reason}")
    print(f"{args.kind}: {args.count} inputs, {counts['refused']} refused, {counts['accepted']} "
          f"accepted, {len(failures)} failed")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
