"""Folding, surgery and the strict merge of weights into networks."""

import itertools
import logging

import jax
import numpy as np
import pytest
from scipy import signal

from fcn_jax import weights
from fcn_jax.models import fcn, upsample
from fcn_jax.models.spec import MEAN_BGR, ModelSpec
from fcn_jax.weights import common, fold, merge, surgery
from fcn_jax.weights.common import Convention, Weights

CLASSES = 3


def narrow(network="fcn8s", classes=CLASSES, **changes):
    attributes = {
        "network": network,
        "backbone": "vgg16",
        "geometry": "same",
        "at_once": False,
        "upsampling": "fixed",
        "width": 1,
        "fc_width": 2,
        "class_names": tuple(f"class {i}" for i in range(classes)),
        "palette": ((0, 0, 0),) * classes,
    }
    return ModelSpec(**{**attributes, **changes})


def random_params(spec, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), fcn.abstract_params(spec))


def file_of(spec, seed=0, **changes):
    """Weights of all layers of a network, as a reader gives them."""
    return weights.from_params(random_params(spec, seed), spec)._replace(model=None, **changes)


def without(found, *layers):
    return found._replace(arrays={n: a for n, a in found.arrays.items() if n.rpartition("/")[0] not in layers})


def never():
    raise AssertionError("no layer starts random")


def row(report, name):
    return next(r for r in report if r.name == name)


# Folding.


def conv1_1(channels=3, width=4, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "conv1_1/kernel": rng.normal(size=(3, 3, channels, width)).astype(np.float32),
        "conv1_1/bias": rng.normal(size=width).astype(np.float32),
    }
    return Weights(arrays, {}, changes.pop("convention", common.OURS))


def convolve(image, found, pad=1):
    """conv1_1 with zero padding, in float64: [H, W, 3] to [H + 2 pad - 2, W + 2 pad - 2, O]."""
    kernel = found.arrays["conv1_1/kernel"].astype(np.float64)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    maps = [signal.correlate(padded, kernel[..., o], "valid")[..., 0] for o in range(kernel.shape[-1])]
    return np.stack(maps, -1) + found.arrays["conv1_1/bias"]


def as_input(rgb, convention):
    ordered = rgb if convention.order == "RGB" else rgb[..., ::-1]
    return (ordered * convention.scale - convention.mean) / convention.std


PAIRS = [
    (common.TORCHVISION, common.OURS),
    (common.VGG, common.OURS),
    (common.NYUD_HHA, common.OURS),
    (common.OURS, common.TORCHVISION),
    (Convention("RGB", 2.0, (1, 2, 3), (4, 5, 6)), Convention("BGR", 0.5, (7, 8, 9), (3, 2, 1))),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_fold_equals_the_original_where_no_padding_is_seen(source, target):
    found = conv1_1(convention=source)
    rgb = np.random.default_rng(2).integers(0, 256, (9, 11, 3)).astype(np.float64)
    original = convolve(as_input(rgb, source), found)
    folded = fold.fold(found, target)
    ours = convolve(as_input(rgb, target), folded)
    atol = 4e-6 * np.abs(original).max()  # the folded kernel is rounded to float32
    np.testing.assert_allclose(ours[1:-1, 1:-1], original[1:-1, 1:-1], rtol=0, atol=atol)
    assert folded.convention == target
    assert folded.notes["conv1_1/bias"] == f"folded from {fold.describe(source)}"


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("pad", [1, 4])
def test_what_folding_changes_at_the_border_is_bounded_and_the_bound_is_reached(source, target, pad):
    found = conv1_1(convention=source)
    bound = fold.border_error(found, target)
    reached = np.zeros(4)
    for height, width in itertools.product((1, 2, 5), repeat=2):
        rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.float64)
        original = convolve(as_input(rgb, source), found, pad)
        changed = np.abs(convolve(as_input(rgb, target), fold.fold(found, target), pad) - original)
        rounding = 4e-6 * np.abs(original).max()  # of the folded kernel to float32
        assert (changed <= bound + rounding).all()
        reached = np.maximum(reached, changed.max((0, 1)))
    if pad == 4:  # windows wholly in the padding, and all parts of it: the bound is the largest change, not above it
        np.testing.assert_allclose(reached, bound, rtol=0, atol=rounding)


