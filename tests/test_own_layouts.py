"""Images and annotations are found and paired by the names that people and tools give."""

import collections
import hashlib

import numpy as np
import own
import pytest

from fcn_jax.data import datasets
from fcn_jax.data.own import description, names, pairs

# (image, its mask) by the id that they get: how folders look, each with two pairs at least.
LAYOUTS = {
    "parallel folders": [("images/{}.jpg", "masks/{}.png")],
    "split outside": [("train/images/{}.jpg", "train/labels/{}.png"), ("valid/images/{}.jpg", "valid/labels/{}.png")],
    "split inside": [("images/train/{}.jpg", "annot/train/{}.png"), ("images/val/{}.jpg", "annot/val/{}.png")],
    "split and kind in one word": [("train/{}.png", "trainannot/{}.png"), ("val/{}.png", "valannot/{}.png")],
    "split and kind joined": [("train_images/{}.jpg", "train_segmentations/{}.png")],
    "suffix": [("{}.jpg", "{}_mask.png")],
    "suffix after a dash": [("photos/{}.jpg", "photos/{}-label.png")],
    "CamVid's": [("701_StillsRaw/{}.png", "LabeledApproved/{}_L.png")],
    "side by side": [("{}.jpg", "{}.png")],
    "upper case": [("Images/{}.JPG", "Masks/{}.PNG")],
    "DRIVE's": [("training/images/{}_training.tif", "training/1st_manual/{}_manual1.gif")],
    "numbered": [("image_{}.png", "mask_{}.png")],
    "numbered in folders": [("imgs/image_{}.jpg", "gts/mask_{}.png")],
    "Penn-Fudan's": [("PNGImages/{}.png", "PedMasks/{}_mask.png")],
    "ISIC's": [("ISIC_Training_Data/ISIC_{}.jpg", "ISIC_Training_GroundTruth/ISIC_{}_Segmentation.png")],
    "Roboflow's": [("train/{}_jpg.rf.1.jpg", "train/{}_jpg.rf.1_mask.png"), ("valid/{}.jpg", "valid/{}_mask.png")],
    "composed and decomposed": [("images/\u00fc{}.jpg", "masks/u\u0308{}.png")],
    "of satellites": [("{}_sat.jpg", "{}_mask.png")],
    "groups": [("images/day/{}.jpg", "masks/day/{}.png"), ("images/night/x{}.jpg", "masks/night/x{}.png")],
    "deep": [("data/raw/set1/img/{}.jpg", "data/raw/set1/gt/{}.png")],
    "VOC's": [("VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClass/{}.png")],
    "Cityscapes'": [("leftImg8bit/train/town/{}_leftImg8bit.png", "gtFine/train/town/{}_gtFine_labelIds.png")],
}


def write(root, layout):
    """The mask that each image has, by the image's path."""
    found = {}
    for part, (image, mask) in enumerate(layout):
        for name, (picture, label) in own.examples().items():
            paths = root / image.format(f"{name}{part}"), root / mask.format(f"{name}{part}")
            own.save(paths[0], picture)
            own.save(paths[1], label)
            found[paths[0]] = paths[1]
    return found


def found_in(root):
    return pairs.pair(root, description.read(root))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    expected = write(tmp_path, LAYOUTS[layout])
    found = found_in(tmp_path)
    assert {pair.image: pair.label.paths for pair in found.pairs} == {k: (v,) for k, v in expected.items()}
    assert not found.images
    assert not found.labels
    assert len({pair.id for pair in found.pairs}) == len(expected)
    splits = collections.Counter(pair.split for pair in found.pairs)
    assert splits.keys() == {"train", "val"}
    if layout.startswith(("split", "Robo")) and len(LAYOUTS[layout]) == 2:
        names_of_val = {pair.image.relative_to(tmp_path) for pair in found.of("val")}
        assert names_of_val == {p for p in (path.relative_to(tmp_path) for path in expected) if "val" in str(p)}


@pytest.mark.parametrize("layout", ["suffix", "CamVid's", "Cityscapes'"])
def test_folders_open_as_datasets(tmp_path, layout):
    write(tmp_path, LAYOUTS[layout])
    own.class_list(tmp_path)
    split = datasets.open_split("folder", "train", raw_dir=str(tmp_path), data_dir=tmp_path / "prepared")
    assert split.class_names == own.CLASSES
    assert len(split.ids) == 5
    assert (split.sizes == own.SIZE).all()


def test_what_lies_beside_is_left_alone(tmp_path):
    """Colours and instances beside ids, hidden files, the overlays of an earlier prediction."""
    expected = write(tmp_path, LAYOUTS["Cityscapes'"])
    for image, mask in [*expected.items()][:3]:
        for what in ("color", "instanceIds"):
            own.save(mask.with_name(mask.name.replace("labelIds", what)), np.zeros(own.SIZE, np.uint8))
        own.save(image.with_name(f"._{image.name}"), np.zeros(own.SIZE, np.uint8))
    own.text(tmp_path / "notes.txt", "x")
    found = found_in(tmp_path)
    assert {pair.image: pair.label.paths for pair in found.pairs} == {k: (v,) for k, v in expected.items()}
    assert len(found.left_out) == 6


