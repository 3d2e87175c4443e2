"""Several inputs, streams and heads: what they compute, how they start, and whole runs of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from commands import command
from layouts import write_image, write_nyud, write_sift_flow
from PIL import Image

import fcn_jax
from fcn_jax import checkpoint, evaluate, losses, multiscale, steps, train, train_state, weights
from fcn_jax import config as config_lib
from fcn_jax.models import fcn, layers, spec
from fcn_jax.weights import common, merge

MEANS = {"colour": (116.190, 97.203, 92.318), "depth": (7.844,), "hha": (132.431, 94.076, 118.477)}
NAMES, PALETTE = ("a", "b", "c"), ((0, 0, 0), (128, 0, 0), (0, 128, 0))
RNG = np.random.default_rng(0)


def network(inputs, name="fcn8s", geometry="same", upsampling="fixed", heads=()):
    given, mean = spec.parse_inputs(inputs, MEANS)
    chosen = {"backbone": "vgg16", "geometry": geometry, "at_once": False, "upsampling": upsampling}
    others = {"class_names": NAMES, "palette": PALETTE, "mean": mean, "inputs": given, "heads": heads}
    return spec.ModelSpec(name, **chosen, width=2, fc_width=4, **others)


def random_params(model):
    rng = np.random.default_rng(len(model.mean))

    def draw(path, leaf):
        if path[-1].key == "bias":
            return rng.uniform(0, 0.1, leaf.shape).astype(np.float32)
        return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, fcn.abstract_params(model))


@functools.cache
def apply(model):
    return jax.jit(lambda params, image, sizes=None: fcn.FCN(model).apply({"params": params}, image, sizes))


def images(inputs, size=(40, 37), batch=2):
    """float32 [B, H, W, C]."""
    parts = {"colour": RNG.integers(0, 256, (batch, *size, 3)), "hha": RNG.integers(0, 256, (batch, *size, 3))}
    parts["depth"] = RNG.integers(500, 9000, (batch, *size, 1))
    return np.concatenate([parts[name] for name in inputs.replace("/", "+").split("+")], -1).astype(np.float32)


# --- what they compute ------------------------------------------------------------------------------------------------


def test_what_the_streams_see():
    image = np.array([[[[10, 20, 30, 500, 1, 2, 3]]]], np.float32)
    model = network("colour+depth/hha")
    first, second = model.streams
    assert (first, second) == ("color_depth", "hha")
    seen = layers.preprocess(jnp.asarray(image), model, first, jnp.float32)
    np.testing.assert_allclose(seen[0, 0, 0], [30 - 116.190, 20 - 97.203, 10 - 92.318, np.log(500) - 7.844], rtol=1e-6)
    seen = layers.preprocess(jnp.asarray(image), model, second, jnp.float32)
    np.testing.assert_allclose(seen[0, 0, 0], [1 - 132.431, 2 - 94.076, 3 - 118.477], rtol=1e-6)
    none = layers.preprocess(jnp.zeros((1, 1, 1, 7)), model, first, jnp.float32)
    assert none[0, 0, 0, 3] == pytest.approx(-7.844), "where nothing was measured"


@pytest.mark.parametrize(("name", "geometry"), [("fcn32s", "caffe"), ("fcn8s", "same")])
def test_late_fusion_is_the_mean_of_two_networks(name, geometry):
    """All behind the scores is linear."""
    model = network("colour/hha", name, geometry)
    params, image = random_params(model), images("colour/hha")
    found = apply(model)(params, image)
    expected = 0.0
    for single, stream, part in (("colour", "color", image[..., :3]), ("hha", "hha", image[..., 3:])):
        own = {layer.removesuffix(stream): values for layer, values in params.items() if layer.endswith(stream)}
        expected += 0.5 * np.asarray(apply(network(single, name, geometry))(own, part))
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_early_fusion_adds_to_the_first_layer():
    model = network("colour+depth")
    params, image = random_params(model), images("colour+depth")
    kernel = params["conv1_1"]["kernel"]
    assert kernel.shape == (3, 3, 4, 2)
    blind = {**params, "conv1_1": {**params["conv1_1"], "kernel": kernel * np.array([1, 1, 1, 0])[:, None]}}
    colour = {**params, "conv1_1": {**params["conv1_1"], "kernel": kernel[:, :, :3]}}
    expected = apply(network("colour"))(colour, image[..., :3])
    np.testing.assert_allclose(apply(model)(blind, image), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(apply(model)(params, image) - expected).max() > 1e-3 * np.abs(expected).max()


HEADS = (spec.Head("sem", 2), spec.Head("geo", 1))


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_heads_are_networks_on_one_trunk(upsampling):
    model = network("colour", upsampling=upsampling, heads=HEADS)
    params, image = random_params(model), images("colour")
    found = apply(model)(params, image)
    for head, place in model.outputs:
        single = dataclasses.replace(
            network("colour", upsampling=upsampling), class_names=NAMES[place], palette=PALETTE[place]
        )
        own = {layer.removesuffix(head.suffix): values for layer, values in params.items()}
        others = {layer for h in HEADS if h is not head for layer in params if layer.endswith(h.suffix)}
        own = {layer: values for layer, values in own.items() if layer not in others}
        expected = apply(single)(own, image)
        np.testing.assert_allclose(found[..., place], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("geometry", ["caffe", "same"])
def test_mixed_sizes_are_exact(geometry):
    model = network("colour+depth/hha", geometry=geometry, heads=HEADS)
    params, image = random_params(model), images("colour+depth/hha", (70, 65))
    sizes = np.array([(70, 65), (41, 33)], np.int32)
    found = apply(model)(params, image, sizes)
    alone = apply(model)(params, image[1:, :41, :33])
    np.testing.assert_allclose(found[1, :41, :33], alone[0], atol=1e-5 * np.abs(alone).max())


def test_the_losses_of_heads_are_added_and_each_is_counted():
    logits = jnp.asarray(RNG.normal(0, 2, (1, 4, 5, 3)), jnp.float32)
    label = np.stack([RNG.integers(0, 2, (1, 4, 5)), np.zeros((1, 4, 5), int)], -1).astype(np.uint8)
    label[0, 0, 0] = 255

    class Constant(fcn.nn.Module):
        @fcn.nn.compact
        def __call__(self, image, sizes, train=False):
            return logits + self.param("shift", fcn.nn.initializers.zeros, (1, 1, 1, 3))

    params = {"shift": jnp.zeros((1, 1, 1, 3))}
    batch = {"image": np.zeros((1, 4, 5, 3), np.uint8), "label": label, "size": np.array([(4, 5)], np.int32)}
    heads = (slice(0, 2), slice(2, 3))
    results = steps.eval_step(params, batch, model=Constant(), heads=heads)
    log_probabilities = scipy.special.log_softmax(np.asarray(logits)[0, ..., :2], -1).reshape(-1, 2)[1:]
    truth = label[0, ..., 0].ravel()[1:]
    expected = -log_probabilities[np.arange(19), truth].sum()
    np.testing.assert_allclose(results["loss"], [expected, 0], rtol=1e-5)
    assert results["prediction"].shape == (1, 4, 5, 2)
    confusion = np.asarray(results["confusion"][0])
    assert confusion[:2, :2].sum() == confusion[2, 2] == 19
    assert not confusion[2, :2].any()
    assert not confusion[:2, 2].any()
    optimizer = optax.sgd(1.0)
    state = train_state.create_train_state(params, optimizer)
    update = steps.Update(Constant(), optimizer, losses.Loss((1.0, 2.0, 1.0), "sum", heads))
    _, found = steps.train_step(state, {key: value[None] for key, value in batch.items()}, update)
    weighted = -(log_probabilities[np.arange(19), truth] * (1 + truth)).sum()
    assert float(found["loss"]) == pytest.approx(weighted, rel=1e-5)


def test_probabilities_are_of_each_head():
    image = jnp.asarray(RNG.normal(0, 2, (1, 4, 4, 3)), jnp.float32)
    sizes = jnp.array([(4, 4)], jnp.int32)
    found = multiscale.scores(lambda x, _: x, image, sizes, scales=(1.0,), flip=True, heads=(slice(0, 2), slice(2, 3)))
    np.testing.assert_allclose(np.exp(found[..., :2]).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[..., 2], 0, atol=1e-6)


# --- what they start from ---------------------------------------------------------------------------------------------


def single(inputs="colour", convention=None):
    model = network(inputs)
    found = weights.from_params(random_params(model), model)
    return found._replace(convention=convention or found.convention, model=None)


def merged(model, found):
    none = functools.partial(pytest.fail, "nothing starts random")
    return merge.merge(model, found, initial=none)[0]


def test_two_streams_start_from_two_networks():
    colour, hha = single("colour"), single("hha")
    model = network("colour/hha")
    params = merged(model, merge.join(model, {"color": colour, "hha": hha}))
    for stream, found in (("color", colour), ("hha", hha)):
        for name, array in found.arrays.items():
            layer, _, part = name.partition("/")
            np.testing.assert_array_equal(params[layer + stream][part], array, err_msg=name)
    image = images("colour/hha")
    logits = apply(model)(params, image)
    parts = [apply(network("colour"))(random_params(network("colour")), image[..., :3])]
    parts.append(apply(network("hha"))(random_params(network("hha")), image[..., 3:]))
    np.testing.assert_allclose(logits, sum(parts) / 2, atol=1e-4 * np.abs(logits).max())


def test_one_network_starts_all_streams():
    """Of colour the mean is folded; HHA's kernels are the same, whatever the mean."""
    found = single("colour", common.VGG)
    params = merged(network("colour+depth/hha"), found)
    kernel, bias = found.arrays["conv1_1/kernel"], found.arrays["conv1_1/bias"]
    np.testing.assert_array_equal(params["conv1_1hha"]["kernel"], kernel)
    np.testing.assert_allclose(params["conv1_1hha"]["bias"], bias, rtol=1e-6)
    np.testing.assert_array_equal(params["conv1_1color_depth"]["kernel"][:, :, :3], kernel)
    np.testing.assert_allclose(params["conv1_1color_depth"]["kernel"][:, :, 3], kernel.mean(2), rtol=1e-6)
    shift = np.array(MEANS["colour"]) - common.VGG.mean
    expected = bias + np.einsum("hwco,c->o", kernel, shift)
    np.testing.assert_allclose(params["conv1_1color_depth"]["bias"], expected, rtol=1e-5)


