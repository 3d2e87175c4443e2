"""The configuration: every wrong value is refused by name, and every key is read somewhere."""

import ast
import functools
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

import fcn_jax
from fcn_jax import config as config_lib
from fcn_jax.models import spec

PACKAGE = pathlib.Path(fcn_jax.__file__).parent


def changed(**values):
    """The default config with some values; `model__width` is config.model.width."""
    config = config_lib.default()
    for key, value in values.items():
        *parents, last = key.split("__")
        setattr(functools.reduce(getattr, parents, config), last, value)
    return config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "fcn2s"}, r"config\.network='fcn2s'.*fcn32s, fcn16s, fcn8s, fcn4s"),
        ({"model__geometry": "valid"}, r"config\.model\.geometry='valid'.*caffe, same"),
        ({"model__upsampling": "bilinear"}, r"config\.model\.upsampling='bilinear'.*fixed, learned"),
        ({"model__dtype": "float16"}, r"config\.model\.dtype='float16'.*float32, bfloat16"),
        ({"optim__name": "adam"}, r"config\.optim\.name='adam'.*sgd, adamw"),
        ({"optim__schedule": "step"}, r"config\.optim\.schedule='step'.*constant, poly, cosine"),
        ({"loss__normalization": "mean"}, r"config\.loss\.normalization='mean'.*sum, image, pixel"),
        ({"inputs": "colour,hha", "eval__refine": True}, r"config\.eval\.refine follows .*: set config\.inputs=colour"),
        ({"seed": -1}, r"config\.seed=-1: it must be from 0 to 2147483647"),
        ({"seed": 2**31}, r"config\.seed=2147483648: it must be from 0 to 2147483647"),
        ({"model__width": 0}, r"config\.model\.width=0: it must be >= 1"),
        ({"model__fc_width": 0}, r"config\.model\.fc_width=0: it must be >= 1"),
        ({"model__dropout": 1.0}, r"config\.model\.dropout=1\.0: it must be from 0 to 0\.999"),
        ({"data__batch_size": 0}, r"config\.data\.batch_size=0: it must be >= 1"),
        ({"data__accumulate": 0}, r"config\.data\.accumulate=0: it must be >= 1"),
        ({"data__colour_jitter": 1.5}, r"config\.data\.colour_jitter=1\.5: it must be from 0 to 1"),
        ({"data__num_threads": 0}, r"config\.data\.num_threads=0: it must be from 1 to 256"),
        ({"optim__warmup_steps": -1}, r"config\.optim\.warmup_steps=-1: it must be >= 0"),
        ({"optim__momentum": 1.0}, r"config\.optim\.momentum=1\.0: it must be from 0 to 0\.9999"),
        ({"optim__weight_decay": -0.1}, r"config\.optim\.weight_decay=-0\.1: it must be >= 0"),
        ({"optim__bias_multiplier": -1.0}, r"config\.optim\.bias_multiplier=-1\.0: it must be >= 0"),
        ({"optim__clip_norm": -1.0}, r"config\.optim\.clip_norm=-1\.0: it must be >= 0"),
        ({"loss__sampling": 0.0}, r"config\.loss\.sampling=0\.0: it must be from 0\.01 to 1"),
        ({"eval__batch_size": 0}, r"config\.eval\.batch_size=0: it must be >= 1"),
        ({"eval__every": -1}, r"config\.eval\.every=-1: it must be >= 0"),
        ({"eval__pictures": -1}, r"config\.eval\.pictures=-1: it must be >= 0"),
        ({"log__every": 0}, r"config\.log\.every=0: it must be >= 1"),
        ({"log__checkpoint_every": 0}, r"config\.log\.checkpoint_every=0: it must be >= 1"),
        ({"steps": (10, 10)}, r"one value per stage.*'network': 1, 'steps': 2, 'learning_rate': 1"),
        ({"network": "", "steps": (), "learning_rate": ()}, r"one value per stage.*'network': 0"),
        ({"steps": (0,)}, r"config\.steps has 0.*>= 1"),
        ({"steps": (1.5,)}, r"config\.steps has 1\.5.*whole number"),
        ({"learning_rate": (0.0,)}, r"config\.learning_rate has 0\.0: it must be > 0"),
        ({"learning_rate": (float("nan"),)}, r"config\.learning_rate has nan: it must be > 0"),
        ({"data__crop_size": (64,)}, r"config\.data\.crop_size=\(64,\): give \(height, width\)"),
        ({"data__crop_size": (64, 0)}, r"config\.data\.crop_size=\(64, 0\): give \(height, width\)"),
        ({"data__crop_size": (64, 64, 3)}, r"config\.data\.crop_size=\(64, 64, 3\)"),
        ({"data__crop_size": (64.0, 64)}, r"config\.data\.crop_size=\(64\.0, 64\)"),
        ({"data__crop_size": (64, 64), "data__scale": (2.0, 1.0)}, r"config\.data\.scale=\(2\.0, 1\.0\)"),
        ({"data__crop_size": (64, 64), "data__scale": (0.0, 1.0)}, r"config\.data\.scale=\(0\.0, 1\.0\)"),
        ({"data__crop_size": (64, 64), "data__scale": (1.0,)}, r"config\.data\.scale=\(1\.0,\)"),
        ({"data__scale": (0.5, 2.0)}, r"config\.data\.scale resizes.*config\.data\.crop_size"),
        ({"model__backbone": "alexnet"}, r"config\.model\.backbone='alexnet': network 'fcn8s' .* choose from fcn32s"),
        ({"model__backbone": "alexnet", "network": "fcn32s", "model__width": 95}, "width 95 must be a multiple of 2"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_value_that_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        config_lib.validate(changed(**values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"seed": 2**31 - 1, "model__dropout": 0.0, "optim__momentum": 0.0, "data__colour_jitter": 1.0},
        {"data__crop_size": (64, 32), "data__scale": (0.5, 0.5)},
        {"network": "fcn32s,fcn8s", "steps": (1, 1), "learning_rate": (1e-10, 1e-14)},
    ],
    ids=["default", "limits", "crop", "stages"],
)
def test_values_that_can_be(values):
    config_lib.validate(changed(**values))


