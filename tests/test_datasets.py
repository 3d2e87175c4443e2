"""The datasets beside VOC, CamVid and shapes, on tiny folders in their official layouts."""

import functools
import io

import numpy as np
import pytest
import scipy.io
from layouts import voc_list, write_image, write_list, write_numbers, write_nyud, write_sift_flow, write_voc
from PIL import Image

from fcn_jax.data import dataset, datasets, images, pipeline, transforms
from fcn_jax.data.builders import ade20k, cityscapes, pascal_context, voc_segmentation

RNG = np.random.default_rng(0)

OFFICIAL = [name for name in datasets.DATASETS if name != "folder"]  # which is what a folder holds


@pytest.fixture
def opened(tmp_path):
    return functools.partial(datasets.open_split, raw_dir=str(tmp_path), data_dir=tmp_path / "data")


def labels(split, key="label"):
    return [np.asarray(Image.open(io.BytesIO(example[key]))) for example in split.source]


def write_grey(path, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label.astype(np.uint8)).save(path)


def test_every_dataset_is_whole():
    for name in OFFICIAL:
        found = datasets.find(name)
        assert found.name == name
        for head in found.labels:
            assert len(head.palette) == len(head.class_names) == len(set(head.class_names)) <= 254
            assert {*head.ids.values()} - {images.VOID} <= {*range(len(head.class_names))}
            assert {*head.unscored, *(side for pair in head.mirrored for side in pair)} <= {*head.class_names}
        assert found.draw or found.terms or all(found.archives.get(split) for split in found.splits)
        with pytest.raises(ValueError, match=f"{name} has no split 'tset': choose from {found.splits[0]}"):
            found.examples("tset", None)


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"shapes"}))
def test_a_missing_folder_is_named(opened, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"has no folder .*: config\.data\.raw_dir must hold it"):
        opened(name, datasets.find(name).splits[0])


@pytest.mark.parametrize("name", ["nyudv2", "sift_flow", "pascal_context", "ade20k", "cityscapes", "kitti_road"])
def test_what_is_not_downloaded_is_said(tmp_path, name):
    message = rf"{name} is not downloaded for you: .* and set config\.data\.raw_dir"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.open_split(name, datasets.find(name).splits[0], data_dir=tmp_path)


def test_cityscapes(opened, tmp_path):
    """labelIds of 34 kinds, of which 19 are classes; a city's folder each."""
    numbers = RNG.permutation(np.tile(np.arange(34), 20))[:600].reshape(20, 30)
    for city, place in (("zurich", 1), ("aachen", 2)):
        name = f"{city}_00000{place}_000019"
        write_image(tmp_path / "leftImg8bit" / "train" / city / f"{name}_leftImg8bit.png", (20, 30))
        write_grey(tmp_path / "gtFine" / "train" / city / f"{name}_gtFine_labelIds.png", numbers)
        write_grey(tmp_path / "gtFine" / "train" / city / f"{name}_gtFine_instanceIds.png", numbers)
    found = opened("cityscapes", "train")
    assert found.ids == ["aachen_000002_000019", "zurich_000001_000019"]
    train_ids = dict(
        zip([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], range(19), strict=True)
    )
    expected = np.vectorize(lambda number: train_ids.get(number, 255))(numbers)
    np.testing.assert_array_equal(labels(found)[0], expected)
    assert found.class_names[train_ids[26]] == "car"
    assert len(cityscapes.CLASSES) == 19


def test_ade20k(opened, tmp_path):
    numbers = RNG.integers(0, 151, (20, 30))
    numbers[0, :3] = 0, 1, 150
    for part in ("training", "validation"):
        write_image(tmp_path / "ADEChallengeData2016" / "images" / part / f"ADE_{part}_1.jpg", (20, 30))
        write_grey(tmp_path / "ADEChallengeData2016" / "annotations" / part / f"ADE_{part}_1.png", numbers)
    found = opened("ade20k", "val")
    np.testing.assert_array_equal(labels(found)[0], np.where(numbers == 0, 255, numbers - 1))
    assert labels(found)[0][0, :3].tolist() == [255, 0, 149]
    assert (ade20k.CLASS_NAMES[0], ade20k.CLASS_NAMES[12], ade20k.CLASS_NAMES[149]) == ("wall", "person", "flag")
    assert len(ade20k.CLASS_NAMES) == 150