def test_border_error_by_hand():
    # One output, every tap 1 in blue: a tap in the padding counts (104.00699 - 100) for it, nine do at most.
    kernel = np.zeros((3, 3, 3, 1), np.float32)
    kernel[:, :, 0] = 1
    found = Weights({"conv1_1/kernel": kernel}, {}, Convention("BGR", 1.0, (100.0, *MEAN_BGR[1:])))
    np.testing.assert_allclose(fold.border_error(found, common.OURS), [9 * 4.00699], rtol=1e-6)


def test_fold_of_our_own_convention_changes_nothing():
    found = conv1_1()
    assert fold.fold(found, common.OURS) is found


def test_describe():
    assert fold.describe(common.VGG) == "BGR, pixel - (103.939, 116.779, 123.68)"
    wanted = "RGB, (pixel / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)"
    assert fold.describe(common.TORCHVISION) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nyud-hha", common.NYUD_HHA),
        ("RGB,0.5,1,2,3", Convention("RGB", 0.5, (1, 2, 3), (1, 1, 1))),
        ("BGR,1,1,2,3,4,5,6", Convention("BGR", 1, (1, 2, 3), (4, 5, 6))),
    ],
)
def test_parse_convention(text, wanted):
    assert common.parse_convention(text) == wanted


@pytest.mark.parametrize("text", ["imagenet", "GBR,1,1,2,3", "RGB,1,2,3", "RGB,1,1,2,x", "RGB", "RGB,1,1,2,3,4,0,6"])
def test_parse_convention_refuses(text):
    with pytest.raises(ValueError, match=f"input convention '{text}': give one of voc, vgg"):
        common.parse_convention(text)


def test_a_network_with_the_mean_of_the_weights_needs_no_folding():
    spec = narrow(mean=common.NYUD_HHA.mean)
    found = file_of(spec, convention=common.NYUD_HHA)
    params, report = merge.merge(spec, found, initial=never)
    np.testing.assert_array_equal(params["conv1_1"]["bias"], found.arrays["conv1_1/bias"])
    assert row(report, "conv1_1/bias") == ("conv1_1/bias", (1,), "taken", "")


# Surgery.


def test_scales_are_moved_into_and_out_of_the_score_layers():
    found = file_of(narrow(), at_once=True)
    plain = surgery.match_scales(found, at_once=False)
    for pool, scale in (("pool4", 0.01), ("pool3", 0.0001)):
        name = f"score_{pool}/kernel"
        np.testing.assert_allclose(plain.arrays[name], found.arrays[name] * scale, rtol=1e-6)
        np.testing.assert_array_equal(plain.arrays[f"score_{pool}/bias"], found.arrays[f"score_{pool}/bias"])
        back = surgery.match_scales(plain, at_once=True)
        np.testing.assert_allclose(back.arrays[name], found.arrays[name], rtol=1e-6)
    assert plain.notes["score_pool4/kernel"] == "multiplied by 0.01, the scale of pool4"
    same = surgery.match_scales(found, at_once=True)
    assert all(same.arrays[name] is array for name, array in found.arrays.items())
    unknown = surgery.match_scales(found._replace(at_once=None), at_once=False)
    assert all(unknown.arrays[name] is array for name, array in found.arrays.items())


def test_an_at_once_network_and_its_plain_twin_score_alike():
    at_once, plain = (narrow(at_once=value, width=2) for value in (True, False))
    found = weights.from_params(random_params(at_once), at_once)
    params, _ = merge.merge(plain, found, initial=never)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3), np.uint8)
    wanted = fcn.FCN(at_once).apply({"params": random_params(at_once)}, image)
    got = fcn.FCN(plain).apply({"params": params}, image)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_releases_scale_layers_are_read_and_checked():
    found = file_of(narrow())
    scaled = {**found.arrays, "scale_pool4/scale": np.full(8, 0.01), "scale_pool3/scale": np.full(4, 1e-4)}
    params, report = merge.merge(narrow(at_once=True), found._replace(arrays=scaled, at_once=True), initial=never)
    np.testing.assert_array_equal(params["score_pool4"]["kernel"], found.arrays["score_pool4/kernel"])
    assert row(report, "scale_pool4/scale").note == "the at-once scale, which needs no parameter"
    with pytest.raises(ValueError, match=r"scale_pool4 holds values from 1 to 1, wanted 0.01"):
        surgery.match_scales(found._replace(arrays={**scaled, "scale_pool4/scale": np.ones(8)}), at_once=True)


