#!/usr/bin/env bash
# Try one row of the README's compatibility table in a throw-away virtual environment; prints the row.
#
#   tools/compat_check.sh                                  the pinned set
#   TORCH=2.4.1 tools/compat_check.sh                      the oldest PyTorch, without the toolboxes
#   TORCH=newest PYTHON=python3.12 tools/compat_check.sh
#   TORCH=2.11.0 TRITON=3.6.0 PYTHON=python3.12 tools/compat_check.sh
#   tools/compat_check.sh originals                        what most users have: the whole suite on Python 3.10, torch 2.4.1,
#                                                          mmcv 2.1.0, mmdet 3.3.0, mmsegmentation 1.2.2,
#                                                          mmpretrain 1.2.0, mmengine 0.10.7
#   TORCH=2.6.0 FAMILY=openmmlab tools/compat_check.sh     the same packages on another torch
#
# PYTHON   interpreter (default python3)
# TORCH    a version, 'newest', or 'pinned' (default), which is the one of tools/constraints.txt
# TRITON   a version (default: what torch brings, which on the CPU may be none)
# FAMILY   none (operators and backbones alone; default unless TORCH is pinned), onedl, or openmmlab (the originals)
# MMCV     version of mmcv to install with a family (default: newest; of the originals 2.1.0, as mmdet 3.3.0 and
#          mmsegmentation 1.2.2 refuse 2.2.0). It is compiled, in minutes, unless pip finds a wheel in a folder that it
#          knows (PIP_FIND_LINKS) or in ../shared/wheels/original.
# INDEX    index of PyTorch wheels (default: the CPU ones)
# PYTEST_ARGS  more arguments for pytest
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
    '') ;;
    originals) PYTHON=${PYTHON:-python3.10} TORCH=${TORCH:-2.4.1} FAMILY=openmmlab ;;
    *)
        echo "compat_check: $1; expected nothing or 'originals'" >&2
        exit 2
        ;;
esac
python=${PYTHON:-python3}
if ! "$python" -c 'import venv' 2>/dev/null; then
    echo "compat_check: $python does not run, or has no module venv; name another: PYTHON=/path/to/python3.10" >&2
    exit 2
fi
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

# A wheel that lies in a folder, else compiled past pip's cache, whose wheels may be for another torch.
build() {
    pip --no-deps --no-index --only-binary=:all: "$1" ||
        "$folder/venv/bin/python" tools/build_mmcv.py "$1" --constraint "$folder/pins" --work "$folder/mmcv"
}

case $torch in
    pinned) wanted=(torch -c tools/constraints.txt) ;;
    newest) wanted=(torch) ;;
    *) wanted=("torch==$torch") ;;
esac
# an index that does not answer would be asked again for every package; PyPI's own build, the CUDA one, does as well
extra=()
if "$python" -c "import urllib.request; urllib.request.urlopen('$index/torch/', timeout=5)" 2>/dev/null; then
    extra=(--extra-index-url "$index")
fi
step "torch $torch" pip "${wanted[@]}" 'setuptools<80' wheel ninja psutil ${extra[@]+"${extra[@]}"}
# whatever comes later must not pull another torch over it; PyPI's build calls itself +cu121 only once it is imported
"$folder/venv/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$folder/pins"

# What the toolboxes brought has replaced neither torch nor a package of the family by one of the other.
unmixed() {
    "$folder/venv/bin/python" -m pip list --disable-pip-version-check --format=freeze >"$folder/installed" || return
    grep -qxF "$(head -n 1 "$folder/pins")" "$folder/installed" || { echo "ERROR: another torch: $(grep '^torch=' "$folder/installed")"; return 1; }
    case $family in
        onedl) ! grep -iE '^mm(cv|det|engine|pretrain|segmentation)=' "$folder/installed" ;;
        openmmlab) ! grep -iE '^onedl' "$folder/installed" ;;
    esac || { echo 'ERROR: packages of the other family'; return 1; }
}

tests=(tests/test_kernels tests/test_models)
case $family in
    none)
        step 'mmengine' pip -c "$folder/pins" 'onedl-mmengine' numba safetensors pytest hypothesis numpy
        # a detector needs a toolbox
        tests=(tests/test_kernels tests/test_models/test_{backbones,vmamba,fastvim}.py -k "not inside_a_detector")
        ;;
    onedl)
        step 'onedl-mmcv (compiles)' build "onedl-mmcv${MMCV:+==$MMCV}"
        step 'toolboxes' pip -c "$folder/pins" onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain torchvision ftfy \
            regex numba safetensors pytest hypothesis matplotlib ${extra[@]+"${extra[@]}"}
        tests+=(tests/test_configs tests/test_package.py)
        ;;
    openmmlab)
        # their files are written against numpy 1, and newer OpenCV asks for numpy 2
        printf '%s\n' 'numpy<2' 'opencv-python<4.12' 'opencv-python-headless<4.12' >>"$folder/pins"
        step 'numpy' pip -c "$folder/pins" numpy
        [ "$torch" != 2.4.1 ] || [ ! -d ../shared/wheels/original ] || PIP_FIND_LINKS="${PIP_FIND_LINKS:-} $(cd ../shared/wheels/original && pwd)"
        export PIP_FIND_LINKS="${PIP_FIND_LINKS:-}"
        step 'mmcv (compiles)' build "mmcv==${MMCV:=2.1.0}"
        step 'toolboxes' pip -c "$folder/pins" mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 mmpretrain==1.2.0 \
            torchvision ftfy regex numba safetensors pytest hypothesis matplotlib ruff triton ${extra[@]+"${extra[@]}"}
        tests=(tests)
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
step 'one torch, one family' unmixed

echo "compat_check: tests" >&2
if OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}" ${PYTEST_ARGS:-} >"$log" 2>&1; then
    row passes "$(tail -n 1 "$log" | tr -d '=' | xargs)"
else
    grep -E '^(FAILED|ERROR)' "$log" >&2
    grep -E '^E  ' "$log" | tail -n 30 >&2
    row fails "$(tail -n 1 "$log" | tr -d '=' | xargs)"
    exit 1
fi
