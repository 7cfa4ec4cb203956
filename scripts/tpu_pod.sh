#!/usr/bin/env bash
# Creates a TPU slice, installs this repository on all its hosts, trains, and starts again after an interruption.
#
#   scripts/tpu_pod.sh --name centernet --zone us-central1-a --type v5litepod-16 [--spot] [--keep] [--print] -- \
#     --config configs/triplet.py:hg=104 --workdir gs://BUCKET/run --config.data.train.data_dir=gs://BUCKET/tfds ...
#
# Needs gcloud with a project and the right to create TPU VMs. The run folder must be on gs://, so that it outlives the
# slice. If there is a slice of that name it is used. What the hosts say goes to NAME.log and to the terminal. After the
# training the slice is deleted, unless --keep is given; after an error it stays. --print shows the commands, runs none.
set -euo pipefail

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0"
}

wrong() {
  printf 'error: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

check() { # option and its value
  [[ ${2-} && ${2-} != -* ]] || wrong "$1 needs a value"
}

name='' zone='' type='' spot='' keep='' print=''
while (($#)); do
  case $1 in
    --name) check "$1" "${2-}" && name=$2 && shift 2 ;;
    --zone) check "$1" "${2-}" && zone=$2 && shift 2 ;;
    --type) check "$1" "${2-}" && type=$2 && shift 2 ;;
    --spot) spot=--spot && shift ;;
    --keep) keep=yes && shift ;;
    --print) print=yes && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) wrong "not understood: $1" ;;
  esac
done
if [[ -z $name || -z $zone || -z $type || $# -eq 0 ]]; then
  wrong '--name, --zone, --type and, after --, the arguments of triplet_det.main are needed'
fi
workdir=''
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=*) workdir=${!i#--workdir=} ;;
    --workdir) next=$((i + 1)) && workdir=${!next:-} ;;
  esac
done
if [[ $workdir != gs://* ]]; then
  wrong "--workdir is '$workdir'; a slice can vanish at any time, give a folder on gs://"
fi

case $type in # the image that Google names for each generation
  v5litepod-*) image=v2-alpha-tpuv5-lite ;;
  v5p-*) image=v2-alpha-tpuv5 ;;
  v6e-*) image=v2-alpha-tpuv6e ;;
  v[234]-*) image=tpu-ubuntu2204-base ;;
  *) wrong "--type is '$type'; possible: v2-N, v3-N, v4-N, v5litepod-N, v5p-N, v6e-N" ;;
esac

run() { # a command, or with --print its text
  if [[ ! $print ]]; then
    "$@"
    return
  fi
  local word
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then printf '%s ' "$word"; else printf '%s ' "${word@Q}"; fi
  done
  echo
}

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

state() {
  gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --format='value(state)' 2>/dev/null || echo NONE
}

create() {
  run gcloud compute tpus tpu-vm create "$name" --zone "$zone" --accelerator-type "$type" --version "$image" ${spot:+"$spot"}
}

install() { # the images have Python 3.10, uv brings a newer one
  run git -C "$(dirname "$0")/.." archive --format=tar.gz --output "/tmp/$name.tar.gz" HEAD &&
    run gcloud compute tpus tpu-vm scp "/tmp/$name.tar.gz" "$name:" --zone "$zone" --worker=all &&
    on_all_hosts "mkdir -p triplet_det && tar xzf $name.tar.gz -C triplet_det && cd triplet_det && \
python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --allow-existing --python 3.12 .venv && \
~/.local/bin/uv pip install -q -e \".[tpu]\""
}

remove() {
  run gcloud compute tpus tpu-vm delete "$name" --zone "$zone" --quiet
}

# A process outlives its connection and holds the TPU: it is told to save and to end, after 5 minutes it is killed.
main='[.]venv/bin/python -m triplet_det[.]main'
end_others="for i in {1..60}; do pkill -f '^$main' || break; sleep 5; done; pkill -KILL -f '^$main'"
# The hosts' exit codes are read from what they say, because gcloud passes on only one.
train="cd triplet_det; $end_others; .venv/bin/python -m triplet_det.main$(printf ' %q' "$@"); code=\$?; \
echo \"triplet_det ended with \$code\"; exit \$code"
if [[ $print ]]; then
  create
  install
  on_all_hosts "$train"
  if [[ ! $keep ]]; then remove; fi
  exit
fi

log=$name.log
codes=''
train_once() { # status of gcloud; `codes` are those of the hosts, each once
  local before status=0
  install || return
  before=$(cat "$log" 2>/dev/null | wc -l)
  on_all_hosts "$train" 2>&1 | tee -a "$log" || status=$?
  codes=$(tail -n "+$((before + 1))" "$log" | sed -n 's/.*triplet_det ended with \([0-9]*\).*/\1/p' | sort -nu | xargs)
  return "$status"
}

trap '(($? == 0)) || echo "the slice may still be there and cost: gcloud compute tpus tpu-vm delete $name --zone $zone" >&2' EXIT
for ((attempt = 1, short = 0; ; attempt++)); do
  if [[ $(state) == NONE ]] && ! create; then
    if ((attempt == 1)); then exit 1; fi # a wrong name, or no right to; later there are no TPUs left, which passes
    sleep 300
    continue
  fi
  began=$SECONDS codes='' status=0
  train_once || status=$?
  if ((status == 0)); then break; fi
  now=$(state)
  echo "attempt $attempt ended with $status (hosts: ${codes:-unknown}), the slice is $now" | tee -a "$log" >&2
  case " $codes " in
    *' 1 '* | *' 2 '* | *' 3 '* | *' 66 '* | *' 74 '*) exit "$status" ;; # an error of the program's own would come again
  esac
  case $now in
    READY) # stopped by a signal (75), another host was gone (76), or the connection broke
      short=$((SECONDS - began < 600 ? short + 1 : 0))
      if ((short == 3)); then exit "$status"; fi ;;
    PREEMPTED | TERMINATED) remove || true ;; # it comes back only as a new one
    STOPPING | STOPPED) exit "$status" ;; # somebody wanted that
    *) ;; # under repair, or gone
  esac
  sleep 30
done
if [[ ! $keep ]]; then remove; fi
