"""benchmarks/: real child processes, small networks; nothing is judged by its time."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import mxnet as mx
import pytest
from conftest import ROOT, run_tool

from benchmarks import environments, network, peers
from benchmarks.contest import PROGRAMS, Contestant, ContestError, ContestRecord, Limits, contest
from benchmarks.environments import Environment, made
from benchmarks.peers import Case, Peer, our_contestants, peer_contestants
from benchmarks.results import ratio, results, spread
from gluon_resnest import get_model, runtime
from gluon_resnest.errors import InputError
from gluon_resnest.models import find_variant

TINY = ("--model", "resnest14", "--input-size", "64", "--batch-size", "2", "--threads", "1",
        "--rounds", "2", "--form", "gluon")


@pytest.fixture(autouse=True)
def no_child_left_behind():
    before = children_of(os.getpid())
    yield
    assert set(children_of(os.getpid())) <= set(before)


@pytest.fixture
def this_python(monkeypatch):
    """The tests' own environment, which has GluonCV, in place of the peers'; and a small sgemm."""
    monkeypatch.setattr(environments, "python", lambda name: Path(sys.executable))
    monkeypatch.setattr(peers, "_SGEMM_SIZES", (128, 256))


def children_of(pid: int) -> list[int]:
    """Numbers of the processes that `pid` has started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(status.parent.name))
    return found


def measured(capsys, *flags: str) -> str:
    """What `benchmark.py network` prints."""
    parser = argparse.ArgumentParser()
    network.add_flags(parser)
    network.measure(parser.parse_args([*TINY, *flags]))
    return capsys.readouterr().out


def contestant(folder: Path, label: str, code: str) -> Contestant:
    """One whose program is `code`, in which `task` and `Prepared` are known."""
    program = folder / f"{label}.py"
    program.write_text("import os, subprocess, sys, time\nfrom contestant import Prepared, Refused"
                       "\n\ndef prepare(task):\n" + textwrap.indent(code, "    "))
    return Contestant(label, Path(sys.executable), program, {}, runtime.child_environment(1))


WELL = "return Prepared(lambda: time.sleep(0.1), {})"


def test_contestants_take_turns(tmp_path):
    records = contest([contestant(tmp_path, label, WELL) for label in "ABC"], rounds=2)
    turns = sorted((started, record.contestant.label)
                   for record in records for started in record.started)
    assert [label for _, label in turns] == list("ABCABC")
    for record in records:
        assert [len(turn) for turn in record.turns] == [3, 3]  # 0.3 s of 0.1 s
        assert all(seconds >= 0.1 for turn in record.turns for seconds in turn)
        assert 1 < record.baseline_mb <= record.peak_mb < 100


def test_libraries_may_print_what_they_like(tmp_path):
    noise = """
        print("a banner", flush=True)
        os.write(1, b"{}\\n")
        subprocess.run(["echo", "from another process"])
        """
    call = "return Prepared(lambda: print('in a call'), {'noisy': True})"
    noisy = contestant(tmp_path, "noisy", textwrap.dedent(noise) + call)
    record, = contest([noisy], rounds=1)
    assert record.facts == {"noisy": True}
    assert len(record.turns[0]) == 50


@pytest.mark.parametrize(("code", "message"), [
    ("raise ValueError('no such thing')", "died (exit code 1) when it was to answer 'prepare'"),
    ("os.kill(os.getpid(), 9)", "bad died (signal SIGKILL) when it was to answer 'prepare', and "
                                "wrote nothing"),
    ("return Prepared(lambda: os._exit(3), {})", "died (exit code 3)"),
    ("time.sleep(600)", "gave no answer to 'prepare' in 1 s"),
])
def test_dying_or_hanging_ends_the_contest(tmp_path, code, message):
    bad, well = contestant(tmp_path, "bad", code), contestant(tmp_path, "well", WELL)
    with pytest.raises(ContestError) as caught:
        contest([well, bad], rounds=1, limits=Limits(prepare=1 if "sleep" in code else 60))
    first, *tail = str(caught.value).splitlines()
    assert message in first
    if "ValueError" in code:
        assert tail[-1].strip() == "ValueError: no such thing"


