#!/usr/bin/env bash
# Trains on GPUs of one or more nodes under SLURM, one process per GPU, and requeues itself when its time is up.
#
#   scripts/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 [--cpus 8] [--sbatch=--partition=gpu]... [--print] -- \
#     --config configs/triplet.py:hg=104 --workdir /shared/runs/centernet_104 ...
#
# --gpus are per node, --cpus per GPU, for the config.data.num_workers processes of the input. --sbatch=OPTION adds an
# option of sbatch: --sbatch=--account=NAME. Needs an environment in .venv made with pip install -e '.[cuda]', and a run
# folder that all nodes see. --print shows the job instead of submitting it.
set -euo pipefail

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0"
}

wrong() {
  printf 'error: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

check() { # option, its value, the pattern it must match, what that means
  [[ ${2-} =~ ^$3$ ]] || wrong "$1 needs $4, not '${2-}'"
}

number='[1-9][0-9]*'
nodes=1 gpus=8 cpus=8 time=24:00:00 options='' print=''
while (($#)); do
  case $1 in
    --nodes) check "$1" "${2-}" "$number" 'a number' && nodes=$2 && shift 2 ;;
    --gpus) check "$1" "${2-}" "$number" 'a number, per node' && gpus=$2 && shift 2 ;;
    --cpus) check "$1" "${2-}" "$number" 'a number, per GPU' && cpus=$2 && shift 2 ;;
    --time) check "$1" "${2-}" '([0-9]+-)?[0-9]+(:[0-9]+){0,2}' 'hours:minutes:seconds' && time=$2 && shift 2 ;;
    --sbatch=*) options+="#SBATCH ${1#--sbatch=}"$'\n' && shift ;;
    --print) print=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) wrong "not understood: $1" ;;
  esac
done
if (($# == 0)); then wrong 'the arguments of triplet_det.main are needed after --'; fi

root=$(cd "$(dirname "$0")/.." && pwd)
# TERM comes 10 minutes before the end of the time, so that an evaluation of several hosts can end before that.
# GPUs are not bound to processes: JAX takes the one whose number is the process's on its node.
# SLURM must not kill the others when one process ends: they end by themselves, and the highest exit code is srun's.
# A preemption signals this script too, which would end it before the processes have saved: hence the trap.
job=$(
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=triplet_det
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --output=triplet_det_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@600
${options}trap : TERM
cd $(printf '%q' "$root")
status=0
srun --kill-on-bad-exit=0 --gpu-bind=none --cpus-per-task=$cpus \\
  .venv/bin/python -m triplet_det.main$(printf ' %q' "$@") || status=\$?
# 75: all processes have saved the same step. The job takes its place in the queue again and continues from there.
if [ "\$status" -eq 75 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
JOB
)
if [[ $print ]]; then
  echo "$job"
else
  sbatch <<<"$job"
fi
