#!/usr/bin/env bash
#SBATCH --job-name=fcn_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fcn_jax-%j.log
#
# A run on the GPU nodes of a Slurm cluster: submits itself. docs/SCALING.md says more.
#
# One task per GPU, each of which sees all GPUs of its node: JAX gives task i of a node its i-th visible GPU. With one
# task per node it would use one GPU of each; with --gpus-per-task a task sees its own GPU alone, and JAX misses it.
#
# Slurm signals the tasks, not this script, 120 s before the time limit: they save and end with exit code 143, and the
# job is queued again. So with --sbatch=--signal=USR1@600 or the like (138, 140). A preempted one likewise, if its
# partition has a GraceTime. What is cancelled is not.
usage() {
  cat <<'TEXT'
launch/slurm.sh [options] -- --config=FILE --workdir=DIR [options of fcn_jax.main]
or within an allocation, as sbatch runs it: launch/slurm.sh [--dry-run] [--] --config=FILE ...

--nodes=N --gpus=G        nodes, and GPUs of each; default 1 and 8
--cpus=C                  CPU cores for each GPU; default 8
--time=HH:MM:SS           the time limit, after which the job is queued again and goes on; default 24:00:00
--partition=P --account=A --qos=Q --name=NAME       as sbatch's, the last as its --job-name
--sbatch=FLAG             any other flag of sbatch, such as --sbatch=--constraint=h100; may be repeated
--dry-run                 prints the commands instead of running them

PYTHON names the interpreter; default python, that of the environment in which the job is submitted.
TEXT
}

set -euo pipefail

fail() {
  printf 'slurm.sh: %s\n' "$*" >&2
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

# The command that starts a task for every GPU. A task's failure ends the others by itself, and they say which it was;
# killing them at once, as clusters may have it by default, would lose that, or the end of a save.
srun_command() {
  step=(srun --label --kill-on-bad-exit=0 --wait=300)
  # From Slurm 22.05 on srun does not take it from sbatch.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || step+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  step+=("${PYTHON:-python}" -m fcn_jax.main "$@")
}

submit() {
  local nodes=1 gpus=8 cpus=8 time='' partition='' account='' qos='' name='' more=() dry_run=no key value command
  while [ $# -gt 0 ]; do
    case $1 in
      --help)
        usage
        exit
        ;;
      --)
        shift
        break
        ;;
      --dry-run) dry_run=yes ;;
      --*=*)
        key=${1%%=*} key=${key#--} value=${1#*=}
        [ -n "$value" ] || fail "--$key is empty"
        case $key in
          nodes | gpus | cpus)
            case $value in *[!0-9]* | 0) fail "--$key=$value is no number from 1 on" ;; esac
            printf -v "$key" %s "$value"
            ;;
          time | partition | account | qos | name) printf -v "$key" %s "$value" ;;
          sbatch) more+=("$value") ;;
          *) fail "unknown option '--$key=': what fcn_jax.main is to get stands after -- (--help)" ;;
        esac
        ;;
      *) fail "unknown argument '$1': options are --name=value, and what fcn_jax.main is to get stands after --" ;;
    esac
    shift
  done
  [ $# -gt 0 ] || fail 'nothing after --: give fcn_jax.main its options, such as -- --config=configs/fcn8s.py'
  command=(sbatch "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" "--cpus-per-task=$cpus")
  [ -z "$time" ] || command+=("--time=$time")
  [ -z "$partition" ] || command+=("--partition=$partition")
  [ -z "$account" ] || command+=("--account=$account")
  [ -z "$qos" ] || command+=("--qos=$qos")
  [ -z "$name" ] || command+=("--job-name=$name")
  command+=(${more[@]+"${more[@]}"} "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/slurm.sh" -- "$@")
  if [ "$dry_run" = yes ]; then
    quoted "${command[@]}"
    SLURM_CPUS_PER_TASK=$cpus srun_command "$@"
    printf '\n# which runs, once per allocation:\n'
    quoted "${step[@]}"
    echo
    return
  fi
  type -t sbatch >/dev/null || fail 'sbatch is not on PATH: give the command on a login node of the cluster'
  "${command[@]}"
}

# Within the allocation.
work() {
  local code dry_run=no cancelled='' interrupted=''
  if [ "${1:-}" = --dry-run ]; then
    dry_run=yes
    shift
  fi
  [ "${1:-}" != -- ] || shift
  [ $# -gt 0 ] || fail 'no options for fcn_jax.main, such as --config=configs/fcn8s.py'
  srun_command "$@"
  if [ "$dry_run" = yes ]; then
    quoted "${step[@]}"
    echo
    return
  fi
  # To this script itself: scancel. The tasks get the signal too, or, with scancel --batch, from here.
  trap 'cancelled=yes interrupted=yes; scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || true' TERM
  # With --sbatch=--signal=B:USR1@120 it comes to this script alone.
  trap 'interrupted=yes; scancel --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null || true' USR1
  trap 'interrupted=yes; scancel --signal=USR2 "$SLURM_JOB_ID" 2>/dev/null || true' USR2
  "${step[@]}" &
  while true; do
    interrupted=''
    code=0
    wait $! || code=$?
    [ -n "$interrupted" ] || break
  done
  case $code$cancelled in
    138 | 140 | 143) # 128 + SIGUSR1, SIGUSR2, SIGTERM
      echo 'slurm.sh: stopped and saved: the job is queued again' >&2
      scontrol requeue "$SLURM_JOB_ID"
      ;;
  esac
  exit "$code"
}

step=()
if [ -n "${SLURM_JOB_ID:-}" ]; then
  work "$@"
else
  submit "$@"
fi
