#!/bin/sh
# The container's entrypoint. It becomes `llama-gguf serve`, which works as PID 1: it reaps orphaned
# processes, handles signals and drains (docs/adr/0006-orchestration-is-python.md). With the argument
# `gateway` first, it becomes `llama-gguf gateway`.
#
# The kernel discards a signal for PID 1 that has no handler for it, as Python while it starts.
# One that is blocked stays pending instead, also across exec, until llama-gguf has a handler.
block=--block-signal=TERM,INT
env "$block" true 2>/dev/null || block= # not every env has it
command=serve
if [ "${1-}" = gateway ]; then
    command=gateway
    shift
fi
exec env ${block:+"$block"} llama-gguf "$command" "$@"
