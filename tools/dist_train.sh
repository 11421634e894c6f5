#!/usr/bin/env bash
# Train with several processes on one machine or several, one per GPU (or CPU process), through torchrun.
# Example: tools/dist_train.sh configs/maskrcnn_vmamba_t.py 8 --amp
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT on each.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES [arguments of tools/train.py]" >&2
    exit 2
fi
positional=("$1")
processes=$2
shift 2

"${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}" \
    "$(dirname "$0")/train.py" "${positional[@]}" --launcher pytorch "$@"
