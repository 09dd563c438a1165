"""The vocabulary of our own log: what each line of it is called, whatever its words.

With LOG_FORMAT=json each line has its event, so that an alert or a search does not hang on a
sentence that will be written better one day. A test keeps the table complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EVENTS: Final[Mapping[str, str]] = {
    # Starting
    "%-9s %s": "boot_fact",
    "starting: %s": "engine_command",
    "kept from llama-server: %s": "environment_kept_back",
    "gateway listens on %s://%s": "gateway_listens",
    "the limit on open files lets in %d connections, not MAX_CONNECTIONS=%d: "
    "raise it with `ulimit -n %d`": "file_limit_low",
    "AUTH_ENABLED is false: whoever reaches this port may use the model": "auth_disabled",
    # Keys and certificate
    "%d API keys loaded from %s": "keys_loaded",
    "%s, line %d: %s": "keys_line_skipped",
    "no API keys: every request will be refused. Make one with "
    "`llama-gguf keys generate --file %s`": "keys_missing",
    "ADMIN_KEY_IDS names %s, and no key has that id": "admin_key_missing",
    "TLS certificate loaded from %s": "certificate_loaded",
    "The TLS certificate was not reloaded: %s": "certificate_not_loaded",
    # The engine's life
    "llama-server started as process %d; its output is in %s": "engine_started",
    "the model is ready after %.1f s": "engine_ready",
    "engine: %s%s": "engine_state",
    "llama-server died (%s). %s %s%s": "engine_died",
    "llama-server is started again in %.1f s": "engine_restart_due",
    "llama-server is given up": "engine_given_up",
    "llama-server is stopped: nobody has needed it": "engine_asleep",
    "a request has come: llama-server is started again": "engine_woken",
    "the engine does not tell its own metrics: llama-server needs --metrics": "engine_metrics_off",
    # The gateway's
    "the gateway died (%s)": "gateway_died",
    "the gateway is given up": "gateway_given_up",
    "the gateway cannot be started: %s": "gateway_not_started",
    "the supervisor is gone: draining": "supervisor_gone",
    "process %d, which had lost its parent, has ended": "orphan_reaped",
    # Files
    "%s %s cannot be written: %s": "log_not_written",
    "the engine's log %s cannot be written: %s": "log_not_written",
    "the usage in %s cannot be read: %s. Counting begins anew; the file is now %s": "usage_lost",
    "the usage cannot be kept in %s: %s": "usage_not_kept",
    # Ending
    "stopping": "stopping",
    "draining: %d connections open": "draining",
    "requests cut after DRAIN_TIMEOUT: %d": "drain_cut",
    "asked again: what still runs is cut": "stop_hurried",
    # Never
    "a bug, please report it; request %s is cut": "bug",
    "a bug, please report it; a connection is cut": "bug",
}
"""By the message, before anything is filled in."""

WHOLE_SENTENCES: Final[Mapping[tuple[str, str], str]] = {
    ("reloads", "ERROR"): "keys_not_loaded",
    ("reloads", "WARNING"): "keys_file_exposed",
    ("tls", "WARNING"): "certificate_doubtful",
    ("engine_keeper", "INFO"): "engine_progress",
}
"""Of lines whose message is made elsewhere: by module and level."""
