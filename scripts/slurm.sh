#!/usr/bin/env bash
# Trains on GPUs of one or more nodes under SLURM, one process per GPU, and requeues itself when its time is up.
#
#   scripts/slurm.sh --nodes 2 --gpus 8 --time 24:00:00 [--partition gpu] [--print] -- \
#     --config configs/triplet.py:hg=104 --workdir /shared/runs/centernet_104 ...
#
# Needs an environment in .venv made with pip install -e '.[cuda]', and a run folder that all nodes see. --print shows the
# job instead of submitting it.
set -euo pipefail

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit "${1:-2}"
}

nodes=1 gpus=8 time=24:00:00 partition='' print=''
while (($#)); do
  case $1 in
    --nodes) nodes=${2:?--nodes needs a number} && shift 2 ;;
    --gpus) gpus=${2:?--gpus needs a number, per node} && shift 2 ;;
    --time) time=${2:?--time needs hours:minutes:seconds} && shift 2 ;;
    --partition) partition=${2:?--partition needs a name} && shift 2 ;;
    --print) print=yes && shift ;;
    -h | --help) usage 0 ;;
    --) shift && break ;;
    *) echo "error: not understood: $1" >&2 && usage ;;
  esac
done
if (($# == 0)); then
  echo 'error: the arguments of triplet_det.main are needed after --' >&2
  usage
fi

root=$(cd "$(dirname "$0")/.." && pwd)
job=$(
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=triplet_det
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
${partition:+#SBATCH --partition=$partition
}#SBATCH --output=triplet_det_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
cd $(printf '%q' "$root")
# --signal goes to the steps: every process saves at the same step and ends with 75, then the job takes its place again.
status=0
srun --kill-on-bad-exit=1 .venv/bin/python -m triplet_det.main $(printf '%q ' "$@")|| status=\$?
if [ "\$status" -eq 75 ]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
JOB
)
if [[ $print ]]; then
  echo "$job"
else
  sbatch <<<"$job"
fi
