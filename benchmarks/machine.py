"""What a measurement was made on."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from gluon_resnest import runtime


def machine() -> dict[str, Any]:
    """``cpu``, a name; ``cores`` that this process may use; ``system``."""
    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    named = re.search(r"^model name\s*: *(.*)$", text, re.MULTILINE)
    return {"cpu": named.group(1) if named else cpu, "cores": runtime.usable_cores(),
            "system": platform.platform()}
