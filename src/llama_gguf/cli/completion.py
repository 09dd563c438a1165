"""Print the completion of commands, flags and their values, for a shell.

Write it to a file that the shell reads, or for one session: source <(llama-gguf completion bash).

  bash  ~/.local/share/bash-completion/completions/llama-gguf
  zsh   _llama-gguf in a directory of $fpath
  fish  ~/.config/fish/completions/llama-gguf.fish
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llama_gguf.cli.arguments import actions_of, command_parser
from llama_gguf.cli.context import SETTING, Context
from llama_gguf.cli.terminal import echo
from llama_gguf.config.parsers import Choice, boolean, path
from llama_gguf.config.settings import SETTINGS
from llama_gguf.models.catalogue import CATALOGUE

RUNS_WITH_INVALID_SETTINGS: Final = True
"""`main` runs this command even with invalid settings, of which it uses none."""
_FILE: Final = re.compile(r"FILE|PATH|SOURCE|MODEL$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS), metavar="SHELL", help=", ".join(SCRIPTS))


def run(arguments: argparse.Namespace, context: Context) -> int:
    del context
    from llama_gguf.cli.main import COMMANDS

    echo(SCRIPTS[arguments.shell]([_command(name, text) for name, text in COMMANDS.items()]))
    return 0


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag, or the arguments of a command if it has no names."""

    names: tuple[str, ...]
    text: str
    takes_value: bool
    takes_file: bool
    values: tuple[str, ...]
    """Possible values; empty if any is."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or an action of one."""

    name: str
    aliases: tuple[str, ...]
    text: str
    flags: tuple[Flag, ...]
    argument: Flag | None
    actions: tuple[Command, ...]


def _command(name: str, text: str) -> Command:
    parser = command_parser(name)
    return _described(name, text, parser)


def _described(
    name: str, text: str, parser: argparse.ArgumentParser, aliases: Sequence[str] = ()
) -> Command:
    flags = [_flag(a) for a in parser._actions if a.help is not argparse.SUPPRESS]
    subparsers = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    texts = {c.dest: c.help or "" for a in subparsers for c in a._choices_actions}
    actions = [
        _described(action, texts[action], its, _aliases(subparsers[0].choices, action))
        for action, its in actions_of(parser)
    ]
    arguments = [flag for flag in flags if not flag.names] if not actions else []
    return Command(
        name,
        tuple(aliases),
        text,
        tuple(flag for flag in flags if flag.names),
        arguments[0] if arguments else None,
        tuple(actions),
    )


def _aliases(choices: Mapping[str, argparse.ArgumentParser], name: str) -> list[str]:
    return [other for other, parser in choices.items() if parser is choices[name] and other != name]


def _flag(action: argparse.Action) -> Flag:
    name = action.dest.removeprefix(SETTING)
    parse = SETTINGS[name].parse if action.dest.startswith(SETTING) else None
    values = tuple(map(str, action.choices or ()))
    if isinstance(parse, Choice):
        values = parse.options
    elif parse is boolean:
        values = ("true", "false")
    elif action.metavar == "MODEL":
        values = tuple(CATALOGUE)
    takes_file = parse is path or (_FILE.search(str(action.metavar or "")) is not None)
    text = (action.help or "").replace("%%", "%")
    return Flag(
        tuple(action.option_strings),
        re.sub(r" \[.*\]$", "", text),
        action.nargs != 0,
        takes_file or name == "model_name",
        values,
    )


# bash ---------------------------------------------------------------------------------------------

_BASH: Final = """\
# bash completion for llama-gguf
_llama_gguf() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    # bash makes three words of --flag=value
    if [[ $cur == = ]]; then
        cur=""
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    local command=${COMP_WORDS[1]-} action="" words="" values="" files="" word
    if (( COMP_CWORD == 1 )); then
        mapfile -t COMPREPLY < <(compgen -W '@COMMANDS@' -- "$cur")
        return
    fi
    case $command in
@ACTIONS@
    esac
    case "$command${action:+ $action}" in
@WORDS@
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
    fi
    case "$command${action:+ $action} $prev" in
@VALUES@
    esac
    COMPREPLY=()
    [[ -z $values ]] || mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
    if [[ -n $files ]]; then
        compopt -o filenames 2> /dev/null
        while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$cur")
    fi
}
complete -F _llama_gguf llama-gguf"""


def _bash(commands: Sequence[Command]) -> str:
    actions, words, values = [], [], []
    for command in commands:
        if command.actions:
            names = "|".join(n for a in command.actions for n in (a.name, *a.aliases))
            actions.append(
                f'        {command.name}) for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do '
                f"case $word in {names}) action=$word; break;; esac; done;;"
            )
        for path_, each in _all(command):
            flags = " ".join(name for flag in each.flags for name in flag.names)
            argument = " ".join([*(a.name for a in each.actions), *_values(each.argument)])
            is_file = "yes" if each.argument and each.argument.takes_file else ""
            pattern = "|".join(f'"{p}"' for p in path_)
            words.append(
                f"        {pattern}) words='{flags}' values='{argument}' files={is_file};;"
            )
            for flag in each.flags:
                if flag.takes_value:
                    of = "|".join(f'"{p} {name}"' for p in path_ for name in flag.names)
                    is_file = "yes" if flag.takes_file else ""
                    values.append(
                        f"        {of}) values='{' '.join(flag.values)}' files={is_file};;"
                    )
    text = _BASH.replace("@COMMANDS@", " ".join(_names(commands)))
    for mark, lines in (("@ACTIONS@", actions), ("@WORDS@", words), ("@VALUES@", values)):
        text = text.replace(mark, "\n".join(lines))
    return text


