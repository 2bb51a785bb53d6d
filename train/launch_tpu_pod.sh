#!/usr/bin/env bash
# Tune on a slice of a TPU pod, one process a host; `--help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
train/launch_tpu_pod.sh [OPTIONS] -- [PRESET.yaml] [SETTINGS]

What follows -- goes to `fixate train`; --train.mesh has to name all chips of the slice. Library, data and model have to
be at the same place on every host.

  --name NAME        the slice; its hosts are reached by gcloud
  --zone ZONE        where it is
  --here             be one of the hosts: run the process of this one (instead of --name and --zone)
  --type TYPE        accelerator type, for the plan: v4-N, v5p-N (N cores, two a chip), v5litepod-N, v6e-N (v5litepod-16)
  --model NAME       published size or directory to plan with (the settings' backbone.path)
  --run DIR          run directory, on a file system that all hosts see (runs/tpu)
  --directory DIR    folder of each host to run in (.)
  --dry-run          print the plan and the command, reach nobody; exit status 1 when the plan does not fit

FIXATE: the command to run on each host, if it is not `fixate`.
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

name='' zone='' here='' type=v5litepod-16 model='' run=runs/tpu directory=. dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --name) name=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --here) here=yes; shift ;;
    --type) type=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --run) run=$2; shift 2 ;;
    --directory) directory=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) usage >&2; fail "$1: no such option; settings of the run come after --" ;;
  esac
done
[ -n "$here" ] || [ -n "$name" ] && [ -n "$zone$here" ] || fail "give --name and --zone of the slice, or --here on each host"

size=${type##*-}
case $size in '' | *[!0-9]*) fail "--type $type: v4-N, v5p-N, v5litepod-N or v6e-N is needed" ;; esac
case $type in
  v4-*) device=tpu-v4 chips=$((size / 2)) ;;
  v5p-*) device=tpu-v5p chips=$((size / 2)) ;;
  v5litepod-*) device=tpu-v5e chips=$size ;;
  v6e-*) device=tpu-v6e chips=$size ;;
  *) fail "--type $type: v4-N, v5p-N, v5litepod-N or v6e-N is needed" ;;
esac

read -ra fixate <<<"${FIXATE:-fixate}"
train=("${fixate[@]}" train "$@" --run "$run" --distributed)
printf -v there '%q ' "${train[@]}"
printf -v there 'cd %q && %s' "$directory" "${there% }"
command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$there")

if [ -n "$dry_run" ]; then
  status=0
  "${fixate[@]}" plan "$@" ${model:+--models "$model"} --device "$device" --devices "$chips" || status=$?
  [ -n "$here" ] || { printf -v there '%q ' "${command[@]}" && there=${there% }; }
  printf '\n%s\n' "$there"
  exit "$status"
fi
if [ -n "$here" ]; then
  cd "$directory"
  exec "${train[@]}"
fi
exec "${command[@]}"