def test_hanging_turn_takes_its_helpers_with_it(tmp_path):
    code = f"""
        helper = subprocess.Popen(["sleep", "600"])
        open({str(tmp_path / "helper")!r}, "w").write(str(helper.pid))
        calls = iter([0, 0, 0])
        return Prepared(lambda: time.sleep(next(calls, 600)), {{}})
        """
    stuck = contestant(tmp_path, "stuck", textwrap.dedent(code))
    with pytest.raises(ContestError, match="stuck gave no answer to 'turn' in 1 s"):
        contest([stuck], rounds=1, limits=Limits(turn=1))
    helper = Path("/proc", (tmp_path / "helper").read_text(), "stat")
    until(lambda: not helper.exists() or helper.read_text().rpartition(")")[2].split()[0] == "Z")


def test_nonsense_and_refusals_are_named(tmp_path):
    echo = replace(contestant(tmp_path, "echo", WELL), python=Path("/bin/echo"))
    with pytest.raises(ContestError, match=r"echo answered .* to 'prepare', which is no JSON"):
        contest([echo], rounds=1)
    with pytest.raises(InputError, match="picky: not this one"):
        contest([contestant(tmp_path, "picky", "raise Refused('not this one')")], rounds=1)


def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_interrupt_ends_all_processes():
    tool = subprocess.Popen([sys.executable, "scripts/benchmark.py", "network", *TINY], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            # What a shell starts in the background ignores it, and inherits that.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until(lambda: any(b"serve.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
                      for pid in children_of(tool.pid)))
    started = children_of(tool.pid)
    tool.send_signal(signal.SIGINT)
    _, errors = tool.communicate(timeout=60)
    assert (tool.returncode, errors) == (130, "")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def record(label: str, turns: list[list[float]], flop: float | None = None, **facts):
    one = Contestant(label, Path(sys.executable), Path(), {"network": "net"}, {}, flop)
    return ContestRecord(one, {"versions": {"mxnet": "1.9.1"}, **facts}, 50.0, 1234.5,
                         [0.0] * len(turns), turns)


# The machine halves its speed in the second round and recovers in the third.
OURS = record("ours", [[0.5, 0.1, 0.1], [0.2, 0.2, 0.2], [0.1, 0.1, 0.4]], flop=4e9)
PEER = record("peer", [[0.3], [0.5], [0.2]])
SGEMM = record("sgemm", [[1.0], [2.0], [1.0]], operator="dot", size=64, flop=80e9)


def test_ratios_are_taken_round_by_round():
    assert asdict(ratio([0.3, 0.5, 0.2], [0.1, 0.2, 0.1])) == pytest.approx(
        {"median": 2.5, "least": 2.0, "most": 3.0})
    # Quartiles of 1, 2, 3, 4, 10 are 2 and 4, their median 3.
    assert spread([10, 1, 2, 4, 3]) == pytest.approx(1 / 3)
    assert spread([0.2]) == 0
    ours, peer, rate = results([OURS, PEER], ["ours"], SGEMM)
    assert (ours.seconds, peer.seconds) == (0.1, 0.3)
    assert peer.ratios["ours"].median == pytest.approx(2.5)
    assert (ours.gflops, rate.gflops) == (pytest.approx(40), pytest.approx(80))
    assert ours.sgemm_share == pytest.approx(0.5)  # 40 / 80, 20 / 40, 40 / 80
    assert (peer.gflops, peer.sgemm_share) == (None, None)


