#!/bin/sh
# The container's entrypoint. It becomes `llama-gguf serve`, which works as PID 1: it reaps orphaned
# processes, handles signals and drains (docs/adr/0006-orchestration-is-python.md).
exec llama-gguf serve "$@"
