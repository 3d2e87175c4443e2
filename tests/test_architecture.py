"""Imports go strictly downward."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fcn_jax"
# What each part may import of the package.
ALLOWED = {
    "models": {"json_file", "models"},
    "data": {"data", "download"},
    "weights": {"weights", "checkpoint", "download", "models"},
    "json_file": set(),
    "losses": set(),
    "metrics": set(),
    "optim": set(),
    "sharding": set(),
    "progress": set(),
    "config": {"models"},
    "download": set(),
    "visualize": set(),
    "workdir": set(),
    "stop": set(),
    "cli": {"stop"},
    "distributed": {"stop", "workdir"},
    "export": {"checkpoint", "export", "models"},
    "multiscale": set(),
    "train_state": set(),
    "steps": {"losses", "metrics", "multiscale", "train_state"},
    "digests": set(),
    "integrity": {"digests", "json_file", "models"},
    "checkpoint": {"digests", "integrity", "json_file", "models", "sharding", "train_state", "workdir"},
    "damage": {"digests", "integrity"},
    "predictor": {"checkpoint", "models", "multiscale"},
}


def imports(path):
    """All modules that a file imports, dotted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(part):
    if (PACKAGE / f"{part}.py").exists():
        return [PACKAGE / f"{part}.py"]
    return sorted(path for path in (PACKAGE / part).rglob("*.py") if path.name != "__main__.py")  # a command


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_is_below(part):
    assert files(part)
    found = {name.split(".")[1] for path in files(part) for name in imports(path) if name.startswith("fcn_jax.")}
    assert found <= ALLOWED[part]


@pytest.mark.parametrize(
    ("part", "forbidden"), [("data", {"jax", "flax", "tensorflow"}), ("models", {"tensorflow", "tensorflow_datasets"})]
)
def test_data_knows_no_jax_and_models_no_data(part, forbidden):
    found = {name.split(".")[0] for path in files(part) for name in imports(path)}
    assert not found & forbidden


def test_a_config_imports_nothing_but_the_defaults():
    for path in (ROOT / "configs").glob("*.py"):
        assert set(imports(path)) == {"fcn_jax.config"}


def test_there_is_one_mean():
    from fcn_jax.models import spec
    from fcn_jax.weights import common

    assert common.OURS.mean == spec.MEAN_BGR


@pytest.mark.parametrize("name", ["spec", "grid"])
def test_what_a_network_is_is_plain_data(name):
    """The config reads it before JAX is there."""
    found = {module.split(".")[0] for module in imports(PACKAGE / "models" / f"{name}.py")}
    assert not found & {"jax", "flax", "numpy"}


def test_the_exporter_to_onnx_has_every_layer():
    from fcn_jax.export import onnx
    from fcn_jax.models.layers import Layers

    layers = {name for name, value in vars(Layers).items() if callable(value) and name[0] != "_"} - {"pads"}
    assert {"conv", "max_pool", "concatenate"} <= layers
    assert layers <= vars(onnx._Layers).keys()


def test_every_backbone_has_an_encoder():
    from fcn_jax.models import fcn, spec

    assert fcn.ENCODERS.keys() == spec.BACKBONES.keys()


def test_prediction_needs_no_training():
    """Nor does reading a checkpoint."""
    code = "import sys, fcn_jax.predictor; print(*(name for name in sys.modules if name.startswith('fcn_jax.')))"
    loaded = subprocess.check_output((sys.executable, "-c", code), text=True).split()
    assert not {f"fcn_jax.{name}" for name in ("losses", "optim", "steps", "train", "evaluate")} & {*loaded}
