"""Whatever form annotations are in, they give the same class ids; and what may mean several things is refused."""

import json

import numpy as np
import own
import pytest
from PIL import Image

from fcn_jax import visualize
from fcn_jax.data import datasets
from fcn_jax.data.own import description, forms, pairs, polygons, writers


def read(root):
    """({id: class ids}, the dataset) of a folder."""
    dataset = datasets.find("folder", str(root))
    examples = [example for split in dataset.splits for example in dataset.examples(split, root)]
    return {example.id: dataset.labels[0].load(example.label) for example in examples}, dataset


def assert_same(found, *, void=True, rename=lambda name: name):
    expected = {rename(name): mask for name, (_, mask) in own.examples(void=void).items()}
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


def palette_masks(root):
    own.images(root)
    (root / "masks").mkdir()
    for name, (_, mask) in own.examples(void=True).items():
        visualize.save_mask(root / "masks" / f"{name}.png", mask, own.COLOURS)
    own.class_list(root)


def colour_masks(root):
    own.images(root)
    own.masks(root, change=own.coloured)
    own.colour_table(root)


def colour_masks_of_cvat(root):
    own.images(root, "JPEGImages")
    own.masks(root, "SegmentationClass", own.coloured)
    lines = ["# label:color_rgb:parts:actions", "cell:200,30,40::", "nucleus:20,120,230::", "void:255,255,255::"]
    own.text(root / "labelmap.txt", "\n".join([*lines, "background:0,0,0::"]))
    own.text(root / "ImageSets/Segmentation/default.txt", "\n".join(own.NAMES))


def colour_masks_with_palettes(root):
    """The palette's order is any, and its colours are the classes'."""
    own.images(root)
    for name, (_, mask) in own.examples(void=True).items():
        picture = Image.fromarray(own.coloured(mask)).quantize(8)
        (root / "masks").mkdir(exist_ok=True)
        picture.save(root / "masks" / f"{name}.png")
    own.colour_table(root)


def described_values(root):
    own.images(root)
    table = np.full(256, 9, np.uint8)
    table[:3] = (50, 100, 200)
    own.masks(root, change=lambda mask: np.where(mask == 255, np.uint8(9), table[mask]))
    classes = ", ".join(f"{{name = '{n}', value = {v}}}" for n, v in zip(own.CLASSES, (50, 100, 200), strict=True))
    own.text(root / "dataset.toml", f"classes = [{classes}]\nvoid = [9]\n")


def sixteen_bits(root):
    own.images(root)
    own.masks(root, change=lambda mask: mask.astype(np.uint16) * 200)
    classes = ", ".join(f"{{name = '{n}', value = {200 * v}}}" for v, n in enumerate(own.CLASSES))
    own.text(root / "dataset.toml", f"classes = [{classes}]\nvoid = [51000]\n")


def from_one(root):
    """Ids that begin at 1, of as many classes as are listed."""
    own.images(root)
    own.masks(root, change=lambda mask: np.where(mask == 255, mask, mask + 1))
    own.class_list(root)


def ultralytics(root):
    own.images(root, "images")
    own.masks(root, "masks")
    own.text(root / "data.yaml", "path: .\nmasks_dir: masks\nnames: {0: background, 1: cell, 2: nucleus}\n")


def grey_in_colour(root):
    own.images(root)
    own.masks(root, change=lambda mask: np.repeat(mask[..., None], 3, -1))
    own.class_list(root)


def ids(root):
    own.images(root)
    own.masks(root)
    own.class_list(root)


@pytest.mark.parametrize(
    "form",
    [
        *(ids, palette_masks, colour_masks, colour_masks_of_cvat, colour_masks_with_palettes, described_values),
        *(sixteen_bits, from_one, ultralytics, grey_in_colour, own.labelme, own.panoptic),
    ],
)
def test_all_forms_give_the_same_ids(tmp_path, form):
    form(tmp_path)
    found, dataset = read(tmp_path)
    assert_same(found)
    assert dataset.labels[0].class_names == own.CLASSES
    assert dataset.annotated == ("upright" if form is own.labelme else "stored")