def test_lists_say_the_splits(tmp_path):
    own.images(tmp_path, "JPEGImages", ".jpg")
    own.masks(tmp_path, "SegmentationClass")
    own.text(tmp_path / "ImageSets/Segmentation/train.txt", "a1\nb2.jpg\nJPEGImages/c3.jpg\n")
    own.text(tmp_path / "ImageSets/Segmentation/val.txt", "d4\n")
    own.text(tmp_path / "ImageSets/Segmentation/trainval.txt", "a1\nb2\nc3\nd4\n")
    found = found_in(tmp_path)
    assert {pair.id: pair.split for pair in found.pairs} == {
        **dict.fromkeys(("a1", "b2", "c3"), "train"),
        "d4": "val",
        **dict.fromkeys(("e5", "f6"), pairs.UNLISTED),
    }
    assert "ImageSets/Segmentation/train.txt" in found.said[0]


def test_val_of_what_has_none_is_the_same_everywhere(tmp_path):
    """A fifth by SHA-256 of the names, which are known here; test stays as it is."""
    for folder in ("one", "two"):
        root = tmp_path / folder
        write(root, [("training/images/{}.jpg", "training/masks/{}.png"), ("test/images/{}.jpg", "test/masks/{}.png")])
        splits = {pair.id: pair.split for pair in found_in(root).pairs}
        lowest = min(own.NAMES, key=lambda name: hashlib.sha256(f"training/images/{name}0.jpg".encode()).hexdigest())
        assert [name for name, split in splits.items() if split == "val"] == [f"{lowest}0"]
        assert {name for name, split in splits.items() if split == "test"} == {f"{name}1" for name in own.NAMES}
    assert names.share(map(str, range(1000))) == names.share(map(str, reversed(range(1000))))
    assert len(names.share(map(str, range(1000)))) == 200


def test_a_description_says_what_is_what(tmp_path):
    own.images(tmp_path, "a")
    own.masks(tmp_path, "b")
    own.masks(tmp_path, "c", lambda mask: np.uint8(1) * (mask == 1), void=False)
    own.text(tmp_path / "dataset.toml", "images = 'a'\nlabels = 'c'\nclasses = ['no', 'yes']\n")
    found = found_in(tmp_path)
    assert {pair.label.paths[0].parent.name for pair in found.pairs} == {"c"}
    own.text(tmp_path / "dataset.toml", "images = 'a'\nlabels = 'b/*.png'\n[splits]\ntrain = 'x.txt'\nval = 'y.txt'\n")
    own.text(tmp_path / "x.txt", "a1\nb2\n")
    own.text(tmp_path / "y.txt", "c3\n")
    found = found_in(tmp_path)
    assert {pair.label.paths[0].parent.name for pair in found.pairs} == {"b"}
    own.text(tmp_path / "dataset.toml", "labels = 'b'\n")
    with pytest.raises(FileNotFoundError, match=r"none of the 6 annotations .* fits one image by its name"):
        found_in(tmp_path)
    assert [pair.id for pair in found.of("val")] == ["c3"]


def test_an_image_with_several_annotations_is_refused(tmp_path):
    own.images(tmp_path)
    own.masks(tmp_path, "labels_of_ann")
    own.masks(tmp_path, "labels_of_bob")
    with pytest.raises(ValueError, match=r"a1.png' has 2 annotations .*: say which ones to take by labels = 'FOLDER'"):
        found_in(tmp_path)


def test_polygons_beside_their_masks(tmp_path):
    """Masks of three values are no region: which of the two are to be taken is told, as a rule masks."""
    own.labelme(tmp_path / "all")
    own.images(tmp_path, "images")
    own.masks(tmp_path, "masks")
    for path in (tmp_path / "all").glob("*.json"):
        own.text(tmp_path / "annotations" / path.name, path.read_text())
    for path in (tmp_path / "all").iterdir():
        path.unlink()
    found = found_in(tmp_path)
    assert {pair.label.paths[0].parent.name for pair in found.pairs} == {"masks"}
    assert all(pair.label.region is None for pair in found.pairs)


def test_what_has_no_partner_is_named(tmp_path, caplog):
    own.images(tmp_path, suffix=".jpg")
    own.masks(tmp_path)
    (tmp_path / "images" / "a1.jpg").unlink()
    (tmp_path / "masks" / "b2.png").unlink()
    found = found_in(tmp_path)
    assert [path.name for path in found.images] == ["b2.jpg"]
    assert [path.name for path in found.labels] == ["a1.png"]
    datasets.find("folder", str(tmp_path))
    assert "1 images have no annotation and are left out, first" in caplog.text
    assert "1 annotations have no image, first" in caplog.text


def test_one_stem_in_two_folders(tmp_path):
    write(tmp_path, [("images/x/{}.jpg", "masks/x/{}.png")])
    for name, (picture, label) in own.examples().items():
        own.save(tmp_path / f"images/y/{name}0.jpg", picture)
        own.save(tmp_path / f"masks/y/{name}0.png", label)
    found = found_in(tmp_path)
    assert {pair.id for pair in found.pairs} == {f"images/{group}/{name}0" for group in "xy" for name in own.NAMES}
    assert all(pair.image.parent.name == pair.label.paths[0].parent.name for pair in found.pairs)


def test_a_folder_that_grows_is_prepared_anew(tmp_path):
    own.images(tmp_path)
    own.masks(tmp_path)
    own.class_list(tmp_path)

    def opened():
        return datasets.open_split("folder", "train", raw_dir=str(tmp_path), data_dir=tmp_path / ".prepared")

    before = opened()
    image, mask = own.example(9)
    own.save(tmp_path / "images/z9.png", image)
    own.save(tmp_path / "masks/z9.png", mask)
    own.text(tmp_path / "classes.txt", "background\ncell\nkernel\n")
    after = opened()
    assert len(after.ids) + len(before.ids) in (10, 11, 12)
    assert after.class_names == ("background", "cell", "kernel")