def test_a_wrong_second_stage_is_found():
    with pytest.raises(ValueError, match=r"config\.steps has 0"):
        config_lib.validate(changed(network="fcn32s,fcn8s", steps=(5, 0), learning_rate=(1.0, 1.0)))


def test_warm_up_longer_than_a_stage_is_found():
    values = {"network": "fcn32s,fcn8s", "steps": (100, 10), "learning_rate": (1.0, 1.0)}
    config_lib.validate(changed(**values, optim__warmup_steps=9))
    with pytest.raises(ValueError, match=r"config\.optim\.warmup_steps=10: .* below the 10 steps of the shortest"):
        config_lib.validate(changed(**values, optim__warmup_steps=10))


def test_stages():
    config = changed(network="fcn32s,fcn16s, fcn8s", steps=(10, 5, 1), learning_rate=(1e-3, 1e-4, 1e-5))
    first, second, third = config_lib.stages(config)
    assert first == config_lib.Stage("fcn32s", 0, 10, 1e-3)
    assert second == config_lib.Stage("fcn16s", 10, 15, 1e-4)
    assert third == config_lib.Stage("fcn8s", 15, 16, 1e-5)


def test_the_paper_recipe_is_that_of_the_released_solvers():
    config = config_lib.paper_recipe(config_lib.default())
    config_lib.validate(config)
    flat = config_lib.flatten(config)
    expected = {
        "model.geometry": "caffe",
        "optim.name": "sgd",
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.momentum": 0.99,
        "optim.weight_decay": 5e-4,
        "optim.bias_multiplier": 2.0,
        "optim.clip_norm": 0.0,
        "loss.normalization": "sum",
        "loss.class_weights": "none",
        "data.batch_size": 1,
        "data.accumulate": 1,
        "data.replacement": True,
        "data.crop_size": (),
        "data.scale": (1.0, 1.0),
        "data.flip": False,
        "data.colour_jitter": 0.0,
    }
    assert {key: flat[key] for key in expected} == expected


