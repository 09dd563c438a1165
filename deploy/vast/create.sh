#!/bin/sh
# deploy/vast/create.sh OFFER IMAGE MODEL: rents the offer and serves MODEL on it. Needs the `vastai`
# command and its key. docs/deployment/vast.md says the rest.
set -eu
[ $# -eq 3 ] || { echo "usage: $0 OFFER IMAGE MODEL" >&2; exit 2; }
# Without --ssh and --jupyter the image's own entrypoint runs. The port's number outside is
# Vast's to choose.
exec vastai create instance "$1" \
    --image "$2" \
    --disk 50 \
    --env "-p 8000:8000 -e MODEL_NAME=$3 -e SSE_KEEPALIVE=15" \
    --args --create-key
