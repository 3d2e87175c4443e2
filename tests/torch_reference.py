"""FCN-32s, FCN-16s and FCN-8s on VGG16 in PyTorch, written from the papers and the authors' release alone.

The layers are named as in the release and in pytorch-fcn, so that a state dict of its FCN32s, FCN16s, FCN8s or
FCN8sAtOnce loads strictly with the default sizes. NCHW; an image is float BGR minus the mean. Nothing here comes from
fcn_jax.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN_BGR = (104.00699, 116.66877, 122.67892)
# Layers of 3x3 convolutions in each block, and its channels as a multiple of the first's.
BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
UPSCORES = ("upscore", "upscore2", "upscore_pool4", "upscore8", "upscore16")


def bilinear(channels: int, size: int) -> torch.Tensor:
    """Caffe's "bilinear" filler on the diagonal: [channels, channels, size, size]."""
    line = 1 - (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs() / ((size + 1) // 2)
    weight = torch.zeros(channels, channels, size, size)
    weight[range(channels), range(channels)] = torch.outer(line, line).float()
    return weight


def upscore_layer(classes: int, stride: int) -> nn.ConvTranspose2d:
    """Full: from n to (n + 1) * stride; nothing is cut here."""
    layer = nn.ConvTranspose2d(classes, classes, 2 * stride, stride, bias=False)
    with torch.no_grad():
        layer.weight.copy_(bilinear(classes, 2 * stride))
    return layer


def pool(x: torch.Tensor) -> torch.Tensor:
    """Max pooling as Caffe does it: the last window may hang over the edge."""
    return F.max_pool2d(x, 2, 2, ceil_mode=True)


def crop(x: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Rows and columns from `offset` on, as many as `like` has."""
    height, width = like.shape[2:]
    out = x[:, :, offset : offset + height, offset : offset + width]
    assert out.shape[2:] == like.shape[2:], "the crop leaves the map"
    return out


class FCN(nn.Module):
    """What the three networks share."""

    def __init__(self, classes: int = 21, width: int = 64, fc_width: int = 4096, at_once: bool = False) -> None:
        super().__init__()
        self.at_once = at_once
        inputs = 3
        for block, (layers, multiple) in enumerate(BLOCKS, 1):
            for layer in range(1, layers + 1):
                padding = 100 if (block, layer) == (1, 1) else 1
                self.add_module(f"conv{block}_{layer}", nn.Conv2d(inputs, width * multiple, 3, padding=padding))
                inputs = width * multiple
        self.fc6 = nn.Conv2d(inputs, fc_width, 7)
        self.fc7 = nn.Conv2d(fc_width, fc_width, 1)
        self.score_fr = nn.Conv2d(fc_width, classes, 1)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """pool2, pool3 and pool4 as their scores see them, and score_fr."""
        x, pools = image, []
        for block, (layers, _) in enumerate(BLOCKS, 1):
            for layer in range(1, layers + 1):
                x = F.relu(self.get_submodule(f"conv{block}_{layer}")(x))
            x = pool(x)
            pools.append(x)
        x = F.relu(self.fc6(x))
        x = F.relu(self.fc7(x))
        pool2, pool3, pool4 = pools[1:4]
        if self.at_once:
            pool2, pool3, pool4 = pool2 * 1e-6, pool3 * 0.0001, pool4 * 0.01
        return pool2, pool3, pool4, self.score_fr(x)


class FCN32s(FCN):
    """One 32x upsampling."""

    def __init__(self, classes: int = 21, width: int = 64, fc_width: int = 4096, at_once: bool = False) -> None:
        super().__init__(classes, width, fc_width, at_once)
        self.upscore = upscore_layer(classes, 32)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        *_, score = self.encode(image)
        return crop(self.upscore(score), 19, image)


class FCN16s(FCN):
    """With pool4."""

    def __init__(self, classes: int = 21, width: int = 64, fc_width: int = 4096, at_once: bool = False) -> None:
        super().__init__(classes, width, fc_width, at_once)
        self.score_pool4 = nn.Conv2d(width * 8, classes, 1)
        self.upscore2 = upscore_layer(classes, 2)
        self.upscore16 = upscore_layer(classes, 16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        *_, pool4, score = self.encode(image)
        score = self.upscore2(score)
        score = score + crop(self.score_pool4(pool4), 5, score)
        return crop(self.upscore16(score), 27, image)


class FCN8s(FCN):
    """With pool4 and pool3."""

    def __init__(self, classes: int = 21, width: int = 64, fc_width: int = 4096, at_once: bool = False) -> None:
        super().__init__(classes, width, fc_width, at_once)
        self.score_pool3 = nn.Conv2d(width * 4, classes, 1)
        self.score_pool4 = nn.Conv2d(width * 8, classes, 1)
        self.upscore2 = upscore_layer(classes, 2)
        self.upscore_pool4 = upscore_layer(classes, 2)
        self.upscore8 = upscore_layer(classes, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        _, pool3, pool4, score = self.encode(image)
        score = self.upscore2(score)
        score = score + crop(self.score_pool4(pool4), 5, score)
        score = self.upscore_pool4(score)
        score = score + crop(self.score_pool3(pool3), 9, score)
        return crop(self.upscore8(score), 31, image)


class FCN4s(FCN):
    """With pool4, pool3 and pool2, which no release has: the crops are those of tests/test_grid.py."""

    def __init__(self, classes: int = 21, width: int = 64, fc_width: int = 4096, at_once: bool = False) -> None:
        super().__init__(classes, width, fc_width, at_once)
        self.score_pool2 = nn.Conv2d(width * 2, classes, 1)
        self.score_pool3 = nn.Conv2d(width * 4, classes, 1)
        self.score_pool4 = nn.Conv2d(width * 8, classes, 1)
        self.upscore2 = upscore_layer(classes, 2)
        self.upscore_pool4 = upscore_layer(classes, 2)
        self.upscore_pool3 = upscore_layer(classes, 2)
        self.upscore4 = upscore_layer(classes, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pool2, pool3, pool4, score = self.encode(image)
        score = self.upscore2(score)
        score = score + crop(self.score_pool4(pool4), 5, score)
        score = self.upscore_pool4(score)
        score = score + crop(self.score_pool3(pool3), 9, score)
        score = self.upscore_pool3(score)
        score = score + crop(self.score_pool2(pool2), 17, score)
        return crop(self.upscore4(score), 33, image)


class FCNAlexNet(nn.Module):
    """voc-fcn-alexnet: CaffeNet, one 32x upsampling with a kernel of 63."""

    def __init__(self, classes: int = 21, width: int = 96, fc_width: int = 4096) -> None:
        super().__init__()
        medium = 2 * (width * 4 // 3)
        self.conv1 = nn.Conv2d(3, width, 11, stride=4, padding=100)
        self.conv2 = nn.Conv2d(width, medium, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(medium, 4 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(4 * width, medium, 3, padding=1, groups=2)
        self.fc6 = nn.Conv2d(medium, fc_width, 6)
        self.fc7 = nn.Conv2d(fc_width, fc_width, 1)
        self.score_fr = nn.Conv2d(fc_width, classes, 1)
        self.upscore = nn.ConvTranspose2d(classes, classes, 63, stride=32, bias=False)
        self.upscore.weight.data = bilinear(classes, 63)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        def pool3(x: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(F.relu(x), 3, 2, ceil_mode=True)

        x = self.norm(pool3(self.conv1(image)))
        x = self.norm(pool3(self.conv2(x)))
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = pool3(self.conv5(x))
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        return crop(self.upscore(self.score_fr(x)), 18, image)


class FCN32sGoogLeNet(nn.Module):
    """bvlc_googlenet up to inception_5b with a border of 100, and one 32x upsampling with a kernel of 63."""

    BLOCKS = (
        *(("3a", 64, 96, 128, 16, 32, 32), ("3b", 128, 128, 192, 32, 96, 64)),
        *(("4a", 192, 96, 208, 16, 48, 64), ("4b", 160, 112, 224, 24, 64, 64), ("4c", 128, 128, 256, 24, 64, 64)),
        *(("4d", 112, 144, 288, 32, 64, 64), ("4e", 256, 160, 320, 32, 128, 128)),
        *(("5a", 256, 160, 320, 32, 128, 128), ("5b", 384, 192, 384, 48, 128, 128)),
    )

    def __init__(self, classes: int = 21, part: int = 1) -> None:
        """All widths are divided by `part`."""
        super().__init__()
        self.conv1_7x7_s2 = nn.Conv2d(3, 64 // part, 7, stride=2, padding=100)
        self.conv2_3x3_reduce = nn.Conv2d(64 // part, 64 // part, 1)
        self.conv2_3x3 = nn.Conv2d(64 // part, 192 // part, 3, padding=1)
        inputs = 192 // part
        for block, *widths in self.BLOCKS:
            one, three_reduce, three, five_reduce, five, pool = (width // part for width in widths)
            for name, module in (
                ("1x1", nn.Conv2d(inputs, one, 1)),
                ("3x3_reduce", nn.Conv2d(inputs, three_reduce, 1)),
                ("3x3", nn.Conv2d(three_reduce, three, 3, padding=1)),
                ("5x5_reduce", nn.Conv2d(inputs, five_reduce, 1)),
                ("5x5", nn.Conv2d(five_reduce, five, 5, padding=2)),
                ("pool_proj", nn.Conv2d(inputs, pool, 1)),
            ):
                self.add_module(f"inception_{block}_{name}", module)
            inputs = one + three + five + pool
        self.score_fr = nn.Conv2d(inputs, classes, 1)
        self.upscore = nn.ConvTranspose2d(classes, classes, 63, stride=32, bias=False)
        self.upscore.weight.data = bilinear(classes, 63)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)

    def inception(self, x: torch.Tensor, block: str) -> torch.Tensor:
        def conv(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.relu(self.get_submodule(f"inception_{block}_{name}")(x))

        three, five = conv(conv(x, "3x3_reduce"), "3x3"), conv(conv(x, "5x5_reduce"), "5x5")
        return torch.cat([conv(x, "1x1"), three, five, conv(F.max_pool2d(x, 3, 1, 1), "pool_proj")], 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        def pool3(x: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(x, 3, 2, ceil_mode=True)

        x = self.norm(pool3(F.relu(self.conv1_7x7_s2(image))))
        x = pool3(self.norm(F.relu(self.conv2_3x3(F.relu(self.conv2_3x3_reduce(x))))))
        for block, *_ in self.BLOCKS:
            x = self.inception(pool3(x) if block in ("4a", "5a") else x, block)
        # The first cell lies at pixel -67, in the middle of the kernel.
        return crop(self.upscore(self.score_fr(x)), 67 + 31, image)


NETWORKS: dict[str, type[FCN]] = {"fcn32s": FCN32s, "fcn16s": FCN16s, "fcn8s": FCN8s, "fcn4s": FCN4s}


def preprocess(image: np.ndarray) -> torch.Tensor:
    """uint8 RGB [H, W, 3] -> float BGR minus the mean [1, 3, H, W]."""
    bgr = image[:, :, ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    return torch.from_numpy(bgr.transpose(2, 0, 1)[None].copy())


def flax_params(state: Mapping[str, torch.Tensor], *, upsampling: str = "learned") -> dict[str, dict[str, np.ndarray]]:
    """{layer: {"kernel": [height, width, inputs, outputs], "bias": ...}}; `fixed` leaves the upsampling layers out."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.items():
        layer, kind = name.rsplit(".", 1)
        array = tensor.detach().numpy()
        if layer in UPSCORES:
            if upsampling == "learned":
                out[layer] = {"kernel": array.transpose(2, 3, 0, 1).copy()}  # (inputs, outputs, k, k)
        elif kind == "weight":
            out.setdefault(layer, {})["kernel"] = array.transpose(2, 3, 1, 0).copy()  # (outputs, inputs, k, k)
        else:
            out.setdefault(layer, {})["bias"] = array.copy()
    return out


def state_dict(params: Mapping[str, Any], model: FCN) -> dict[str, torch.Tensor]:
    """The converse, to load strictly into `model`; an upsampling without parameters is the bilinear one."""
    out = {}
    for layer, arrays in params.items():
        kernel = np.array(arrays["kernel"])
        order = (2, 3, 0, 1) if layer in UPSCORES else (3, 2, 0, 1)
        out[f"{layer}.weight"] = torch.from_numpy(kernel.transpose(order).copy())
        if "bias" in arrays:
            out[f"{layer}.bias"] = torch.from_numpy(np.array(arrays["bias"]))
    for layer, module in model.named_children():
        if layer in UPSCORES and layer not in params:
            out[f"{layer}.weight"] = bilinear(module.in_channels, module.kernel_size[0])
    return out
