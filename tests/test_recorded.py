"""Checkpoints that an earlier version wrote are read, score as they did, and can be gone on from.

recorded/checkpoints_f86a5bb.tgz was written by commit f86a5bb: `converted` by checkpoint.save_params, `run` by a run
with AdamW and an average of the parameters, and every 13th row and column of their logits for one image.
"""

import pathlib
import tarfile

import jax
import numpy as np
import pytest

from fcn_jax import checkpoint, optim, train_state
from fcn_jax.models import fcn
from fcn_jax.run.checkpoints import Checkpoints

ARCHIVE = pathlib.Path(__file__).parent / "recorded" / "checkpoints_f86a5bb.tgz"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", ["converted", "run"])
def test_it_scores_as_it_did(recorded, name):
    params, spec = checkpoint.load_params(checkpoint.find(recorded / name))
    image = ((np.arange(40 * 30 * 3, dtype=np.uint32).reshape(1, 40, 30, 3) * 2654435761) >> 24).astype(np.uint8)
    found = np.asarray(fcn.FCN(spec).apply({"params": params}, image))[0, ::13, ::13]
    expected = np.load(recorded / "logits.npz")[name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_its_run_goes_on(recorded):
    with Checkpoints(recorded / "run") as checkpoints:
        step = checkpoints.latest_step()
        shapes = fcn.abstract_params(checkpoints.spec(step))
        solver = optim.Solver("adamw", lambda step: 1e-3, momentum=0.9, weight_decay=1e-4)
        optimizer = optim.make_optimizer(shapes, solver)
        state = jax.eval_shape(lambda p: train_state.create_train_state(p, optimizer, step=0, averaged=True), shapes)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = checkpoints.restore(step, checkpoint.with_sharding(state, place))
    assert (step, int(state.step), int(state.bad_step)) == (7, 7, -1)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.average)  # no update was made before it was saved
