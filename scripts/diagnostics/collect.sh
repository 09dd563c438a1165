#!/bin/sh
# Writes a support bundle, by running `llama-gguf diagnose` with the given flags.
PATH="$(dirname "$0")/../../.venv/bin:$PATH"
exec llama-gguf diagnose "$@"
