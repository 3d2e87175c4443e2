"""Tiny data sets in the official layouts, written by the tests."""

import numpy as np
import scipy.io
from PIL import Image

from fcn_jax.data import dataset

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
    image.putpalette([channel for colour in dataset.voc_palette(256) for channel in colour])
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


def write_numbers(path, variable, values):
    """A MATLAB file with one array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {variable: values}, do_compression=True)


def write_nyud(root, splits, size=(36, 40)):
    """{split: how many images}: colour, depth in millimetres and HHA, labels 0 (void) to 40."""
    folder, rng, number = root / "nyud", np.random.default_rng(0), 0
    for split, count in splits.items():
        ids = [str(number + k) for k in range(count)]
        number += count
        write_list(folder / f"{split}.txt", ids)
        for i in ids:
            write_image(folder / "data" / "images" / f"img_{i}.png", size, int(i))
            write_image(folder / "data" / "hha" / f"img_{i}.png", size, 100 + int(i))
            depth = rng.integers(600, 9000, size).astype(np.uint16)
            (folder / "data" / "depth").mkdir(exist_ok=True)
            Image.fromarray(depth).save(folder / "data" / "depth" / f"img_{i}.png")
            write_numbers(folder / "segmentation" / f"img_{i}.mat", "segmentation", rng.integers(0, 41, size))


def write_sift_flow(root, splits, size=(32, 32)):
    """{split: how many images}: semantic labels 0 (void) to 33, geometric ones -1 (void), 1 to 3."""
    folder, scenes = root / "SiftFlowDataset", "spatial_envelope_256x256_static_8outdoorcategories"
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        ids = [f"coast_{split}{k}" for k in range(count)]
        write_list(folder / f"{split}.txt", ids)
        for k, i in enumerate(ids):
            write_image(folder / "Images" / scenes / f"{i}.jpg", size, k)
            write_numbers(folder / "SemanticLabels" / scenes / f"{i}.mat", "S", rng.integers(0, 34, size))
            write_numbers(folder / "GeoLabels" / scenes / f"{i}.mat", "S", rng.choice([-1, 1, 2, 3], size))
