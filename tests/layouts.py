"""Tiny data sets in the official layouts, written by the tests."""

import numpy as np
import scipy.io
from PIL import Image

from fcn_jax.data.builders import base

HEIGHT, WIDTH = 6, 8


def make_label(seed, num_classes=21, void=255):
    """uint8 [6, 8] of class ids, with a void pixel in the corner."""
    label = np.random.default_rng(seed).integers(0, num_classes, (HEIGHT, WIDTH)).astype(np.uint8)
    label[0, 0] = void
    return label


def write_image(path, size=(HEIGHT, WIDTH), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_palette_png(path, label):
    """As VOC has them: mode P, the class id as index, 255 (void) with a colour too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label).convert("P")
    image.putdata(label.ravel().tolist())
    image.putpalette([channel for colour in base.voc_palette(256) for channel in colour])
    image.save(path)


def write_mat(path, label, compressed=True):
    """As SBD has them: struct GTcls with Boundaries, Segmentation and CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": label, "CategoriesPresent": np.unique(label)}
    scipy.io.savemat(path, {"GTcls": fields}, do_compression=compressed)


def write_list(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{i}\n" for i in ids))


def write_voc(root, ids):
    """{id: label} into VOCdevkit; the lists are the caller's."""
    folder = root / "VOCdevkit" / "VOC2012"
    for i, label in ids.items():
        write_image(folder / "JPEGImages" / f"{i}.jpg", label.shape)
        write_palette_png(folder / "SegmentationClass" / f"{i}.png", label)


def voc_list(root, split, ids):
    write_list(root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / f"{split}.txt", ids)


def write_sbd(root, ids, train, val):
    folder = root / "benchmark_RELEASE" / "dataset"
    for i, label in ids.items():
        write_image(folder / "img" / f"{i}.jpg", label.shape)
        write_mat(folder / "cls" / f"{i}.mat", label)
    write_list(folder / "train.txt", train)
    write_list(folder / "val.txt", val)


def write_camvid(root, split, names, suffix=".png"):
    for k, name in enumerate(names):
        write_image(root / "CamVid" / split / f"{name}{suffix}")
        path = root / "CamVid" / f"{split}annot" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_label(k, 11, void=11)).save(path)
