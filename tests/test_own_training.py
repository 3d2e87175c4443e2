"""A folder is trained on with no code: what the config leaves open is chosen and told, and a run that fails says so."""

import json
import logging
import re

import numpy as np
import own
import pytest
import tifffile
from PIL import Image
from test_configs import load

import fcn_jax
from fcn_jax import checkpoint, evaluate, train
from fcn_jax import config as config_lib
from fcn_jax.data import datasets, images
from fcn_jax.data.own import bands
from fcn_jax.models import spec as spec_lib
from fcn_jax.run import diagnosis, rules

pytestmark = pytest.mark.usefixtures("standard_promotion", "one_device")


def folder(root, *, number=16, change=lambda name, image: image, suffix=".png"):
    for index in range(number):
        image, mask = own.example(index)
        path = root / "images" / f"p{index:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        changed = change(path, image)
        if changed is not None:
            own.save(path, changed)
        own.save(root / "masks" / f"p{index:02d}.png", mask)
    own.class_list(root)


def config(root, **values):
    """configs/folder.py with a narrow network from scratch, whose seconds matter here."""
    c, _ = load("folder", None)
    c.data.raw_dir, c.data.data_dir = str(root), str(root.parent / "prepared")
    c.model.width, c.model.fc_width = 4, 16
    c.init.weights, c.init.random = "", "conv*,fc*"
    c.optim.frozen = ""
    c.optim.warmup_steps = 0
    c.data.num_threads = 1
    c.update_from_flattened_dict(values)
    return c


def test_what_is_left_open_is_chosen_and_told(tmp_path, caplog):
    """In config.json, by the same values when the run goes on; each can be set."""
    folder(tmp_path / "a")
    c = config(tmp_path / "a", **{"steps": (4,), "data.batch_size": 8})
    assert set(config_lib.left_open(c)) == set(config_lib.BY_RULE) - {"steps", "data.batch_size"}
    with caplog.at_level(logging.INFO, "fcn_jax"):
        train.train_and_evaluate(c, tmp_path / "run")
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("config.")]
    written = config_lib.flatten(json.loads((tmp_path / "run/config.json").read_text()))
    assert written["inputs"] == "colour"
    assert written["eval.scales"] == [3.0]
    assert any(
        re.match(r"config.eval.scales=3.0: nucleus is [12]\.\d pixels wide, and the network's", line) for line in told
    )
    assert written["data.crop_size"] == [128, 160]
    assert written["steps"] == [4]
    assert written["loss.class_weights"] in ("none", "sqrt_median_frequency")
    assert len(told) == len(config_lib.left_open(c))
    assert not any(value in (-1, "auto", [-1]) for key, value in written.items() if key in config_lib.BY_RULE)
    caplog.clear()
    with caplog.at_level(logging.INFO, "fcn_jax"):
        train.train_and_evaluate(c, tmp_path / "run")
    assert "is finished: step 4 of 4" in caplog.text
    results = evaluate.evaluate_checkpoint(c, tmp_path / "run", split="val", which="latest")
    assert results["scales"] == [3.0]
    assert results["num_examples"] == 3
    c.data.crop_size = (32, 32)
    with pytest.raises(ValueError, match=r"another config: data.crop_size"):
        train.train_and_evaluate(c, tmp_path / "run")


def facts(**values):
    return rules.Facts(100, 375, 500, "a", 0.1, "a", 30.0, accelerator=False)._replace(**values)


def chosen(key, **values):
    found = config_lib.flatten(config_lib.default())
    for name, rule in rules._RULES.items():
        found[name], _ = rule(facts(**values), found)
    return found[key]


