"""pytorch-fcn's own FCN8s for speed.py, from the folder of its source distribution; only torch has to be installed."""

import importlib.util
import pathlib
import sys
import time
import types

import numpy as np

MEAN_BGR = (104.00699, 116.66877, 122.67892)


def module(folder):
    """FCN8s for 21 classes, with scores that are not zero."""
    import torch

    sys.modules["fcn"] = types.ModuleType("fcn")  # it downloads weights, which nobody asks for here
    package = next(pathlib.Path(folder).glob("**/torchfcn/models"))
    for name, path in (("torchfcn", package.parent), ("torchfcn.models", package)):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    network = importlib.import_module("torchfcn.models.fcn8s").FCN8s(21)
    for parameter in network.parameters():
        if parameter.ndim == 4 and not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.01)
    return network


def placed(network, dtype):
    """(network, device, context of the forward pass) as people run it: on a GPU bfloat16 with AMP and channels_last."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and dtype != "float32":
        raise ValueError("on a CPU pytorch-fcn is compared in float32")
    network = network.to(device)
    if dtype == "bfloat16":
        network = network.to(memory_format=torch.channels_last)
    return network, device, torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def inputs(image, device, dtype):
    """BGR minus the mean, float32 [B, 3, H, W]."""
    import torch

    x = torch.from_numpy((image[..., ::-1] - np.array(MEAN_BGR, np.float32)).transpose(0, 3, 1, 2).copy()).to(device)
    return x.to(memory_format=torch.channels_last) if dtype == "bfloat16" else x


def step(photographs, seconds, peak, folder, height, width, batch, dtype, repeats):
    """Gradient and update by SGD with momentum; the loss is the sum over pixels, as trainer.py has it."""
    import torch

    network, device, autocast = placed(module(folder), dtype)
    trained = [(name, p) for name, p in network.named_parameters() if not name.startswith("up")]
    groups = [
        {"params": [p for name, p in trained if name.endswith("weight")], "weight_decay": 5e-4},
        {"params": [p for name, p in trained if name.endswith("bias")], "lr": 2e-10},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-10, momentum=0.99)
    data = photographs(batch, height, width)
    x, label = inputs(data["image"], device, dtype), torch.from_numpy(data["label"]).long().to(device)
    network.train()

    def call():
        optimizer.zero_grad()
        with autocast:
            scores = network(x)
        loss = torch.nn.functional.cross_entropy(scores.float(), label, reduction="sum")
        loss.backward()
        optimizer.step()
        finish(device)

    return {"seconds": seconds(call, repeats), "memory": memory(device, peak)}


def forward(photographs, seconds, peak, folder, height, width, batch, dtype, repeats):
    """From an array of floats to classes."""
    import torch

    network, device, autocast = placed(module(folder), dtype)
    x = inputs(photographs(batch, height, width)["image"], device, dtype)
    network.eval()

    def call():
        with torch.no_grad(), autocast:
            network(x).argmax(1)
        finish(device)

    return {"seconds": seconds(call, repeats), "memory": memory(device, peak)}


def predict(folder, torchfcn):
    """Image by image, as evaluate.py of pytorch-fcn has it: read, compute, fetch the classes; nothing is written."""
    import torch
    from PIL import Image

    network, device, autocast = placed(module(torchfcn), "float32")
    network.eval()
    paths = sorted(pathlib.Path(folder).iterdir())

    def classes(path):
        image = np.asarray(Image.open(path).convert("RGB"))
        with torch.no_grad(), autocast:
            return network(inputs(image[None], device, "float32")).max(1)[1].cpu().numpy()

    for path in paths[:4]:
        classes(path)
    began = time.perf_counter()
    for path in paths:
        classes(path)
    return {"rate": len(paths) / (time.perf_counter() - began)}


def finish(device):
    """Waits for the GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def memory(device, peak):
    """The largest memory in GB, of the GPU or of this process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    return peak()
