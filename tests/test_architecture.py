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
    "data": {"data", "download", "visualize", "web"},
    "weights": {"weights", "checkpoint", "download", "models"},
    "json_file": set(),
    "losses": set(),
    "metrics": set(),
    "optim": set(),
    "sharding": set(),
    "config": {"models"},
    "download": set(),
    "visualize": set(),
    "files": set(),
    "cli": {"run.stop"},
    "export": {"checkpoint", "export", "models", "networks"},
    "multiscale": set(),
    "train_state": set(),
    "steps": {"losses", "metrics", "models", "multiscale", "optim", "refine", "train_state"},
    "digests": set(),
    "integrity": {"digests", "json_file", "models"},
    "checkpoint": {"digests", "files", "integrity", "json_file", "models", "sharding"},
    # Being a run, from the ground up.
    "run/progress": set(),
    "run/stop": set(),
    "run/workdir": set(),
    "run/distributed": {"run.stop", "run.workdir"},
    "run/damage": {"digests", "integrity"},
    "run/checkpoints": {"checkpoint", "files", "models", "train_state"},
    "run/curves": {"files"},
    "run/results": {"files", "multiscale"},
    "run/config_file": {"config", "files", "json_file"},
    "run/context": {
        *("checkpoint", "config", "data", "models"),
        *(f"run.{name}" for name in ("checkpoints", "config_file", "curves", "damage", "distributed")),
        *("run.environment", "run.results"),
    },
    "run/resume": {"checkpoint", "config", "models", "run.config_file", "run.context", "run.distributed"},
    "run/rules": {"config", "data", "json_file"},
    "run/diagnosis": {"config", "data", "run.context", "visualize"},
    "run/parameters": {"checkpoint", "config", "models", "run.context", "run.resume", "weights"},
    "run/teacher": {"checkpoint", "config", "integrity", "models", "multiscale", "networks", "run.context", "sharding"},
    "run/stage": {
        *(
            "checkpoint",
            "config",
            "data",
            "losses",
            "models",
            "optim",
            "run.context",
            "run.teacher",
            "sharding",
            "steps",
        ),
        "train_state",
    },
    "evaluate": {
        *("checkpoint", "config", "data", "metrics", "models", "sharding", "steps", "visualize"),
        *("run.distributed", "run.progress", "run.results", "run.rules"),
    },
    "networks": {"data", "download", "models", "weights"},
    "outputs": {"data", "models", "predictor", "visualize"},
    "extras": set(),
    "web": set(),
    "fill": {"extras"},
    "run/environment": set(),
    # Commands that are packages.
    "video": {"extras", "fill", "models", "predictor", "video", "visualize"},
    "demo": {"cli", "data", "fill", "predictor", "visualize"},
    "report": {
        *("checkpoint", "config", "data", "extras", "files", "json_file", "metrics", "models", "predictor", "report"),
        *("run.curves", "run.environment", "run.progress", "run.results", "visualize", "web"),
    },
    "predictor": {"checkpoint", "json_file", "models", "multiscale", "networks", "refine"},
    "refine": set(),
}


def imports(path):
    """All modules that a file imports, dotted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module):
    """'fcn_jax.data.images' -> 'data', 'fcn_jax.run.stop.Stop' -> 'run.stop'."""
    first, *rest = module.split(".")[1:]
    return f"run.{rest[0]}" if first == "run" else first


def files(part):
    if (PACKAGE / f"{part}.py").exists():
        return [PACKAGE / f"{part}.py"]
    return sorted(path for path in (PACKAGE / part).rglob("*.py") if path.name != "__main__.py")  # a command


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_is_below(part):
    assert files(part)
    assert {room(name) for path in files(part) for name in imports(path) if name.startswith("fcn_jax.")} <= ALLOWED[
        part
    ]


def test_every_part_is_held():
    """But for the commands, and train.py, which is above all."""
    parts = {room(f"fcn_jax.{'.'.join(path.relative_to(PACKAGE).with_suffix('').parts)}") for path in files("")}
    commands = {"main", "predict", "train", "command", "run.__init__", "__init__"}
    assert parts - commands == {part.replace("/", ".") for part in ALLOWED}


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

    layers = {name for name, value in vars(Layers).items() if callable(value) and name[0] != "_"}
    layers -= {"pads", "kernel_init"}
    assert {"conv", "max_pool", "concatenate"} <= layers
    assert layers <= vars(onnx._Layers).keys()


def test_wide_inputs_are_the_same_for_data_and_networks():
    from fcn_jax.data import pipeline
    from fcn_jax.models import spec

    assert pipeline.WIDE == spec.WIDE_INPUTS


def test_every_backbone_has_an_encoder():
    from fcn_jax.models import fcn, spec

    assert fcn.ENCODERS.keys() == spec.BACKBONES.keys()


def test_prediction_needs_no_training():
    """Nor does reading a checkpoint."""
    code = "import sys, fcn_jax.predictor; print(*(name for name in sys.modules if name.startswith('fcn_jax.')))"
    loaded = subprocess.check_output((sys.executable, "-c", code), text=True).split()
    assert not {f"fcn_jax.{name}" for name in ("losses", "optim", "steps", "train", "evaluate")} & {*loaded}
