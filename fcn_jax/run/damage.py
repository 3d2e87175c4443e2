"""Checkpoints that a kill, a full disk or a bad one has damaged: found before they are read, and set aside."""

import logging
import pathlib

from fcn_jax import digests, integrity

log = logging.getLogger(__name__)

# What a folder with a number for a name must have one of to be a checkpoint.
_MARKS = (*integrity.ITEMS, "model", "metrics", "_CHECKPOINT_METADATA", digests.NAME)


def set_aside(workdir: pathlib.Path) -> str:
    """Moves what cannot be read from checkpoints/ to damaged/, and says so; arrays are read until some are whole.

    Returns:
      Why the run cannot go on, where there are checkpoints and none of them can be read; nothing is moved then.
    """
    workdir = workdir.absolute()
    numbered = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    whole, bad = 0, []
    for directory in sorted(numbered, key=lambda path: int(path.name), reverse=True):
        reason = _damage(directory, arrays=not whole)
        if reason:
            bad.append((directory, reason))
        else:
            whole = whole or int(directory.name)
    lost = [(directory, reason) for directory, reason in bad if _is_checkpoint(directory)]
    if lost and not whole:
        return (
            f"none of the {len(lost)} checkpoints in {workdir}/checkpoints can be read (step {lost[0][0].name}:"
            f" {lost[0][1]}): put a copy back, or delete {workdir} to start over"
        )
    for directory, reason in bad:
        _move(directory, workdir / "damaged", reason)
    if lost:
        log.warning("going on from step %d", whole)
    return ""


def _move(directory: pathlib.Path, folder: pathlib.Path, reason: str) -> None:
    folder.mkdir(exist_ok=True)
    aside, number = folder / directory.name, 1
    while aside.exists():
        number += 1
        aside = folder / f"{directory.name}-{number}"
    directory.rename(aside)
    log.warning("the checkpoint of step %s is damaged (%s): moved to %s", directory.name, reason, aside)


def _is_checkpoint(directory: pathlib.Path) -> bool:
    """Whether it is one of ours, in whatever state."""
    return any((directory / name).exists() for name in _MARKS)


def _damage(directory: pathlib.Path, *, arrays: bool) -> str:
    """Why a folder with a number for a name cannot be read as a checkpoint, empty if it can."""
    if not _is_checkpoint(directory) or directory.name != str(int(directory.name)):
        return "it is no checkpoint of a run"
    return integrity.flaw(directory, integrity.ITEMS if arrays else ())
