"""The commands on machines as people have them: no home, closed streams, JAX's switches, signals of schedulers."""

import errno
import io
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from test_commands import DEMO, ENVIRONMENT, ROOT, TINY
from test_launch import MAIN, SRUN, fakes, launch, wait_until  # noqa: F401  (a fixture)

from fcn_jax import cli
from fcn_jax.run.stop import Stop

SWITCHES = {
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DISABLE_JIT": "1",
}


def test_a_run_and_its_evaluation_in_a_daemon_without_a_home_under_the_switches(data_dir, tmp_path):
    """Closed standard streams, ~ of nobody, and what comes out is what a usual run computes."""
    environment = {**ENVIRONMENT, **SWITCHES, "HOME": "/proc/nowhere", "TMPDIR": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    arguments = (DEMO, *TINY, f"--config.data.data_dir={data_dir}", f"--workdir={tmp_path}/run")
    command = ("sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "fcn_jax.main", *arguments)
    assert subprocess.run(command, cwd=ROOT, env=environment, timeout=300).returncode == 0
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert (tmp_path / f"fcn_jax-{os.getuid()}" / ".cache" / "fcn_jax").is_dir()
    # A table whose reader is gone before it comes.
    command = ("sh", "-c", '{ "$@"; echo $? >&2; } | true', "sh", sys.executable, "-m", "fcn_jax.main", *arguments)
    process = subprocess.run((*command, "--mode=eval"), cwd=ROOT, env=environment, capture_output=True, timeout=300)
    lines = process.stderr.decode().splitlines()
    assert lines[0] == f"no home folder that can be written: ~ is {tmp_path}/fcn_jax-{os.getuid()}; " + (
        "set HOME to name another"
    )
    assert (lines[1:-1], lines[-1]) == (["JAX_DISABLE_JIT has no effect: steps are compiled before they are run"], "0")


def test_platforms_that_are_missing_are_one_line():
    code = "import jax; from fcn_jax import cli; cli.run(lambda argv: print(jax.devices()))"
    environment = {**ENVIRONMENT, "JAX_PLATFORMS": "cuda"}
    process = subprocess.run(
        (sys.executable, "-c", code), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 1
    assert process.stderr.startswith("JAX_PLATFORMS=cuda: there are no such devices, or this JAX is not built for them")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("home", [None, "/proc/nowhere", "~"])
def test_a_home_that_cannot_be_written_is_replaced(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    if home is None:  # neither HOME nor an entry for the user
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError()))
    cli.give_home()
    own = tmp_path / f"fcn_jax-{os.getuid()}"
    assert pathlib.Path("~/.cache").expanduser() == own / ".cache"
    assert own.stat().st_mode & 0o777 == 0o700
    assert f"~ is {own}; set HOME" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "trap").mkdir()
    (tmp_path / f"fcn_jax-{os.getuid()}").symlink_to(tmp_path / "trap")
    cli.give_home()
    assert os.environ["HOME"].startswith(f"{tmp_path}/fcn_jax-")
    assert not pathlib.Path(os.environ["HOME"]).is_symlink()


def test_a_home_that_can_be_written_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    cli.give_home()
    assert os.environ["HOME"] == str(tmp_path)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def stream_on(number):
    return io.TextIOWrapper(os.fdopen(number, "wb"), write_through=True)


def test_a_reader_that_has_gone_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    with stream_on(writer) as broken:
        stream = cli._Lasting(broken, BrokenPipeError)
        assert stream.write("lost") == 4
        stream.flush()
        assert os.readlink(f"/proc/self/fd/{writer}") == os.devnull, "what else writes there is not disturbed either"


def test_a_full_disk_costs_log_lines_but_is_told_of_results():
    for lost, told in ((OSError, []), (BrokenPipeError, [errno.ENOSPC])):
        found = []
        with stream_on(os.open("/dev/full", os.O_WRONLY)) as full:
            try:
                cli._Lasting(full, lost).write("lost")
                cli._Lasting(full, lost).flush()
            except OSError as error:
                found.append(error.errno)
            cli._to_null(full)  # else closing it tries again
        assert found == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_each_signal_asks_for_a_stop_once(number, capfd):
    usual = signal.default_int_handler  # whatever the tests were started with, such as nohup
    before = signal.signal(number, usual)
    with Stop() as stop:
        assert not stop.asked()
        signal.raise_signal(number)
        assert stop.asked()
        assert stop.stopped().code == 128 + number
        assert signal.signal(number, before) is usual, "a second one is as usual"
    assert capfd.readouterr().err == "stopping when this step is done and saved; again stops at once\n"


def test_a_signal_that_nohup_has_ignored_stays_ignored():
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_a_job_of_several_processes_is_told_of_every_signal(monkeypatch, capfd):
    """SIGTERM is JAX's there, and the others become one."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    usual = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert signal.getsignal(signal.SIGTERM) is usual
        signal.raise_signal(signal.SIGUSR1)
        assert sent == [(os.getpid(), signal.SIGTERM)]
        assert stop.stopped().code == 128 + signal.SIGUSR1


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_slurm_hands_a_signal_to_the_script_alone_on_and_queues_again(fakes, number):  # noqa: F811
    """--sbatch=--signal=B:USR1@120."""
    environment, recorded = fakes
    environment = {**environment, "SLURM_JOB_ID": "17", "FAKE_CODE": str(128 + number), "FAKE_TIME": "1"}
    script = ROOT / "launch" / "slurm.sh"
    with subprocess.Popen((str(script), "--config=configs/fcn8s.py"), env=environment) as process:
        wait_until(recorded)
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    name = number.name.removeprefix("SIG")
    assert recorded()[1:] == [["scancel", f"--signal={name}", "17"], ["scontrol", "requeue", "17"]]