def test_table_of_a_contest(monkeypatch, capsys):
    monkeypatch.setattr(network, "contest", lambda contestants, rounds: [OURS, PEER, SGEMM])
    lines = measured(capsys, "--mode", "forward", "--markdown").splitlines()
    assert lines[2] == "resnest14, forward, batch 2, 64 px, 1 thread, 2 rounds"
    assert lines[4:9] == [
        "| contestant | network | ms | +- % | time / ours | GFLOP/s | % of sgemm | peak MB |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
        "| ours | net | 100.0 | 25.0 | 1.00 (1.00-1.00) | 40.0 | 50 | 1,234 |",
        "| peer | net | 300.0 | 25.0 | 2.50 (2.00-3.00) | - | - | 1,234 |",
        "",
    ]
    assert lines[9] == "sgemm: 80.0 GFLOP/s (dot, 64 x 64); mxnet 1.9.1"


def test_training_step_beside_gluoncv(this_python, capsys):
    flags = ("--mode", "training", "--peer", "gluoncv", "--json")
    found = json.loads(measured(capsys, *flags))
    assert set(found) == {"machine", "cases"}
    assert set(found["machine"]) == {"cpu", "cores", "system"}
    case, = found["cases"]
    assert {key: value for key, value in case.items() if key != "contestants"} == {
        "model": "resnest14", "mode": "training", "batch_size": 2, "input_size": 64,
        "threads": 1, "rounds": 2}
    ours, peer, rate = case["contestants"]
    assert [ours["contestant"], peer["contestant"], rate["contestant"]] == [
        "ours", "gluoncv", "sgemm"]
    assert set(ours) == set(peer) == {
        "contestant", "network", "form", "ms", "spread", "ratios", "gflops", "sgemm_share",
        "peak_mb", "baseline_mb", "versions", "started", "seconds"}
    assert peer["versions"]["gluoncv"] == "0.10.5.post0"
    multiply_adds = 0.24e9  # about (64 / 224)^2 of the 2.75 GMACs of an image
    assert ours["gflops"] * ours["ms"] / 1e3 == pytest.approx(6 * 2 * multiply_adds / 1e9, 0.1)
    for one in (ours, peer):
        assert set(one["ratios"]) == {"ours"}
        assert len(one["seconds"]) == len(one["started"]) == 2
        assert 50 < one["baseline_mb"] < one["peak_mb"] < 2000
    assert ours["ratios"]["ours"] == {"median": 1, "least": 1, "most": 1}
    starts = [one["started"] for one in (ours, peer, rate)]
    in_turns = [start for turn in zip(*starts) for start in turn]
    assert in_turns == sorted(in_turns)
    assert rate["operator"] in ("dot", "FullyConnected")
    assert rate["size"] in (128, 256)


def test_profile_lists_operators(this_python, capsys):
    found = json.loads(measured(capsys, "--mode", "forward", "--profile", "--peer", "gluoncv",
                                "--json"))
    rows = {row["operator"]: row for row in found["cases"][0]["operators"]}
    assert set(rows["Convolution"]) == {"operator", "ours", "gluoncv"}
    net = get_model("resnest14")
    nodes = json.loads(net(mx.sym.var("data")).tojson())["nodes"]
    assert rows["Convolution"]["ours"]["count"] == sum(
        node["op"] == "Convolution" for node in nodes)
    for label in ("ours", "gluoncv"):
        assert sum(row[label]["share"] for row in rows.values() if label in row) == (
            pytest.approx(1))
    assert not any("_backward" in operator for operator in rows)


def test_peers_get_their_own_names_and_threads(this_python):
    case = Case("resnest101", "training", 8, 224, threads=3)
    ours, = our_contestants(case, case.model, "ours", peers.FORMS)  # nothing deployed is trained
    assert ours.environment["OMP_NUM_THREADS"] == "3"
    timm, = peer_contestants(case, Peer("timm"), ["gluon"])
    assert (timm.task["network"], timm.task["threads"]) == ("resnest101e", 3)
    assert timm.flop == ours.flop
    untouched, = peer_contestants(case, Peer("gluoncv-default"), ["gluon"])
    assert "OMP_NUM_THREADS" not in untouched.environment
    assert peer_contestants(case, Peer("onnxruntime"), ["gluon"]) == []
    forward = replace(case, mode="forward")
    other = peer_contestants(forward, Peer.parse("ours:resnest50_0s1x64d"), peers.FORMS)
    assert [one.label for one in other] == [
        "ours:resnest50_0s1x64d", "ours:resnest50_0s1x64d deployed"]
    own, = peer_contestants(forward, Peer.parse("gluoncv:resnet50_v1b"), ["gluon"])
    assert (own.task["network"], own.flop) == ("resnet50_v1b", None)