def test_rules():
    assert chosen("eval.scales") == (1.0,)
    assert chosen("data.crop_size") == (256, 256)
    assert chosen("data.crop_size", accelerator=True) == (384, 512)
    assert chosen("eval.scales", width_of=2.5) == (3.0,)
    assert chosen("eval.scales", width_of=5.0) == (1.5,)
    assert chosen("eval.scales", height=3000, width=4000, width_of=200) == (0.25,)
    assert chosen("eval.scales", height=3000, width=4000, width_of=5) == (1.5,)
    assert chosen("steps") == (900,)
    assert chosen("steps", images=1000) == (6000,)
    assert chosen("steps", images=400) == (2400,)
    assert chosen("loss.class_weights", share=0.005) == "sqrt_median_frequency"
    assert chosen("loss.class_weights", share=0.02) == "none"
    assert chosen("eval.every") == 225


def test_the_width_of_a_strip(tmp_path):
    """Of a strip of five pixels twice its area by its outline: 5.0, less at its ends."""
    for index in range(6):
        mask = np.zeros((60, 80), np.uint8)
        mask[20:25, :] = 1
        own.save(tmp_path / f"masks/{index}.png", mask)
        own.save(tmp_path / f"images/{index}.png", np.full((60, 80, 3), 90, np.uint8))
    own.text(tmp_path / "classes.txt", "ground\nstrip\n")
    split = datasets.open_split("folder", "train", raw_dir=str(tmp_path), data_dir=tmp_path / "prepared")
    found = rules.look_at(split)
    assert (found.thinnest, found.width_of) == ("strip", 5.0)
    assert (found.rarest, found.share) == ("strip", pytest.approx(5 / 60))


def test_an_earlier_run_with_other_classes_is_gone_on_from(tmp_path):
    folder(tmp_path / "a")
    options = {"steps": (2,), "data.batch_size": 8, "init.classes": "auto"}
    train.train_and_evaluate(config(tmp_path / "a", **options), tmp_path / "first")
    own.text(tmp_path / "a/classes.txt", "nucleus\ncell\nbackground\n")
    more = {"init.weights": str(tmp_path / "first"), "init.random": "auto", "steps": (1,), "learning_rate": (1e-9,)}
    c = config(tmp_path / "a", **{**options, **more})
    train.train_and_evaluate(c, tmp_path / "second")
    first, second = (
        checkpoint.load_params(checkpoint.find(tmp_path / name, "latest"))[0] for name in ("first", "second")
    )
    np.testing.assert_allclose(second["fc6"]["kernel"], first["fc6"]["kernel"], atol=1e-6)
    bias = first["score_fr"]["bias"]
    np.testing.assert_allclose(second["score_fr"]["bias"], np.asarray(bias)[[2, 1, 0]], atol=1e-6)


# --- other than three channels of 8 bits ---------------------------------------------------------------------------


def five_bands(path, image):
    array = np.concatenate([image.astype(np.uint16) * 12, image[..., :2].astype(np.uint16) * 7], -1)
    np.save(path, array)


def four_bands_of_a_satellite(path, image):
    array = np.concatenate([image, image[..., :1]], -1).astype(np.uint16) * 15
    tifffile.imwrite(path, np.moveaxis(array, -1, 0), planarconfig="separate", photometric="minisblack")


def a_page_for_each_band(path, image):
    tifffile.imwrite(path, np.moveaxis(np.concatenate([image] * 2, -1).astype(np.uint16) * 12, -1, 0))


def grey_of_16_bits(path, image):
    Image.fromarray(image.mean(-1).astype(np.uint16) * 200).save(path)


def floats(path, image):
    np.save(path, image.astype(np.float32) / 255)


BANDS = {
    "five": (five_bands, ".npy", 5, 2375),
    "pages": (a_page_for_each_band, ".tif", 6, 2375),
    "of a satellite": (four_bands_of_a_satellite, ".tif", 4, 2400),
    "grey of 16 bits": (grey_of_16_bits, ".png", 3, 27_000),
    "floats": (floats, ".npy", 3, 0.8),
}


