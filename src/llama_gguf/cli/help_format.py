"""The format of `--help`; not in ``arguments.py``, which imports the settings."""

from __future__ import annotations

import argparse
from typing import Final

HELP_COLUMNS: Final = 100


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the value once for all names of a flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=HELP_COLUMNS, max_help_position=34)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"
