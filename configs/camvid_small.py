"""A small FCN-4s for CamVid: three eighths of VGG16's width, and less than six megabytes in 16 bits.

    python benchmarks/narrow.py --images=DIR/CamVid/train --width=24 --output=narrow24.npz
    python -m fcn_jax.main --config=configs/camvid_small.py --config.data.raw_dir=DIR --config.init.weights=narrow24.npz

It starts from VGG16's convolutions, made narrower on CamVid's training images. A trained network of full width can
teach it, too: --config.distill.teacher=RUN.
"""

from fcn_jax import config


def get_config():
    c = config.default()
    c.name = "camvid_small"
    c.network = "fcn4s"  # the map of stride 4 costs little, and poles and signs are narrower than 8 pixels
    c.steps = (3200,)
    c.learning_rate = (5e-4,)
    c.model.at_once = False
    c.model.width = 24
    c.model.fc_width = 64
    c.model.dropout = 0.1
    c.init.weights = "narrow24.npz"
    c.init.random = "fc6,fc7"
    c.data.name = "camvid"
    c.data.batch_size = 3
    c.data.crop_size = (320, 384)
    c.data.scale = (0.75, 1.75)
    c.data.flip = True
    c.data.colour_jitter = 0.4
    c.loss.jaccard = 1.0
    c.optim.warmup_steps = 100
    c.optim.ema = 0.998
    c.optim.clip_norm = 5.0
    c.optim.frozen = "conv1_*,conv2_*"
    c.eval.every = 800
    c.eval.batch_size = 4
    c.log.every = 20
    c.log.checkpoint_every = 200
    return c
