"""The state of a run, apart from what computes it: reading a checkpoint needs no losses."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """What an optimizer update reads and writes.

    Attributes:
      step: int32 [], optimizer updates so far, over all stages.
      params: {layer: {'kernel', 'bias'}}, float32.
      opt_state: of the stage's optimizer.
      average: None, or the exponential moving average of the parameters, like them.
      bad_step: int32 [], the first update whose loss or gradient was not finite; -1 while there is none. It is kept on
        the device so that the loop never waits for it.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    bad_step: jax.Array
    average: Any = None

    @property
    def result(self) -> Any:
        """The parameters that are evaluated, exported and handed to the next stage: the average if there is one."""
        return self.params if self.average is None else self.average


def create_train_state(
    params: Any, optimizer: optax.GradientTransformation, step: int = 0, *, averaged: bool = False
) -> TrainState:
    """The state before the first update of a stage."""
    average = jax.tree.map(jnp.copy, params) if averaged else None
    return TrainState(jnp.int32(step), params, optimizer.init(params), jnp.int32(-1), average)
