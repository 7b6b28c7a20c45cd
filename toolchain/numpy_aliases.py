"""Give NumPy 1.24 to 1.26 back the aliases that MXNet 1.9.1 uses, when MXNet is imported.

gluon_resnest/runtime.py does so for every program that imports gluon_resnest. But `horovodrun`
and Horovod's build import MXNet by themselves, so the installer also copies this file into the
environment, where a .pth file starts it with Python. It must stay small and import nothing heavy.
"""

from __future__ import annotations

import sys


class _BeforeMXNet:
    """First in sys.meta_path: acts when `mxnet` is looked for, and finds nothing itself."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if name == "mxnet":
            sys.meta_path.remove(cls)  # type: ignore[arg-type]
            import numpy as np

            for builtin in (bool, int, float, complex, object, str):
                # Not hasattr(): it would set off NumPy's own deprecation warning.
                if builtin.__name__ not in np.__dict__:
                    setattr(np, builtin.__name__, builtin)


sys.meta_path.insert(0, _BeforeMXNet)  # type: ignore[arg-type]