def test_cityscapes_polygons(tmp_path):
    own.cityscapes(tmp_path)
    found, _ = read(tmp_path)
    assert_same(found, rename=lambda name: f"town_{name}_leftImg8bit")


@pytest.mark.parametrize("packed", [False, True])
def test_things_of_coco(tmp_path, packed):
    """Ids with gaps; what no thing has is background, for COCO has no void."""
    own.coco(tmp_path, packed=packed)
    found, dataset = read(tmp_path)
    assert_same(found, void=False)
    assert dataset.labels[0].class_names == own.CLASSES


def test_smaller_things_lie_over_larger_ones(tmp_path):
    own.coco(tmp_path)
    path = tmp_path / "annotations" / "instances.json"
    content = json.loads(path.read_text())
    squares = ([8, 8, 12, 8, 12, 12, 8, 12], [5, 5, 25, 5, 25, 25, 5, 25])
    for entry, category, polygon in zip(content["annotations"], (90, 7), squares, strict=False):
        entry.update(category_id=category, segmentation=[polygon], image_id=10)
    content["annotations"] = content["annotations"][:2]
    path.write_text(json.dumps(content))
    mask = read(tmp_path)[0]["a1"]
    assert (mask == 2).sum() == 16
    assert (mask == 1).sum() == 400 - 16
    assert mask[8, 8] == 2


def test_a_mask_for_each_class(tmp_path):
    for folders in (True, False):
        root = tmp_path / str(folders)
        own.images(root)
        for name, (_, mask) in own.examples().items():
            for value in (1, 2):
                path = (
                    root
                    / "masks"
                    / (f"{own.CLASSES[value]}/{name}.png" if folders else f"{name}/{own.CLASSES[value]}.png")
                )
                own.save(path, np.uint8(255) * (mask == value))
        found, dataset = read(root)
        assert_same(found, void=False)
        assert dataset.labels[0].class_names == own.CLASSES


def masks_of_each_class(root):
    own.images(root)
    for name, (_, mask) in own.examples().items():
        for value in (1, 2):
            own.save(root / f"masks/{own.CLASSES[value]}/{name}.png", np.uint8(255) * (mask == value))


@pytest.mark.parametrize("form", [own.labelme, own.coco, masks_of_each_class])
@pytest.mark.parametrize("place", [None, 0, 1, 2])
def test_background_is_first_wherever_it_is_listed(tmp_path, form, place):
    """What draws things alone has a background, once, whether the list of classes has it or not."""
    form(tmp_path)
    classes = ["{name = 'cell', colour = '#010000'}", "{name = 'nucleus', colour = '#020000'}"]
    if place is not None:
        classes.insert(place, "{name = 'Background', colour = '#000005'}")
    own.text(tmp_path / "dataset.toml", f"classes = [{', '.join(classes)}]\n")
    found, dataset = read(tmp_path)
    assert_same(found, void=form is own.labelme)
    assert [name.lower() for name in dataset.labels[0].class_names] == ["background", "cell", "nucleus"]
    background = (0, 0, 0) if place is None else (0, 0, 5)
    assert dataset.labels[0].palette == (background, (1, 0, 0), (2, 0, 0))


def test_two_values_are_two_classes(tmp_path):
    own.images(tmp_path)
    own.masks(tmp_path, change=lambda mask: np.where(mask == 255, 0, np.uint8(255) * (mask > 0)).astype(np.uint8))
    found, dataset = read(tmp_path)
    assert dataset.labels[0].class_names == ("background", "foreground")
    for name, (_, mask) in own.examples().items():
        np.testing.assert_array_equal(found[name], mask > 0)
    own.text(tmp_path / "classes.txt", "tissue\n")
    assert read(tmp_path)[1].labels[0].class_names == ("background", "tissue")


def test_a_region_outside_of_which_nothing_is_labelled(tmp_path):
    """As DRIVE has it: 1st_manual beside mask."""
    own.images(tmp_path, "training/images", ".tif")
    own.masks(tmp_path, "training/1st_manual", lambda mask: np.uint8(255) * (mask == 1), names="{}_manual1.gif")
    region = np.zeros(own.SIZE, np.uint8)
    region[4:30, 4:40] = 255
    own.masks(tmp_path, "training/mask", lambda mask: region, names="{}_training_mask.gif")
    found, _ = read(tmp_path)
    for name, (_, mask) in own.examples(void=True).items():
        np.testing.assert_array_equal(found[name], np.where(region > 0, mask == 1, 255))


