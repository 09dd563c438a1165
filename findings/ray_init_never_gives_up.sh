#!/usr/bin/env bash
# ray.init(address=...) never gives up on an address where nothing listens.
#
# Expected: ConnectionError after some seconds, as ray.init(address="auto") raises it at once when
# there is no cluster, or a parameter for the time.
# Found: it logs "Failed to connect to GCS" again and again, more than ten minutes so far; a port that
# refuses connections is no exception.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'ray==2.60.0'
status=0
RAY_USAGE_STATS_ENABLED=0 timeout "${SECONDS_TO_WAIT:-120}" \
    venv/bin/python -c 'import ray; ray.init(address="127.0.0.1:1")' 2>/dev/null || status=$?
echo "exit status: $status (124: stopped after ${SECONDS_TO_WAIT:-120} s)"
[[ $status == 124 ]]
