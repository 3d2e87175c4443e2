"""FCN-8s on PASCAL VOC as in the paper, staged 32s -> 16s -> 8s in one command; `:demo` needs nothing but a CPU.

    python -m fcn_jax.main --config=configs/fcn8s.py:demo
    python -m fcn_jax.main --config=configs/fcn8s.py

The staged run takes the released solvers' values (batch 1, whole images, momentum 0.99, summed loss, sampling with
replacement, 100,000 steps a stage) on SBD's 8,498 training images, and VGG16 with fc6 and fc7. Published mean IU on
seg11valid: 63.6, 65.0, 65.5. Cost: 300,000 steps of 1.1 TFLOP.

The demo draws its images itself and trains a narrow at-once FCN-8s from scratch.
"""

from fcn_jax import config


def get_config(variant: str = "paper"):
    c = config.default()
    if variant == "demo":
        c.name = "fcn8s_demo"
        c.steps = (1200,)
        c.learning_rate = (3e-3,)
        c.model.width = 8
        c.model.fc_width = 64
        c.model.dropout = 0.1
        c.init.random = "conv*,fc*"
        c.data.name = "shapes"
        c.data.batch_size = 8
        c.eval.every = 400
        c.eval.batch_size = 16
        c.optim.warmup_steps = 100
        c.optim.clip_norm = 1.0
        return c
    if variant != "paper":
        raise ValueError(f"configs/fcn8s.py has no variant {variant!r}: choose paper or demo")
    c.network = "fcn32s,fcn16s,fcn8s"
    c.steps = (100_000, 100_000, 100_000)
    c.learning_rate = (1e-10, 1e-12, 1e-14)
    return config.paper_recipe(c)
