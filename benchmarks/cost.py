"""Floating-point operations of one optimizer update of each config whose dataset is in DATASETS, counted by XLA.

python benchmarks/cost.py
"""

import functools
import importlib.util
import pathlib

import jax

from fcn_jax import config as config_lib
from fcn_jax import losses, optim, steps, train_state
from fcn_jax.models import fcn
from fcn_jax.models.spec import configured

# Classes and largest image of the datasets whose images have three channels and one label.
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
    spec = configured(network, model, class_names=names, palette=palette)
    params = fcn.abstract_params(spec)
    frozen = config_lib.words(config.optim.frozen)
    solver = optim.Solver(config.optim.name, lambda step: 1e-4, config.optim.momentum, config.optim.weight_decay)
    optimizer = optim.make_optimizer(params, solver, frozen=frozen)
    step = functools.partial(
        steps.train_step,
        update=steps.Update(
            fcn.FCN(spec, dropout=model.dropout, dtype=model.dtype),
            optimizer,
            losses.Loss((1.0,) * classes, config.loss.normalization),
            frozen,
        ),
    )
    lead = (config.data.accumulate, config.data.batch_size)
    batch = steps.batch_shapes(spec, lead, tuple(config.data.crop_size) or largest)
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
        if config.data.name not in DATASETS:
            continue
        for network in config_lib.words(config.network):
            cost = flops(config, network) / 1e12
            print(f"| {':'.join((path.name, *arguments))} | {network} | {config.data.batch_size} | {cost:.3g} |")


if __name__ == "__main__":
    main()