def test_nearest_takes_smoothed_masks(tmp_path):
    own.images(tmp_path)
    for name, (_, mask) in own.examples().items():
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(own.coloured(mask)).save(tmp_path / "masks" / f"{name}.jpg", quality=95)
    with pytest.raises(ValueError, match="colours"):
        read(tmp_path)
    table = [f"{{name = '{n}', colour = {list(c)}}}" for n, c in zip(own.CLASSES, own.COLOURS, strict=True)]
    own.text(tmp_path / "dataset.toml", f"nearest = true\nclasses = [{', '.join(table)}]\n")
    found, _ = read(tmp_path)
    for name, (_, mask) in own.examples().items():
        assert (found[name] == mask).mean() > 0.95


def test_two_values_that_are_jpeg(tmp_path):
    """As Kvasir's: of 0 and 255 the nearest."""
    own.images(tmp_path)
    for name, (_, mask) in own.examples().items():
        large = Image.fromarray(np.uint8(255) * (mask > 0)).resize((416, 320), Image.Resampling.NEAREST)
        (tmp_path / "masks").mkdir(exist_ok=True)
        large.save(tmp_path / "masks" / f"{name}.jpg", quality=80)
        Image.fromarray(own.examples()[name][0]).resize((416, 320)).save(tmp_path / "images" / f"{name}.png")
    found, dataset = read(tmp_path)
    assert dataset.labels[0].class_names == ("background", "foreground")
    for name, (_, mask) in own.examples().items():
        expected = Image.fromarray(np.uint8(1) * (mask > 0)).resize((416, 320), Image.Resampling.NEAREST)
        assert (found[name] == np.asarray(expected)).mean() > 0.999


def test_masks_of_numpy(tmp_path):
    """As labelme's converter writes them, with -1 for void, beside pictures of the same."""
    own.images(tmp_path, "JPEGImages", ".jpg")
    for name, (_, mask) in own.examples(void=True).items():
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        np.save(tmp_path / "SegmentationClass" / f"{name}.npy", np.where(mask == 255, -1, mask.astype(np.int32)))
        own.save(tmp_path / "SegmentationClassVisualization" / f"{name}.jpg", own.coloured(mask))
    own.text(tmp_path / "labels.txt", "__ignore__\n_background_\ncell\nnucleus\n")
    found, dataset = read(tmp_path)
    assert dataset.labels[0].class_names == own.CLASSES
    assert_same(found)


def test_the_table_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        own.images(tmp_path, split, ".jpg")
        own.masks(tmp_path, split, names="{}_mask.png", void=False)
        own.text(tmp_path / split / "_classes.csv", "Pixel Value, Class\n0, background\n1, cell\n2, nucleus\n")
    found, dataset = read(tmp_path)
    assert dataset.labels[0].class_names == own.CLASSES
    assert len(found) == 12
    np.testing.assert_array_equal(found["train/c3"], own.examples()["c3"][1])


def test_masks_that_number_things_are_refused(tmp_path):
    """As Penn-Fudan's. What is asked for can be pasted."""
    for index, name in enumerate("abcdefgh"):
        mask = np.zeros((30, 60), np.uint8)
        for thing in range(1 + index % 5):
            mask[5:15, 10 * thing : 10 * thing + 6] = thing + 1
        own.save(tmp_path / "PNGImages" / f"{name}.png", np.full((30, 60, 3), 80, np.uint8))
        own.save(tmp_path / "PedMasks" / f"{name}_mask.png", mask)
    with pytest.raises(ValueError, match=r"masks seem to number things instead of classes, 0 to 5") as error:
        read(tmp_path)
    own.text(tmp_path / "dataset.toml", str(error.value).partition("with ")[2].partition(", or, if")[0])
    found, dataset = read(tmp_path)
    assert dataset.labels[0].class_names == ("background", "thing")
    assert [int(mask.sum()) for _, mask in sorted(found.items())] == [60 * (1 + index % 5) for index in range(8)]


