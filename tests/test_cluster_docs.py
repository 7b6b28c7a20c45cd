"""docs/cluster.md and docker/Dockerfile: flags exist, pins are those of constraints.txt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_tool

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
SUPERVISOR = ROOT / "scripts" / "run_resilient.py"
FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
HOROVODRUN = Path(sys.executable).with_name("horovodrun")


def commands(page: str) -> list[str]:
    """Commands of the code blocks: lines that belong together as one, without comments."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        text = re.sub(r"\\\n|(?<=bash -c ')\n", " ", block)
        text = re.sub(r"('\n?[^']*')", lambda quoted: quoted[1].replace("\n", " "), text)
        found += [re.sub(r"\s#.*|^#.*", "", line).strip() for line in text.splitlines()]
    return [line for line in found if line]


def flags_of(program: str, other_programs: tuple[str, ...] = ()) -> set[str]:
    """Flags that the page gives to `program`: up to where another one begins."""
    found: set[str] = set()
    for line in commands(PAGE):
        for part in line.split(program)[1:]:
            for other in other_programs:
                part = part.split(other)[0]
            found.update(FLAG.findall(re.sub(r"\"[^\"]*\"", "", part)))
    return found


def known_flags(*command: str) -> set[str]:
    return set(FLAG.findall(run_tool(*command, "--help").stdout))


@pytest.fixture(scope="module")
def horovodrun_flags() -> set[str]:
    shown = subprocess.run([str(HOROVODRUN), "--help"], capture_output=True, text=True, check=True)
    return set(FLAG.findall(shown.stdout)) | {"-np"}


def test_the_page_has_commands_that_are_found() -> None:
    lines = commands(PAGE)
    assert sum("train_imagenet.py" in line for line in lines) >= 5
    assert any(line.startswith("horovodrun -np 64 --hostfile hosts") for line in lines)
    assert {"--model", "--rec-train"} <= flags_of("train_imagenet.py")
    assert {"-np", "--hostfile", "--network-interface", "--gloo"} <= flags_of(
        "horovodrun", ("train_imagenet.py", "bash -c"))


def test_flags_of_the_trainer_exist() -> None:
    assert flags_of("train_imagenet.py", ("horovodrun", "run_resilient.py")) <= known_flags(
        "train_imagenet.py")


def test_flags_of_horovodrun_exist(horovodrun_flags) -> None:
    used = flags_of("horovodrun", ("train_imagenet.py", "run_resilient.py", "bash -c"))
    assert used <= horovodrun_flags


def test_flags_of_the_supervisor_exist() -> None:
    used = flags_of("run_resilient.py", ("horovodrun", "train_imagenet.py", " -- "))
    if not SUPERVISOR.is_file():
        pytest.skip("no scripts/run_resilient.py")
    assert used <= known_flags(str(SUPERVISOR.relative_to(ROOT)))


def test_flags_in_the_text_exist(horovodrun_flags) -> None:
    """Those in `code` outside of blocks, of whichever program."""
    text = re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    named = set()
    for code in re.findall(r"`(--?[a-z][^`]*)`", text):
        named.update(FLAG.findall(re.sub(r"\"[^\"]*\"", "", code)))
    known = horovodrun_flags | known_flags("train_imagenet.py")
    if SUPERVISOR.is_file():
        known |= known_flags(str(SUPERVISOR.relative_to(ROOT)))
    others = {"--shm-size", "--device", "--cap-add", "--signal"}  # of docker and sbatch
    assert named - known <= others


def test_variables_of_horovod_exist() -> None:
    """Each HOROVOD_ variable of the page is one that Horovod reads, when built or when run."""
    import horovod

    package = Path(horovod.__file__).parent
    sources = b"".join(path.read_bytes() for path in [
        *package.glob("runner/**/*.py"), *package.glob("mxnet/*.so")])
    for name in set(re.findall(r"\bHOROVOD_[A-Z_]+\b", PAGE)):
        built = name.startswith(("HOROVOD_WITH", "HOROVOD_GPU_OPERATIONS"))
        assert built or name.encode() in sources, name


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link


# ---- the plan that the page shows ----

def test_the_shown_plan_is_what_the_command_prints() -> None:
    shown = re.search(r"<!-- written by: (python train_imagenet.py .*?) -->\n```json\n(.*?)```",
                      PAGE, re.DOTALL)
    assert shown, "docs/cluster.md shows no plan"
    command = shown[1].split()[1:]
    printed = json.loads(run_tool(*command).stdout)
    pruned = json.loads(re.sub(r"\.\.\.,?", "", shown[2]))

    def is_part(part, whole) -> bool:
        if isinstance(part, dict):
            return all(name in whole and is_part(value, whole[name])
                       for name, value in part.items())
        return part == whole

    assert is_part(pruned, printed)


# ---- the Dockerfile ----

def test_pins_of_the_image_are_those_of_constraints() -> None:
    constraints = set((ROOT / "constraints.txt").read_text().splitlines())
    build = re.search(r"^ARG MXNET=(\w+)$", DOCKERFILE, re.MULTILINE)[1]
    pins = re.findall(r"\"([\w${}-]+==[\w.]+)\"", DOCKERFILE)
    assert len(pins) >= 2
    for other in (build, "cu117"):
        assert {pin.replace("${MXNET}", other) for pin in pins} <= constraints


def test_image_is_made_by_make_install() -> None:
    assert 'make MXNET="${MXNET}" install' in DOCKERFILE
    assert re.search(r"^FROM nvidia/cuda:\$\{CUDA\}-cudnn8-devel-ubuntu20.04$", DOCKERFILE,
                     re.MULTILINE)
    for variable in ("HOROVOD_WITH_MPI=1", "HOROVOD_WITHOUT_MPI=0", "HOROVOD_GPU_OPERATIONS=NCCL"):
        assert variable in DOCKERFILE


def test_the_installer_lets_the_image_have_mpi(monkeypatch) -> None:
    from toolchain.horovod_wheel import build_flags

    for name in [name for name in os.environ if name.startswith("HOROVOD_")]:
        monkeypatch.delenv(name)
    for name, value in (("HOROVOD_WITH_MPI", "1"), ("HOROVOD_WITHOUT_MPI", "0")):
        monkeypatch.setenv(name, value)
    flags = build_flags("cu112")
    assert (flags["HOROVOD_WITH_MPI"], flags["HOROVOD_WITHOUT_MPI"]) == ("1", "0")
    assert flags["HOROVOD_GPU_OPERATIONS"] == "NCCL"
