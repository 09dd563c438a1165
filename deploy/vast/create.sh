#!/bin/sh
# deploy/vast/create.sh OFFER IMAGE MODEL: rents the offer and serves MODEL on it. Needs the `vastai`
# command and its key. Details: docs/deployment/vast.md.
set -eu
[ $# -eq 3 ] || { echo "usage: $0 OFFER IMAGE MODEL" >&2; exit 2; }
# Without --ssh and --jupyter the image's own entrypoint runs. Vast chooses the external port.
exec vastai create instance "$1" \
    --image "$2" \
    --disk 50 \
    --env "-p 8000:8000 -e MODEL_NAME=$3 -e SSE_KEEPALIVE=15" \
    --args --create-key
