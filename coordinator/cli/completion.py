"""Shell completion of `vnpu-watch`: `eval "$(vnpu-watch completion bash)"`. Models are asked of the node itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")
_BASH = """\
_vnpu_watch() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}}
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "{options}" -- "$word"))
    elif [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [[ $command == completion ]]; then
        COMPREPLY=($(compgen -W "{shells}" -- "$word"))
    elif [[ " {models} " == *" $command "* ]]; then
        COMPREPLY=($(compgen -W "$(vnpu-watch models 2>/dev/null)" -- "$word"))
    fi
}}
complete -F _vnpu_watch vnpu-watch
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH
_FISH = """\
complete -c vnpu-watch -f
complete -c vnpu-watch -n __fish_use_subcommand -a "{commands}"
complete -c vnpu-watch -n "__fish_seen_subcommand_from completion" -a "{shells}"
complete -c vnpu-watch -n "__fish_seen_subcommand_from {models}" -a "(vnpu-watch models 2>/dev/null)"
{fish_options}"""
_SCRIPTS: Mapping[str, str] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str, commands: Sequence[str], of_models: Sequence[str], options: Sequence[str]) -> str:
    """What the shell is to evaluate. `of_models`: commands that take a model."""
    return _SCRIPTS[shell].format(
        commands=" ".join(commands),
        models=" ".join(of_models),
        options=" ".join(options),
        shells=" ".join(SHELLS),
        fish_options="".join(f"complete -c vnpu-watch -l {option.removeprefix('--')}\n" for option in options),
    )
