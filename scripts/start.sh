#!/bin/sh
# The container's entrypoint. It becomes `llama-gguf serve`, which is a correct PID 1: it reaps,
# forwards and drains by itself (docs/adr/0006-orchestration-is-python.md).
exec llama-gguf serve "$@"
