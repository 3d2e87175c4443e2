#!/usr/bin/env bash
# A Cloud TPU VM slice, all its workers at once. docs/SCALING.md says when, how and what it costs.
usage() {
  cat <<'TEXT'
launch/tpu.sh COMMAND --name=NAME --zone=ZONE [--project=PROJECT] [options]

create  --type=TYPE [--version=RUNTIME] [--spot] [-- FLAGS of gcloud]   rents the slice; it costs from here to delete
setup   [--repository=URL [--revision=REVISION]] [--nfs=HOST:/EXPORT] [--python=3.12]
                          copies the committed tree (or clones URL) to all workers and installs it there;
                          mounts the NFS export at /mnt/shared
run     -- --config=FILE --workdir=DIR [options of fcn_jax.main]        starts a run in the background on all workers
status                    the state of the slice, and of the run on each worker
logs    [--worker=0] [--lines=100] [--follow]                           what the run wrote on one worker
stop    [--wait=300]      SIGTERM on all workers; returns when the run is saved and has ended
delete  [--yes]           gives the slice back, with what lies on its disks

--dry-run prints the commands instead of running them. TPU_NAME, TPU_ZONE and TPU_PROJECT stand for --name, --zone and
--project.
TEXT
}

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'tpu.sh: %s\n' "$*" >&2
  exit 2
}

# The arguments as one line of shell.
quoted() {
  local separator='' word quote="'" escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//$quote/$escaped}'" ;;
    esac
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# Runs a command, or prints it.
perform() {
  if [ "$dry_run" = yes ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# gcloud compute tpus tpu-vm VERB ARGUMENTS, in the zone and the project.
tpu_vm() {
  local verb=$1 where=("--zone=$zone")
  shift
  [ -z "$project" ] || where+=("--project=$project")
  perform gcloud compute tpus tpu-vm "$verb" "${where[@]}" "$@"
}

# A script on the workers $1 (a number, or all).
on_workers() {
  tpu_vm ssh "$name" "--worker=$1" "--command=$2"
}

# The options that each command takes beside the common ones; what ends in = takes a value.
options_of() {
  case $1 in
    create) echo type= version= spot ;;
    setup) echo repository= revision= nfs= python= ;;
    run | status) echo ;;
    logs) echo worker= lines= follow ;;
    stop) echo wait= ;;
    delete) echo yes ;;
    *) return 1 ;;
  esac
}

# The runtime that Google names for JAX on a generation of TPUs.
runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) return 1 ;;
  esac
}

command=${1:-}
case $command in
  '') fail 'no command: create, setup, run, status, logs, stop or delete (--help)' ;;
  -h | --help | help)
    usage
    exit
    ;;
esac
options=$(options_of "$command") || fail "unknown command '$command': create, setup, run, status, logs, stop or delete"
shift

name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} dry_run=no
type='' version='' spot=no
repository='' revision='' nfs='' python=3.12
worker=0 lines=100 follow=no wait=300 yes=no
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --help)
      usage
      exit
      ;;
    --)
      shift
      rest=("$@")
      break
      ;;
    --*=*)
      key=${1%%=*} key=${key#--} value=${1#*=}
      case " name= zone= project= $options " in
        *" $key= "*) [ -n "$value" ] || fail "--$key is empty" ;;
        *) fail "$command has no option '--$key=' (--help)" ;;
      esac
      printf -v "$key" %s "$value"
      ;;
    --dry-run) dry_run=yes ;;
    --*)
      key=${1#--}
      case " name= zone= project= $options " in
        *" $key "*) printf -v "$key" yes ;;
        *" $key= "*) fail "--$key needs a value: --$key=VALUE" ;;
        *) fail "$command has no option '--$key' (--help)" ;;
      esac
      ;;
    *) fail "unknown argument '$1': options are --name=value, and what fcn_jax.main is to get stands after --" ;;
  esac
  shift
done

