#!/usr/bin/env bash
# On a GPU: what `auto` needs of the Triton kernels proves itself; their tests, twice; only if they pass the measurements.
# At most 9.5 minutes, of which the proof of VMamba-T's kernels takes 2 at most.
#
#   tools/gpu_check.sh FOLDER
#
# FOLDER gets report.md (tables), results.json (the same, every figure with its machine), verdicts.json, tests.json,
# log.txt, pooled.png.
# What is missing of the toolboxes is installed from .whl/*.whl, without network. PYTHON=... names another interpreter.
# Exit code: 0 everything passed and was measured, 1 a test failed or none could run (nothing is measured then),
# 2 wrong call, 3 a measurement failed or found no time.
set -uo pipefail

if [ $# -ne 1 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
work=$(mktemp -d)
warming=
# the warm-up is a process group of its own
trap '[ -z "$warming" ] || kill -- "-$warming" 2>/dev/null; rm -rf "$work"' EXIT
limit=570
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
unset TRITON_INTERPRET
export PYTHONUNBUFFERED=1
: >"$out/log.txt"
: >"$out/report.md"

say() { echo "[${SECONDS}s] $*" | tee -a "$out/log.txt" >&2; }

die() {
    say "$*"
    echo "$*" >>"$out/report.md"
    exit 1
}

# within SECONDS COMMAND...: run it for at most so long, or for what is left
within() {
    local seconds=$((limit - SECONDS < $1 ? limit - SECONDS : $1))
    shift
    [ "$seconds" -gt 0 ] || return 124
    timeout --kill-after=5 "$seconds" "$@"
}

# --- what is needed ---------------------------------------------------------------------------------------------------
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || die 'PyTorch sees no GPU: nothing checked'
if ! "$python" -c 'import mmdet' 2>/dev/null && compgen -G '.whl/*.whl' >/dev/null; then
    say 'installing .whl/*.whl'
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" .whl/*.whl \
        >>"$out/log.txt" 2>&1 || die 'the packages of .whl could not be installed, see log.txt'
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if ! "$python" -c 'import mmvmamba.kernels' 2>/dev/null; then
    say 'installing this package'
    "$python" -m pip install -q --no-index --no-deps --no-build-isolation -e . \
        >>"$out/log.txt" 2>&1 || die 'this package could not be installed, see log.txt'
fi
"$python" -c 'import mmengine' 2>>"$out/log.txt" || die 'mmengine is not installed: put its wheel into .whl, see log.txt'

# --- verification -----------------------------------------------------------------------------------------------------
# of VMamba-T at the sizes of its config, in float32 and bfloat16, forward and backward; what fails is not taken by `auto`
say 'verification'
printf '## verification of VMamba-T\n\n' >>"$out/report.md"
within 120 env MMVMAMBA_VERIFY=always "$python" tools/doctor.py --verify configs/maskrcnn_vmamba_t.py --json \
    --jobs "$(($(nproc) < 8 ? $(nproc) : 8))" >"$out/verdicts.json" 2>>"$out/log.txt"
verified=$?
"$python" - "$out/verdicts.json" "$verified" >>"$out/report.md" 2>>"$out/log.txt" <<'PY' || echo 'not measured: failed or out of time, see log.txt' >>"$out/report.md"
import json
import sys
from pathlib import Path

report = json.loads(Path(sys.argv[1]).read_text())
verdicts = report['verdicts']
failed = [verdict for verdict in verdicts if not verdict['passed']]
print(f"{len(verdicts) - len(failed)} of {len(verdicts)} variants proved on {report['gpu']} in {report['seconds']} s, compilation")
print(f"included, {report['jobs']} at a time; the checks themselves took {sum(v['seconds'] for v in verdicts):.1f} s in all.\n")
for verdict in failed:
    print(f"* failed: {verdict['operator']} {verdict['direction']} ({verdict['call']}): {verdict['reason']}")
PY
say "verification ended with exit code $verified"

# --- what is measured -------------------------------------------------------------------------------------------------
names=(kernels_4x512x512 kernels_2x800x1280 kernels_128x224x224 model_4x512x512 model_2x800x1280 model_128x224x224 pooled)

tested=()

# measure FOLDER NAME ROUNDS [PREFIX...]
measure() {
    local folder=$1 name=$2 rounds=$3 batch height width
    shift 3
    local command=("$@" env MMVMAMBA_BACKEND=triton "$python" tools/benchmark.py)
    IFS=x read -r batch height width <<<"${name#*_}"
    case $name in
    kernels_*) command+=(kernels --arch tiny_s1l8 --batch "$batch" --height "$height" --width "$width" --dtype bf16
        --backends triton torch) ;;
    model_*) command+=(model configs/maskrcnn_vmamba_t.py --shapes "${name#*_}" --every) ;;
    pooled) command+=(pooled --archs tiny small base --sides 224 512 1024 2048 --amp --backend triton
        --plot "$folder/pooled.png") ;;
    esac
    "${command[@]}" --repeat "$rounds" --json "$folder/$name.json" "${tested[@]}"
}