@pytest.mark.parametrize("kind", BANDS)
def test_other_images_are_read_with_all_of_their_bits(tmp_path, kind):
    """And brought to the size of colours."""
    write, suffix, channels, bright = BANDS[kind]
    folder(tmp_path, change=write, suffix=suffix)
    dataset = datasets.find("folder", str(tmp_path))
    assert dataset.scales["bands"] * bright == pytest.approx(255, rel=0.2)
    assert len(dataset.inputs["bands"]) == channels
    assert all(30 < value < 130 for value in dataset.inputs["bands"])
    image = images.decode_bands((tmp_path / f"images/p03{suffix}").read_bytes(), "p03")
    assert image.shape == (*own.SIZE, channels)
    assert image.dtype == np.float32
    assert 0.5 * bright < image.max() < 1.5 * bright


@pytest.mark.parametrize("kind", ["of a satellite", "grey of 16 bits"])
def test_other_images_are_trained_on(tmp_path, kind):
    """The scale is in the network, so that in memory images are given as they are."""
    write, suffix, channels, _ = BANDS[kind]
    folder(tmp_path / "a", change=write, suffix=suffix)
    values = {"steps": (1,), "data.batch_size": 8, "eval.scales": (1.0,), "data.crop_size": (32, 32)}
    c = config(tmp_path / "a", **values)
    train.train_and_evaluate(c, tmp_path / "run")
    network = fcn_jax.load(tmp_path / "run", which="latest")
    (given,) = network.spec.inputs
    assert (given.name, given.channels) == ("bands", channels)
    image = images.decode_bands((tmp_path / f"a/images/p03{suffix}").read_bytes(), "p03")
    assert network(image).shape == own.SIZE
    results = evaluate.evaluate_checkpoint(c, tmp_path / "run", split="val", which="latest")
    assert results["num_examples"] == 3
    assert list((tmp_path / "run/pictures").glob("val*.png"))


def test_pictures_of_8_bits_are_no_bands(tmp_path):
    image = own.example(0)[0]
    for name, array in {"a.png": image, "b.tif": image, "c.png": image[..., 0], "d.jpg": image}.items():
        own.save(tmp_path / name, array)
        assert images.bands_of((tmp_path / name).read_bytes()) == 0
    np.save(tmp_path / "e.npy", np.moveaxis(image[:, :, :2].astype(np.uint16), -1, 0))
    found = images.decode_bands((tmp_path / "e.npy").read_bytes(), "e")
    np.testing.assert_array_equal(found, image[..., [0, 1, 0]])
    with pytest.raises(ValueError, match=r"bands 'x' cannot be decoded"):
        images.decode_bands(b"II*\0nothing", "x")
    np.save(tmp_path / "f.npy", np.zeros((4, 5, 4), np.uint16))
    with pytest.raises(ValueError, match=r"f.npy has 4 channels and .*e.npy has 3"):
        bands.look_at([tmp_path / "e.npy", tmp_path / "f.npy"])


def test_the_scale_of_an_input_is_in_its_model():
    given = spec_lib.Input("bands", 4, "", 0.25)
    spec = spec_lib.ModelSpec(
        "fcn8s", "vgg16", "same", False, "fixed", 2, 4, ("a", "b"), ((0, 0, 0), (1, 1, 1)), (1.0,) * 4, (given,)
    )
    written = json.loads(json.dumps(spec.to_json()))
    assert written["inputs"] == [{"name": "bands", "channels": 4, "stream": "", "scale": 0.25}]
    assert spec_lib.ModelSpec.from_json(written, "x") == spec
    written["inputs"][0]["scale"] = -1
    with pytest.raises(ValueError, match="inputs is"):
        spec_lib.ModelSpec.from_json(written, "x")


# --- when it does not learn ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "a"
    folder(root, number=24)
    return root


def said(root, workdir, caplog, **values):
    """What a short run warns of."""
    options = {"steps": (100,), "data.batch_size": 8, "learning_rate": (3e-3,), "eval.every": 0, "log.every": 4}
    options |= {
        "eval.scales": (1.0,),
        "data.scale": (1.0, 1.0),
        "loss.class_weights": "none",
        "data.crop_size": (40, 52),
    }
    with caplog.at_level(logging.WARNING, "fcn_jax"):
        train.train_and_evaluate(config(root, **{**options, "optim.ema": 0.0, **values}), workdir)
    return " ".join(record.getMessage() for record in caplog.records if record.name.startswith("fcn_jax"))


