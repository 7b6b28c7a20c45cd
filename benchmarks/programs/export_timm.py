"""Export a network of timm: `python export_timm.py NETWORK BATCH SIDE FILE.onnx`.

Images and PyTorch's logits for them are written beside it, as FILE.npz.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from contestant import Refused
from timm_networks import network


def main() -> None:
    name, batch, side, file = sys.argv[1:]
    try:
        net = network(name).eval()
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(2)
    images = torch.randn(int(batch), 3, int(side), int(side))
    torch.onnx.export(net, (images,), file, input_names=["images"], dynamo=True,
                      external_data=False)
    with torch.inference_mode():
        logits = net(images)
    np.savez(file.replace(".onnx", ".npz"), images=images.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main()