warm_up() {
    local name
    for name in "${names[@]}"; do
        [[ $name != "$1"* ]] || measure "$work/warm" "$name" 1
    done
}

# compilers work beside the tests: every measurement once, its figures thrown away
mkdir "$work/warm"
set -m
(warm_up kernels & warm_up model & warm_up pooled & wait) >"$work/warm/log" 2>&1 &
warming=$!
set +m

# --- tests ------------------------------------------------------------------------------------------------------------
spread=()
"$python" -c 'import xdist' 2>/dev/null && spread=(-n "$(($(nproc) < 14 ? $(nproc) : 14))")
limits=([1]=330 [2]=120)  # the first one compiles some hundred variants
for run in 1 2; do
    say "tests, run $run"
    within "${limits[run]}" "$python" -m pytest -q -p no:cacheprovider --show-capture=no --junitxml "$work/tests$run.xml" \
        "${spread[@]}" tests/test_kernels/triton*_cases.py tests/test_engine/test_nonfinite.py::test_a_gpu_never_waits >>"$out/log.txt" 2>&1 \
        || die "tests, run $run: failed or out of time, see log.txt; nothing is measured"
done
"$python" - "$out/tests.json" "$work"/tests?.xml >>"$out/log.txt" 2>&1 <<'PY' \
    || die 'tests: not all ran, see tests.json; nothing is measured'
import sys
from pathlib import Path

from mmvmamba.analysis import record, timing

out, *reports = map(Path, sys.argv[1:])
sys.exit(not record.write_tests(reports, timing.machine(), out))
PY
tested=(--tests "$out/tests.json")
say 'tests passed'

# --- measurements -----------------------------------------------------------------------------------------------------
while kill -0 "$warming" 2>/dev/null && [ $SECONDS -lt 270 ]; do sleep 1; done
kill -- "-$warming" 2>/dev/null && say 'the warm-up was not ready: first rounds will take longer'
wait "$warming" 2>/dev/null
warming=
cat "$work/warm/log" >>"$out/log.txt"
nvidia-smi >>"$out/log.txt" 2>&1

failed=0
for name in "${names[@]}"; do
    say "$name"
    printf '\n## %s\n\n' "$name" >>"$out/report.md"
    if ! measure "$work" "$name" 15 within 90 >>"$out/report.md" 2>>"$out/log.txt"; then
        echo 'not measured: failed or out of time, see log.txt' >>"$out/report.md"
        failed=3
    fi
done
cp "$work/pooled.png" "$out" 2>/dev/null
"$python" - "$work"/*.json >"$out/results.json" <<'PY'
import json
import sys
from pathlib import Path

reports = [Path(path) for path in sys.argv[1:]]
print(json.dumps({path.stem: json.loads(path.read_text()) for path in reports if path.exists()}, indent=1))
PY
say "done, exit code $failed"
exit $failed