REFUSED = {
    "colours without a table": (
        own.coloured,
        None,
        r"nothing says which .* dataset.toml with classes = \[\{name",
    ),
    "background is not listed": (lambda mask: mask, "cell\nnucleus\n", "if 0 is background, add it .* if 0 is void"),
    "grey pictures": (
        lambda mask: np.indices(mask.shape, np.uint16)[1] * 41,
        None,
        "values up to 2091",
    ),
    "a class too many": (lambda mask: np.where(mask == 2, 9, mask).astype(np.uint8), "a\nb\nc\n", "have the value 9"),
    "one class and void": (lambda mask: np.where(mask == 0, 255, 0).astype(np.uint8) // 255 * 7, None, "not clear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_mean_several_things_is_refused(tmp_path, case):
    change, classes, message = REFUSED[case]
    own.images(tmp_path)
    own.masks(tmp_path, change=change, void=False)
    if classes:
        own.text(tmp_path / "classes.txt", classes)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value) or "colours" in case


def test_the_table_that_is_asked_for_can_be_pasted(tmp_path):
    own.images(tmp_path)
    own.masks(tmp_path, change=own.coloured, void=False)
    with pytest.raises(ValueError, match="classes = ") as error:
        read(tmp_path)
    own.text(tmp_path / "dataset.toml", str(error.value).partition("with ")[2].partition(" and change")[0])
    found, dataset = read(tmp_path)
    assert dataset.labels[0].class_names == ("background", "class #1478e6", "class #c81e28")
    np.testing.assert_array_equal(found["a1"], np.array([0, 2, 1])[own.examples()["a1"][1]])


def test_a_value_that_the_sample_did_not_show_is_refused(tmp_path, monkeypatch):
    ids(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for name in own.NAMES[1:]:
        own.save(tmp_path / "masks" / f"{name}.png", np.full(own.SIZE, 77, np.uint8))
    monkeypatch.setattr(forms, "sample", lambda paths: paths[:1])
    with pytest.raises(ValueError, match=r"(b2|c3|d4|e5|f6).png has the value 77, which is of no class"):
        read(tmp_path)


def test_the_sample_is_of_all_kinds(tmp_path):
    """Also where every other mask has another class."""
    paths = [tmp_path / f"{index:06d}.png" for index in range(4000)]
    found = forms.sample(paths)
    assert len(found) == len({*found}) == forms.SAMPLE
    assert 200 < sum(int(path.stem) % 2 for path in found) < 300
    assert forms.sample(paths[::-1]) == found
    assert forms.sample(paths[:10]) == paths[:10]


@pytest.mark.parametrize("tool", ["labelme", "cvat", "coco"])
def test_what_is_written_is_read_again(tmp_path, tool):
    """So that a mask can be corrected in a tool and trained on."""
    void = tool != "coco"
    masks = {name: mask for name, (_, mask) in own.examples(void=void).items()}
    own.images(tmp_path)
    if tool == "labelme":
        for name, mask in masks.items():
            own.text(tmp_path / "images" / f"{name}.json", writers.labelme(mask, own.CLASSES, f"{name}.png"))
    elif tool == "coco":
        entries = {f"{name}.png": mask for name, mask in masks.items()}
        own.text(tmp_path / "annotations" / "a.json", writers.coco(entries, own.CLASSES, own.COLOURS))
    else:
        with writers.Cvat(tmp_path / "out.zip", own.CLASSES, own.COLOURS) as archive:
            for name, mask in masks.items():
                archive.add(name, mask)
        import zipfile

        zipfile.ZipFile(tmp_path / "out.zip").extractall(tmp_path)
    assert_same(read(tmp_path)[0], void=void)
    assert not list(tmp_path.glob(".*.part"))


def test_random_masks_survive_being_polygons():
    rng = np.random.default_rng(3)
    for _ in range(60):
        mask = rng.integers(0, 3, rng.integers(1, 15, 2)).astype(np.uint8)
        found = np.full(mask.shape, 9, np.uint8)
        for region in polygons.regions(mask):
            found[polygons.fill(mask.shape, region.points)] = region.id
        np.testing.assert_array_equal(found, mask)
        np.testing.assert_array_equal(polygons.decode_rle(polygons.encode_rle(mask == 1), mask.shape), mask == 1)
        np.testing.assert_array_equal(polygons.decode_rle(own.run_lengths(mask == 1), mask.shape), mask == 1)


def test_a_polygon_has_the_pixels_whose_centre_it_holds():
    """A triangle by hand, and one beyond the image."""
    found = polygons.fill((4, 5), [(0, 0), (4, 0), (0, 4)])
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(found.astype(int), expected)
    assert polygons.fill((4, 5), [(-9, -9), (50, -9), (50, 50), (-9, 50)]).all()
    assert not polygons.fill((4, 5), [(1, 1), (3, 3)]).any()
    assert not polygons.fill((4, 5), []).any()


def test_shapes_of_labelme(tmp_path):
    own.labelme(tmp_path)
    path = tmp_path / "a1.json"
    content = json.loads(path.read_text())
    content["shapes"] = [
        {"label": "cell", "points": [[2, 3], [6, 8]], "shape_type": "rectangle"},
        {"label": "nucleus", "points": [[30.5, 20.5], [33.5, 20.5]], "shape_type": "circle"},
        {"label": "cell", "points": [[10, 30], [20, 30]], "shape_type": "line"},
    ]
    path.write_text(json.dumps(content))
    mask = read(tmp_path)[0]["a1"]
    assert mask[3:8, 2:6].all()
    assert (mask == 2).sum() == 29  # the points of a grid within 3 of one of them
    assert mask[30, 15] == 1
    content["shapes"][0]["shape_type"] = "spiral"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a1.json has a shape that cannot be drawn .*spiral"):
        read(tmp_path)


BAD_TOML = {
    "classes = [": "cannot be read",
    "clases = []": "unknown key 'clases': choose from classes",
    "classes = [{name = 'a', colour = 'red'}]": "the colour 'red': write '#804000'",
    "classes = ['a', 'a']": "the class 'a' twice",
    "classes = [3]": r"class 0 is 3: write \{name",
    "classes = ['a', 'b']\nmirrored = [['a', 'c']]": "mirrored has 'c', which is no class",
    "void = [-1]": "the value -1",
    "nearest = 'yes'": "nearest is 'yes'",
}


@pytest.mark.parametrize("text", BAD_TOML)
def test_a_description_that_cannot_be(tmp_path, text):
    own.text(tmp_path / "dataset.toml", text)
    with pytest.raises(ValueError, match=BAD_TOML[text]) as error:
        description.read(tmp_path)
    assert "dataset.toml" in str(error.value)


CLASS_LISTS = {
    "road\ncar\n": [("road", None, ()), ("car", None, ())],
    "road 128 64 128\ncar 64,0,128\n": [("road", (128, 64, 128), ()), ("car", (64, 0, 128), ())],
    "128 64 128 traffic light\n": [("traffic light", (128, 64, 128), ())],
    "road #804080\n": [("road", (128, 64, 128), ())],
    "1: car\n0: road\n": [("road", None, ()), ("car", None, ())],
    "3 car\n7 road\n": [("car", None, (3,)), ("road", None, (7,))],
}


@pytest.mark.parametrize("text", CLASS_LISTS)
def test_class_lists(tmp_path, text):
    own.text(tmp_path / "classes.txt", text)
    found = description.read(tmp_path).classes
    assert [(each.name, each.colour, each.values) for each in found] == CLASS_LISTS[text]


def test_classes_that_are_merged(tmp_path):
    ids(tmp_path)
    own.text(tmp_path / "dataset.toml", "classes = ['none', {name = 'any', values = [1, 2]}]\n")
    found, _ = read(tmp_path)
    np.testing.assert_array_equal(found["b2"] == 1, np.isin(own.examples()["b2"][1], (1, 2)))


def test_pairs_of_a_form_that_is_none(tmp_path):
    own.images(tmp_path)
    with pytest.raises(FileNotFoundError, match="has 6 images and no annotation: put masks"):
        pairs.pair(tmp_path, description.Description())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="raw_dir is empty"):
        datasets.find("folder")
