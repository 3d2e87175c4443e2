"""fcn-jax, the one command: its words, help, completion, and configs by their names."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from fcn_jax import command

OTHERS = ("eval", "video", "report", "demo", "data", "weights", "export")
FOLDER = pathlib.Path(__file__).parents[1] / "configs"


def run(*arguments, **options):
    line = (sys.executable, "-m", "fcn_jax.command", *map(str, arguments))
    return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)


def test_without_a_command_it_says_what_there_is():
    done = run()
    assert done.returncode == 0
    for word, what in command.COMMANDS.items():
        assert f"  {word:<9} {what.does}" in done.stdout
    assert done.stdout == run("--help").stdout


@pytest.mark.parametrize(
    ("word", "flags"),
    [("predict", ("--checkpoint", "--[no]tiles")), ("train", ("--config",)), *((word, ()) for word in OTHERS)],
)
def test_help_has_our_flags_alone(word, flags):
    """With a default where there is one, after the examples."""
    done = run(word, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert {line.strip() for line in lines if line.startswith("  --")} >= set(flags)
    assert any(line.strip().startswith("python -m fcn_jax.") for line in lines)
    assert "--logtostderr" not in done.stdout
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("trian",),
            "fcn-jax has no command 'trian': choose from train, eval, predict, video, report, demo, data, weights,",
        ),
        (("completion", "fish"), "completion for 'fish': choose from bash, zsh"),
        (("train", "--config=fcn9s"), "there is no config 'fcn9s': give a file, or one of camvid_fcn8s, "),
        (("train", "--config=fcn8s:dmeo"), "configs/fcn8s.py has no variant 'dmeo': choose paper or demo"),
    ],
)
def test_mistakes(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_config_has_a_name():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert command.config_folder() == FOLDER
    for name in names:
        assert command.by_name(f"--config={name}") == f"--config={FOLDER}/{name}.py"
    assert command.by_name("--config=fcn8s:demo") == f"--config={FOLDER}/fcn8s.py:demo"
    for other in ("--config=configs/fcn8s.py", "--config=fcn8s.py", "--workdir=fcn8s", "--config.steps=fcn8s", "fcn8s"):
        assert command.by_name(other) == other


def completed(*words):
    """What bash offers for the last word."""
    script = f"""
        fcn-jax() {{ {shlex.quote(sys.executable)} -m fcn_jax.command "$@"; }}
        eval "$(fcn-jax completion bash)"
        COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
        _fcn_jax || true; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(("bash", "-c", script), capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def test_completion_in_bash():
    assert completed("fcn-jax", "pre") == ["predict"]
    assert completed("fcn-jax", "") == [*command.COMMANDS, "completion"]
    assert completed("fcn-jax", "predict", "--ch") == ["--checkpoint"]


def test_completion_in_zsh(tmp_path):
    """In a terminal of its own, as a person types it."""
    if not shutil.which("zsh"):
        pytest.skip("no zsh on this machine")
    (tmp_path / "fcn-jax").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fcn_jax.command "$@"\n')
    (tmp_path / "fcn-jax").chmod(0o755)
    script = """
        zmodload zsh/zpty
        zpty shell 'zsh -f -i'
        zpty -w shell 'autoload -U compinit; compinit -u -D; eval "$(fcn-jax completion zsh)"; echo RE''ADY'
        zpty -r shell text '*READY*'
        zpty -w -n shell $'fcn-jax pre\\t'
        zpty -r shell text '*predict*' && zpty -w -n shell $'--ch\\t'
        zpty -r shell text '*--checkpoint*' && print COMPLETED
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(("zsh", "-f", "-c", script), capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.endswith("COMPLETED\n"), done
