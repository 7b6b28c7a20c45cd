"""The supervisor: jobs that fail in every way, in real processes; nothing may be left of them."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import pytest
from supervised import PATIENCE, Supervised, fake_ssh

from gluon_resnest.jobs.supervisor import GRACE

# Ends as the trainer does: with a checkpoint, and by a second signal at once.
GRACEFUL = """
def stop(number, frame):
    note("told")
    if len((run / ("told" + rank)).read_text()) > 1:
        os._exit(1)
    stop.number = number
stop.number = 0
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
note("ready")
while not stop.number:
    time.sleep(0.02)
time.sleep(0.3)
checkpoint(7)
sys.exit(128 + stop.number)
"""


# ---- when to start again ----


def test_a_job_that_succeeds_at_its_third_start(tmp_path):
    job = """
print("start", start, os.environ.get("OMP_NUM_THREADS"), flush=True)
if start < 3:
    checkpoint(10 * start)
    os.kill(os.getpid(), signal.SIGKILL) if start == 1 else sys.exit(7)
"""
    with Supervised(tmp_path, "--log log/events", job) as supervised:
        assert supervised.end() == 0
    assert supervised.out.read_text() == "".join(f"start {n} None\n" for n in (1, 2, 3))
    events = supervised.events()
    command = f"{sys.executable} {supervised.job} --save-dir {supervised.run}"
    assert [re.sub(r"process \d+", "process N", event) for event in events] == [
        f"started (process N): {command}",
        "ended: killed by SIGKILL after T; newest checkpoint: step 10",
        "restarting in T (attempt 1 of 10)",
        f"started (process N): {command}",
        "ended: exit code 7 after T; newest checkpoint: step 20",
        "restarting in T (attempt 2 of 10)",
        f"started (process N): {command}",
        "ended: exit code 0 after T; newest checkpoint: step 20"]
    said = [line for line in supervised.err.read_text().splitlines() if "supervisor: " in line]
    assert (tmp_path / "log" / "events").read_text().splitlines() == said


@pytest.mark.parametrize(
    ("flags", "job", "starts", "code", "why"),
    [("", "sys.exit(1)", 2, 1, "it failed 2 times in a row without a new checkpoint in"),
     # Progress makes the count of futile starts begin anew; an old checkpoint is none.
     ("", "checkpoint(1 if start == 1 else 9 if start == 3 else 1); sys.exit(1)", 5, 1,
      "it failed 2 times in a row"),
     ("", "sys.exit(2)", 1, 2, "the command says that its input is bad"),
     # Not bad input: it could begin, and something has happened since.
     ("", "checkpoint(start if start < 3 else 2); sys.exit(2)", 4, 1, "it failed 2 times"),
     ("", "sys.exit(1 if start == 1 else 2)", 2, 1, "it failed 2 times in a row"),
     ("--max-restarts 2", "checkpoint(start); sys.exit(1)", 3, 1,
      "all of --max-restarts 2 are used up"),
     ("--max-restarts 0", "sys.exit(1)", 1, 1, "all of --max-restarts 0 are used up")],
    ids=["futile", "progress-between", "bad-input", "bad-input-later", "bad-input-second",
         "max-restarts", "none"])
def test_a_job_that_is_given_up(flags, job, starts, code, why, tmp_path):
    with Supervised(tmp_path, flags, job) as supervised:
        assert supervised.end() == code
    assert supervised.noted("starts") == "x" * starts
    assert supervised.events()[-1].startswith(f"given up: {why}")


def test_pauses_double_while_nothing_is_gained(tmp_path):
    fake_ssh(tmp_path, "exit 255")
    flags = "--hosts ghost:2 --max-restarts 3"
    with Supervised(tmp_path, flags, "", tools=tmp_path) as supervised:
        assert supervised.end() == 1
    pauses = re.findall(r"restarting in (\S+) s", supervised.err.read_text())
    assert pauses == ["0.1", "0.2", "0.4"]


# ---- signals ----


@pytest.mark.parametrize(("number", "launcher"), [
    (signal.SIGTERM, ()), (signal.SIGINT, ()), (signal.SIGHUP, ()),
    (signal.SIGTERM, ("timeout", "100"))], ids=["TERM", "INT", "HUP", "TERM-wrapped"])
def test_a_signal_ends_the_job_with_a_checkpoint_and_without_a_restart(
        number, launcher, tmp_path):
    # `timeout` passes a signal on itself: a job that got two would end without a checkpoint.
    with Supervised(tmp_path, "", GRACEFUL, launcher) as supervised:
        supervised.wait_for("ready")
        supervised.process.send_signal(number)
        assert supervised.end() == 128 + number
    assert supervised.noted("starts") == supervised.noted("told") == "x"
    passed = signal.SIGTERM if number == signal.SIGHUP else number
    assert [re.sub(r"process \d+", "process N", event) for event in supervised.events()[1:]] == [
        f"{number.name}: passed on; waiting for the job to end (another one kills it)",
        f"ended: exit code {128 + passed} ({passed.name}) after T; newest checkpoint: step 7",
        f"{number.name}: ended"]


def test_nohup_is_respected(tmp_path):
    with Supervised(tmp_path, "", GRACEFUL, wrapper=("nohup",)) as supervised:
        supervised.wait_for("ready")
        supervised.process.send_signal(signal.SIGHUP)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.end() == 143
    assert supervised.events()[1].startswith("SIGTERM: passed on")


def test_a_signal_in_a_pause_ends_it(tmp_path):
    with Supervised(tmp_path, "--backoff 100", "sys.exit(1)") as supervised:
        supervised.wait_until(lambda: "restarting in 100 s" in supervised.err.read_text(), "pause")
        supervised.process.terminate()
        assert supervised.end() == 143
    assert supervised.noted("starts") == "x"


# Two processes that ignore SIGTERM: one in a session of its own, and soon without a parent.
STUBBORN = """
orphan = os.fork() == 0
if orphan:
    os.setsid()
    if os.fork():
        os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: note("ignored"))
