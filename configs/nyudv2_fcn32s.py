"""FCN-32s on NYUDv2 (40 classes) with the released solvers' values: colour, HHA, and both in one command.

    python -m fcn_jax.main --config=configs/nyudv2_fcn32s.py --config.data.raw_dir=DIR

trains a network of colour, then one of HHA, then both trunks together from these two, their scores averaged (late
fusion). `:colour`, `:hha` and `:colour_depth` (a first layer of four channels, early fusion) train one network.
Published mean IU on test: colour 29.2, colour + depth 30.5, HHA 24.2, colour and HHA 32.8 (the release).
"""

from fcn_jax import config

INPUTS = {
    "colour_hha": "colour,hha,colour/hha",
    "colour": "colour",
    "hha": "hha",
    "colour_depth": "colour+depth",
}


def get_config(variant="colour_hha"):
    if variant not in INPUTS:
        raise ValueError(f"configs/nyudv2_fcn32s.py:{variant}: choose from {', '.join(INPUTS)}")
    c = config.paper_recipe(config.default())
    c.name = "nyudv2_fcn32s" if variant == "colour_hha" else f"nyudv2_fcn32s_{variant}"
    c.inputs = INPUTS[variant]
    stages = c.inputs.count(",") + 1
    c.network = ",".join(["fcn32s"] * stages)
    c.steps = (100_000,) * stages
    c.learning_rate = (1e-10, 1e-10, 1e-12)[:stages]
    c.data.name = "nyudv2"
    c.data.train_split = "trainval"
    c.data.eval_split = "test"
    return c