def _all(command: Command) -> Iterator[tuple[list[str], Command]]:
    """A command and its actions, each with the words that select it."""
    yield [command.name], command
    for action in command.actions:
        yield [f"{command.name} {n}" for n in (action.name, *action.aliases)], action


def _names(commands: Sequence[Command]) -> list[str]:
    return [*(command.name for command in commands), "help", "version"]


def _values(flag: Flag | None) -> tuple[str, ...]:
    return flag.values if flag else ()


# zsh ----------------------------------------------------------------------------------------------

_ZSH: Final = """\
#compdef llama-gguf
_llama_gguf() {
  local -a names
  if (( CURRENT == 2 )); then
    names=(@COMMANDS@)
    _describe -t commands command names
    return
  fi
  shift words
  (( CURRENT-- ))
  case $words[1] in
@CASES@
  esac
}
if [[ ${funcstack[1]-} == _llama_gguf || ${funcstack[1]-} == _llama-gguf ]]; then
  _llama_gguf "$@"
else
  compdef _llama_gguf llama-gguf
fi"""


def _zsh(commands: Sequence[Command]) -> str:
    cases = "\n".join(_zsh_case(command, "    ") for command in commands)
    names = " ".join(_zsh_name(command) for command in commands)
    return _ZSH.replace("@COMMANDS@", names).replace("@CASES@", cases)


def _zsh_case(command: Command, indent: str) -> str:
    names = "|".join((command.name, *command.aliases))
    if not command.actions:
        specs = [spec for flag in command.flags for spec in _zsh_specs(flag)]
        if command.argument:
            specs.append(shlex.quote(f"1:{_zsh_value(command.argument)}"))
        lines = " \\\n".join(f"{indent}  {spec}" for spec in ["_arguments -S", *specs])
        return f"{indent}{names})\n{lines} ;;"
    inner = "\n".join(_zsh_case(action, indent + "    ") for action in command.actions)
    described = " ".join(_zsh_name(action) for action in command.actions)
    return (
        f"{indent}{names})\n"
        f"{indent}  if (( CURRENT == 2 )); then\n"
        f"{indent}    names=({described})\n"
        f"{indent}    _describe -t actions action names\n"
        f"{indent}    return\n"
        f"{indent}  fi\n"
        f"{indent}  shift words\n"
        f"{indent}  (( CURRENT-- ))\n"
        f"{indent}  case $words[1] in\n{inner}\n{indent}  esac ;;"
    )


def _zsh_name(command: Command) -> str:
    return shlex.quote(f"{command.name}:{command.text}")


def _zsh_specs(flag: Flag) -> Iterator[str]:
    text = re.sub(r"([\[\]:\\])", r"\\\1", flag.text)
    for name in flag.names:
        # A long flag may have its value behind "=".
        equals = "=" if flag.takes_value and name.startswith("--") else ""
        value = f":{_zsh_value(flag)}" if flag.takes_value else ""
        yield shlex.quote(f"{name}{equals}[{text}]{value}")


def _zsh_value(flag: Flag) -> str:
    if flag.values and flag.takes_file:
        return (
            f"value:{{ _alternative 'values:value:({' '.join(flag.values)})' 'files:file:_files' }}"
        )
    if flag.takes_file:
        return "file:_files"
    return f"value:({' '.join(flag.values)})" if flag.values else "value: "


# fish ---------------------------------------------------------------------------------------------


def _fish(commands: Sequence[Command]) -> str:
    lines = ["# fish completion for llama-gguf", "complete -c llama-gguf -f"]
    for command in commands:
        lines.append(_fish_line("__fish_use_subcommand", f"-a {command.name}", command.text))
        seen = f"__fish_seen_subcommand_from {command.name}"
        names = " ".join(n for a in command.actions for n in (a.name, *a.aliases))
        for action in command.actions:
            before = f"{seen}; and not __fish_seen_subcommand_from {names}"
            lines.append(_fish_line(before, f"-a {action.name}", action.text))
            of_action = " ".join((action.name, *action.aliases))
            within = f"{seen}; and __fish_seen_subcommand_from {of_action}"
            lines += _fish_flags(action, within)
        if not command.actions:
            lines += _fish_flags(command, seen)
    return "\n".join(lines)


def _fish_flags(command: Command, condition: str) -> Iterator[str]:
    for flag in command.flags:
        names = " ".join(_fish_name(name) for name in flag.names)
        yield _fish_line(condition, f"{names}{_fish_value(flag)}", flag.text)
    if command.argument and (command.argument.values or command.argument.takes_file):
        is_file = " -F" if command.argument.takes_file else ""
        values = " ".join(command.argument.values)
        yield _fish_line(
            condition, f"{is_file}{f' -a {shlex.quote(values)}' if values else ''}", ""
        )


def _fish_name(name: str) -> str:
    if name.startswith("--"):
        return f"-l {name[2:]}"
    return f"-s {name[1:]}" if len(name) == 2 else f"-o {name[1:]}"


def _fish_value(flag: Flag) -> str:
    values = f" -a {shlex.quote(' '.join(flag.values))}" if flag.values else ""
    kind = (" -r -F" if flag.takes_file else " -x") if flag.takes_value else ""
    return kind + values


def _fish_line(condition: str, what: str, text: str) -> str:
    text = text.replace("\\", "\\\\").replace("'", "\\'")
    described = f" -d '{text}'" if text else ""
    return f"complete -c llama-gguf -n '{condition}' {what.strip()}{described}"


SCRIPTS: Final[Mapping[str, Callable[[Sequence[Command]], str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