def test_flatten():
    assert config_lib.flatten({"a": 1, "b": {"c": (2, 3), "d": {"e": ""}}}) == {"a": 1, "b.c": (2, 3), "b.d.e": ""}
    flat = config_lib.flatten(config_lib.default())
    assert (flat["seed"], flat["model.width"]) == (0, 64)


def saved(**values):
    """The content of a config.json."""
    return json.loads(config_lib.to_json(changed(**values)))


def test_json_keeps_every_value():
    config = changed(network="fcn32s,fcn8s", steps=(1, 2), learning_rate=(1e-10, 0.5), data__crop_size=(64, 32))
    written = config_lib.to_json(config)
    assert written.endswith("}\n")
    flat = config_lib.flatten(config)
    read = config_lib.flatten(json.loads(written))
    assert read == {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}
    assert config_lib.changes(json.loads(written), config) == []


def test_changes_names_what_may_not_change():
    old = saved(model__width=8, data__crop_size=(64, 32))
    new = changed(model__width=16, data__crop_size=(64, 64), seed=1)
    assert config_lib.changes(old, new) == [
        "data.crop_size: [64, 32] -> [64, 64]",
        "model.width: 8 -> 16",
        "seed: 0 -> 1",
    ]


def test_changes_ignores_where_data_lies_and_how_often_things_are_written():
    new = changed(
        data__raw_dir="/elsewhere",
        data__data_dir="/elsewhere",
        data__num_threads=9,
        init__cache_dir="/elsewhere",
        sharding__params=True,
        eval__batch_size=1,
        eval__every=1,
        eval__pictures=0,
        log__every=1,
        log__checkpoint_every=1,
    )
    assert config_lib.changes(saved(), new) == []


@pytest.mark.parametrize("key", sorted(config_lib.flatten(config_lib.default())))
def test_changes_knows_every_key(key):
    """Each key but those that are named here is held fast."""
    may = {"data.raw_dir", "data.data_dir", "data.num_threads", "init.cache_dir"}
    free = key in may or key.startswith(("sharding.", "eval.", "log."))
    config = config_lib.default()
    with config.ignore_type():
        config.update_from_flattened_dict({key: "another"})
    assert [change.split(":")[0] for change in config_lib.changes(saved(), config)] == ([] if free else [key])


def test_changes_names_keys_that_came_or_went():
    """A key that is newer than the run had its default, and may not have been given another value."""
    old = saved()
    old["optim"]["nesterov"] = True
    del old["loss"]["class_weights"]
    new = changed(loss__class_weights="median_frequency")
    assert "loss.class_weights: 'none' -> 'median_frequency'" in config_lib.changes(old, new)
    assert config_lib.changes(old, config_lib.default()) == [
        "optim.nesterov: True -> None",
    ]


def test_limits_and_choices_are_of_keys_that_exist():
    keys = config_lib.flatten(config_lib.default()).keys()
    assert keys >= config_lib._LIMITS.keys() | config_lib._CHOICES.keys()
    for may in config_lib.MAY_CHANGE:
        assert any(f"{key}.".startswith(f"{may}.") for key in keys), may


def test_a_misspelt_key_is_an_error_with_a_suggestion():
    config = config_lib.default()
    with pytest.raises(AttributeError, match="momentum"):
        config.optim.momentun = 0.5
    with pytest.raises(KeyError, match="learning_rate"):
        config["lerning_rate"] = (0.5,)
    with pytest.raises(AttributeError, match="batch_size"):
        _ = config.data.batchsize


def test_a_value_of_another_type_is_an_error():
    with pytest.raises(TypeError, match="width"):
        changed(model__width="64")
    with pytest.raises(TypeError, match="flip"):
        changed(data__flip=1.5)


