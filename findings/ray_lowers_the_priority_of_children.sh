#!/usr/bin/env bash
# Programs that an actor of Ray starts run with the lowest priority but four.
#
# Expected: a process of a cluster has the priority of the `ray start` that has started it, as with
# systemd, Slurm or Kubernetes.
# Found: nice 15, which is inherited by all that an actor starts. On a busy machine, an inference
# server gets a thirtieth of the time of other programs. RAY_worker_niceness=0 for `ray start` prevents it;
# neither its output nor the documentation of actors names it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'ray==2.60.0'
cat > try.py <<'PY'
import subprocess

import ray


@ray.remote
class Actor:
    def child(self):
        return int(subprocess.run(["nice"], capture_output=True, check=True).stdout)


ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get(Actor.remote().child.remote()))
PY
here=$(nice)
as_is=$(RAY_USAGE_STATS_ENABLED=0 venv/bin/python try.py 2>/dev/null)
as_set=$(RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 venv/bin/python try.py 2>/dev/null)
echo "here: $here, child of an actor: $as_is, with RAY_worker_niceness=0: $as_set"
[[ $as_is == $((here + 15 > 19 ? 19 : here + 15)) && $as_set == "$here" ]]
