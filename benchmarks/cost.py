"""Floating-point operations of one optimizer update of each config, counted by XLA in the lowered program.

python benchmarks/cost.py
"""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp

from fcn_jax import config as config_lib
from fcn_jax import optim, steps, train_state
from fcn_jax.models import fcn
from fcn_jax.models.spec import configured

# Classes and largest image of each dataset.
DATASETS = {"voc_segmentation": (21, (500, 500)), "camvid": (11, (360, 480)), "shapes": (6, (96, 96))}


def load(path, *arguments):
    """get_config of a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def update(config, network):
    """(train_step of a stage, the shapes of its state and of its batch)."""
    classes, largest = DATASETS[config.data.name]
    names, palette = tuple(map(str, range(classes))), ((0, 0, 0),) * classes
    model = config.model
    spec = configured(network, model, names, palette)
    params = fcn.abstract_params(spec)
    frozen = config_lib.words(config.optim.frozen)
    optimizer = optim.make_optimizer(
        params,
        name=config.optim.name,
        schedule=lambda step: 1e-4,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        bias_multiplier=config.optim.bias_multiplier,
        clip_norm=config.optim.clip_norm,
        frozen=frozen,
        own_bias=config_lib.words(config.optim.own_bias),
    )
    step = functools.partial(
        steps.train_step,
        model=fcn.FCN(spec, dropout=model.dropout, dtype=model.dtype),
        optimizer=optimizer,
        groups=optim.parameter_groups(params, frozen),
        class_weights=jnp.ones(classes),
        normalization=config.loss.normalization,
        seed=0,
    )
    lead = (config.data.accumulate, config.data.batch_size, *(config.data.crop_size or largest))
    batch = {
        "image": jax.ShapeDtypeStruct((*lead, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(lead, jnp.uint8),
        "size": jax.ShapeDtypeStruct((*lead[:2], 2), jnp.int32),
    }
    state = jax.eval_shape(functools.partial(train_state.create_train_state, optimizer=optimizer), params)
    return step, state, batch


def flops(config, network):
    """Of one update of a stage; as for TPU, since on CPU sums over rows are loops, whose bodies XLA counts once."""
    step, state, batch = update(config, network)
    return jax.jit(step).trace(state, batch).lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def main():
    """Prints a Markdown table."""
    folder = pathlib.Path(__file__).parents[1] / "configs"
    print("| config | network | batch | TFLOP an update |\n|---|---|---|---|")
    for path, arguments in [(p, ()) for p in sorted(folder.glob("*.py"))] + [(folder / "fcn8s.py", ("demo",))]:
        config = load(path, *arguments)
        for network in config_lib.words(config.network):
            cost = flops(config, network) / 1e12
            print(f"| {':'.join((path.name, *arguments))} | {network} | {config.data.batch_size} | {cost:.3g} |")


if __name__ == "__main__":
    main()
