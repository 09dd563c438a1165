"""How an event stream of the engine has ended, read from its last bytes.

The bytes may contain the lines of the chunked coding. A newline in a JSON string is escaped, so a
line that begins as below is a field of an event, and no text of the model.
"""

from __future__ import annotations

import re
from typing import Final

_FINAL: Final = re.compile(
    rb"(?:^|\n)(?:data: ?\[DONE\]"  # OpenAI: chat, completions
    rb"|event: ?(?:message_stop|response\.(?:completed|incomplete))\n[^\n]+"  # Messages, Responses
    rb'|data: ?\{[^\n]*"stop": ?true[^\n]*)\n\n'  # llama-server's own /completion
)
_ERROR: Final = re.compile(
    rb'(?:^|\n)(?:event: ?(?:error|response\.failed)\n|(?:data|error): ?\{"error":)'
)
DONE: Final = "done"
ENGINE_ERROR: Final = "engine_error"


def has_final_event(ending: bytes) -> bool:
    """Whether the last event that a complete stream has is there, and whole."""
    return _FINAL.search(ending) is not None


def outcome_of(ending: bytes) -> str:
    """The outcome of a stream that the engine has ended: it may have sent an error in it."""
    # The expression has no fixed beginning, so it takes ten times as long as these two.
    if b"error" not in ending and b"failed" not in ending:
        return DONE
    return ENGINE_ERROR if _ERROR.search(ending) else DONE
