"""Folders of one's own in many forms, all made from the same small images and masks."""

import json

import numpy as np
from PIL import Image

CLASSES = ("background", "cell", "nucleus")
COLOURS = ((0, 0, 0), (200, 30, 40), (20, 120, 230))
VOID_COLOUR = (255, 255, 255)
NAMES = ("a1", "b2", "c3", "d4", "e5", "f6")
SIZE = (40, 52)


def example(number, *, void=False):
    """(image uint8 [H, W, 3], mask uint8 [H, W]) whose contours agree; with void a part of the mask is 255."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = np.zeros(SIZE, np.uint8)
    y, x = rng.integers(13, 27), rng.integers(15, 37)
    mask[(rows - y) ** 2 + (columns - x) ** 2 < 120] = 1
    mask[(rows - y) ** 2 + (columns - x) ** 2 < 30] = 2
    mask[(rows - y) ** 2 + (columns - x) ** 2 < 6] = 0  # a hole
    colours = np.array(COLOURS)[mask] * 0.7 + rng.normal(40, 8, (*SIZE, 3))
    if void:
        mask[:3, 5:9] = 255
    return np.clip(colours, 0, 255).astype(np.uint8), mask


def examples(*, void=False):
    return {name: example(number, void=void) for number, name in enumerate(NAMES)}


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def coloured(mask):
    table = np.full((256, 3), 255, np.uint8)
    table[: len(COLOURS)] = COLOURS
    return table[mask]


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def images(root, folder="images", suffix=".png", **options):
    for name, (image, _) in examples().items():
        save(root / folder / f"{name}{suffix}", image, **options)


def masks(root, folder="masks", change=lambda mask: mask, *, void=True, names="{}.png"):
    for name, (_, mask) in examples(void=void).items():
        save(root / folder / names.format(name), change(mask))


def class_list(root):
    text(root / "classes.txt", "".join(f"{name}\n" for name in CLASSES))


def colour_table(root):
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(CLASSES, COLOURS, strict=True)]
    text(root / "classes.txt", "\n".join([*lines, "void 255 255 255"]) + "\n")


def squares(mask, value):
    """The pixels of a value as polygons of one pixel's width and a run's length: clumsy, and exact."""
    found = []
    for y in range(mask.shape[0]):
        inside = np.flatnonzero(np.diff(np.concatenate([[0], mask[y] == value, [0]]).astype(int)))
        for x, end in inside.reshape(-1, 2).tolist():
            found.append([[x, y], [end, y], [end, y + 1], [x, y + 1]])
    return found


def shapes_of(mask):
    return [(value, polygon) for value in (1, 2, 255) for polygon in squares(mask, value)]


def labelme(root):
    for name, (image, mask) in examples(void=True).items():
        save(root / f"{name}.png", image)
        labels = {1: "cell", 2: "nucleus", 255: "__ignore__"}
        shapes = [
            {"label": labels[v], "points": p, "shape_type": "polygon", "group_id": None} for v, p in shapes_of(mask)
        ]
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
        text(root / f"{name}.json", json.dumps({**content, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}))


def cityscapes(root):
    for name, (image, mask) in examples(void=True).items():
        save(root / "leftImg8bit/train/town" / f"town_{name}_leftImg8bit.png", image)
        whole = [[0, 0], [SIZE[1], 0], [SIZE[1], SIZE[0]], [0, SIZE[0]]]
        labels = {1: "cell", 2: "nucleus", 255: "unlabeled", 0: "background"}
        objects = [{"label": "background", "polygon": whole}]
        objects += [{"label": labels[v], "polygon": p} for v, p in shapes_of(mask)]
        content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}
        text(root / "gtFine/train/town" / f"town_{name}_gtFine_polygons.json", json.dumps(content))
    classes = ", ".join(f"{{name = '{name}'}}" for name in CLASSES)
    text(root / "dataset.toml", f"classes = [{classes}]\n")


def coco(root, *, packed=False):
    """Things as polygons, or one of them as run lengths."""
    found = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cell"}, {"id": 90, "name": "nucleus"}]}
    for number, (name, (image, mask)) in enumerate(examples().items()):
        save(root / "images" / f"{name}.png", image)
        found["images"].append({"id": 10 + number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        ring = np.where(mask == 0, 0, mask)
        for category, value in ((7, 1), (90, 2)):
            polygons = [np.ravel(p).tolist() for p in squares(ring, value)]
            segmentation = {"size": list(SIZE), "counts": run_lengths(ring == value)} if packed else polygons
            entry = {"id": len(found["annotations"]) + 1, "image_id": 10 + number, "category_id": category}
            found["annotations"].append({**entry, "segmentation": segmentation, "iscrowd": int(packed)})
    text(root / "annotations" / "instances.json", json.dumps(found))


def run_lengths(inside):
    """COCO's, as a text, written from the definition."""
    flat, runs, value = inside.T.ravel().tolist(), [], False
    while flat:
        length = next((i for i, pixel in enumerate(flat) if pixel != value), len(flat))
        runs.append(length)
        flat, value = flat[length:], not value
    packed = ""
    for index, run in enumerate(runs):
        x = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            c = x & 31
            x >>= 5
            more = not ((x == 0 and not c & 16) or (x == -1 and c & 16))
            packed += chr(48 + (c | 32 if more else c))
    return packed


def panoptic(root):
    found = {"images": [], "annotations": []}
    found["categories"] = [{"id": 3 + i, "name": name, "isthing": 1} for i, name in enumerate(CLASSES)]
    for number, (name, (image, mask)) in enumerate(examples(void=True).items()):
        save(root / "images" / f"{name}.png", image)
        segments = {0: 70_000, 1: 300, 2: 5}
        ids = np.zeros(SIZE, np.int64)
        for value, segment in segments.items():
            ids[mask == value] = segment
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        save(root / "annotations/panoptic" / f"{name}_pan.png", rgb)
        found["images"].append({"id": number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        info = [{"id": segment, "category_id": 3 + value} for value, segment in segments.items()]
        found["annotations"].append({"image_id": number, "file_name": f"{name}_pan.png", "segments_info": info})
    text(root / "annotations" / "panoptic.json", json.dumps(found))