@pytest.mark.parametrize("name", ["resnest50_fast_4s2x40d", "resnest50_0s1x64d", "resnest101"])
def test_gluoncv_runs_the_same_network(name, monkeypatch):
    monkeypatch.syspath_prepend(PROGRAMS)
    import run_gluoncv
    peer = run_gluoncv._by_class(asdict(find_variant(name)))
    shapes = [{key: parameter.shape for key, parameter in net._collect_params_with_prefix().items()}
              for net in (peer, get_model(name))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("flags", "words"), [
    (["--peer", "pytorch"], "unknown peer 'pytorch': choose from ours, gluoncv"),
    (["--peer", "ours"], "peer 'ours' needs a network, such as"),
    (["--peer", "ours:resnest51"], "unknown model 'resnest51': did you mean"),
    (["--peer", "gluoncv", "gluoncv"], "gluoncv takes part twice"),
    (["--model", "resnest15"], "unknown model 'resnest15'"),
    (["--model", "resnest50_2s2x40d", "--peer", "timm"], "timm has no network like resnest50_2s2"),
    (["--peer", "gluoncv:resnet51"], "gluoncv:resnet51: GluonCV has no network 'resnet51'"),
    (["--input-size", "16"], "--input-size 16 is too small"),
    (["--batch-size", "1"], "--batch-size 1 cannot be trained"),
    (["--form", "deployed"], "--form deployed is for --mode forward, not training"),
    (["--profile", "--peer", "timm"], "--profile shows MXNet's operators: leave --peer timm out"),
])
def test_bad_input_is_named(this_python, capsys, flags, words):
    with pytest.raises(InputError, match=words):
        measured(capsys, *flags)


def test_command_line_names_it_in_one_line():
    done = run_tool("scripts/benchmark.py", "network", "--peer", "pytorch", code=2)
    assert done.stderr.startswith("error: unknown peer 'pytorch'")
    assert done.stderr.count("\n") == 1


# Environments: a wheel of one line, installed without a network.

@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Environment:
    wheel(tmp_path, "tinypeer", "1.0")
    wheel(tmp_path, "alone", "1.0", requires="nowhere")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return Environment("Tiny", ("tinypeer==1.0",), ("alone==1.0",),
                       "import tinypeer, alone", ((3, 8), (4, 0)))


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f'version = "{version}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
                            + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
                         "Tag: py3-none-any\n",
    }
    hashes = [(path, base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode())
              for path, text in files.items()]
    listing = "".join(f"{path},sha256={digest.rstrip('=')},{len(files[path])}\n"
                      for path, digest in hashes)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": f"{listing}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def version_in(python: Path) -> str:
    return subprocess.run([str(python), "-c", "import tinypeer; print(tinypeer.version)"],
                          capture_output=True, text=True, check=True).stdout.strip()


def test_environment_is_made_once_and_anew_when_its_pins_change(tiny, tmp_path, capfd):
    python = made(tiny, "tiny", tmp_path / "peers")
    assert version_in(python) == "1.0"
    assert f"making the environment of Tiny in {python.parents[1]}" in capfd.readouterr().err
    assert made(tiny, "tiny", tmp_path / "peers") == python
    assert capfd.readouterr() == ("", "")

    wheel(tmp_path, "tinypeer", "2.0")
    newer = replace(tiny, requirements=("tinypeer==2.0",))
    assert version_in(made(newer, "tiny", tmp_path / "peers")) == "2.0"

    # An interrupted pip leaves this: the stamp, which is written last, is missing.
    (python.parents[1] / "installed.json").unlink()
    (python.parents[1] / "half-made").touch()
    made(newer, "tiny", tmp_path / "peers")
    assert not (python.parents[1] / "half-made").exists()