def test_rgb_kernels_of_another_scale_are_turned_for_hha():
    found = single("colour", common.TORCHVISION)
    params = merged(network("colour/hha"), found)
    kernel = found.arrays["conv1_1/kernel"][:, :, ::-1] / (255 * np.array([0.225, 0.224, 0.229]))[:, None]
    np.testing.assert_allclose(params["conv1_1hha"]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(params["conv1_1hha"]["bias"], found.arrays["conv1_1/bias"], rtol=1e-5)


def test_classes_cannot_be_chosen_for_several_heads():
    with pytest.raises(ValueError, match=r"config\.init\.classes is for networks with one head"):
        merge.merge(network("colour", heads=HEADS), single(), merge.Wishes(classes="all"), initial=dict)


@pytest.mark.parametrize("text", ["", "colour+colour", "colour/depth+colour", "infrared", "colour+", "colour /hha"])
def test_inputs_that_are_none(text):
    with pytest.raises(ValueError, match=r"config\.inputs has .*: give each of colour, depth, hha at most once"):
        spec.parse_inputs(text, MEANS)


def test_model_json():
    plain = network("colour")
    assert {"inputs", "heads"}.isdisjoint(plain.to_json())
    for model in (plain, network("colour+depth/hha", heads=HEADS)):
        again = spec.ModelSpec.from_json(json.loads(json.dumps(model.to_json())), "here")
        assert again == model
    several = json.loads(json.dumps(network("colour/hha", heads=HEADS).to_json()))
    for change, message in (
        ({"heads": [{"name": "sem", "classes": 2}]}, "heads have 2 parts, and there are 3"),
        ({"heads": [{"name": "sem"}]}, "heads is .*, wanted a list of name and classes"),
        ({"heads": [{"name": "../x", "classes": 3}]}, "heads is"),
        ({"inputs": [{"name": "colour", "channels": 3, "stream": "x"}]}, "inputs have 3 parts, and there are 6"),
        ({"inputs": 3}, "inputs is 3, wanted a list of name, channels and stream"),
    ):
        with pytest.raises(ValueError, match=message):
            spec.ModelSpec.from_json({**several, **change}, "here")


# --- whole runs -------------------------------------------------------------------------------------------------------


def run_config(name, raw_dir, data_dir, **changes):
    c = config_lib.default()
    c.network, c.steps, c.learning_rate = "fcn32s", (2,), (1e-3,)
    c.model.width, c.model.fc_width, c.init.random = 2, 4, "*"
    c.data.name, c.data.raw_dir, c.data.data_dir = name, str(raw_dir), str(data_dir)
    c.data.batch_size = c.eval.batch_size = 4
    c.data.flip, c.data.crop_size, c.data.scale, c.data.colour_jitter = True, (32, 32), (0.9, 1.1), 0.1
    c.eval.pictures, c.log.every = 1, 1
    c.data.train_split, c.data.eval_split = "train", "val"
    c.update_from_flattened_dict(changes)
    return c


@pytest.mark.usefixtures("standard_promotion")
def test_colour_and_hha_in_one_command(tmp_path, monkeypatch):
    """Three stages: each single network, then both, from what they are; stopped at the last border, the same."""
    write_nyud(tmp_path, {"train": 5, "val": 2})
    stages = {"network": "fcn32s,fcn32s,fcn32s", "steps": (2, 2, 1), "learning_rate": (1e-3, 1e-3, 0.1)}
    c = run_config("nyudv2", tmp_path, tmp_path / "data", inputs="colour,hha,colour/hha", **stages)
    train.train_and_evaluate(c, tmp_path / "run")
    params, model = checkpoint.load_params(checkpoint.find(tmp_path / "run", "latest"))
    assert list(model.streams) == ["color", "hha"]
    assert model.mean == (*MEANS["colour"], *MEANS["hha"])
    found = weights.read_checkpoint(tmp_path / "run" / "stages" / "2")
    assert found.arrays["conv5_3/kernel"].shape == params["conv5_3color"]["kernel"].shape
    assert checkpoint.best_step(tmp_path / "run") == 5, "of both streams, whatever one alone has scored"
    iterate = train.pipeline.iterate

    def stopping(dataset, start, num_threads):
        for number, batch in enumerate(iterate(dataset, start, num_threads), start + 1):
            if number == 5 and batch["image"].ndim == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(train.pipeline, "iterate", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(c, tmp_path / "stopped")
    monkeypatch.undo()
    train.train_and_evaluate(c, tmp_path / "stopped")
    again, _ = checkpoint.load_params(checkpoint.find(tmp_path / "stopped", "latest"))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    predict = fcn_jax.load(tmp_path / "run")
    assert predict(np.zeros((20, 30, 6), np.uint8)).shape == (20, 30)
    write_image(tmp_path / "a.jpg", (20, 30))
    run = command(
        "fcn_jax.predict", f"--checkpoint={tmp_path}/run", f"--input={tmp_path}/a.jpg", f"--output={tmp_path}/m"
    )
    assert run.stderr == (
        f"ValueError: {tmp_path}/run takes colour+hha, photographs have colour alone: call fcn_jax.load on arrays\n"
    )


@pytest.mark.usefixtures("standard_promotion", "one_device")
def test_colour_with_depth(tmp_path):
    write_nyud(tmp_path, {"train": 4, "val": 2})
    c = run_config("nyudv2", tmp_path, tmp_path / "data", inputs="colour+depth")
    train.train_and_evaluate(c, tmp_path / "run")
    results = evaluate.evaluate_checkpoint(c, tmp_path / "run", split="val", which="latest")
    assert sum(map(sum, results["confusion_matrix"])) > 0
    shapes = run_config("shapes", "", tmp_path / "data", **{"data.eval_split": "tiny"})
    with pytest.raises(ValueError, match=r"the network takes colour and depth, and the images of shapes have colour"):
        evaluate.evaluate_checkpoint(shapes, tmp_path / "run", split="tiny", which="latest")
    with pytest.raises(ValueError, match=r"config\.inputs has 'infrared': give each of colour, depth, hha"):
        train.train_and_evaluate(run_config("nyudv2", tmp_path, tmp_path / "data", inputs="infrared"), tmp_path / "no")


def test_what_a_dataset_has_not_is_found_before_it_is_prepared(tmp_path):
    """No file is there to be missed."""
    c = run_config("camvid", tmp_path, tmp_path / "data", inputs="colour/hha")
    with pytest.raises(ValueError, match=r"config\.inputs has 'colour/hha': give each of colour at most once"):
        train.train_and_evaluate(c, tmp_path / "run")
    c = run_config("camvid", tmp_path, tmp_path / "data", **{"data.mask": "shape"})
    with pytest.raises(ValueError, match="need a class background, which camvid has not"):
        train.train_and_evaluate(c, tmp_path / "run")


@pytest.mark.usefixtures("standard_promotion", "one_device")
def test_semantic_and_geometric_heads(tmp_path):
    write_sift_flow(tmp_path, {"trainval": 4, "test": 2})
    splits = {"data.train_split": "trainval", "data.eval_split": "test"}
    c = run_config("sift_flow", tmp_path, tmp_path / "data", **splits, **{"model.upsampling": "learned"})
    train.train_and_evaluate(c, tmp_path / "run")
    params, model = checkpoint.load_params(checkpoint.find(tmp_path / "run", "latest"))
    assert [(head.name, head.classes) for head, _ in model.outputs] == [("sem", 33), ("geo", 3)]
    assert params["score_fr_sem"]["kernel"].shape == (1, 1, 4, 33)
    assert params["upscore_geo"]["kernel"].shape == (64, 64, 3, 3)
    results = json.loads((tmp_path / "run" / "eval_test.json").read_text())
    assert list(results["heads"]) == ["sem", "geo"]
    assert results["heads"]["sem"]["mean_iou"] == results["mean_iou"]
    assert list(results["heads"]["geo"]["per_class_iou"]) == ["sky", "horizontal", "vertical"]
    assert results["per_class_iou"]["cow"] is None
    assert results["heads"]["sem"]["confusion_matrix"][8] != [0] * 33, "cow is labelled here, and left out of the mean"
    with Image.open(tmp_path / "run" / "pictures" / "test_0.png") as picture:
        assert picture.height > 2 * 32
    assert fcn_jax.load(tmp_path / "run")(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 2)
    write_image(tmp_path / "a.jpg", (20, 30))
    run = command(
        "fcn_jax.predict", f"--checkpoint={tmp_path}/run", f"--input={tmp_path}/a.jpg", f"--output={tmp_path}/m"
    )
    assert run.returncode == 0, run.stderr
    names = sorted(path.name for path in (tmp_path / "m").glob("[!.]*"))
    assert names == ["a_geo.png", "a_geo_overlay.jpg", "a_sem.png", "a_sem_overlay.jpg"]


@pytest.mark.usefixtures("standard_promotion", "one_device")
def test_a_stream_without_a_stage_of_its_own_starts_from_the_weights(tmp_path):
    """And on AlexNet: a depth that no stage saw alone."""
    write_nyud(tmp_path, {"train": 4, "val": 2})
    stages = {"network": "fcn32s,fcn32s", "steps": (1, 1), "learning_rate": (1e-3, 1e-9), "inputs": "colour,colour/hha"}
    c = run_config("nyudv2", tmp_path, tmp_path / "data", **stages, **{"model.backbone": "alexnet_torchvision"})
    train.train_and_evaluate(c, tmp_path / "run")
    params, _ = checkpoint.load_params(checkpoint.find(tmp_path / "run", "latest"))
    first, _ = checkpoint.load_params(tmp_path / "run" / "checkpoints" / "1")
    np.testing.assert_allclose(params["conv5color"]["kernel"], first["conv5"]["kernel"], atol=1e-6)
    assert np.abs(params["conv5hha"]["kernel"] - first["conv5"]["kernel"]).max() > 0.01
