"""A small FCN-8s for CamVid, from scratch: a third of the width, six megabytes in 16 bits.

    python -m fcn_jax.main --config=configs/camvid_small.py --config.data.raw_dir=DIR_WITH_CamVid

No ImageNet weights have this width; a trained network of full width can teach it: --config.distill.teacher=RUN. No
score has been recorded yet.
"""

from fcn_jax import config


def get_config():
    c = config.default()
    c.name = "camvid_small"
    c.steps = (6000,)
    c.learning_rate = (1e-3,)
    c.model.at_once = False
    c.model.width = 24
    c.model.fc_width = 64
    c.model.dropout = 0.1
    c.init.random = "*"
    c.data.name = "camvid"
    c.data.batch_size = 4
    c.data.crop_size = (256, 320)
    c.data.scale = (0.75, 1.5)
    c.data.flip = True
    c.data.colour_jitter = 0.4
    c.optim.warmup_steps = 200
    c.optim.ema = 0.998
    c.optim.clip_norm = 1.0
    c.optim.weight_decay = 1e-3
    c.eval.every = 1000
    c.eval.batch_size = 4
    c.log.every = 50
    c.log.checkpoint_every = 500
    return c
