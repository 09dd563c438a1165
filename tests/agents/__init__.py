"""Agents (Codex, Claude Code, OpenCode) against the gateway: ``make test-agents``."""
