#!/usr/bin/env bash
# The table of benchmarks/speed.py on a machine without network: a GPU machine that has just been started, say.
usage() {
  cat <<'TEXT'
launch/speed.sh --wheels=DIR [--output=FILE] [-- options of benchmarks/speed.py]

On a machine with network, with the same Python and platform, in the folder of the project:

  pip wheel -w DIR '.[cuda12]' hatchling editables torch
  pip download -d DIR --no-deps --no-binary :all: torchfcn

On the other, with the project and DIR: launch/speed.sh --wheels=DIR --output=gpu.md

--wheels=DIR      the folder of wheels; without torch and torchfcn in it there is no comparison
--extra=NAME      what of the project is installed; default cuda12; none with --extra=
--output=FILE     the table; default speed.md

Without options of its own the benchmark takes bfloat16 and float32, 512x512, batches of 1 to 32.
PYTHON names the interpreter; default python3.
TEXT
}

set -euo pipefail

fail() {
  printf 'speed.sh: %s\n' "$*" >&2
  exit 2
}

wheels='' extra=cuda12 output=speed.md
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --wheels=*) wheels=${1#*=} ;;
    --extra=*) extra=${1#*=} ;;
    --output=*) output=${1#*=} ;;
    --) shift && break ;;
    *) fail "unknown argument '$1': options are --wheels=DIR, --extra=NAME, --output=FILE and -- for the benchmark's" ;;
  esac
  shift
done
[ -n "$wheels" ] || fail "--wheels is missing: launch/speed.sh --help says how to fill the folder"
[ -d "$wheels" ] || fail "--wheels=$wheels is no folder"
[ $# -gt 0 ] || set -- --dtypes=bfloat16,float32 --sizes=512x512 --batches=1,2,4,8,16,32

project=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
install=("$work/venv/bin/pip" install -q --disable-pip-version-check --no-index --find-links "$wheels")
"${install[@]}" "$project${extra:+[$extra]}" >&2
compared=()
if "${install[@]}" torch >&2 2>/dev/null; then
  for source in "$wheels"/torchfcn-*.tar.gz; do
    [ -e "$source" ] || continue
    tar -xzf "$source" -C "$work"
    compared=("--torchfcn=$work")
  done
fi
[ ${#compared[@]} -gt 0 ] || printf 'speed.sh: torch and torchfcn are not in %s: nothing is compared\n' "$wheels" >&2
"$work/venv/bin/python" "$project/benchmarks/speed.py" "${compared[@]}" "$@" | tee "$output"
