"""Optimizers against their formulas in plain NumPy, schedules by hand, and who belongs to which group."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax import optim
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec

RATES = (0.1, 0.05, 0.3)
DEFAULTS = {
    "name": "sgd",
    "rate": lambda step: 1.0,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "bias_multiplier": 1.0,
    "clip_norm": 0.0,
}


def changing_rate(step):
    return jnp.array(RATES, jnp.float32)[step]


def layers(*names, seed=0):
    """{layer: {'kernel' [2, 3], 'bias' [3]}} of random numbers."""
    rng = np.random.default_rng(seed)
    return {
        name: {"kernel": rng.normal(size=(2, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)}
        for name in names
    }


def solver(**options):
    return optim.Solver(**{**DEFAULTS, **options})


def updates(params, gradients, frozen=(), **options):
    """The parameters after each of the updates that `gradients` give, and before the first."""
    optimizer = optim.make_optimizer(params, solver(**options), frozen=frozen)
    state, history, update = optimizer.init(params), [params], jax.jit(optimizer.update)
    # Optax's bias correction raises a float to an integer power.
    with jax.numpy_dtype_promotion("standard" if options.get("name") == "adamw" else "strict"):
        for gradient in gradients:
            change, state = update(gradient, state, history[-1])
            history.append(optax.apply_updates(history[-1], change))
    return history


def test_sgd_is_caffes_with_a_changing_rate():
    params, gradients = layers("fc7"), [layers("fc7", seed=s) for s in (1, 2, 3)]
    history = updates(params, gradients, rate=changing_rate, momentum=0.9, weight_decay=0.5, bias_multiplier=2.0)
    for name, multiplier, decay in (("kernel", 1, 0.5), ("bias", 2, 0)):
        w, v = params["fc7"][name].astype(np.float64), 0.0
        for step, gradient in enumerate(gradients):
            # v = m v + lr (g + wd w), w -= v; with the rate outside of v step 2 would differ.
            v = 0.9 * v + multiplier * RATES[step] * (gradient["fc7"][name] + decay * w)
            w = w - v
            np.testing.assert_allclose(history[step + 1]["fc7"][name], w, rtol=1e-5, atol=1e-6)


def test_adamw_is_that_of_loshchilov_and_hutter():
    params, gradients = layers("fc7"), [layers("fc7", seed=s) for s in (1, 2, 3)]
    history = updates(
        params, gradients, name="adamw", rate=changing_rate, momentum=0.8, weight_decay=0.5, bias_multiplier=2.0
    )
    for name, multiplier, decay in (("kernel", 1, 0.5), ("bias", 2, 0)):
        w, m, v = params["fc7"][name].astype(np.float64), 0.0, 0.0
        for step, gradient in enumerate(gradients):
            g = gradient["fc7"][name].astype(np.float64)
            m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g**2
            direction = m / (1 - 0.8 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            w = w - multiplier * RATES[step] * (direction + decay * w)
            np.testing.assert_allclose(history[step + 1]["fc7"][name], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_shrinks_kernels_alone(name):
    params = layers("fc7")
    zero = jax.tree.map(np.zeros_like, params)
    after = updates(params, [zero], name=name, rate=lambda step: 0.1, weight_decay=0.5)[-1]
    np.testing.assert_allclose(after["fc7"]["kernel"], 0.95 * params["fc7"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(after["fc7"]["bias"], params["fc7"]["bias"])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_layers_stay_bit_for_bit(name):
    params = layers("conv1_1", "conv1_2", "conv2_1")
    gradients = [layers(*params, seed=s) for s in (1, 2)]
    after = updates(params, gradients, name=name, weight_decay=0.5, frozen=("conv1_*",))[-1]
    for layer in ("conv1_1", "conv1_2"):
        for key in ("kernel", "bias"):
            np.testing.assert_array_equal(after[layer][key], params[layer][key])
    for key in ("kernel", "bias"):
        assert (after["conv2_1"][key] != params["conv2_1"][key]).all()


def test_clip_norm_scales_the_whole_gradient():
    params = {"fc7": {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(1)}}
    gradient = {"fc7": {"kernel": jnp.array([[2.0, 3.0]]), "bias": jnp.array([6.0])}}  # of norm 7
    clipped = updates(params, [gradient], clip_norm=3.5)[-1]
    np.testing.assert_allclose(clipped["fc7"]["kernel"], [[-1, -1.5]], rtol=1e-6)
    np.testing.assert_allclose(clipped["fc7"]["bias"], [-3], rtol=1e-6)
    for limit in (7.5, 0.0):  # not reached; none
        whole = updates(params, [gradient], clip_norm=limit)[-1]
        np.testing.assert_array_equal(whole["fc7"]["kernel"], [[-2, -3]])
        np.testing.assert_array_equal(whole["fc7"]["bias"], [-6])


def test_clipping_comes_before_decay():
    params = {"fc7": {"kernel": jnp.array([[10.0]])}}
    gradient = {"fc7": {"kernel": jnp.array([[4.0]])}}
    after = updates(params, [gradient], clip_norm=1.0, weight_decay=0.5)[-1]
    np.testing.assert_allclose(after["fc7"]["kernel"], [[10 - (1 + 0.5 * 10)]], rtol=1e-6)


# The 13 convolutions and fc6, fc7 and score_fr; score_pool4 and score_pool3; a learned upsampling has a kernel alone.
COUNTS = {
    ("fcn32s", "fixed"): (16, 16),
    ("fcn32s", "learned"): (17, 16),
    ("fcn16s", "learned"): (19, 17),
    ("fcn8s", "fixed"): (18, 18),
    ("fcn8s", "learned"): (21, 18),
}


def spec_of(network, upsampling):
    return ModelSpec(network, "vgg16", "same", True, upsampling, 1, 2, ("a", "b"), ((0, 0, 0), (1, 1, 1)))


@pytest.mark.parametrize(("network", "upsampling"), COUNTS)
def test_every_parameter_of_a_network_is_in_one_group(network, upsampling):
    params = fcn.abstract_params(spec_of(network, upsampling))
    groups = optim.parameter_groups(params, ())
    assert jax.tree.structure(groups) == jax.tree.structure(params)
    kernels, biases = COUNTS[network, upsampling]
    assert collections.Counter(jax.tree.leaves(groups)) == {"kernel": kernels, "bias": biases}
    groups = optim.parameter_groups(params, ("conv[12]_*", "score_fr"))
    frozen = {"conv1_1", "conv1_2", "conv2_1", "conv2_2", "score_fr"}
    for layer, members in groups.items():
        assert members == {name: "frozen" if layer in frozen else name for name in params[layer]}


def test_every_parameter_of_a_network_is_updated_once():
    shapes = fcn.abstract_params(spec_of("fcn8s", "learned"))
    params = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), shapes)
    optimizer = optim.make_optimizer(params, solver(bias_multiplier=2.0), frozen=("conv1_*",))
    change, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    for layer, members in change.items():
        for name, values in members.items():
            expected = 0 if layer.startswith("conv1_") else {"kernel": -1, "bias": -2}[name]
            np.testing.assert_array_equal(values, np.full(shapes[layer][name].shape, expected), f"{layer}/{name}")


def test_biases_of_other_layers_are_treated_as_kernels():
    """As in voc-fcn-alexnet, where only score_fr's bias has twice the rate and no decay."""
    params = {**layers("conv1"), **layers("score_fr")}
    groups = optim.parameter_groups(params, (), ("score*",))
    assert groups == {"conv1": {"kernel": "kernel", "bias": "kernel"}, "score_fr": {"kernel": "kernel", "bias": "bias"}}
    ones = jax.tree.map(jnp.ones_like, params)
    optimizer = optim.make_optimizer(ones, solver(weight_decay=0.5, bias_multiplier=2.0), own_bias=("score*",))
    change, _ = optimizer.update(jax.tree.map(jnp.ones_like, ones), optimizer.init(ones), ones)
    # At a rate of 1: -(1 + 0.5 * 1), and -2 * 1.
    assert {float(x) for x in change["conv1"]["bias"]} == {-1.5}
    assert {float(x) for x in change["score_fr"]["bias"]} == {-2.0}


