"""FCN-8s trained at once, as voc-fcn8s-atonce of the release: one stage, scaled skips.

    python -m fcn_jax.main --config=configs/fcn8s_atonce.py

Published mean IU on seg11valid: 65.4. Cost: 300,000 steps of 1.1 TFLOP.
"""

from fcn_jax import config


def get_config():
    c = config.paper_recipe(config.default())
    c.name = "fcn8s_atonce"
    c.steps = (300_000,)
    c.learning_rate = (1e-10,)
    c.model.at_once = True
    return c
