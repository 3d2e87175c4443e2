"""FCN-8s on SIFT Flow with two heads, semantic and geometric, by the released solvers' values, 32s -> 16s -> 8s.

    python -m fcn_jax.main --config=configs/siftflow_fcn8s.py --config.data.raw_dir=DIR

The losses of the two heads are added. Published on test for an FCN-16s: pixel accuracy 85.2 and mean IU 39.5
semantic, pixel accuracy 94.3 geometric; the means leave out cow, desert and moon, which test has not.
"""

from fcn_jax import config


def get_config():
    c = config.paper_recipe(config.default())
    c.name = "siftflow_fcn8s"
    c.network = "fcn32s,fcn16s,fcn8s"
    c.steps = (100_000,) * 3
    c.learning_rate = (1e-10, 1e-12, 1e-12)
    c.data.name = "sift_flow"
    c.data.train_split = "trainval"
    c.data.eval_split = "test"
    return c
