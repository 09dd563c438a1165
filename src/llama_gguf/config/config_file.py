"""The configuration file: TOML, with the settings' names as keys, without tables.

``port``, ``PORT`` and ``port-health`` for PORT_HEALTH are accepted. A value has the type of its
setting, or is a string as in the environment; a list of strings stands for values separated by
commas. An unknown key is an error, unlike an unknown variable: the file is only for this program.
Imported only if there is such a file: tomllib would delay every start.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping

from llama_gguf.config.load import FileValue
from llama_gguf.config.parsers import as_text
from llama_gguf.config.settings import SETTINGS, variable
from llama_gguf.errors import UserError


def parse_config_file(content: bytes, path: str) -> tuple[dict[str, FileValue], list[str]]:
    """The values in the *content* of the file at *path*, by the settings' names, and the mistakes.

    Raises:
        UserError: it is not TOML; exit status 2.
    """
    try:
        text = content.decode("utf-8-sig")
        keys = tomllib.loads(text)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", 2) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # Its message has the position, and at most one character of the content.
        raise UserError(f"{path} is not valid TOML: {error}", 2) from None
    lines = _lines_of_keys(text)
    found: dict[str, FileValue] = {}
    mistakes: list[str] = []
    for key, value in keys.items():
        line = f", line {lines[key]}" if key in lines else ""
        where = f"{path}{line}: {key if key.isprintable() else ascii(key)}"
        name = _name(key)
        if name not in SETTINGS:
            mistakes.append(f"{where} is {_unknown(key, value)}")
        elif name == "config_file":
            mistakes.append(f"{where} cannot be in the file itself; use --config or CONFIG_FILE")
        elif name in found:
            mistakes.append(f"{where} is the same setting as in {found[name].where}")
        elif wrong := _mistake(name, value):
            mistakes.append(f"{where} is invalid; must be {wrong}")
        else:
            found[name] = FileValue(_as_text(value), where)
    return found, mistakes


def suggestion(key: str) -> str:
    """The setting that *key* probably means, as a variable; empty if there is none."""
    name = _name(key)
    for setting in SETTINGS.values():
        if "--" + name.replace("_", "-") in setting.aliases:
            return variable(setting.name)
    near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.7)
    return variable(near[0]) if near else ""


def _name(key: str) -> str:
    return key.lower().replace("-", "_")


def _unknown(key: str, value: object) -> str:
    if isinstance(value, Mapping):
        return "a table; settings are at the top of the file, without tables"
    meant = suggestion(key)
    return "not a setting" + (f"; did you mean {meant.lower()}?" if meant else "")


def _mistake(name: str, value: object) -> str:
    """What *value* must be; empty if its type is acceptable. Its content is checked later."""
    default = SETTINGS[name].default
    if isinstance(value, str):
        return ""
    if isinstance(default, tuple):
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return "" if is_list else 'a list of strings, such as ["a", "b"]'
    if isinstance(default, str):
        return "a string, in quotes"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    if isinstance(default, int) and isinstance(value, float):
        return "a whole number"
    return ""


def _as_text(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else as_text(value)


def _lines_of_keys(text: str) -> Mapping[str, int]:
    """The line of each key at the top of the file, as far as it begins its line."""
    return dict(reversed(list(_keys_with_lines(text))))  # the first, if it looks repeated


def _keys_with_lines(text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*\[?\s*[\"']?([\w.-]+)[\"']?\s*[=\]]", line):
            yield match[1], number