def test_expand_score_by_hand():
    arrays = {
        "score_fr/kernel": np.array([[[[1, 2], [3, 4]]]], np.float32),
        "score_fr/bias": np.array([5, 6], np.float32),
        "upscore2/kernel": np.arange(64, dtype=np.float32).reshape(4, 4, 2, 2),
        "conv1_1/bias": np.ones(1, np.float32),
    }
    got = surgery.expand_score(Weights(arrays, {}, None), [None, 1, 0]).arrays
    np.testing.assert_array_equal(got["score_fr/kernel"], [[[[0, 2, 1], [0, 4, 3]]]])
    np.testing.assert_array_equal(got["score_fr/bias"], [0, 6, 5])
    assert got["conv1_1/bias"] is arrays["conv1_1/bias"]
    kernel, old = got["upscore2/kernel"], arrays["upscore2/kernel"]
    np.testing.assert_array_equal(kernel[:, :, 1, 2], old[:, :, 1, 0])
    np.testing.assert_array_equal(kernel[:, :, 2, 2], old[:, :, 0, 0])
    np.testing.assert_array_equal(kernel[:, :, 0, 0], upsample.bilinear_kernel(4, 1)[..., 0, 0])
    assert not kernel[:, :, 0, 1:].any()
    assert not kernel[:, :, 1:, 0].any()


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_old_classes_score_as_before_in_a_network_with_more(upsampling):
    old, new = (narrow(classes=n, upsampling=upsampling, width=2) for n in (3, 5))
    found = weights.from_params(random_params(old), old)
    image = np.random.default_rng(0).integers(0, 256, (1, 33, 47, 3), np.uint8)
    before = np.asarray(fcn.FCN(old).apply({"params": random_params(old)}, image))
    for classes, where in (("all", [0, 1, 2]), ("-,2,class 0,1,-", [2, 3, 1])):
        params, report = merge.merge(new, found, merge.Wishes(classes=classes), initial=never)
        after = np.asarray(fcn.FCN(new).apply({"params": params}, image))
        np.testing.assert_allclose(after[..., where], before, rtol=0, atol=1e-5 * np.abs(before).max())
        assert not after[..., [i for i in range(5) if i not in where]].any()
        assert row(report, "score_fr/bias").note == "3 of 3 classes"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("0,1", "has 2 words, but the network has 3 classes"),
        ("0,1,person", "has 'person': give a number from 0 to 2, or -"),
        ("0,1,3", "there is no class 3 among the weights' 3 classes, 0 to 2"),
    ],
)
def test_wrong_classes(classes, message):
    with pytest.raises(ValueError, match=message):
        merge.merge(narrow(), file_of(narrow()), merge.Wishes(classes=classes), initial=never)


def test_classes_need_scores_and_room():
    with pytest.raises(ValueError, match="the weights have no score_fr"):
        merge.merge(narrow(), without(file_of(narrow()), "score_fr"), merge.Wishes(classes="all"), initial=never)
    with pytest.raises(ValueError, match="classes=all: the weights have 4 classes, the network only 3"):
        merge.merge(narrow(), file_of(narrow(classes=4)), merge.Wishes(classes="all"), initial=never)


def test_a_fourth_input_channel_starts_with_the_mean_of_three():
    spec = narrow(mean=(*MEAN_BGR, 7.844), width=2)
    found = file_of(narrow(width=2))
    params, report = merge.merge(spec, found, initial=never)
    kernel, old = params["conv1_1"]["kernel"], found.arrays["conv1_1/kernel"]
    np.testing.assert_array_equal(kernel[:, :, :3], old)
    np.testing.assert_allclose(kernel[:, :, 3], old.mean(2), rtol=1e-6)
    assert row(report, "conv1_1/kernel").note == "expanded from 3 input channels"
    # A fourth channel at its mean changes nothing.
    rgb = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3)).astype(np.float32)
    four = np.concatenate([rgb, np.full((1, 20, 20, 1), 7.844, np.float32)], -1)
    plain = narrow(width=2)
    wanted = fcn.FCN(plain).apply({"params": merge.merge(plain, found, initial=never)[0]}, rgb)
    got = fcn.FCN(spec).apply({"params": params}, four)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    again = weights.from_params(params, spec)
    jax.tree.map(np.testing.assert_array_equal, merge.merge(spec, again, initial=never)[0], params)
    with pytest.raises(ValueError, match=r"conv1_1/kernel is 3x3x3x2 in the network, but it is 3x3x4x2 in the weights"):
        merge.merge(plain, again, initial=never)


