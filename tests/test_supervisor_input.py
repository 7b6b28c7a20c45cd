"""What the supervisor is asked for: hosts, commands, flags, and what it refuses."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import PATIENCE, SCRIPT

from gluon_resnest.errors import InputError
from gluon_resnest.jobs.hosts import Host, is_this_host, parse_hosts, read_hostfile
from gluon_resnest.jobs.job_command import program_of, run_directory_of, words_of


def test_hostfile(tmp_path):
    (tmp_path / "hosts").write_text(
        "# a comment\n\nhost1 slots=8\n  host-2.example.org:4  # half of it\n"
        "10.0.0.3 slots = 2 max_slots=9\n")
    assert read_hostfile(tmp_path / "hosts") == (
        Host("host1", 8), Host("host-2.example.org", 4), Host("10.0.0.3", 2))
    assert parse_hosts("a:1, b:2") == (Host("a", 1), Host("b", 2))


@pytest.mark.parametrize(("line", "error"), [
    ("host1", "line 1 of --hostfile {path}: 'host1' is no host with its number of slots: "
              "'host slots=8' or 'host:8'"),
    ("host1:0", "line 1 of --hostfile {path}: 'host1:0' is no host"),
    ("-oProxyCommand=x:8", "line 1 of --hostfile {path}: '-oProxyCommand=x:8' is no host"),
    ("a:1\na slots=2", "--hostfile {path} names a twice: give all its slots at once"),
    ("# nothing", "--hostfile {path} names no host"),
])
def test_hostfile_that_cannot_be_used(line, error, tmp_path):
    path = tmp_path / "hosts"
    path.write_text(line)
    with pytest.raises(InputError, match="^" + re.escape(error.format(path=path))):
        read_hostfile(path)


def test_own_names_need_no_ssh():
    assert all(map(is_this_host, ("localhost", "127.0.0.1", socket.gethostname())))
    assert not any(map(is_this_host, ("127.0.0.2", "192.0.2.1", "no.such.host.invalid", "a..b")))


@pytest.mark.parametrize(("command", "program"), [
    ("python train.py --save-dir r", "train.py"),
    ("/opt/env/bin/python3.8 -u -X faulthandler /src/train.py", "/src/train.py"),
    ("horovodrun -np 2 python -m package.train --data python", "package.train"),
    ("python /env/bin/horovodrun -np 2 python train.py", "train.py"),
    ("srun bash -c 'export A=1; exec python train.py --save-dir r'", "train.py"),
    ("./train.py --save-dir r", "./train.py"),
    ("python -c pass", None),
])
def test_the_program_of_a_command(command, program):
    assert program_of(words_of(shlex.split(command))) == program


def test_the_run_directory_of_a_command():
    assert run_directory_of(["python", "a.py", "--save-dir", "x y"]) == Path("x y")
    assert run_directory_of(["python", "a.py", "--save-dir=a", "--save-dir=b"]) == Path("b")
    assert run_directory_of(words_of(["bash", "-c", "python a.py --save-dir c"])) == Path("c")


@pytest.mark.parametrize(("arguments", "error"), [
    ("", "the command is missing: write it after `--`, as in"),
    ("python train.py --save-dir r", "the command is missing: write it after `--`, as in"),
    ("--np 2 --", "the command is missing"),
    ("--nr 2 -- python train.py --save-dir r", "unrecognized arguments: --nr 2"),
    ("-- python train.py", "--save-dir is missing in the command: without it each restart would"),
    ("-- python train.py --save-dir", "--save-dir is missing"),
    ("-- python train.py --save-dir r --overwrite", "--overwrite in the command would delete"),
    ("-- python train.py --save-dir r --resume=never", "--resume never in the command would"),
    ("--np 0 -- x", "argument --np/-np: '0' must be a whole number of at least 1"),
    ("--hosts a:1 --hostfile b -- x", "argument --hostfile: not allowed with argument --hosts"),
    ("--hosts a;b -- x", "--hosts a;b: 'a;b' is no host with its number of slots: "
                         "'host1:8,host2:8'"),
    ("--hostfile /nowhere -- x", "cannot read --hostfile /nowhere: No such file or directory"),
    ("--min-np 2 -- x --save-dir r", "--min-np needs --hosts, --hostfile or --np"),
    ("--np 3 --hosts a:1,b:1 -- x --save-dir r", "--np 3 is more than the 2 slots of the hosts"),
    ("--np 2 --min-np 3 -- x --save-dir r", "--min-np 3 is more than there would be"),
    ("--np 2 -- horovodrun -np 2 x --save-dir r", "with --np, --hosts or --hostfile the ranks"),
    ("--log /proc/x/y -- x --save-dir r", "cannot write --log /proc/x/y: "),
    ("-- no-such-program --save-dir r", "cannot start 'no-such-program': No such file"),
])
def test_bad_input_is_one_line(arguments, error, tool):
    code, said = tool("scripts/run_resilient.py", *arguments.split())
    assert (code, said.count("\n")) == (2, 0)
    assert said.startswith(f"error: {error}")


def test_help_has_examples():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True,
                          check=True, timeout=PATIENCE)
    for example in ("--np 8 -- python train_imagenet.py", "--hosts host1:8,host2:8", "sbatch"):
        assert example in done.stdout
