"""Package metadata. `make install` sets up a whole environment; see docs/installation.md."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

setup(
    name="gluon-resnest",
    # Read without importing the package, which needs MXNet.
    version=runpy.run_path(str(ROOT / "gluon_resnest/version.py"))["__version__"],
    description="ResNeSt: Split-Attention Networks, for Apache MXNet 1.9.1 (Gluon) and Horovod",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.8",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["gluon_resnest", "gluon_resnest.*"]),
    package_data={"gluon_resnest": ["py.typed"]},
    python_requires=">=3.8,<3.13",
    # MXNet itself is an extra, because CPU and GPU builds are different packages. It uses names
    # that NumPy removed in 2.0; what went in 1.24 is mended by gluon_resnest/runtime.py.
    install_requires=[
        "numpy>=1.23,<2",
        "setuptools<81; python_version >= '3.12'",  # MXNet imports distutils
        "PyYAML>=5.4",
        "tqdm>=4.60",
        "opencv-python-headless>=4.5,<4.12",  # 4.12 and later are for NumPy 2
        "simplejpeg>=1.7.3",
        "Pillow>=9.1",
        "matplotlib>=3.5",
    ],
    extras_require={
        "cpu": ["mxnet==1.9.1"],
        "cu112": ["mxnet-cu112==1.9.1"],
        "cu117": ["mxnet-cu117==1.9.1"],
        # Horovod finds its frameworks when it is compiled: MXNet must be there before it, so
        # scripts/install_environment.py builds it and plain pip (with build isolation) cannot.
        "horovod": ["horovod==0.28.1"],
        # 1.19 dropped onnx.mapping, which MXNet's exporter imports.
        "onnx": ["onnx>=1.13,<1.19", "onnxruntime>=1.14"],
        # Its messages and checksums are what runs/tensorboard.py writes events with.
        "tensorboard": ["tensorboardX>=2.6"],
        "lint": ["import-linter>=2.0", "ruff"],
        "dev": [
            "import-linter>=2.0",
            "ruff",
            "pytest>=7.4",
            "scikit-learn>=1.2,<1.6",
            # What GluonCV imports. It comes without its own dependencies (UNMANAGED in
            # toolchain/install.py): they name opencv-python, whose wheels need libGL.
            "autocfg>=0.0.8",
            "pandas>=1.5,<3",
            "portalocker>=2.0",
            "requests",
            "scipy>=1.9",
            "yacs>=0.1.8",
        ],
    },
)
