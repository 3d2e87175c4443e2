"""A page in the browser to try a network: python -m fcn_jax.demo --checkpoint=RUN

Drop a photograph onto it, or take one with the camera. It shows what is where and how much of it, takes objects out,
and hands out masks and cut-outs. Nothing leaves this machine. `pip install 'fcn_jax[demo]'` installs what it needs.

  python -m fcn_jax.demo --checkpoint=runs/fcn8s_demo
  python -m fcn_jax.demo --checkpoint=runs/mine --host=0.0.0.0 --port=8080     # for others in your network, too
"""

import contextlib
import logging
import socket
from collections.abc import Sequence

from absl import flags

from fcn_jax import cli, extras
from fcn_jax.predictor import MAX_SIDE, load

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, a step of its checkpoints, converted weights, or a name such as camvid-small."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "The checkpoint of a run that is taken.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Who may use it: 127.0.0.1 for this machine, 0.0.0.0 for all.")
_PORT = flags.DEFINE_integer("port", 8000, "The port; 0: any that is free.", lower_bound=0, upper_bound=65535)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", MAX_SIDE, "Longer images are segmented at this length; 0: never.", lower_bound=0
)
_LOCAL = ("127.0.0.1", "localhost", "::1")
_CONNECTIONS = 64  # at once, each of which may hold an image

log = logging.getLogger("fcn_jax.demo")


def main(argv: Sequence[str]) -> None:
    """The work of one command."""
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every option is --name=value")
    if not _CHECKPOINT.value:
        raise ValueError("--checkpoint is missing: give the workdir of a run, such as runs/fcn8s_demo")
    for package in ("uvicorn", "starlette"):
        extras.need(package, "demo")
    import uvicorn

    from fcn_jax.demo import server

    network = load(_CHECKPOINT.value, which=_WHICH.value, max_side=_MAX_SIDE.value)
    if network.spec.input_names != ("colour",):
        raise ValueError(f"the network takes {'+'.join(network.spec.input_names)}, photographs have colour alone")
    listening = _listen(_HOST.value, _PORT.value)
    hosts = [*_LOCAL, "[::1]"] if _HOST.value in _LOCAL else ["*"]
    shown = f"[{_HOST.value}]" if ":" in _HOST.value else _HOST.value
    application = server.app(network, _CHECKPOINT.value.rstrip("/").rpartition("/")[2], hosts=hosts)
    log.info("open http://%s:%d in a browser; Ctrl-C ends it", shown, listening.getsockname()[1])
    config = uvicorn.Config(
        application, log_config=None, access_log=False, limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=5
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; ValueError with the remedy if it cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # who comes before the server is up waits
    except OSError as error:
        raise ValueError(f"--host={host} --port={port}: {error.strerror or error}: give another --port") from None
    return listening


if __name__ == "__main__":
    cli.run(main)
