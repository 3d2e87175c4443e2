"""Four CPU devices, and whatever JAX would silently promote is an error."""

import os
import tempfile
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny networks compile for longer than they run: LLVM at -O1 halves the suite.
FLAGS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import jax  # noqa: E402
import pytest  # noqa: E402

# Tiny networks compile again and again with the same shapes.
CACHE = tempfile.TemporaryDirectory(prefix="fcn_jax_xla_")  # it goes with the process
jax.config.update("jax_compilation_cache_dir", CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="how often test_killed_at_random_moments kills its run")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepared data, shared by the tests of one process."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def standard_promotion() -> Iterator[None]:
    """For whole runs: optax's AdamW raises a float to an int power."""
    with jax.numpy_dtype_promotion("standard"):
        yield
