"""Four CPU devices, and whatever JAX would silently promote is an error."""

import gc
import importlib.util
import os
import tempfile
from collections.abc import Iterator

import flags

gc.set_threshold(200_000, 50, 1000)  # tracing makes millions of objects that live: looking for cycles takes time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags.QUICK} --xla_force_host_platform_device_count=4"

# Tiny networks compile again and again with the same shapes: what one process has compiled is kept for all of this run,
# or for all runs with the same FCN_JAX_TEST_CACHE, and away from the user's own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="fcn_jax_xla_")  # it goes with the process
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("FCN_JAX_TEST_CACHE", CACHE.name)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# The longest first, so that the workers end together.
ORDER = (
    "test_notebook.py",
    "test_topology.py",
    "test_faults.py",
    "test_export.py",
    "test_parity.py",
    "test_configs.py",
    "test_commands.py",
    "test_train.py",
    "test_train_state.py",
    "test_convert.py",
    "test_export_command.py",
    "test_machines.py",
    "test_multiscale.py",
    "test_models.py",
    "test_launch.py",
    "test_report.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else len(ORDER))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a package that is not installed; `pytest -m needs` is all of it."""
    for marker in item.iter_markers("needs"):
        for package in marker.args:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"needs {package}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often test_stopped_and_killed_at_random_moments kills")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepared data, shared by the tests of one process."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def standard_promotion() -> Iterator[None]:
    """For whole runs: optax's AdamW raises a float to an int power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whole runs whose topology does not matter: on one device the programs compile in half the time."""
    from fcn_jax import sharding

    mesh = sharding.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
