#!/bin/sh
# Writes a support bundle. All of it is done by `llama-gguf diagnose`, whose flags it takes.
PATH="$(dirname "$0")/../../.venv/bin:$PATH"
exec llama-gguf diagnose "$@"