def test_kitti_road(opened, tmp_path):
    """Colours are read exactly; the labels of lanes are another task."""
    folder = tmp_path / "data_road" / "training"
    colours = np.array([(255, 0, 0), (255, 0, 255), (0, 0, 0)], np.uint8)
    kinds = RNG.integers(0, 3, (20, 30))
    for name in ("um_000000", "umm_000001", "uu_000002"):
        write_image(folder / "image_2" / f"{name}.png", (20, 30))
        (folder / "gt_image_2").mkdir(exist_ok=True)
        Image.fromarray(colours[kinds]).save(folder / "gt_image_2" / f"{name.replace('_', '_road_')}.png")
    Image.fromarray(colours[kinds]).save(folder / "gt_image_2" / "um_lane_000000.png")
    found = opened("kitti_road", "train[1:]")
    assert found.ids == ["umm_000001", "uu_000002"]
    np.testing.assert_array_equal(labels(found)[0], np.array([0, 1, 255])[kinds])
    Image.fromarray(colours[kinds] + np.uint8(1)).save(folder / "gt_image_2" / "um_road_000000.png")
    with pytest.raises(ValueError, match=r"um_road_000000\.png' has the value \d+, which means nothing"):
        opened("kitti_road", "train")


def test_oxford_pets(opened, tmp_path):
    """Names with digits and underscores; lists with four columns; what is no image can be left out."""
    kinds = RNG.integers(1, 4, (20, 30))
    ids = ["Abyssinian_100", "yorkshire_terrier_9", "Egyptian_Mau_167"]
    for name in ids:
        write_image(tmp_path / "images" / f"{name}.jpg", (20, 30))
        write_grey(tmp_path / "annotations" / "trimaps" / f"{name}.png", kinds)
    (tmp_path / "images" / "Egyptian_Mau_167.jpg").write_bytes(b"GIF89a is no image")
    write_list(tmp_path / "annotations" / "trainval.txt", ["# list", *(f"{name} 1 1 1" for name in ids)])
    with pytest.raises(images.CorruptError, match="Egyptian_Mau_167"):
        opened("oxford_pets", "trainval")
    found = opened("oxford_pets", "trainval", corrupt="skip")
    assert found.ids == ids[:2]
    np.testing.assert_array_equal(labels(found)[0], np.array([0, 1, 0, 255])[kinds])
    assert found.class_names == ("background", "pet")