# Merging.


def test_merge_takes_everything_and_says_so(caplog):
    spec = narrow()
    found = file_of(spec)
    with caplog.at_level(logging.INFO, "fcn_jax"):
        params, report = merge.merge(spec, found, initial=never)
    jax.tree.map(np.testing.assert_array_equal, params, random_params(spec))
    assert [r.name for r in report] == list(found.arrays)
    assert {(r.how, r.note) for r in report} == {("taken", "")}
    assert row(report, "score_fr/kernel").shape == (1, 1, 2, 3)
    assert caplog.records[-1].getMessage() == merge.format_report(report)


def test_scores_may_be_missing_and_start_zero_and_upsampling_starts_bilinear():
    spec = narrow(upsampling="learned")
    layers = ("score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8")
    params, report = merge.merge(spec, without(file_of(spec), *layers), initial=never)
    assert not params["score_pool4"]["kernel"].any()
    np.testing.assert_array_equal(params["upscore8"]["kernel"], upsample.bilinear_kernel(16, CLASSES))
    assert row(report, "score_fr/bias") == ("score_fr/bias", (CLASSES,), "missing", "starts zero")
    assert row(report, "upscore2/kernel")[2:] == ("missing", "starts bilinear")
    assert row(report, "fc7/bias")[2:] == ("taken", "")


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize(
    ("before", "after", "new", "gone"),
    [
        ("fcn32s", "fcn16s", {"score_pool4", "upscore2", "upscore16"}, {"upscore"}),
        ("fcn16s", "fcn8s", {"score_pool3", "upscore_pool4", "upscore8"}, {"upscore16"}),
    ],
)
def test_a_network_starts_from_the_one_before(before, after, new, gone, upsampling):
    specs = [narrow(network, upsampling=upsampling) for network in (before, after)]
    found = weights.from_params(random_params(specs[0]), specs[0])
    params, report = merge.merge(specs[1], found, initial=never)
    missing = {r.name.rpartition("/")[0] for r in report if r.how == "missing"}
    left = {r.name.rpartition("/")[0] for r in report if r.how == "left over"}
    learned = {name for name in new | gone if name.startswith("upscore")} if upsampling == "learned" else set()
    assert missing == {name for name in new if name.startswith("score")} | (new & learned)
    assert left == gone & learned
    for layer, old in random_params(specs[0]).items():
        if layer in params:
            jax.tree.map(np.testing.assert_array_equal, params[layer], old)


def test_upsampling_kernels_and_networks_with_fixed_upsampling():
    spec, learned = narrow(), narrow(upsampling="learned")
    found = file_of(learned)
    bilinear = {
        name: upsample.bilinear_kernel(len(array), CLASSES) if name.startswith("upscore") else array
        for name, array in found.arrays.items()
    }
    _, report = merge.merge(spec, found._replace(arrays=bilinear), initial=never)
    assert row(report, "upscore8/kernel")[2:] == ("left over", "bilinear, as the network computes it")
    only = found._replace(arrays={**bilinear, "upscore8/kernel": found.arrays["upscore8/kernel"]})
    with pytest.raises(ValueError, match="the weights' upscore8 is not bilinear: use learned upsampling, or leave"):
        merge.merge(spec, only, initial=never)
    _, report = merge.merge(spec, only, merge.Wishes(skip=("upscore8",)), initial=never)
    assert row(report, "upscore8/kernel").how == "left over"


def test_random_layers_stay_as_initialised_whatever_the_weights_hold():
    spec = narrow()
    fresh = random_params(spec, seed=1)
    for width in (2, 9):
        found = file_of(narrow(fc_width=width))
        found = without(found, "score_fr")
        params, report = merge.merge(spec, found, merge.Wishes(random=("fc*",)), initial=lambda: fresh)
        np.testing.assert_array_equal(params["fc6"]["kernel"], fresh["fc6"]["kernel"])
        np.testing.assert_array_equal(params["conv5_3"]["kernel"], found.arrays["conv5_3/kernel"])
        assert row(report, "fc6/bias") == ("fc6/bias", (2,), "missing", "starts random")
        assert report[-1] == ("fc7/kernel", (1, 1, width, width), "left over", "")


