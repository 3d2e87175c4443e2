"""One command for all of them: fcn-jax train --config=fcn8s:demo. Each is also python -m fcn_jax.X."""

import pathlib
import runpy
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """What a word starts: a module, with arguments before the user's, and what it does."""

    module: str
    does: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("fcn_jax.main", "train a network, and evaluate it on the way"),
    "eval": Command("fcn_jax.main", "evaluate a trained network on a split", ("--mode=eval",)),
    "predict": Command("fcn_jax.predict", "segment photographs: masks, overlays, scores, cut-outs"),
    "video": Command("fcn_jax.video", "segment a video, or take objects out of it"),
    "report": Command("fcn_jax.report", "runs as a page to look at: curves, scores, images"),
    "demo": Command("fcn_jax.demo", "a page in the browser to try a network"),
    "data": Command("fcn_jax.data", "check, show or convert a folder of your own pictures"),
    "weights": Command("fcn_jax.weights", "convert weights of others"),
    "export": Command("fcn_jax.export", "write a network for other programs: ONNX, StableHLO, ..."),
}
_EXAMPLES = """
examples:
  fcn-jax train --config=fcn8s:demo                         a first network, in a minute, with nothing but a CPU
  fcn-jax data check PHOTOS                                 what a folder of pictures and masks holds
  fcn-jax train --config=folder --config.data.raw_dir=PHOTOS --workdir=runs/mine
  fcn-jax predict --checkpoint=runs/mine --input=NEW --output=masks

fcn-jax COMMAND --help tells more. For completion of words and flags: eval "$(fcn-jax completion bash)", or zsh.
"""
_COMPLETION = """
_fcn_jax() {
  local cur=${COMP_WORDS[COMP_CWORD]}
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "@COMMANDS@" -- "$cur"))
  elif [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$(fcn-jax "${COMP_WORDS[1]}" --help 2>/dev/null | grep -o '^  --[a-z_]*' )" -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}
complete -o default -F _fcn_jax fcn-jax
"""


def overview() -> str:
    """What is printed without a command."""
    lines = [f"  {word:<9} {command.does}" for word, command in COMMANDS.items()]
    head = (
        "fcn-jax: fully convolutional networks for semantic segmentation\n\nusage: fcn-jax COMMAND [--flag=value ...]\n"
    )
    return "\n".join([head, *lines, _EXAMPLES])


def completion(shell: str) -> str:
    """A script that completes commands, flags and files in bash or zsh; ValueError for another shell."""
    if shell not in ("bash", "zsh"):
        raise ValueError(f"completion for {shell!r}: choose from bash, zsh")
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + _COMPLETION.strip().replace("@COMMANDS@", " ".join((*COMMANDS, "completion"))) + "\n"


def config_folder() -> pathlib.Path:
    """Where the configs are that come along: in the package, or beside it in a clone."""
    package = pathlib.Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def by_name(argument: str) -> str:
    """--config=fcn8s:demo as --config=/.../configs/fcn8s.py:demo; what is a file, or another flag, stays as it is."""
    flag, _, value = argument.partition("=")
    name, colon, variant = value.partition(":")
    if flag.lstrip("-") != "config" or "/" in name or name.endswith(".py") or pathlib.Path(name).exists():
        return argument
    path = config_folder() / f"{name}.py"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in config_folder().glob("*.py")))
        sys.exit(f"there is no config {name!r}: give a file, or one of {names}")
    return f"{flag}={path}{colon}{variant}"


def main() -> None:
    """Starts what the first word says."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help", "help"):
        print(overview(), end="")
        return
    if word == "completion":
        try:
            print(completion(*rest[:1] or ["bash"]), end="")
        except ValueError as error:
            sys.exit(str(error))
        return
    if word not in COMMANDS:
        sys.exit(f"fcn-jax has no command {word!r}: choose from {', '.join(COMMANDS)}")
    command = COMMANDS[word]
    sys.argv = [f"fcn-jax {word}", *command.arguments, *rest]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