@pytest.mark.parametrize(("name", "classes"), [("pascal_context", 60), ("pascal_context_33", 34)])
def test_pascal_context(opened, tmp_path, name, classes):
    """459 raw ids, of which 59 or 33 are classes and all else is background, which counts."""
    raw = RNG.permutation(np.arange(700) % 460)[:600].reshape(20, 30)
    raw[0, :6] = 0, 2, 397, 19, 80, 360
    write_image(tmp_path / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_000002.jpg", (20, 30))
    write_list(tmp_path / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main" / "val.txt", ["2008_000002"])
    write_numbers(tmp_path / "pascal-context" / "trainval" / "2008_000002.mat", "LabelMap", raw.astype(np.uint16))
    found = opened(name, "val")
    assert len(found.class_names) == classes
    (label,) = labels(found)
    assert 255 not in label
    names = [found.class_names[i] for i in label[0, :6]]
    assert names[:3] == ["background", "aeroplane", "diningtable"]
    assert names[5] == "sky"
    assert names[3:5] == (["bedcloth", "clothes"] if classes == 60 else ["background"] * 2)
    assert len(set(pascal_context.RAW_IDS.values())) == 59


def test_segmentation_class_aug(opened, tmp_path):
    """As most people have it: grey ids beside VOC's own folder, two paths a line."""
    names = ["2007_000032", "2008_000008"]
    write_voc(tmp_path, {name: RNG.integers(0, 21, (20, 30)).astype(np.uint8) for name in names})
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for name in names:
        write_grey(voc / "SegmentationClassAug" / f"{name}.png", np.full((20, 30), 7) + (np.arange(30) > 20))
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
    voc_list(tmp_path, "train_aug", lines)
    found = opened("voc_segmentation", "segmentation_class_aug")
    assert found.ids == names
    assert set(np.unique(labels(found)[0])) == {7, 8}
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt"):
        voc_segmentation.list_examples("segmentation_class_aug", tmp_path)


# --- several inputs and heads -----------------------------------------------------------------------------------------


def test_nyudv2(opened, tmp_path):
    write_nyud(tmp_path, {"train": 2, "val": 1})
    found = opened("nyudv2", "trainval")
    assert found.ids == ["img_0", "img_1", "img_2"]
    raw = scipy.io.loadmat(tmp_path / "nyud" / "segmentation" / "img_0.mat")["segmentation"]
    np.testing.assert_array_equal(labels(found)[0], np.where(raw == 0, 255, raw - 1))
    assert len(found.class_names) == 40
    batch = pipeline.train_dataset(
        found,
        pipeline.Augmentation((36, 40)),
        seed=0,
        batch_size=1,
        reading=pipeline.Reading(inputs=("colour", "depth", "hha")),
    )[0]
    assert batch["image"].shape == (1, 1, 36, 40, 7)
    assert batch["image"].dtype == np.float32
    i = batch["id"].item()
    folder = tmp_path / "nyud" / "data"
    parts = [np.asarray(Image.open(folder / kind / f"{i}.png")) for kind in ("images", "depth", "hha")]
    expected = np.concatenate([parts[0], parts[1][..., None], parts[2]], -1)
    np.testing.assert_array_equal(batch["image"][0, 0], expected)
    assert batch["image"][..., 3].max() > 255, "all bits of depth"
    with pytest.raises(ValueError, match=r"nyudv2 has no infrared: config\.inputs may have colour, depth, hha"):
        pipeline.train_dataset(
            found, pipeline.Augmentation((36, 40)), seed=0, batch_size=1, reading=pipeline.Reading(inputs=("infrared",))
        )


def test_inputs_of_another_size_or_kind(opened, tmp_path):
    write_nyud(tmp_path, {"train": 1})
    depth = tmp_path / "nyud" / "data" / "depth" / "img_0.png"
    Image.fromarray(np.ones((4, 5), np.uint16)).save(depth)
    with pytest.raises(ValueError, match=r"image is 36x40 but depth is 4x5"):
        opened("nyudv2", "train")
    depth.write_bytes(b"no image")
    with pytest.raises(images.CorruptError, match="depth 'img_0' cannot be decoded"):
        opened("nyudv2", "train")


@pytest.mark.parametrize(
    "kind", ["uint16.png", "float32.tiff", "float32.npy", "uint8.png", "int32.tiff", "float64.npy"]
)
def test_depth_is_read_with_all_of_its_bits(kind):
    dtype, _, suffix = kind.partition(".")
    values = (RNG.uniform(0, 250, (4, 5)) * (200 if dtype in ("uint16", "int32") else 1)).astype(dtype)
    file = io.BytesIO()
    np.save(file, values) if suffix == "npy" else Image.fromarray(values).save(file, suffix)
    found = images.decode_input(file.getvalue(), "x", "depth")
    assert found.shape == (4, 5, 1)
    np.testing.assert_array_equal(found[..., 0], values.astype(np.float32) if dtype == "float64" else values)


def test_depth_that_cannot_be_read():
    objects, infinite, deep = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([[{}]], object), allow_pickle=True)
    np.save(infinite, np.array([[1, np.inf]]))
    np.save(deep, np.zeros((2, 2, 5)))
    for file, message in ((objects, "cannot be decoded"), (infinite, "not finite"), (deep, r"\[2, 2, 5\]")):
        with pytest.raises(images.CorruptError, match=message):
            images.decode_input(file.getvalue(), "x", "depth")


def test_sift_flow(opened, tmp_path):
    write_sift_flow(tmp_path, {"trainval": 2, "test": 1})
    found = opened("sift_flow", "trainval")
    folder = tmp_path / "SiftFlowDataset"
    scenes = "spatial_envelope_256x256_static_8outdoorcategories"
    semantic, geometric = (
        scipy.io.loadmat(folder / part / scenes / "coast_trainval0.mat")["S"]
        for part in ("SemanticLabels", "GeoLabels")
    )
    np.testing.assert_array_equal(labels(found)[0], np.where(semantic == 0, 255, semantic - 1))
    np.testing.assert_array_equal(labels(found, "geo")[0], np.where(geometric == -1, 255, geometric - 1))
    assert found.heads == (("label", "sem", 33), ("geo", "geo", 3))
    assert found.pixel_counts.shape == (2, 36)
    assert found.pixel_counts[0, 33:].tolist() == [(geometric == k).sum() for k in (1, 2, 3)]
    assert [found.class_names[i] for i in found.unscored] == ["cow", "desert", "moon"]
    augmentation = pipeline.Augmentation((40, 40), crop=True, flip=True, scale=(0.8, 1.2))
    batch = pipeline.train_dataset(found, augmentation, seed=0, batch_size=2)[0]
    assert batch["label"].shape == (1, 2, 40, 40, 2)
    assert {*np.unique(batch["label"][..., 1])} == {0, 1, 2, 255}


def test_a_mirror_image_swaps_left_and_right():
    head = dataset.Labels(("ground", "left arm", "right arm"), ((0, 0, 0),) * 3, mirrored=(("left arm", "right arm"),))
    label = np.array([[0, 1, 2, 255]], np.uint8)
    image = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    mirrored, swapped = transforms.flip(image, label, (head.swap(),))
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    np.testing.assert_array_equal(swapped, [[255, 1, 2, 0]])
    both = np.stack([label, label], -1)
    _, swapped = transforms.flip(image, both, (transforms.IDENTITY, head.swap()))
    np.testing.assert_array_equal(swapped[..., 0], label[:, ::-1])
    np.testing.assert_array_equal(swapped[..., 1], [[255, 1, 2, 0]])


def test_names_and_meaning_are_part_of_the_fingerprint():
    first = datasets.find("cityscapes")
    (head,) = first.labels
    for change in ({"ids": {**head.ids, 6: 0}}, {"class_names": ("street", *head.class_names[1:])}, {"rest": None}):
        other = dataset.dataclasses.replace(first, labels=(dataset.dataclasses.replace(head, **change),))
        assert other.fingerprint([]) != first.fingerprint([])
