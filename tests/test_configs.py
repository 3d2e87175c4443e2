"""Every file in configs/ starts, saves and is evaluated, at a tiny size; the staged ones are resumed as well."""

import importlib.util
import json
import pathlib

import own
import pytest
from layouts import make_label, voc_list, write_camvid, write_nyud, write_sbd, write_sift_flow, write_voc
from test_train import losses, stopping

from fcn_jax import checkpoint, evaluate, train
from fcn_jax import config as config_lib
from fcn_jax.data.builders import voc_segmentation

pytestmark = pytest.mark.usefixtures("standard_promotion", "one_device")

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
VARIANTS = [(path.stem, None) for path in sorted(FOLDER.glob("*.py"))]
VARIANTS += [("fcn8s", "demo"), ("fcn_alexnet", "torchvision")]
EVALUATED = ("fcn8s", "camvid_fcn8s", "nyudv2_fcn32s", "siftflow_fcn8s", "folder")
RESUMED = [("fcn8s", None), ("fcn8s", "demo")]


def load(name, variant):
    """get_config of a file in configs/."""
    spec = importlib.util.spec_from_file_location(f"configs_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*filter(None, [variant])), module.__doc__


@pytest.fixture(scope="session")
def raw_dir(tmp_path_factory):
    """All official layouts, tiny; seg11valid with its 736 ids."""
    root = tmp_path_factory.mktemp("raw")
    valid = voc_segmentation.seg11valid_ids()
    train_ids, label_shape = [f"t{k}" for k in range(4)], make_label(0).shape
    write_voc(root, {i: make_label(k) for k, i in enumerate([*train_ids, *valid])})
    voc_list(root, "train", train_ids)
    voc_list(root, "val", valid)
    sbd_ids = [f"s{k}" for k in range(4)]
    write_sbd(root, {i: make_label(k) for k, i in enumerate(sbd_ids)}, sbd_ids, [])
    write_camvid(root, "train", train_ids)
    write_camvid(root, "val", ["v0", "v1"])
    write_nyud(root, {"train": 3, "val": 2, "test": 2}, label_shape)
    write_sift_flow(root, {"trainval": 4, "test": 2}, label_shape)
    return str(root)


def tiny(c, steps, raw_dir, data_dir):
    """The config with so many steps in each stage; its last step."""
    stages = len(config_lib.words(c.network))
    c.steps = (steps,) * stages
    c.model.width, c.model.fc_width = 2, 4
    c.init.weights, c.init.random = "", "*"
    c.data.raw_dir, c.data.data_dir = raw_dir, data_dir
    c.data.batch_size = c.eval.batch_size = 4
    c.data.eval_split += "[:2]"
    c.optim.warmup_steps = min(c.optim.warmup_steps, steps - 1)
    c.log.every = c.log.checkpoint_every = 1
    if c.data.name == "folder":
        own.images(pathlib.Path(raw_dir, "own"))
        own.masks(pathlib.Path(raw_dir, "own"))
        own.class_list(pathlib.Path(raw_dir, "own"))
        c.data.raw_dir, c.data.eval_split, c.data.crop_size = f"{raw_dir}/own", "val", (32, 32)
    if c.data.name == "shapes":
        c.data.train_split, c.data.eval_split = "tiny[:4]", "tiny[4:]"
    return steps * stages


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_config_runs_and_evaluates(name, variant, raw_dir, data_dir, tmp_path):
    c, _ = load(name, variant)
    resumed = (name, variant) in RESUMED
    last = tiny(c, 2 if resumed else 1, raw_dir, data_dir)
    if resumed:
        with pytest.MonkeyPatch.context() as patch:
            stopping(patch, last - 1)
            with pytest.raises(KeyboardInterrupt):
                train.train_and_evaluate(c, tmp_path)
        assert checkpoint.saved_steps(tmp_path)[-1] == last - 1
    train.train_and_evaluate(c, tmp_path)
    assert sorted(losses(tmp_path)) == list(range(1, last + 1))
    found = json.loads(next(tmp_path.glob("eval_*.json")).read_text())
    assert found["step"] == last
    assert sum(map(sum, found["confusion_matrix"])) > 0
    if name in EVALUATED:  # what differs between the others has no part in it
        results = evaluate.evaluate_checkpoint(c, tmp_path, split=c.data.eval_split, which="latest")
        assert results["confusion_matrix"] == found["confusion_matrix"]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_config_is_valid_and_documented(name, variant):
    c, doc = load(name, variant)
    config_lib.validate(config_lib.filled(c))
    assert c.name == (f"{name}_{variant}" if variant else name), "the name is the default workdir"
    assert f"--config=configs/{name}.py" in doc
    json.loads(config_lib.to_json(c))
