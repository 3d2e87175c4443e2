"""`python -m fcn_jax.main`, which keeps what it compiles as the first process of a job does.

JAX lets only process 0 write to its cache, and on CPU the programs of the others are not its own, so that they would
compile at every start. Nothing else differs.
"""

import runpy
import sys
from unittest import mock

from jax._src import compiler, distributed

write = compiler._cache_write


def write_as_the_first(*args, **more):
    with mock.patch.object(distributed.global_state, "process_id", 0):
        write(*args, **more)


if __name__ == "__main__":
    compiler._cache_write = write_as_the_first
    sys.path.pop(0)  # this folder, which -m would not have
    runpy.run_module("fcn_jax.main", run_name="__main__", alter_sys=True)
