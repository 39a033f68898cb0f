"""A completion script for bash and zsh, made from what ``--help`` of each command prints.

So it knows every command and option, both of argparse's parsers and of jsonargparse's.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Mapping

SHELLS = ("bash", "zsh")

SCRIPT = """# Completion of fl-lightning for @shell@; made by 'fl-lightning completion @shell@'.
@prelude@_fl_lightning() {
    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=( $(compgen -W "@commands@" -- "$current") )
        return
    fi
    case "$command $before" in
@values@
    esac
    if [ -z "$words" ]; then
        case "$current" in
            -*) case "$command" in
@options@
                esac ;;
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=( $(compgen -W "$words" -- "$current") )
    fi
}
complete -o default -F _fl_lightning fl-lightning
"""
"""If no word fits, the shell completes file names."""

ZSH = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"


def script(shell: str, texts: Mapping[str, str]) -> str:
    """The completion script for a shell.

    Args:
        shell: bash or zsh.
        texts: {command: its help text}.

    Example:
        >>> "--output" in script("bash", {"runs": "usage: fl-lightning runs [--output DIR]"})
        True
    """
    options = {name: options_in(text) for name, text in texts.items()}
    values = [line for name, text in texts.items() for line in _cases(name, values_in(text))]
    filled = {
        "shell": shell,
        "prelude": ZSH if shell == "zsh" else "",
        "commands": " ".join(texts),
        "values": "\n".join(f"        {line}" for line in values),
        "options": "\n".join(
            f'                {name}) words="{" ".join(words)}" ;;' for name, words in options.items()
        ),
    }
    return re.sub(r"@(\w+)@", lambda match: filled[match[1]], SCRIPT)


def help_of(command: str) -> str:
    """What ``--help`` of a command prints, in long lines."""
    text = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            importlib.import_module(f"fl_lightning.commands.{command}").run(["--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return text.getvalue()


def options_in(text: str) -> list[str]:
    """All long options in a help text, sorted.

    Example:
        >>> options_in("usage: x [--alpha A] [--lora.r R]  --alpha A  as --beta/--no-beta")
        ['--alpha', '--beta', '--lora.r', '--no-beta']
    """
    return sorted(set(re.findall(r"(?<![\w-])(--[a-zA-Z][\w.-]*\w)", text)))


def values_in(text: str) -> dict[str, list[str]]:
    """{option: the values that its help text lists}.

    Example:
        >>> values_in("--scheme {iid,shards}  --run RUN  --seed N")
        {'--scheme': ['iid', 'shards'], '--run': ['last']}
    """
    values = {option: choices.split(",") for option, choices in re.findall(r"(--[\w.-]+)[ =]\{([\w,.-]+)\}", text)}
    values |= {option: ["last"] for option in re.findall(r"(--run|--resume)\b", text)}
    if "--method NAME" in text:
        from fl_lightning.config.templates import methods

        values["--method"] = list(methods())
    if shells := re.search(r"^  SHELL +(.*)", text, re.MULTILINE):
        values["completion"] = shells[1].split(" or ")
    return values


def _cases(command: str, values: Mapping[str, list[str]]) -> Iterator[str]:
    for option, words in values.items():
        yield f'"{command} {option}") words="{" ".join(words)}" ;;'
