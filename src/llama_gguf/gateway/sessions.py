"""The session of a request: what its conversation is recognised by, as a number.

The first of: a header that agents send, ``prompt_cache_key`` in the body, and the beginning of the
conversation. Each belongs to its key: the same value with another key is another session.

Python's hash is keyed by the process, so no client can aim at a session of its choice.
"""

from __future__ import annotations

from llama_gguf.http1.conversation import (
    FORMS,
    PROMPT_STEP_BYTES,
    Form,
    beginning,
    beginning_of_prompt,
    cache_key,
)
from llama_gguf.http1.request import Request
from llama_gguf.scheduling.sessions import NO_SESSION, SessionTable


def session_of(
    request: Request, key_id: str, body: bytes | bytearray, sessions: SessionTable
) -> int:
    """The session of a request; NO_SESSION if it has none.

    Args:
        request: its head.
        key_id: of its key.
        body: complete.
        sessions: those that are known; the beginnings of prompts are compared with them.
    """
    if request.session is not None:
        return hash((key_id, request.session))
    form = FORMS.get(request.route.label)
    if form is None:
        return NO_SESSION
    name = cache_key(body)
    if name is None:
        if form is Form.PROMPT:
            return _session_of_prompt(key_id, beginning_of_prompt(body), sessions)
        name = beginning(form, body)
    return NO_SESSION if name is None else hash((key_id, name))


def _session_of_prompt(key_id: str, prompt: bytes, sessions: SessionTable) -> int:
    """The session of a plain *prompt*.

    It may continue one that was shorter: then it is where that was.
    """
    if not prompt:
        return NO_SESSION
    size = len(prompt) - len(prompt) % PROMPT_STEP_BYTES or len(prompt)
    session = hash((key_id, prompt[:size]))
    if not sessions.engine_of(session):
        for shorter in range(size - PROMPT_STEP_BYTES, 0, -PROMPT_STEP_BYTES):
            engine = sessions.engine_of(hash((key_id, prompt[:shorter])))
            if engine:
                sessions.pin(session, engine)
                break
    return session