note("ready")
"""


def test_a_second_signal_kills_the_job(tmp_path):
    with Supervised(tmp_path, "", STUBBORN + "time.sleep(100)") as supervised:
        supervised.wait_until(lambda: supervised.noted("ready") == "xx", "two processes")
        supervised.process.terminate()
        supervised.wait_for("ignored")
        time.sleep(0.3)
        assert supervised.process.poll() is None
        began = time.monotonic()
        supervised.process.terminate()
        assert supervised.end() == 143
    assert time.monotonic() - began < GRACE
    assert supervised.noted("starts") == "x"


def test_sigusr1_waits_until_the_job_can_take_it(tmp_path):
    job = """
while not (run / "early").exists():
    time.sleep(0.02)
signal.signal(signal.SIGUSR1, lambda *_: note("saved"))
worker = os.fork()  # as a DataLoader's: the same command line, but not a rank
if worker == 0:
    time.sleep(100)
note("ready")
while not (run / "saved").exists():
    time.sleep(0.02)
os.kill(worker, signal.SIGKILL)
"""
    with Supervised(tmp_path, "", job) as supervised:
        supervised.wait_for("starts")
        supervised.process.send_signal(signal.SIGUSR1)  # would end a program that has only begun
        supervised.wait_until(lambda: len(supervised.events()) == 2, "SIGUSR1")
        (supervised.run / "early").touch()
        supervised.wait_for("ready")
        supervised.process.send_signal(signal.SIGUSR1)
        assert supervised.end() == 0
    assert supervised.noted("saved") == supervised.noted("starts") == "x"
    assert supervised.events()[1:3] == ["SIGUSR1: passed on to 0 rank(s) of this host",
                                        "SIGUSR1: passed on to 1 rank(s) of this host"]


# ---- nothing is left ----


@pytest.fixture(scope="module", autouse=True)
def leaver(tmp_path_factory):
    """A job that leaves a process behind. To end that takes long, so other tests run meanwhile."""
    job = STUBBORN + """
if orphan:
    time.sleep(100)
while len((run / "ready").read_text()) < 2:
    time.sleep(0.02)
sys.exit(5)
"""
    # A background process of the shell that became the supervisor is not the job's.
    shell = ("bash", "-c", 'sleep 300 & echo $! > stranger; exec "$@"', "bash")
    with Supervised(tmp_path_factory.mktemp("leaver"), "--max-restarts 0", job,
                    wrapper=shell) as supervised:
        yield supervised


def test_what_a_job_leaves_behind_is_ended(leaver):
    assert leaver.process.wait(PATIENCE) == 1
    assert leaver.left() == [int((leaver.run.parent / "stranger").read_text())]
    assert leaver.noted("ignored") == "x"
    assert "ending 1 process(es) that are left of the job" in leaver.events()
    ended = re.search(r"ended: exit code 5 after (\S+) s; no checkpoint", leaver.err.read_text())
    assert GRACE < float(ended[1]) < 2 * GRACE


def test_a_killed_supervisor_takes_the_job_with_it(tmp_path):
    with Supervised(tmp_path, "", GRACEFUL) as supervised:
        supervised.wait_for("ready")
        mapped = Path(f"/proc/{supervised.process.pid}/maps").read_text()
        assert "libmxnet" not in mapped  # of no use to it, and large
        supervised.process.kill()
        assert supervised.process.wait(PATIENCE) == -signal.SIGKILL
        supervised.wait_until(lambda: not supervised.left(), "the end of the job", 10)
    assert supervised.noted("told") == "x"
    assert (supervised.run / "checkpoints" / "step-00000007").exists()


# ---- ranks and hosts ----


@pytest.mark.slow
def test_a_rank_that_dies_and_sigusr1_under_horovodrun(tmp_path):
    job = """
