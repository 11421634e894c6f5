#!/usr/bin/env bash
# Train on a slurm cluster, one process per GPU.
# Example: GPUS=16 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME configs/maskrcnn_vmamba_t.py --amp
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] $0 PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
if [ "$per_node" -gt "$gpus" ]; then
    per_node=$gpus
fi

# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
srun --partition="$partition" --job-name="$job" --gres=gpu:"$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
