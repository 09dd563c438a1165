#!/usr/bin/env bash
# One cancelled `StreamWriter.wait_closed()` makes every later one raise CancelledError.
#
# Expected: cancelling a task that waits for a connection's end cancels that task; a later
# `await writer.wait_closed()` of another task returns when the connection is closed.
# Found: all callers await one future of the protocol, unshielded. Cancelling the first waiter
# cancels that future, so that a later, uncancelled waiter gets CancelledError at once, and a
# `finally` that closes connections looks as if its own task had been cancelled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'uvloop==0.23.0'
cat > try.py <<'PY'
import asyncio
import platform
import sys

import uvloop


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    except asyncio.CancelledError:  # the loop ends
        pass
    writer.close()


async def main() -> str:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    first = asyncio.create_task(writer.wait_closed())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    writer.close()
    try:
        await writer.wait_closed()
    except asyncio.CancelledError:
        result = f"CancelledError, and its own task was asked to cancel {asyncio.current_task().cancelling()} times"
    else:
        result = "returned"
    server.close()
    return result


print("Python", platform.python_version(), "uvloop", uvloop.__version__)
for name, factory in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    with asyncio.Runner(loop_factory=factory) as runner:
        result = runner.run(main())
    print(f"{name}: the second wait_closed: {result}")
    if result != "CancelledError, and its own task was asked to cancel 0 times":
        sys.exit(f"{name} behaves otherwise")
PY
venv/bin/python try.py
