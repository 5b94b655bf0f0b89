#!/usr/bin/env bash
# A sweep on Slurm: a Ray cluster for the time of the job, the driver on its first node.
#
#   sbatch sweeps/cluster/slurm.sh sweeps/mnist.yaml [options of raycl run]
#   scancel --batch --signal=INT JOB      its trials save, and it ends; plain scancel just kills it
#
# Before it: source .venv/bin/activate, and raycl data fetch mnist (or put your data in ./data).
# Change: the lines #SBATCH. Submit it where raycl's folder and environment are on a disk that all
# nodes share; runs/ then is, too. Two minutes before the end of its time the job saves its trials and
# queues itself again, until the sweep is over.
#SBATCH --job-name=raycl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
##SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=raycl-%j.log
set -euo pipefail

: "${1:?a sweep file is missing: sbatch slurm.sh SWEEP [options]}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}:$((20000 + SLURM_JOB_ID % 10000))
temp=/tmp/raycl-$SLURM_JOB_ID
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch

# other users of the machines cannot use the cluster
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

steps=()
again=
# shellcheck disable=SC2329  # the trap calls it
finish() {
  trap '' INT TERM
  if ((${#steps[@]})); then
    kill "${steps[@]}" 2> /dev/null || true # srun passes it on, and ray start --block ends what it began
    wait "${steps[@]}" 2> /dev/null || true
    srun --overlap --nodes="${#nodes[@]}" --ntasks-per-node=1 rm -rf "$temp" || true
  fi
  if [[ $again ]]; then scontrol requeue "$SLURM_JOB_ID"; fi # this ends the job: it comes last
}
trap finish EXIT

start() { # NODE OPTIONS OF RAY START
  # ports of workers: any that is free, for other jobs may be on the machine
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" \
    ray start --block --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --disable-usage-stats \
    --min-worker-port=0 --max-worker-port=0 "${@:2}" > /dev/null &
  steps+=($!)
}

start "${nodes[0]}" --head --port="${head#*:}" --temp-dir="$temp" --include-dashboard=false
for _ in {1..120}; do
  if (exec 3<> "/dev/tcp/${head/://}") 2> /dev/null; then break; fi
  sleep 1
done
for node in "${nodes[@]:1}"; do
  start "$node" --address="$head"
done
python - "$head" "${#nodes[@]}" << 'END'
import sys
import time

import ray

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
for _ in range(300):
    if len([node for node in ray.nodes() if node["Alive"]]) >= int(sys.argv[2]):
        sys.exit()
    time.sleep(1)
sys.exit("not all nodes joined within 300 s")
END

told=
python -m raycl run "$@" --address "$head" &
driver=$!
trap 'told=TERM; kill -TERM "$driver"' TERM
trap 'told=INT; kill -TERM "$driver"' INT
code=0
wait "$driver" || code=$?
if [[ $told ]]; then # that wait ended with the signal: now for the driver
  code=0
  wait "$driver" || code=$?
  if [[ $told == TERM ]] && ((code == 130)); then again=yes; fi
fi
exit "$code"