[ -n "$name" ] || fail '--name is missing'
[ -n "$zone" ] || fail '--zone is missing'
case $worker$lines$wait in *[!0-9]*) fail '--worker, --lines and --wait are numbers' ;; esac
case $command in
  create | run) ;;
  *) [ ${#rest[@]} -eq 0 ] || fail "$command takes nothing after --" ;;
esac
[ "$dry_run" = yes ] || type -t gcloud >/dev/null ||
  fail 'gcloud is not on PATH: https://cloud.google.com/sdk/docs/install'

# On a worker: is there a run, and how did the last one end? A process id alone may be another's after a restart.
# shellcheck disable=SC2016  # for the worker to expand
remote_state='
running() {
  [ -s ~/fcn_jax_run/pid ] && grep -qs fcn_jax.main "/proc/$(cat ~/fcn_jax_run/pid)/cmdline"
}
ended() {
  if [ -s ~/fcn_jax_run/exit ]; then
    echo "$(hostname): ended with exit code $(cat ~/fcn_jax_run/exit)"
  elif [ -e ~/fcn_jax_run/log ]; then
    echo "$(hostname): gone without an exit code (restarted, or killed)"
  else
    echo "$(hostname): no run yet"
  fi
}'

create() {
  [ -n "$type" ] || fail '--type is missing, such as --type=v5litepod-16'
  if [ -z "$version" ]; then
    version=$(runtime_of "$type") || fail "no runtime known for --type=$type: give --version=RUNTIME"
  fi
  local flags=("--accelerator-type=$type" "--version=$version")
  [ "$spot" = no ] || flags+=(--spot)
  tpu_vm create "$name" "${flags[@]}" ${rest[@]+"${rest[@]}"}
}

# Everything of an earlier setup goes, but for runs/, where a run on a single host may have its checkpoints.
setup() {
  local fetch mount='' archive=/tmp/fcn_jax.tar.gz
  if [ -n "$repository" ]; then
    fetch="rm -rf ~/fcn_jax_clone
git clone --quiet $(quoted "$repository") ~/fcn_jax_clone
git -C ~/fcn_jax_clone archive --output=\$HOME/fcn_jax.tar.gz $(quoted "${revision:-HEAD}")"
  else
    [ -z "$revision" ] || fail '--revision needs --repository'
    fetch=''
    if [ "$dry_run" = no ]; then
      archive=$(mktemp -d)/fcn_jax.tar.gz
      # shellcheck disable=SC2064  # the folder of now
      trap "rm -rf $(quoted "$(dirname "$archive")")" EXIT
      [ -z "$(git -C "$root" status --porcelain)" ] ||
        echo 'tpu.sh: what is not committed does not go to the workers' >&2
    fi
    perform git -C "$root" archive --output="$archive" HEAD
    tpu_vm scp --worker=all "$archive" "$name:fcn_jax.tar.gz"
  fi
  if [ -n "$nfs" ]; then
    mount="if ! mountpoint -q /mnt/shared; then
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common >/dev/null
  sudo mkdir -p /mnt/shared
  sudo mount -t nfs $(quoted "$nfs") /mnt/shared
fi
[ -w /mnt/shared ] || sudo chmod a+rwx /mnt/shared"
  fi
  # The images' own Python is older than 3.11 (Ubuntu 22.04: 3.10); uv, from PyPI, fetches one, and needs no root.
  on_workers all "set -e$remote_state
if running; then echo \"\$(hostname): a run is going on: stop it first\" >&2; exit 1; fi
$fetch
mkdir -p ~/fcn_jax
find ~/fcn_jax -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +
tar -xzf ~/fcn_jax.tar.gz -C ~/fcn_jax
$mount
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
python3 -m uv venv --quiet --clear --seed --python $(quoted "$python") ~/fcn_jax_venv
python3 -m uv pip install --quiet --python ~/fcn_jax_venv -e \"\$HOME/fcn_jax[tpu]\"
~/fcn_jax_venv/bin/python -c 'import socket, fcn_jax, jax; print(socket.gethostname() + \": jax\", jax.__version__)'"
}

# The run outlives the connection; its process id, its output and its exit code lie in ~/fcn_jax_run.
run() {
  [ ${#rest[@]} -gt 0 ] || fail 'nothing after --: give fcn_jax.main its options, such as -- --config=configs/fcn8s.py'
  on_workers all "set -e$remote_state
if running; then echo \"\$(hostname): a run is going on: stop it first\" >&2; exit 1; fi
if [ ! -x ~/fcn_jax_venv/bin/python ]; then echo \"\$(hostname): run setup first\" >&2; exit 1; fi
mkdir -p ~/fcn_jax_run
rm -f ~/fcn_jax_run/pid ~/fcn_jax_run/exit
cd ~/fcn_jax
echo \"== \$(date -u +%FT%TZ) \$(hostname)\" >> ~/fcn_jax_run/log
PYTHONUNBUFFERED=1 setsid nohup bash -c '
~/fcn_jax_venv/bin/python -m fcn_jax.main \"\$@\" &
echo \$! > ~/fcn_jax_run/pid
wait \$!
echo \$? > ~/fcn_jax_run/exit
' run $(quoted "${rest[@]}") >> ~/fcn_jax_run/log 2>&1 < /dev/null &
until [ -s ~/fcn_jax_run/pid ]; do sleep 0.1; done
echo \"\$(hostname): started, process \$(cat ~/fcn_jax_run/pid)\""
}

status() {
  local state
  state=$(tpu_vm describe "$name" '--format=value(state)')
  if [ "$dry_run" = yes ]; then
    echo "$state"
  else
    echo "$name: $state"
    [ "$state" = READY ] || return 0 # preempted or stopped: its workers cannot be asked
  fi
  on_workers all "$remote_state
if running; then
  echo \"\$(hostname): running, process \$(cat ~/fcn_jax_run/pid): \$(tail -n 1 ~/fcn_jax_run/log)\"
else
  ended
fi"
}

logs() {
  local tail="tail -n $lines"
  [ "$follow" = no ] || tail="$tail -F"
  on_workers "$worker" "$tail ~/fcn_jax_run/log"
}

stop() {
  on_workers all "$remote_state
if running; then
  kill -TERM \"\$(cat ~/fcn_jax_run/pid)\"
  for i in \$(seq $wait); do running || break; sleep 1; done
  if running; then echo \"\$(hostname): still running after $wait s\" >&2; exit 1; fi
  for i in 1 2 3 4 5; do [ -s ~/fcn_jax_run/exit ] || sleep 0.2; done
fi
ended"
}

delete() {
  local flags=()
  [ "$yes" = no ] || flags+=(--quiet)
  tpu_vm delete "$name" ${flags[@]+"${flags[@]}"}
}

"$command"
