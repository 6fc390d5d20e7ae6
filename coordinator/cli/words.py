"""Shell completion of `vnpu`, made from its own command line: `eval "$(vnpu completion bash)"`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from coordinator.cli import parser

NAMED = ("logs",)
"""Commands that take the name of a process that has a log; the node itself is asked for them."""
_BASH = """\
_vnpu() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} options="" words=""
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case $command in
{cases}
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    elif [[ " {named} " == *" $command "* ]]; then
        COMPREPLY=($(compgen -W "$(vnpu logs --list 2>/dev/null)" -- "$word"))
    elif [[ -n $words && $COMP_CWORD -eq 2 ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -F _vnpu vnpu
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: str) -> str:
    """What the shell (one of `parser.SHELLS`) is to evaluate."""
    commands = _commands()
    if shell == "fish":
        return _fish(commands)
    cases = "\n".join(
        f'        {name}) options="{" ".join(_options(each))}"; words="{" ".join(_choices(each))}" ;;'
        for name, each in commands.items()
    )
    script = _BASH.format(commands=" ".join(commands), cases=cases, named=" ".join(NAMED))
    return (_ZSH if shell == "zsh" else "") + script


def _fish(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    lines = [f'complete -c vnpu -n __fish_use_subcommand -f -a "{" ".join(commands)}"']
    for name, each in commands.items():
        here = f'complete -c vnpu -n "__fish_seen_subcommand_from {name}"'
        lines += [f"{here} -l {option.removeprefix('--')}" for option in _options(each)]
        if choices := _choices(each):
            lines.append(f'{here} -f -a "{" ".join(choices)}"')
        if name in NAMED:
            lines.append(f'{here} -f -a "(vnpu logs --list 2>/dev/null)"')
    return "\n".join(lines) + "\n"


def _commands() -> Mapping[str, argparse.ArgumentParser]:
    [found] = [action for action in parser.build()._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


def _options(command: argparse.ArgumentParser) -> list[str]:
    return [word for action in command._actions for word in action.option_strings if word.startswith("--")]


def _choices(command: argparse.ArgumentParser) -> list[str]:
    """Of its first word."""
    return [str(word) for action in command._actions if not action.option_strings for word in action.choices or ()]
