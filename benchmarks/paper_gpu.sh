#!/usr/bin/env bash
# The paper's comparison on a GPU machine that has torch and no network.
#
#     benchmarks/paper_gpu.sh CARRY OUTPUT [SECONDS] [PROCESSES]
#
# CARRY holds wheels/*.whl (what the machine's Python lacks) and fashion-mnist/*.gz (the four idx files). Finished cells
# lie in OUTPUT as they come (docs/gpu.md).
set -euo pipefail
carry=$(realpath "$1"); mkdir -p "$2"; output=$(realpath "$2"); seconds=${3:-500}; processes=${4:-$(nproc)}
started=$(date +%s)
cd "$(dirname "$0")/.."
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$carry"/wheels/*.whl
cp -r nm2trt "$site/nm2trt"
cp -r training calibration "$site/nm2trt/"
mkdir -p "$site/share/datasets"
ln -s "$carry/fashion-mnist" "$site/share/datasets/fashion-mnist"
export PYTHONPATH="$site:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" XDG_DATA_DIRS="$site/share:/usr/share"
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 TRITON_CACHE_DIR="$site/triton" MPLCONFIGDIR="$site/matplotlib"
# MPS lets kernels of several processes run at the same time; without it they take turns.
if command -v nvidia-cuda-mps-control >/dev/null; then
    export CUDA_MPS_PIPE_DIRECTORY="$site/mps" CUDA_MPS_LOG_DIRECTORY="$site/mps-log"
    mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    if nvidia-cuda-mps-control -d && timeout 60 python3 -c 'import torch; torch.ones(1, device="cuda").sum().item()'; then
        echo "with MPS"
        trap 'echo quit | timeout 10 nvidia-cuda-mps-control || true' EXIT
    else
        echo "MPS does not work here"
        echo quit | timeout 10 nvidia-cuda-mps-control || true
        unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    fi
fi
python3 -c 'import sys, torch; print(sys.version.split()[0], torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())'
left=$((seconds - ($(date +%s) - started)))
python3 benchmarks/paper.py --budget-s "$left" --jobs "$processes" --folder "$output" ${PAPER_OPTIONS:-} 2>&1 | tee "$output/log.txt"
