"""Files of variables, as `docker run --env-file` reads them.

A line is ``NAME=VALUE`` or a comment that begins with ``#``. All after ``=`` is the value, with
quotes, ``#`` and white space: nothing is expanded. ``NAME`` alone takes the value that the
environment has, so it changes nothing here.
"""

from __future__ import annotations

import re

from llama_gguf.errors import UserError

_WHITE_SPACE = " \t\v\f\r\x85\xa0"


def parse_env_file(content: bytes, path: str) -> dict[str, str]:
    """The variables in the *content* of the file at *path*; of repeated ones, the last.

    Raises:
        UserError: a line is invalid; exit status 2.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.removesuffix(b"\r").decode().lstrip(_WHITE_SPACE)
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number}: this is not UTF-8 text", 2) from None
        name, equals, value = line.partition("=")
        if not line or line.startswith("#"):
            continue
        # The line is not shown: it may have a secret.
        if not name:
            raise UserError(f"{path}, line {number}: there is no name before the =", 2)
        if re.search(r"\s", name):
            advice = ": write NAME=VALUE, without spaces around the =" if equals else ""
            raise UserError(f"{path}, line {number}: the name has white space in it{advice}", 2)
        if "\0" in line:
            raise UserError(f"{path}, line {number}: a variable cannot contain NUL", 2)
        if equals:
            found[name] = value
    return found
