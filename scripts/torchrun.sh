#!/bin/bash
# One machine's part of a job by torchrun, restarted from the last checkpoint after a failure. The same on every machine:
#   scripts/torchrun.sh NODES GPUS_A_NODE HOST:PORT PRESET [--section.field VALUE ...]
# HOST:PORT is the first machine's. A machine that goes ends the others' ranks; when as many are there again, all begin anew.
set -euo pipefail
if (( $# < 4 )); then
    sed -n '2,4p' "$0" >&2
    exit 2
fi
nodes=$1 gpus=$2 where=$3
shift 3
export ERW_CACHE=${ERW_CACHE:-/tmp/erw-$USER/erw}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/erw-$USER/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/erw-$USER/inductor}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec torchrun --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "${MAX_RESTARTS:-10}" \
    --rdzv-backend c10d --rdzv-endpoint "$where" --rdzv-id "${JOB:-erw}" train_ds.py "$@" --train.resume auto
