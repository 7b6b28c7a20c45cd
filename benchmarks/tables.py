"""Rows of text as an aligned table or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], markdown: bool
) -> str:
    """`rows` below `titles`; the columns that `right` marks are aligned to the right."""
    if markdown:
        lines = [titles, ["--:" if aligned else "---" for aligned in right], *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    return "\n".join(
        "  ".join(cell.rjust(width) if aligned else cell.ljust(width)
                  for cell, width, aligned in zip(line, widths, right)).rstrip()
        for line in (titles, *rows))
