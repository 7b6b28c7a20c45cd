"""Write tests/data/torch_*: what timm's networks compute, and files that PyTorch wrote.

Runs in an environment of its own, since GluonCV refuses to be imported beside PyTorch:

    python3 -m venv /tmp/torch
    /tmp/torch/bin/pip install torch==2.13.0 numpy pyyaml huggingface_hub safetensors
    /tmp/torch/bin/pip install --no-deps torchvision==0.28.0 timm==1.0.31
    /tmp/torch/bin/python tests/programs/make_torch_golden.py

With `--resnest-repository FOLDER`, a checkout of the authors' repository, their PyTorch networks
must have the same names, shapes and logits.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from torch_random_weights import images, random_state

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks/programs"))

from timm_networks import timm  # noqa: E402 (knows how to import it without torchvision's half)

DATA = ROOT / "tests/data"
# Name here: name in timm, and what its entry function is to change.
NETWORKS: dict[str, tuple[str, dict]] = {
    "resnest14": ("resnest14d", {}),
    "resnest26": ("resnest26d", {}),
    "resnest50": ("resnest50d", {}),
    "resnest101": ("resnest101e", {}),
    "resnest200": ("resnest200e", {}),
    "resnest269": ("resnest269e", {}),
    "resnest50_fast_1s4x24d": ("resnest50d_1s4x24d", {}),
    "resnest50_fast_4s2x40d": ("resnest50d_4s2x40d", {}),
    "resnest50_fast_2s2x40d": ("resnest50d_4s2x40d", {"radix": 2, "avd": True, "avd_first": True}),
    "resnest50_fast_0s1x64d": ("resnest50d", {"radix": 0, "avd": False}),
}


def timm_network(name: str) -> torch.nn.Module:
    peer, block = NETWORKS[name]
    return timm.create_model(peer, **({"block_args": block} if block else {})).eval()


def authors_networks(folder: Path):
    """Module with the networks of the authors' repository, without what else it imports."""
    for name in ("resnest", "resnest.torch"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    registry = types.SimpleNamespace(register=lambda: lambda function: function)
    sys.modules["resnest.torch.models.build"] = types.SimpleNamespace(
        RESNEST_MODELS_REGISTRY=registry)
    package = types.ModuleType("resnest.torch.models")
    package.__path__ = [str(folder / "resnest" / "torch" / "models")]
    sys.modules["resnest.torch.models"] = package
    found = {}
    for name in ("resnest", "ablation"):
        found.update(vars(importlib.import_module(f"resnest.torch.models.{name}")))
    return found


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def logits_of(network: torch.nn.Module) -> np.ndarray:
    state = random_state(shapes_of(network))
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()},
                            strict=True)
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(images())).numpy()


def write_tiny_files() -> None:
    """A few KB of what torch.save writes: data types, strides, shared storages, nesting."""
    ramp = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    state = {
        "float32": ramp,
        "transposed": ramp.t(),
        "part": ramp[1:3, ::2],
        "expanded": torch.tensor([1.5, -2.0]).reshape(2, 1).expand(2, 3),
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(
            memory_format=torch.channels_last),
        "float16": ramp[0].half(),
        "float64": ramp[1].double(),
        "bfloat16": ramp[2].bfloat16(),
        "int64": torch.tensor([2**40, -1]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(0.25),
        "parameter": torch.nn.Parameter(ramp[3].clone()),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    checkpoint = {"epoch": 3, "arch": "tiny", "best": 0.5, "lr": [0.1, None, True],
                  "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(checkpoint, DATA / "torch_checkpoint.pth")
    torch.save(checkpoint, DATA / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), DATA / "torch_module.pth")
    from safetensors.torch import save_file
    save_file({name: value.detach().contiguous().clone() for name, value in state.items()},
              DATA / "torch_tiny.safetensors", metadata={"format": "pt"})
    np.savez_compressed(DATA / "torch_tiny.npz", **{
        name: value.detach().to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype)
        .numpy() for name, value in state.items() if "tracked" not in name})


def write_other_channels() -> None:
    """What timm makes of RGB weights for other numbers of channels, by its own loading."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        rgb = timm_network("resnest14")
        state = random_state(shapes_of(rgb))
        torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
        for channels in (1, 2, 4, 7):
            network = timm.create_model(
                "resnest14d", pretrained=True, in_chans=channels,
                pretrained_cfg_overlay={"file": str(path)}).eval()
            found[f"weight{channels}"] = network.conv1[0].weight.detach().numpy()
            with torch.inference_mode():
                found[f"logits{channels}"] = network(torch.from_numpy(images(channels))).numpy()
    np.savez_compressed(DATA / "torch_channels.npz", **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resnest-repository", type=Path)
    folder = parser.parse_args().resnest_repository
    authors = authors_networks(folder) if folder else {}
    DATA.mkdir(exist_ok=True)
    write_tiny_files()
    write_other_channels()
    shapes, logits = {}, {}
    for name in NETWORKS:
        network = timm_network(name)
        shapes[name], logits[name] = shapes_of(network), logits_of(network)
        print(f"{name}: {len(shapes[name])} names, logits {logits[name].std():.2f} rms, "
              f"{np.abs(logits[name]).max():.2f} at most", flush=True)
        if name in authors:
            peer = authors[name]()
            assert shapes_of(peer) == shapes[name]
            print(f"  the authors' differ by {np.abs(logits_of(peer) - logits[name]).max():.1e}")
    np.savez_compressed(DATA / "torch_logits.npz", **logits)
    (DATA / "torch_names.json.gz").write_bytes(
        gzip.compress(json.dumps(shapes).encode(), mtime=0))


if __name__ == "__main__":
    main()