def test_a_parameter_without_a_group_is_an_error():
    params = {**layers("fc6"), "norm6": {"gamma": np.ones(3)}}
    with pytest.raises(ValueError, match="norm6/gamma"):
        optim.parameter_groups(params, ())
    assert optim.parameter_groups(params, ("norm*",))["norm6"] == {"gamma": "frozen"}


def test_normalisation_in_a_block():
    """Its scale has a group without decay, at any depth; a tree without any has the state that it always had."""
    params = {"block1": {"norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)}, "conv": {"kernel": jnp.ones((1, 3))}}}
    groups = optim.parameter_groups(params, ("block1/conv",))
    assert groups["block1"] == {"norm": {"scale": "norm", "bias": "bias"}, "conv": {"kernel": "frozen"}}
    decaying = solver(momentum=0.0, weight_decay=0.5, bias_multiplier=2.0)
    optimizer = optim.make_optimizer(params, decaying)
    change, state = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    assert {float(x) for x in change["block1"]["norm"]["scale"]} == {-1.0}
    assert {float(x) for x in change["block1"]["conv"]["kernel"][0]} == {-1.5}
    assert state.inner_states.keys() == {"kernel", "bias", "frozen", "norm"}
    plain = {"fc6": {"kernel": jnp.ones((1, 3)), "bias": jnp.ones(3)}}
    optimizer = optim.make_optimizer(plain, decaying)
    assert optimizer.init(plain).inner_states.keys() == {"kernel", "bias", "frozen"}


def rates(name, steps, warmup):
    schedule = optim.make_schedule(name, 0.5, steps, warmup)
    with jax.numpy_dtype_promotion("standard"):  # Optax compares the step with a float
        return [float(schedule(jnp.int32(step))) for step in range(steps)]


SHAPES = {
    "constant": lambda passed: 0.5,
    "poly": lambda passed: 0.5 * (1 - passed) ** 0.9,
    "cosine": lambda passed: 0.5 * (1 + np.cos(np.pi * passed)) / 2,
}


@pytest.mark.parametrize("name", SHAPES)
def test_schedules(name):
    found = rates(name, 10, 0)
    assert found == pytest.approx([SHAPES[name](step / 10) for step in range(10)], rel=1e-5)
    middle = {"constant": 0.5, "poly": 0.5 * 0.5**0.9, "cosine": 0.25}[name]
    assert (found[0], found[5]) == pytest.approx((0.5, middle), rel=1e-5)
    assert found[9] > 0  # the last update counts


@pytest.mark.parametrize("name", SHAPES)
def test_schedules_with_warmup(name):
    found = rates(name, 10, 4)
    assert found[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-5)
    assert found[4:] == pytest.approx([SHAPES[name](step / 6) for step in range(6)], rel=1e-5)


def test_schedules_that_cannot_be():
    for steps in (4, 5):
        with pytest.raises(ValueError, match=f"warmup_steps=5 must be below the {steps} steps"):
            optim.make_schedule("poly", 0.1, steps, 5)
    assert float(optim.make_schedule("poly", 0.1, 6, 5)(5)) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"'step'.*constant, poly, cosine"):
        optim.make_schedule("step", 0.1, 10, 0)
