#!/usr/bin/env bash
# Test with several processes on one machine or several, one per GPU (or CPU process), through torchrun.
# Example: tools/dist_test.sh configs/maskrcnn_vmamba_t.py CHECKPOINT 8
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT on each.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT PROCESSES [arguments of tools/test.py]" >&2
    exit 2
fi
positional=("$1" "$2")
processes=$3
shift 3

"${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}" \
    "$(dirname "$0")/test.py" "${positional[@]}" --launcher pytorch "$@"
