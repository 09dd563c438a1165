"""The agents as programs: each with the settings on its page in docs/clients, and run once.

They are installed from ``package-lock.json`` into .cache/agents, and connect to loopback only: all
that they would send elsewhere is switched off, and their proxy for everything else does not exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.agents.engine import MODEL

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".cache" / "agents"
FILES: Final = Path(__file__).parent
MODULES: Final = FOLDER / "node_modules"
NO_PROXY: Final = "127.0.0.1,localhost"
NOWHERE: Final = "http://127.0.0.1:9"
QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_SHARE": "1",
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "NO_PROXY": NO_PROXY,
    "no_proxy": NO_PROXY,
}
PROMPT: Final = "Say hello."


def install() -> None:
    """Install the agents, unless they are there."""
    lock = FILES / "package-lock.json"
    stamp = FOLDER / ".lock"
    if stamp.is_file() and stamp.read_bytes() == lock.read_bytes():
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(FILES / name, FOLDER)
    # Not `npm ci`, which also requires the programs for all other machines to be in the lock.
    npm = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(npm, cwd=FOLDER, check=True, timeout=900)
    # What the two would run by themselves: it puts the program for this machine into place.
    for package, script in (
        ("@anthropic-ai/claude-code", "install.cjs"),
        ("opencode-ai", "postinstall.mjs"),
    ):
        subprocess.run(["node", script], cwd=MODULES / package, check=True, timeout=120)
    shutil.copy(lock, stamp)


@dataclass(frozen=True)
class Outcome:
    """Of one run of an agent."""

    status: int
    output: str
    """Standard output and standard error together."""


@dataclass(frozen=True)
class Agent:
    """A program, and its settings for a gateway.

    Args:
        name: of its command.
        path: of the route that it uses.
        argv: its command line.
        configure: writes its files into a folder, for a gateway's URL, a key and seconds of
            patience, and returns its variables.
    """

    name: str
    path: str
    argv: tuple[str, ...]
    configure: Callable[[Path, str, str, float], Mapping[str, str]]

    def run(self, folder: Path, url: str, key: str, *, patience: float = 60.0) -> Outcome:
        """Ask it once.

        Args:
            folder: for its files.
            url: of the gateway.
            key: for the gateway.
            patience: seconds for which it bears silence.
        """
        home, work = folder / "home", folder / "work"
        home.mkdir()
        work.mkdir()
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TERM": "dumb",
            **QUIET,
            **self.configure(folder, url, key, patience),
        }
        done = subprocess.run(
            [str(MODULES / ".bin" / self.name), *self.argv],
            cwd=work,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        return Outcome(done.returncode, done.stdout)


def _on_page(page: str, language: str, url: str) -> str:
    """The settings on *page* of docs/clients, with what its reader fills in."""
    text = (ROOT / "docs" / "clients" / page).read_text("utf-8")
    block = re.search(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None, page
    return block[1].replace("http://HOST:8000", url).replace("MODEL", MODEL)


def _codex(folder: Path, url: str, key: str, patience: float) -> Mapping[str, str]:
    home = folder / "home" / ".codex"
    home.mkdir()
    settings = _on_page("codex.md", "toml", url)
    (home / "config.toml").write_text(
        f"check_for_update_on_startup = false\n{settings}"
        f"stream_idle_timeout_ms = {patience * 1000:.0f}\n"
        "[analytics]\nenabled = false\n"
    )
    return {"CODEX_HOME": str(home), "LLAMA_API_KEY": key}


def _claude(folder: Path, url: str, key: str, patience: float) -> Mapping[str, str]:
    text = (ROOT / "docs" / "clients" / "claude-code.md").read_text("utf-8")
    exports = re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE)
    filled_in = {"http://HOST:8000": url, "$LLAMA_API_KEY": key, "MODEL": MODEL}
    milliseconds = f"{patience * 1000:.0f}"
    return {name: filled_in.get(value, value) for name, value in exports} | {
        "CLAUDE_CONFIG_DIR": str(folder / "home" / ".claude"),
        "API_TIMEOUT_MS": milliseconds,
        "CLAUDE_ENABLE_STREAM_WATCHDOG": "1",
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": milliseconds,
    }


def _opencode(folder: Path, url: str, key: str, patience: float) -> Mapping[str, str]:
    config: dict[str, Any] = json.loads(_on_page("opencode.md", "json", url))
    config |= {"autoupdate": False, "share": "disabled"}
    milliseconds = int(patience * 1000)
    options = config["provider"]["gateway"]["options"]
    options |= {"headerTimeout": milliseconds, "chunkTimeout": milliseconds}
    (folder / "work" / "opencode.json").write_text(json.dumps(config))
    return {"LLAMA_API_KEY": key}


AGENTS: Final = {
    agent.name: agent
    for agent in (
        Agent("codex", "/v1/responses", ("exec", "--skip-git-repo-check", PROMPT), _codex),
        Agent("claude", "/v1/messages", ("-p", PROMPT), _claude),
        Agent("opencode", "/v1/chat/completions", ("run", PROMPT), _opencode),
    )
}