# Who reads what. A chain of attributes that starts at the config is followed through local names, such as
# `model = self.config.model` and then `model.width`; text in comments, docstrings and messages counts for nothing.


def paths_read(tree):
    """The paths ('optim.clip_norm', also 'optim') that the code reads of a config."""
    found = set()
    for scope in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]:
        arguments = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]
        names = {argument.arg: "" for argument in arguments if argument.arg == "config"}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target, value in assignments(node):
                    path = path_of(value, names)
                    if path is not None:
                        names[target] = path
        inner = set()  # `config.data` inside of `config.data.flip` is no read of its own
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and node not in inner:
                path = path_of(node, names)
                if path:
                    found.add(path)
                    inner |= {*ast.walk(node)}
    return found


def assignments(node):
    """(name, value) of `a = x` and of `a, b = x, y`."""
    for target in node.targets:
        if isinstance(target, ast.Name):
            yield target.id, node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(target.elts, node.value.elts, strict=True):
                if isinstance(name, ast.Name):
                    yield name.id, value


def path_of(node, names):
    """'' of the config itself, 'data.flip' of a value in it, None of anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    parent = path_of(node.value, names)
    if parent is not None:
        return f"{parent}.{node.attr}".lstrip(".")
    if isinstance(node.value, ast.Name) and (node.value.id, node.attr) in (
        ("run", "config"),
        ("self", "config"),
        ("_CONFIG", "value"),
    ):
        return ""
    return None


def read_by_the_package():
    """What fcn_jax reads: all of it but config.py, and of that the function which hands out the stages."""
    trees = [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "config.py"]
    calls = {node.func.attr for tree in trees for node in ast.walk(tree) if is_call_by_attribute(node)}
    assert "stages" in calls
    own = ast.parse((PACKAGE / "config.py").read_text())
    own.body = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "stages"]
    architecture = {f"model.{key}" for key in spec.ARCHITECTURE}  # by spec.configured
    return architecture.union(*(paths_read(tree) for tree in [*trees, own]))


def is_call_by_attribute(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


def unread(config, read):
    return sorted(config_lib.flatten(config).keys() - read)


def unknown(config, read):
    """What is read and is neither a value nor a group of the config."""
    keys = config_lib.flatten(config).keys()
    groups = {key.rpartition(".")[0] for key in keys}
    return sorted(path for path in read if path not in keys and path not in groups)


def test_every_key_is_read():
    assert unread(config_lib.default(), read_by_the_package()) == []


def test_every_key_that_is_read_exists():
    assert unknown(config_lib.default(), read_by_the_package()) == []


def test_a_key_that_is_declared_and_never_read_would_be_found():
    config = config_lib.default()
    with config.unlocked():
        config.optim.nesterov = False
        config.unused = ConfigDict({"flip": True})  # data.flip is read, this is not
    assert unread(config, read_by_the_package()) == ["optim.nesterov", "unused.flip"]


def test_what_counts_as_read():
    code = '''
def train(config, other):
    """config.data.flip in a docstring."""
    model, spec = config.model, None
    print(model.width, other.dropout, "config.model.dtype", f"{config.seed}")  # config.name
    print(Path(config.init.cache_dir).parent)
    return lambda: config.log.evry

def stage(run, settings):
    data = run.config.data
    jax.config.update("x", data.scale)
    return settings.loss.normalization

def main():
    config = _CONFIG.value
    return config.eval.every
'''
    read = paths_read(ast.parse(code))
    assert read == {"model", "model.width", "init.cache_dir", "seed", "log.evry", "data", "data.scale", "eval.every"}
    assert unknown(config_lib.default(), read) == ["log.evry"]


def test_the_docstrings_and_messages_name_keys_that_exist():
    keys = config_lib.flatten(config_lib.default()).keys()
    groups = {key.rpartition(".")[0] for key in keys}
    named = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"(?<![\w.])config\.((?:\w+\.)*\w+)", node.value))
    named -= {"json", "py"}  # the files
    assert len(named) > 5
    assert named <= keys | groups