def test_what_does_not_fit():
    message = r"^fc6/bias is 2 in the network, but it is 9 in the weights: change the network, or leave the layer as"
    with pytest.raises(ValueError, match=message + r" initialised with config.init.random 'fc6'$"):
        merge.merge(narrow(), file_of(narrow(fc_width=9)), initial=never)
    message = r"^score_fr/bias is 3 in the network, but it is 4 in the weights: .*say by config.init.classes which"
    with pytest.raises(ValueError, match=message):
        merge.merge(narrow(), file_of(narrow(classes=4)), initial=never)


def test_left_over(caplog):
    spec = narrow()
    found = file_of(spec)
    extra = found._replace(arrays={**found.arrays, "bn/scale": np.ones(4), "bn/bias": np.ones(4)})
    message = r"what the network has not: bn/scale, bn/bias; .* config.init.skip: bn$"
    with caplog.at_level(logging.INFO, "fcn_jax"), pytest.raises(ValueError, match=message):
        merge.merge(spec, extra, initial=never)
    *_, last, counts = caplog.records[-1].getMessage().splitlines()
    assert last.split() == ["bn/bias", "4", "left", "over"]
    assert counts == "36 taken, 2 left over"
    for accepted in ({"skip": ("bn",)}, {"allow": ("bn",)}):
        _, report = merge.merge(spec, extra, merge.Wishes(**accepted), initial=never)
        assert report[-2:] == [("bn/scale", (4,), "left over", ""), ("bn/bias", (4,), "left over", "")]


def test_the_classifier_of_imagenet_is_left_over_by_rule():
    found = file_of(narrow())
    fc8 = {"fc8/kernel": np.ones((1, 1, 2, 1000)), "fc8/bias": np.ones(1000)}
    _, report = merge.merge(narrow(), found._replace(arrays={**found.arrays, **fc8}), initial=never)
    assert report[-1] == ("fc8/bias", (1000,), "left over", "ImageNet's classes")


def test_missing():
    spec, fresh = narrow(), random_params(narrow(), seed=1)
    found = file_of(spec)
    part = found._replace(arrays={name: array for name, array in found.arrays.items() if name != "conv1_1/bias"})
    with pytest.raises(ValueError, match=r"^conv1_1 would start random: name it in config.init.random, or give"):
        merge.merge(spec, part, initial=never)
    with pytest.raises(ValueError, match=r"^fc6 would start random"):
        merge.merge(spec, found, merge.Wishes(skip=("fc6",)), initial=never)
    with pytest.raises(ValueError, match=r"^fc6, fc7 would start random: name them in --allow, or give weights that"):
        merge.merge(spec, without(found, "fc6", "fc7"), merge.Wishes(flags=("--allow", "--allow")), initial=never)
    params, _ = merge.merge(spec, without(found, "fc6", "fc7"), merge.Wishes(allow=("fc*",)), initial=lambda: fresh)
    np.testing.assert_array_equal(params["fc7"]["kernel"], fresh["fc7"]["kernel"])
    # What is allowed to be missing is taken where it is there.
    params, _ = merge.merge(spec, found, merge.Wishes(allow=("fc*",)), initial=never)
    np.testing.assert_array_equal(params["fc7"]["kernel"], found.arrays["fc7/kernel"])


def test_from_nothing():
    spec, fresh = narrow(), random_params(narrow(), seed=1)
    with pytest.raises(ValueError, match=r"^conv1_1, .*, fc6, fc7 would start random: name them in config.init.random"):
        merge.merge(spec, weights.NONE, initial=never)
    params, report = merge.merge(spec, weights.NONE, merge.Wishes(random=("conv*", "fc?")), initial=lambda: fresh)
    np.testing.assert_array_equal(params["conv3_2"]["kernel"], fresh["conv3_2"]["kernel"])
    assert not params["score_fr"]["kernel"].any()
    assert {r.note for r in report} == {"starts random", "starts zero"}


@pytest.mark.parametrize("which", ["random", "allow"])
def test_a_glob_that_matches_no_layer(which):
    with pytest.raises(ValueError, match=r"config.init.random: 'fc9' matches no layer; there are conv1_1, .*score_fr"):
        merge.merge(narrow(), file_of(narrow()), merge.Wishes(**{which: ("fc6", "fc9")}), initial=never)


def test_format_report():
    report = [
        merge.Row("conv1_1/bias", (2,), "missing", "starts random"),
        merge.Row("score/kernel", (1, 1, 2, 5), "taken"),
    ]
    lines = ["conv1_1/bias        2  missing, starts random", "score/kernel  1x1x2x5  taken", "1 missing, 1 taken"]
    assert merge.format_report(report).splitlines() == lines
