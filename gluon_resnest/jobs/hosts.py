"""The hosts that a job may run on: how they are named, and which of them answer.

Standard library only, as all that the supervisor is made of.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import read_lines

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # never a flag: it becomes a word of ssh's command line
_WITH_COLON = re.compile(rf"({_NAME}):([0-9]+)")
_WITH_SLOTS = re.compile(rf"({_NAME})((?:\s+[A-Za-z_-]+\s*=\s*\S+)*)")
_SLOTS = re.compile(r"\sslots\s*=\s*([0-9]+)(?!\S)")
_OWN_NAMES = ("localhost", "127.0.0.1")

# ssh gives up connecting after its ConnectTimeout; to log in may hang, too (a dead home folder).
_LOGIN_SECONDS = 5


@dataclass(frozen=True)
class Host:
    """A host and how many ranks it takes."""

    name: str
    slots: int

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Hosts of ``host1:8,host2:8``, as `horovodrun -H` takes them."""
    return _each_once([_host(part.strip(), f"--hosts {text}") for part in text.split(",")],
                      f"--hosts {text}")


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Hosts of a file with a line ``host slots=8`` (Open MPI, Horovod) or ``host:8`` each.

    Empty lines, comments (``#``) and other settings of Open MPI (``max_slots=8``) are passed over.
    """
    hosts = []
    for number, line in enumerate(read_lines(path, "--hostfile"), start=1):
        text = line.partition("#")[0].strip()
        if text:
            hosts.append(_host(text, f"line {number} of --hostfile {path}"))
    if not hosts:
        raise InputError(f"--hostfile {path} names no host: a line for each, such as "
                         "'host1 slots=8'")
    return _each_once(hosts, f"--hostfile {path}")


def _host(text: str, origin: str) -> Host:
    name = slots = None
    colon, spaced = _WITH_COLON.fullmatch(text), _WITH_SLOTS.fullmatch(text)
    if colon:
        name, slots = colon[1], int(colon[2])
    elif spaced and (found := _SLOTS.search(spaced[2])):
        name, slots = spaced[1], int(found[1])
    if not name or not slots:
        form = "'host slots=8' or 'host:8'" if "hostfile" in origin else "'host1:8,host2:8'"
        raise InputError(f"{origin}: '{text}' is no host with its number of slots: {form}")
    return Host(name, slots)


def _each_once(hosts: Sequence[Host], origin: str) -> tuple[Host, ...]:
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{origin} names {name} twice: give all its slots at once")
    return tuple(hosts)


def is_this_host(name: str) -> bool:
    """Whether `name` is this host, so that nobody needs ssh to reach it.

    As `horovodrun` sees it: a name whose address belongs to an interface of this host.
    """
    if name in (*_OWN_NAMES, socket.gethostname()):
        return True
    try:
        address = socket.gethostbyname(name)
    except (OSError, UnicodeError):
        return False
    if address.startswith("127."):  # any of these can be bound to, but one alone has an interface
        return address == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def silent_hosts(
    hosts: Sequence[Host], seconds: int, pause: Callable[[float], None],
    abandoned: Callable[[], bool],
) -> dict[Host, str]:
    """Hosts on which ``ssh host true`` fails, with the reason; all are asked at once.

    Parameters
    ----------
    hosts
        To be asked; this host itself is not.
    seconds
        For each to answer the connection; a few more to log in.
    pause
        Called while waiting, with a number of seconds that it may take.
    abandoned
        Whether nobody needs the answer any more.

    Raises
    ------
    InputError
        There is no ssh.
    """
    probes: dict[Host, subprocess.Popen[bytes]] = {}
    said = {}
    try:
        for host in hosts:
            if not is_this_host(host.name):
                # No pipe: what ssh leaves in the background to share a connection would hold it.
                said[host] = tempfile.TemporaryFile()
                probes[host] = _probe(host.name, seconds, said[host])
        end = time.monotonic() + seconds + _LOGIN_SECONDS
        while (any(probe.poll() is None for probe in probes.values())
               and time.monotonic() < end and not abandoned()):
            pause(0.2)
        silent = {}
        for host, probe in probes.items():
            if probe.poll() != 0:
                said[host].seek(0)
                lines = said[host].read().decode(errors="replace").split("\n")
                reason = [line.strip() for line in lines if line.strip()][-1:]
                late = f"no answer in {seconds + _LOGIN_SECONDS} s"
                silent[host] = late if probe.poll() is None else (
                    reason or [f"ssh exits with {probe.returncode}"])[0]
        return silent
    finally:
        for probe in probes.values():
            if probe.poll() is None:
                os.killpg(probe.pid, signal.SIGKILL)  # with a ProxyCommand of it
            probe.wait()
        for file in said.values():
            file.close()


def _probe(name: str, seconds: int, errors) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={seconds}", name, "true"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True)
    except OSError as error:
        raise InputError(f"cannot ask {name} whether it is there: ssh: "
                         f"{error.strerror or error}") from None