def test_what_is_made_is_known_without_making_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(environments.ENVIRONMENTS, "tiny", tiny)
    assert not environments.is_made("tiny")
    environments.python("tiny")
    assert environments.is_made("tiny")
    monkeypatch.setitem(environments.ENVIRONMENTS, "tiny", replace(tiny, unmanaged=()))
    assert not environments.is_made("tiny")
    monkeypatch.setitem(environments.ENVIRONMENTS, "tiny", replace(tiny, pythons=((3, 8), (3, 8))))
    assert not environments.fits("tiny")


def test_environment_is_made_by_one_process_at_a_time(tiny, tmp_path, capfd):
    with ThreadPoolExecutor(2) as both:
        pythons = list(both.map(lambda name: made(tiny, name, tmp_path / "peers"), ["tiny"] * 2))
    assert pythons[0] == pythons[1]
    printed = capfd.readouterr().err
    assert printed.count("making the environment of Tiny") == 1
    assert printed.count("waiting for another process that sets up") == 1


def test_environment_that_cannot_be_made_says_why(tiny, tmp_path):
    lacking = replace(tiny, requirements=("tinypeer==1.0", "nowhere==3.0"))
    with pytest.raises(InputError, match=r"cannot install Tiny \(No matching distribution found "
                                         r"for nowhere==3\.0\): check the network"):
        made(lacking, "tiny", tmp_path / "peers")
    broken = replace(tiny, check="import tinypeer, gone")
    with pytest.raises(InputError, match=r"cannot be imported: .*No module named 'gone'"):
        made(broken, "tiny", tmp_path / "peers")
    with pytest.raises(InputError, match=r"Tiny needs Python 3\.8 or later and below 3\.9"):
        made(replace(tiny, pythons=((3, 8), (3, 9))), "tiny", tmp_path / "peers")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="name another cache folder with XDG_CACHE_HOME"):
        made(tiny, "tiny", tmp_path / "file" / "peers")


def test_cache_folder_follows_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / "gluon-resnest"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.cache_folder() == tmp_path / ".cache/gluon-resnest"


# ---- exported files ----


def test_exports_are_timed_with_their_size_and_agreement():
    done = run_tool("scripts/benchmark.py", "export", "--model", "resnest14", "--input-size", "64",
                    "--batch-size", "2", "--threads", "1", "--rounds", "2", "--form", "onnx",
                    "onnx-int8", "--json", timeout=300)
    case, = json.loads(done.stdout)["cases"]
    assert (case["model"], case["batch_size"], case["rounds"]) == ("resnest14", 2, 2)
    full, small = case["contestants"]
    assert (full["contestant"], small["contestant"]) == ("ours onnx", "ours onnx-int8")
    assert full["difference"] < 1e-5 < small["difference"] < 0.5
    assert small["file_mb"] == pytest.approx(full["file_mb"] / 4, rel=0.05)
    assert min(full["ms"], small["ms"]) > 0


def test_gluoncv_s_own_export_takes_part(this_python):
    case = Case("resnest14", "forward", 2, 64, 1)
    record, = contest(peer_contestants(case, Peer("gluoncv-export"), ()), 2)
    assert record.facts["difference"] < 1e-4
    assert record.facts["file_mb"] > 40


@pytest.mark.parametrize(("flags", "answer"), [
    (("--form", "onnx", "onnx"), "a contestant takes part twice"),
    (("--model", "resnest51x"), "resnest51x"),
    (("--input-size", "7"), "--input-size 7"),
])
def test_export_benchmarks_refuse_nonsense(flags, answer):
    done = run_tool("scripts/benchmark.py", "export", *flags, code=2)
    assert answer in done.stderr.splitlines()[-1]
