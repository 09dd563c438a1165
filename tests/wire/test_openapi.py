"""The description at /openapi.json, against the running gateway: schemathesis sends what it allows,

and much that it does not, and compares each response with it. The engine is a stand-in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.gateways import Processes
from tests.support.keys import KEY

# Bodies, and which other methods a forwarded path has, are the engine's to judge. A preflight lists
# the methods of all paths.
NEVER: Final = "negative_data_rejection,unsupported_method,allow_header_conformance"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_gateway_does_what_its_description_states(processes: Processes, tmp_path: Path) -> None:
    engine = processes.fake_llama()
    gateway = processes.gateway(engine.address, AUTH_FAILURES_PER_MINUTE=0)
    url = f"http://127.0.0.1:{gateway.port}/openapi.json"
    program = Path(sys.executable).with_name("schemathesis")
    checks = ("--phases", "coverage,fuzzing", "--exclude-checks", NEVER)
    general = ("--max-examples", "2", "--seed", "1", "--no-color")

    done = subprocess.run(
        [program, "run", url, "--header", f"Authorization: Bearer {KEY}", *checks, *general],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "Selected: 0" not in done.stdout
