#!/usr/bin/env bash
# Try one row of the README's compatibility table in a throw-away virtual environment; prints the row.
#
#   tools/compat_check.sh                                  the pinned set
#   TORCH=2.4.1 tools/compat_check.sh                      the oldest PyTorch, without the toolboxes
#   TORCH=newest PYTHON=python3.12 tools/compat_check.sh
#   TORCH=2.11.0 TRITON=3.6.0 PYTHON=python3.12 tools/compat_check.sh
#   TORCH=2.4.1 MMCV=2.2.0 FAMILY=openmmlab tools/compat_check.sh
#
# PYTHON   interpreter (default python3)
# TORCH    a version, 'newest', or 'pinned' (default), which is the one of tools/constraints.txt
# TRITON   a version (default: what torch brings, which on the CPU may be none)
# FAMILY   none (operators and backbones alone; default unless TORCH is pinned), onedl, or openmmlab (the originals)
# MMCV     version of mmcv to install with a family (default: newest). It is compiled: half an hour on two cores.
# INDEX    index of PyTorch wheels (default: the CPU ones)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
torch=${TORCH:-pinned}
family=${FAMILY:-$([ "$torch" = pinned ] && echo onedl || echo none)}
index=${INDEX:-https://download.pytorch.org/whl/cpu}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

log=$folder/log
row() {
    printf '| %s | %s | %s | %s | %s |\n' "$("$folder/venv/bin/python" -V 2>&1 | cut -d' ' -f2)" \
        "$("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || echo "$torch")" \
        "$family${MMCV:+ (mmcv $MMCV)}${TRITON:+, triton $TRITON}" "$1" "$2"
}
step() {
    echo "compat_check: $1" >&2
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 25 "$log" >&2
        row "does not install" "$(grep -E 'ERROR|error:' "$log" | tail -n 1 | cut -c1-120 | tr '|' '/')"
        exit 1
    fi
}

"$python" -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

case $torch in
    pinned) wanted=(torch -c tools/constraints.txt) ;;
    newest) wanted=(torch) ;;
    *) wanted=("torch==$torch") ;;
esac
step "torch $torch" pip "${wanted[@]}" 'setuptools<80' wheel ninja psutil --extra-index-url "$index"
# whatever comes later must not pull another torch over it
"$folder/venv/bin/python" -c 'import torch; print("torch==" + torch.__version__)' >"$folder/pins"

tests=(tests/test_kernels tests/test_models)
case $family in
    none)
        step 'mmengine' pip -c "$folder/pins" 'onedl-mmengine' numba safetensors pytest hypothesis numpy
        # a detector needs a toolbox
        tests=(tests/test_kernels tests/test_models/test_{backbones,vmamba,fastvim}.py -k "not inside_a_detector")
        ;;
    onedl)
        step 'onedl-mmcv (compiles)' pip -c "$folder/pins" --no-build-isolation "onedl-mmcv${MMCV:+==$MMCV}"
        step 'toolboxes' pip -c "$folder/pins" onedl-mmdetection onedl-mmsegmentation ftfy regex numba safetensors pytest \
            hypothesis matplotlib
        tests+=(tests/test_configs tests/test_package.py)
        ;;
    openmmlab)
        step 'mmcv (compiles)' pip -c "$folder/pins" --no-build-isolation mmengine "mmcv${MMCV:+==$MMCV}"
        step 'toolboxes' pip -c "$folder/pins" mmdet mmsegmentation ftfy regex numba safetensors pytest hypothesis matplotlib
        tests+=(tests/test_configs tests/test_package.py)
        ;;
    *)
        echo "compat_check: FAMILY=$family; expected none, onedl or openmmlab" >&2
        exit 2
        ;;
esac
# the interpreter of Triton 3.6 fails with newer numpy
[ -z "${TRITON:-}" ] || step "triton $TRITON" pip --no-deps "triton==$TRITON" "numpy<2.4"
# a copy, so that nothing of this checkout is touched or found by accident
mkdir "$folder/source"
git ls-files -co --exclude-standard -z | xargs -0 cp -P --parents -t "$folder/source"
cd "$folder/source"
step 'mmvmamba' pip --no-deps --no-build-isolation -e .

echo "compat_check: tests" >&2
if OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}" ${PYTEST_ARGS:-} >"$log" 2>&1; then
    row passes "$(tail -n 1 "$log" | tr -d '=' | xargs)"
else
    grep -E '^(FAILED|ERROR)' "$log" >&2
    grep -E '^E  ' "$log" | tail -n 30 >&2
    row fails "$(tail -n 1 "$log" | tr -d '=' | xargs)"
    exit 1
fi
