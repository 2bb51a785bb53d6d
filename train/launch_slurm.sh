#!/usr/bin/env bash
# Tune on GPU nodes under SLURM, one process a GPU; `--help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
train/launch_slurm.sh [OPTIONS] -- [PRESET.yaml] [SETTINGS]

What follows -- goes to `fixate train`; --train.mesh has to name as many devices as there are GPUs in the job.

  --nodes N          nodes (1)
  --gpus N           GPUs of each node (8)
  --device NAME      what they are, for the plan (h100-80gb)
  --model NAME       published size or directory to plan with (the settings' backbone.path)
  --run DIR          run directory, on a file system that all nodes see (runs/slurm)
  --time LIMIT       time limit of the job (12:00:00); the run is saved before it, and goes on in a new job
  --partition NAME   partition
  --account NAME     account
  --dry-run          print the plan and the job, submit nothing; exit status 1 when the plan does not fit

FIXATE: the command to run, if it is not `fixate`.
TEXT
}

nodes=1 gpus=8 device=h100-80gb model='' run=runs/slurm limit=12:00:00 dry_run='' extra=()
while [ $# -gt 0 ]; do
  case $1 in
    --nodes) nodes=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --run) run=$2; shift 2 ;;
    --time) limit=$2; shift 2 ;;
    --partition | --account) extra+=("$1=$2"); shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    --help) usage; exit 0 ;;
    --) shift; break ;;
    *) echo "error: $1: no such option; settings of the run come after --" >&2; usage >&2; exit 2 ;;
  esac
done
read -ra fixate <<<"${FIXATE:-fixate}"
printf -v train '%q ' "${fixate[@]}" train "$@" --run "$run"

# Every task sees all GPUs of its node, and JAX takes the one with the task's local number; it finds the other tasks by
# SLURM's own variables. TERM two minutes before the limit lets the run save itself: status 130.
job=$(
  cat <<JOB
#!/bin/bash
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92
status=0
srun --kill-on-bad-exit=1 ${train% } || status=\$?
[ "\$status" -ne 130 ] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$status"
JOB
)
submit=(sbatch --job-name=fixate "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" "--time=$limit"
  --signal=TERM@120 --requeue --open-mode=append "${extra[@]}")

if [ -z "$dry_run" ]; then
  exec "${submit[@]}" <<<"$job"
fi
status=0
"${fixate[@]}" plan "$@" ${model:+--models "$model"} --device "$device" --devices "$((nodes * gpus))" || status=$?
printf '\n%s <<JOB\n%s\nJOB\n' "${submit[*]}" "$job"
exit "$status"
