"""What a run says on the terminal: rank 0 speaks for all."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Console:
    """Prints on rank 0, and nothing on the others."""

    def __init__(self, rank: int) -> None:
        self._speaks = rank == 0

    def say(self, text: str) -> None:
        if self._speaks:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Say something above the progress line, on standard error."""
        if self._speaks:
            tqdm.write(f"warning: {text}", file=sys.stderr)
