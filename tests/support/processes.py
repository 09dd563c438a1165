"""Whether a process runs. One answer for all tests, since ``/proc/PID`` alone is none.

A process that has ended stays there as a zombie until its parent has taken its status. One that
has lost its parent is handed to PID 1, which may take its time over that, above all in containers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ENDED: Final = ("Z", "X")  # proc_pid_stat(5): zombie, dead


def is_running(pid: int) -> bool:
    """Whether there is a process *pid* that has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # the latter when it goes during the read
        return False
    # The state follows the name, which is in brackets and may have brackets in it.
    return stat.rpartition(")")[2].split()[0] not in _ENDED
