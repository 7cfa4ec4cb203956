#!/usr/bin/env bash
# Creates a TPU slice, installs this repository on all its hosts, trains, and starts again after a preemption.
#
#   scripts/tpu_pod.sh --name centernet --zone us-central1-a --type v5litepod-8 [--spot] [--keep] [--print] -- \
#     --config configs/triplet.py:hg=104 --workdir gs://BUCKET/run --config.data.train.data_dir=gs://BUCKET/tfds ...
#
# Needs gcloud with a project and the right to create TPU VMs. The run folder must be on gs://, so that it outlives the
# slice. What the hosts say goes to NAME.log and to the terminal. --print shows every command and runs none.
set -euo pipefail

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit "${1:-2}"
}

name='' zone='' type='' spot='' keep='' print=''
while (($#)); do
  case $1 in
    --name) name=${2:?--name needs a value} && shift 2 ;;
    --zone) zone=${2:?--zone needs a value} && shift 2 ;;
    --type) type=${2:?--type needs a value, for example v5litepod-8} && shift 2 ;;
    --spot) spot=--spot && shift ;;
    --keep) keep=yes && shift ;; # do not delete the slice at the end
    --print) print=yes && shift ;;
    -h | --help) usage 0 ;;
    --) shift && break ;;
    *) echo "error: not understood: $1" >&2 && usage ;;
  esac
done
if [[ -z $name || -z $zone || -z $type || $# -eq 0 ]]; then
  echo 'error: --name, --zone, --type and, after --, the arguments of triplet_det.main are needed' >&2
  usage
fi
workdir=''
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=*) workdir=${!i#--workdir=} ;;
    --workdir) next=$((i + 1)) && workdir=${!next:-} ;;
  esac
done
if [[ $workdir != gs://* ]]; then
  echo "error: --workdir is '$workdir'; a slice can vanish at any time, give a folder on gs://" >&2
  exit 2
fi

case $type in # the image that Google names for each generation
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  *) image=tpu-ubuntu2204-base ;;
esac

run() {
  if [[ $print ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

state() {
  gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --format='value(state)' 2>/dev/null || echo NONE
}

create_and_install() {
  run gcloud compute tpus tpu-vm create "$name" --zone "$zone" --accelerator-type "$type" --version "$image" ${spot:+"$spot"}
  run git -C "$(dirname "$0")/.." archive --format=tar.gz --output "/tmp/$name.tar.gz" HEAD
  run gcloud compute tpus tpu-vm scp "/tmp/$name.tar.gz" "$name:" --zone "$zone" --worker=all
  on_all_hosts "mkdir -p triplet_det && tar xzf $name.tar.gz -C triplet_det && cd triplet_det &&
    python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
}

remove() {
  run gcloud compute tpus tpu-vm delete "$name" --zone "$zone" --quiet
}

arguments=$(printf '%q ' "$@")
for ((attempt = 1; ; attempt++)); do
  if [[ $print || $(state) == NONE ]]; then create_and_install; fi
  # Ends with the exit code of main: 75 is "stopped by a signal, state saved".
  status=0
  train="cd triplet_det && .venv/bin/python -m triplet_det.main $arguments"
  if [[ $print ]]; then on_all_hosts "$train" && break; fi
  on_all_hosts "$train" 2>&1 | tee -a "$name.log" || status=$?
  if ((status == 0)); then break; fi
  now=$(state)
  echo "attempt $attempt ended with $status, the slice is $now" | tee -a "$name.log" >&2
  case $now in
    PREEMPTED | TERMINATED) remove ;; # it comes back only as a new one
    READY) if ((status != 75 && status != 255)); then exit "$status"; fi ;; # 255: the connection broke
    *) ;;
  esac
  sleep 30
done
if [[ ! $keep ]]; then remove; fi
