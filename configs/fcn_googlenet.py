"""FCN-GoogLeNet (an FCN-32s on Inception v1) on PASCAL VOC with the values of the CVPR paper, section 4.3.

    python -m fcn_jax.main --config=configs/fcn_googlenet.py

Published mean IU on PASCAL VOC 2011 val: 42.5, with the authors' own weights, which were never published. This starts
from bvlc_googlenet.caffemodel, downloaded or by --config.init.weights=FILE. 75,000 updates are 175 epochs, which the
paper calls the least; --config.network=fcn8s has skips, which the paper's has not.
"""

from fcn_jax import config


def get_config():
    c = config.paper_recipe(config.default())
    c.name = "fcn_googlenet"
    c.network = "fcn32s"
    c.steps = (75_000,)
    c.learning_rate = (5e-5,)
    c.model.backbone = "googlenet"
    c.init.weights = "caffe-googlenet"
    c.data.accumulate = 20
    c.optim.momentum = 0.9
    c.loss.normalization = "image"
    return c