def test_a_run_that_learns_says_nothing(shapes_folder, tmp_path, caplog):
    assert said(shapes_folder, tmp_path / "run", caplog) == ""


def test_a_rate_that_is_too_high(shapes_folder, tmp_path, caplog):
    found = said(shapes_folder, tmp_path / "run", caplog, learning_rate=(0.3,))
    assert "everything is predicted as" in found or "for who knows nothing but how frequent" in found
    assert "learning rate" in found


def shuffled(masks):
    """The pixels of all masks in any order."""
    pixels = np.random.default_rng(0).permutation(np.concatenate([mask.ravel() for mask in masks]))
    return list(pixels.reshape(len(masks), *masks[0].shape))


def shifted(masks):
    """By half of the height and the width."""
    return [np.roll(mask, (20, 26), (0, 1)) for mask in masks]


@pytest.mark.parametrize("spoil", [shuffled, shifted])
def test_labels_that_are_not_those_of_the_images(tmp_path, caplog, spoil):
    """The loss stays near that of the classes' frequencies, or contours agree elsewhere or nowhere."""
    folder(tmp_path / "a", number=30)
    paths = sorted((tmp_path / "a/masks").glob("*"))
    for path, mask in zip(paths, spoil([np.asarray(Image.open(path)) for path in paths]), strict=True):
        own.save(path, mask)
    found = said(tmp_path / "a", tmp_path / "run", caplog)
    if spoil is shuffled:
        assert "labels may not be those of the images" in found or "everything is predicted as background" in found
    else:
        assert "contours of images and masks agree no more than chance" in found
    assert "python -m fcn_jax.data check" in found


def test_an_encoder_that_does_not_learn(shapes_folder, tmp_path, caplog):
    """A random encoder that is frozen, at a rate at which the scores stay zero."""
    found = said(shapes_folder, tmp_path / "run", caplog, learning_rate=(1e-9,), **{"optim.frozen": "conv*"})
    assert "everything is predicted as background" in found
    assert "the encoder random (config.init.weights)" in found


def test_what_a_confusion_matrix_says():
    names = ("ground", "cell", "rim")
    assert diagnosis.of_confusion([[90, 2, 0], [1, 7, 0], [0, 0, 3]], names, 500) == []
    (line,) = diagnosis.of_confusion([[900, 20, 0], [10, 70, 0], [3, 0, 0]], names, 500)
    assert line.startswith("never predicted: rim (0.299 % of the labelled pixels): train longer")
    (line,) = diagnosis.of_confusion([[900, 0, 0], [80, 0, 0], [3, 0, 0]], names, 500)
    assert line.startswith("everything is predicted as ground (100 % of the pixels): the learning rate may be too high")
    assert diagnosis.of_confusion([[900, 0, 0], [80, 0, 0], [3, 0, 0]], names, 50) == []  # too early


def test_what_curves_say():
    counts = np.array([[50, 50], [30, 70]])
    assert diagnosis.entropy(counts) == pytest.approx(-(0.4 * np.log(0.4) + 0.6 * np.log(0.6)))
    (line,) = diagnosis.of_loss([0.7] * 10, counts)
    assert line.startswith("the loss is 0.70, and 0.67 for who knows nothing but how frequent the classes are")
    assert diagnosis.of_loss([0.7] * 5 + [0.3] * 5, counts) == []
    (line,) = diagnosis.of_gradients([1.0] * 10 + [9.0] * 10)
    assert line.startswith("the gradient's norm rises, from 1 to 9: lower config.learning_rate")
    assert diagnosis.of_gradients([1.0] * 20) == []
    (line,) = diagnosis.of_splits([0.5, 0.1, 0.1, 0.1], 0.6)
    assert line.startswith("the loss is 0.10 in training and 0.60 in evaluation: more pictures")
    assert diagnosis.of_splits([0.1, 0.1, 0.1], 0.2) == []
