"""A TensorFlow SavedModel: StableHLO with symbolic sizes in an XlaCallModule, the parameters as variables.

The same as jax2tf makes, but in StableHLO 1.0: JAX 0.12 writes a newer one than TensorFlow 2.20 reads.
"""

import contextlib
import os
import pathlib
from typing import Any

import jax
from jax.extend.mlir.dialects import stablehlo

from fcn_jax.export import common
from fcn_jax.models.spec import ModelSpec

CARRIES_MODEL_JSON = True
STABLEHLO = "1.0.0"
# Where TensorFlow keeps what belongs to a model and is not loaded with it.
_MODEL_JSON = "assets.extra/model.json"


def check(spec: ModelSpec) -> None:
    """Takes every network; ValueError if TensorFlow is missing."""
    _tensorflow()


def write(path: pathlib.Path, params: Any, spec: ModelSpec) -> None:
    """Raises OSError for what TensorFlow cannot write."""
    tf = _tensorflow()
    variables = jax.tree_util.tree_map_with_path(
        lambda keys, array: tf.Variable(array, False, name="/".join(key.key for key in keys)), params
    )
    module = tf.Module()
    module.serve = _serve(tf, jax.tree.leaves(variables), params, spec)
    module.params = variables  # so that they are saved; TensorFlow puts wrappers into the tree
    try:
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
    (path / _MODEL_JSON).parent.mkdir()
    (path / _MODEL_JSON).write_text(common.model_json(spec))


def usage(path: pathlib.Path, spec: ModelSpec) -> str:
    """How to run it."""
    return (
        f"import tensorflow as tf; model = tf.saved_model.load({str(path)!r});"
        " logits = model.signatures['serving_default'](image=tf.constant(image))['logits']"
    )


def _serve(tf: Any, variables: list[Any], params: Any, spec: ModelSpec) -> Any:
    """image -> {'logits'} as a function of TensorFlow; the variables are the leaves of `params`."""
    from tensorflow.compiler.tf2xla.python.xla import call_module

    exported = common.exported(common.function(spec), spec, params)
    program = stablehlo.deserialize_portable_artifact_str(exported.mlir_module_serialized)
    image = tf.TensorSpec((None, None, None, len(spec.mean)), common.image_dtype(spec), "image")

    @tf.function(input_signature=[image], autograph=False)
    def serve(image: Any) -> Any:
        (logits,) = call_module(
            [*variables, image],
            version=exported.calling_convention_version,
            module=stablehlo.serialize_portable_artifact_str(program, STABLEHLO),
            Sout=[(None, None, None, len(spec.class_names))],
            Tout=[tf.float32],
            platforms=[platform.upper() for platform in common.PLATFORMS],
        )
        return {"logits": logits}

    return serve


def _tensorflow() -> Any:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # it greets at length, and raises what it logs as errors; JAX sets 1
    tf = common.require("tensorflow", "savedmodel", "pip install tensorflow-cpu")
    with contextlib.suppress(RuntimeError):  # a notebook that uses it already
        tf.config.set_visible_devices([], "GPU")  # whose memory is JAX's
    return tf
