"""Set up .venv with this package, MXNet and Horovod: `python3 scripts/install_environment.py`.

Run by the Makefile before anything is installed, so it needs the standard library alone. This
file must compile under any Python, Python 2 included, to say in one line which ones will do;
therefore it has no annotations and no f-strings. The work is in toolchain/.
"""

import os
import sys

if not (3, 8) <= sys.version_info[:2] <= (3, 12):
    sys.stderr.write(
        "error: Python {}.{} cannot run MXNet 1.9.1 and Horovod 0.28.1; Python 3.8 to 3.12 can: "
        "choose one, as in `make PYTHON=python3.11 install`\n".format(*sys.version_info[:2])
    )
    sys.exit(2)

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from toolchain.install import main

if __name__ == "__main__":
    main()
