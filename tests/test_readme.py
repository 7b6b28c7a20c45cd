"""README.md, CONTRIBUTING.md and CITATION.cff: commands, flags, files and links exist."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from conftest import ROOT, run_tool

PAGES = {name: (ROOT / name).read_text(encoding="utf-8")
         for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
FLAG = re.compile(r"--[a-z][a-z-]*|(?<=[\s\[])-[A-Za-z]\b")


def commands(page: str) -> list[list[str]]:
    """Words of each command: in code blocks, and in `code` in the text."""
    blocks = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks.findall(page)).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`\n]+)`", blocks.sub("", page))
    return [shlex.split(line, comments=True) for line in lines
            if re.match(r"(make|\.venv/bin/)", line)]


def tools() -> list[str]:
    words = {word for page in PAGES.values() for command in commands(page) for word in command}
    return sorted(word for word in words if re.match(r"(scripts/)?\w+\.py$", word))


def flags_given_to(tool: str) -> set[str]:
    found: set[str] = set()
    for page in PAGES.values():
        for command in commands(page):
            if tool in command:
                after = command[command.index(tool) + 1:]
                found.update(word for word in after[:after.index("--") if "--" in after else None]
                             if FLAG.fullmatch(word))
    return found


def test_the_readme_shows_every_tool():
    assert set(tools()) == {"train_imagenet.py"} | {
        f"scripts/{path.name}" for path in ROOT.glob("scripts/*.py")
        if path.name != "install_environment.py"}
    assert {"--model", "--params", "--explain"} <= flags_given_to("scripts/predict.py")
    assert {"--model", "--dry-run", "--rec-train"} <= flags_given_to("train_imagenet.py")


@pytest.mark.parametrize("tool", tools())
def test_flags_of_tools_exist(tool):
    given = flags_given_to(tool)
    assert given <= set(FLAG.findall(run_tool(tool, "--help").stdout))


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for command in commands(PAGES[page]) if command[0] == "make"
               for word in command[1:2]}
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page])}
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_files_that_are_named_for_changes_exist():
    rows = [line for line in PAGES["CONTRIBUTING.md"].splitlines() if line.startswith("| ")]
    files = {file for row in rows for file in re.findall(r"`([a-z_]+/[\w./]+\.\w+)`", row)}
    assert len(files) >= 15
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []


def test_the_citation_is_that_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert (paper["title"], paper["year"]) == ("ResNeSt: Split-Attention Networks", 2020)
    assert [author["family-names"] for author in paper["authors"]] == [
        "Zhang", "Wu", "Zhang", "Zhu", "Lin", "Zhang", "Sun", "He", "Mueller", "Manmatha", "Li",
        "Smola"]
    assert citation["license"] == "Apache-2.0"