if start == 1:
    if rank == "1":
        while not (run / "starts0").exists():
            time.sleep(0.02)
        checkpoint(1)
        os._exit(7)
    time.sleep(100)
signal.signal(signal.SIGUSR1, lambda *_: note("saved"))
note("ready")
while not ((run / "saved0").exists() and (run / "saved1").exists()):
    time.sleep(0.02)
"""
    with Supervised(tmp_path, "--np 2", job) as supervised:
        supervised.wait_for("ready0", "ready1")
        supervised.process.send_signal(signal.SIGUSR1)
        assert supervised.end() == 0
    assert {supervised.noted(f"{name}{rank}") for name in ("starts", "saved")
            for rank in (0, 1)} == {"xx", "x"}
    events = supervised.events()
    launched = f"{Path(sys.executable).with_name('horovodrun')} -np 2 -H localhost:2 "
    assert events[0].startswith("started 2 of 2 ranks on localhost:2 (process")
    assert f": {launched}{sys.executable} {supervised.job} " in events[0]
    assert events[1] == "ended: exit code 1 after T; newest checkpoint: step 1"
    assert events[4] == "SIGUSR1: passed on to 2 rank(s) of this host"
    assert events[5] == "ended: exit code 0 after T; newest checkpoint: step 1"


@pytest.mark.slow
def test_a_host_that_is_gone_is_left_out(tmp_path):
    job = f"""
note("size", os.environ["HOROVOD_SIZE"])
if start == 1:
    if rank == "0":
        while not (run / "starts1").exists():
            time.sleep(0.02)
        checkpoint(3)
        Path({str(tmp_path)!r}, "gone").touch()
        launcher = os.getppid()
        while not Path(f"/proc/{{launcher}}/cmdline").read_text().split("\\0")[1].endswith("run"):
            launcher = int(Path(f"/proc/{{launcher}}/stat").read_text().split()[3])
        os.kill(launcher, signal.SIGKILL)
    time.sleep(100)
"""
    # Another address of this machine, for which Horovod needs ssh, stands for another machine.
    fake_ssh(tmp_path, f"""
[ -e {tmp_path}/gone ] && {{ echo; echo "ssh: connect to $host: No route"; exit 255; }} >&2
exec sh -c "$*\"""")
    (tmp_path / "hosts").write_text("# two\nlocalhost slots=1\n\n127.0.0.2:1\n")
    flags = "--hostfile hosts --ssh-timeout 7"
    with Supervised(tmp_path, flags, job, tools=tmp_path) as supervised:
        assert supervised.end() == 0
    events = supervised.events()
    assert events[0].startswith("started 2 of 2 ranks on localhost:1,127.0.0.2:1 (")
    assert events[-5].startswith("ended: killed by SIGKILL after T; newest checkpoint: step 3")
    assert events[-3] == "left out: 127.0.0.2:1 (ssh: connect to 127.0.0.2: No route)"
    assert events[-2].startswith("started 1 of 2 ranks on localhost:1 (")
    assert (supervised.noted("size0"), supervised.noted("size1")) == ("21", "2")
    asked = (tmp_path / "ssh.log").read_text().splitlines()
    assert asked[0] == "-o BatchMode=yes -o ConnectTimeout=7 127.0.0.2 true"


def test_fewer_ranks_than_wanted_are_waited_for(tmp_path):
    fake_ssh(tmp_path, f"""
[ $host = up ] && exit 0
[ $(grep -c down {tmp_path}/ssh.log) = 1 ] && sleep 100
exit 255""")
    with Supervised(tmp_path, "--hosts localhost:4,up:1,down:4 --np 8 --min-np 6 "
                    "--max-restarts 1 --ssh-timeout 1", "", tools=tmp_path) as supervised:
        assert supervised.end() == 1
    few = "not started: 5 slots on the hosts that answer are less than --min-np 6"
    assert re.findall("supervisor: (.*)", supervised.err.read_text()) == [
        "left out: down:4 (no answer in 6 s)", few, "restarting in 0.1 s (attempt 1 of 1)",
        "left out: down:4 (ssh exits with 255)", few,
        "given up: all of --max-restarts 1 are used up"]
    assert supervised.noted("starts") == ""
