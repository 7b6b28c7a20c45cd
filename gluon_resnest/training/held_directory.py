"""The run directory while a run writes to it: locked, and made again where it was deleted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError
from gluon_resnest.runs import run_directory as files
from gluon_resnest.training.console import Console


class HeldDirectory:
    """A run directory; rank 0 holds its lock, the others only know its path.

    Parameters
    ----------
    path
        Of the directory.
    lock
        On rank 0.
    config
        Settings of the run, for ``config.yaml``.
    texts
        Further files by name.
    console
        Says what the user should see.

    Attributes
    ----------
    displaced
        Whether another run has taken its place.
    """

    def __init__(self, path: Path, lock: files.RunLock | None, config: dict[str, Any],
                 texts: Mapping[str, str], console: Console) -> None:
        self.path, self.displaced = path, False
        self._lock, self._config, self._texts, self._console = lock, config, texts, console

    def write_settings(self) -> None:
        """Write what the run was told, on rank 0."""
        if self._lock is None:
            return
        files.write_config(self.path, self._config)
        for name, text in self._texts.items():
            with replacing(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def renew(self) -> bool:
        """Make the directory again if it was deleted or moved away; whether it was, on rank 0.

        The next checkpoint should be written soon: the others went with the directory.

        Raises
        ------
        InputError
            Another run has taken its place.
        """
        if self._lock is None or not self._lock.is_lost():
            return False
        self._lock = None
        try:
            self._lock = files.RunLock(self.path)
        except InputError as error:
            self.displaced = True
            raise InputError(f"{self.path} was deleted or moved while the run went on, and now "
                             f"another one has taken its place: {error}", only_here=True) from None
        self._console.warn(
            f"{self.path} was deleted or moved while the run goes on: it is written again, with a "
            "checkpoint; the checkpoints and best weights until now went with it")
        self.write_settings()
        return True

    def release(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            self._lock.release()
