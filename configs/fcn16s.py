"""FCN-16s on PASCAL VOC, staged 32s -> 16s, with the released solvers' values.

    python -m fcn_jax.main --config=configs/fcn16s.py

Published mean IU on seg11valid: 65.0. Cost: 200,000 steps of 1.1 TFLOP.
"""

from fcn_jax import config


def get_config():
    c = config.paper_recipe(config.default())
    c.name = "fcn16s"
    c.network = "fcn32s,fcn16s"
    c.steps = (100_000, 100_000)
    c.learning_rate = (1e-10, 1e-12)
    return c
