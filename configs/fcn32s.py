"""FCN-32s on PASCAL VOC with the released solver's values.

    python -m fcn_jax.main --config=configs/fcn32s.py

Published mean IU on seg11valid: 63.6. Cost: 100,000 steps of 1.1 TFLOP.
"""

from fcn_jax import config


def get_config():
    c = config.paper_recipe(config.default())
    c.name = "fcn32s"
    c.network = "fcn32s"
    c.steps = (100_000,)
    c.learning_rate = (1e-10,)
    return c
