"""Checkpoints that a disk, a copy or a person has changed, found before they are read; and which is the best."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import checkpoint, digests, train_state
from fcn_jax.models import fcn
from fcn_jax.models.spec import ModelSpec
from fcn_jax.run import damage
from fcn_jax.run.checkpoints import Checkpoints

SPEC = ModelSpec("fcn32s", "vgg16", "same", False, "fixed", 1, 2, ("a", "b"), ((0, 0, 0), (1, 1, 1)))
PLAIN = {"scales": [1.0], "flip": False}
LARGE = {"scales": [1.5], "flip": False}


def params(value=0.5):
    return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), fcn.abstract_params(SPEC))


def state(step):
    weights = jax.tree.map(jnp.asarray, params(step))
    return train_state.TrainState(jnp.int32(step), weights, {"m": jnp.arange(3.0)}, jnp.int32(-1))


def save(workdir, scores, scoring=PLAIN):
    """Checkpoints of the steps, with their mean IU, in turn."""
    with Checkpoints(workdir, scoring) as checkpoints:
        for step, mean_iou in scores.items():
            checkpoints.save(state(step), SPEC, {"mean_iou": mean_iou, **scoring})
            checkpoints.wait()


@pytest.fixture
def workdir(tmp_path):
    """A run with the steps 1 and 2."""
    save(tmp_path / "run", {1: 0.5, 2: 0.25})
    return tmp_path / "run"


def flips(folder, seed, count):
    """Flips one random bit after the other and back again; yields the file it is in."""
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    for number in range(count):
        # Every file has its turn, and else each byte the same chance.
        path = files[number] if number < len(files) else rng.choices(files, [p.stat().st_size for p in files])[0]
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        yield path.relative_to(folder)
        path.write_bytes(whole)


def test_every_flipped_bit_of_a_checkpoint_is_found(workdir):
    shutil.rmtree(workdir / "checkpoints" / "1")
    folder = workdir / "checkpoints" / "2"
    for path in flips(folder, 0, 150):
        reason = damage.set_aside(workdir)
        assert reason.startswith(f"none of the 1 checkpoints in {workdir}/checkpoints can be read (step 2: "), path
    assert damage.set_aside(workdir) == ""
    assert checkpoint.saved_steps(workdir) == [2]


def test_every_flipped_bit_of_converted_weights_is_found(tmp_path):
    checkpoint.save_params(tmp_path / "converted", params(), SPEC)
    for path in flips(tmp_path / "converted", 1, 150):
        with pytest.raises(ValueError, match=r"the checkpoint .*/converted is damaged \(.+\): take another step"):
            print(path, checkpoint.load_params(tmp_path / "converted"))
    loaded, _ = checkpoint.load_params(tmp_path / "converted")
    jax.tree.map(np.testing.assert_array_equal, loaded, params())


def test_a_damaged_optimizer_does_not_keep_from_predicting(workdir):
    (path,) = (workdir / "checkpoints" / "2" / "train").glob("manifest.ocdbt")
    path.write_bytes(path.read_bytes()[:-1])
    assert damage.set_aside(workdir) == ""
    assert (workdir / "damaged" / "2").is_dir()
    loaded, _ = checkpoint.load_params(workdir / "damaged" / "2")
    assert loaded["conv1_1"]["kernel"].ravel()[0] == 2


def test_checkpoints_of_earlier_versions_have_no_digests(workdir, tmp_path):
    checkpoint.save_params(tmp_path / "converted", params(), SPEC)
    for folder in (workdir / "checkpoints" / "2", tmp_path / "converted"):
        (folder / digests.NAME).unlink()
        checkpoint.load_params(folder)
    assert damage.set_aside(workdir) == ""
    assert checkpoint.saved_steps(workdir) == [1, 2]


def test_the_list_is_that_of_sha256sum(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "a b").write_bytes(b"abc")
    digests.write(tmp_path, digests.of_files(tmp_path))
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert (tmp_path / "SHA256SUMS").read_text() == f"{known}  params/a b\n"
    assert digests.damage(tmp_path) == ""
    (tmp_path / "params" / "a b").write_bytes(b"abd")
    assert digests.damage(tmp_path) == "params/a b has changed since it was written"
    assert digests.damage(tmp_path, skip=["params"]) == ""
    (tmp_path / "params" / "a b").unlink()
    assert digests.damage(tmp_path, skip=["params"]) == "params/a b is missing"
    (tmp_path / "SHA256SUMS").write_text(f"{known}  params/a b")
    assert digests.damage(tmp_path) == "SHA256SUMS is cut short"


def test_where_none_can_be_read_nothing_is_moved(workdir):
    for step in (1, 2):
        (workdir / "checkpoints" / str(step) / "model" / "model.json").unlink()
    assert damage.set_aside(workdir) == (
        f"none of the 2 checkpoints in {workdir}/checkpoints can be read (step 2: model/model.json is missing):"
        f" put a copy back, or delete {workdir} to start over"
    )
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    assert not (workdir / "damaged").exists()


def test_other_folders_and_files_below_checkpoints_disturb_nothing(workdir):
    folder = workdir / "checkpoints"
    for name in ("99999", "007", "１２", "notes", "2 (copy)", "2.bak", "3.orbax"):  # one is in full-width digits
        (folder / name).mkdir()
    (folder / "4").mkdir()
    (folder / "4" / "notes.txt").write_text("mine")
    for name in (".DS_Store", "5", "README"):
        (folder / name).write_text("mine")
    shutil.copytree(folder / "2", folder / "0002")
    assert checkpoint.saved_steps(workdir) == [1, 2]
    assert checkpoint.best_step(workdir) == 1
    assert checkpoint.find(workdir) == folder / "1"
    assert damage.set_aside(workdir) == ""
    save(workdir, {3: 0.7, 4: 0.8, 5: 0.9})
    assert checkpoint.saved_steps(workdir) == [4, 5]
    assert (workdir / "damaged" / "4" / "notes.txt").read_text() == (workdir / "damaged" / "5").read_text() == "mine"


def test_a_folder_of_others_alone_is_a_new_run(tmp_path):
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    assert checkpoint.saved_steps(tmp_path) == []
    assert damage.set_aside(tmp_path) == ""
    save(tmp_path, {1: 0.5})
    assert checkpoint.saved_steps(tmp_path) == [1]


def test_the_best_is_of_those_that_were_scored_alike(workdir):
    """Step 1 has 0.5 at the plain size; what enlarged images score is not compared with it."""
    assert checkpoint.best_step(workdir) == 1
    save(workdir, {3: 0.4, 4: 0.3, 5: 0.2}, LARGE)
    assert checkpoint.best_step(workdir) == 3
    assert checkpoint.saved_steps(workdir) == [3, 4, 5], "the latest two and the best of the present scoring"
    save(workdir, {6: 0.1}, PLAIN)
    assert checkpoint.best_step(workdir) == 6


def test_scores_of_earlier_versions_are_plain(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(1), SPEC, {"mean_iou": 0.5})
        checkpoints.wait()
    save(tmp_path, {2: 0.4})
    assert checkpoint.best_step(tmp_path) == 1
    save(tmp_path, {3: 0.1}, LARGE)
    assert checkpoint.best_step(tmp_path) == 3


def test_without_scores_the_latest_is_the_best(tmp_path):
    assert checkpoint.best_step(tmp_path) is None
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), SPEC)
            checkpoints.wait()
    assert checkpoint.best_step(tmp_path) == 2
