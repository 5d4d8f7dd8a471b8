"""The command ``scdataloader completion``: a script by which a shell completes commands and options."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module

from scdataloader.commands.usage import Parser

_SCRIPT = """\
_scdataloader() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} options=""
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  if [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _scdataloader scdataloader
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def main(args: Sequence[str]) -> None:
    """Print the script for a shell."""
    from scdataloader.commands.main import COMMANDS  # it imports this module

    parser = Parser(
        prog="scdataloader completion",
        description="Print a script by which a shell completes commands and options.",
        epilog="Example: scdataloader completion bash > ~/.local/share/bash-completion/completions/scdataloader",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell; for zsh, source the script in ~/.zshrc")
    shell = parser.parse_args(args).shell
    helps = {name: help_of(place) for name, (place, _) in COMMANDS.items() if name != "completion"}
    sys.stdout.write((_ZSH if shell == "zsh" else "") + script(helps))


def help_of(place: str) -> str:
    """The help of a command, given as "module:function" of this folder."""
    module, _, function = place.partition(":")
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):  # with which a parser ends after its help
        getattr(import_module(f"scdataloader.commands.{module}"), function)(["--help"])
    return text.getvalue()


def script(helps: dict[str, str]) -> str:
    """The script for bash, given the help of each command."""
    options = {name: " ".join(sorted(set(re.findall(r"(?<!\S)--[a-z][\w.-]*", text)))) for name, text in helps.items()}
    cases = "\n".join(f'    {name}) options="{of_command}" ;;' for name, of_command in options.items())
    return _SCRIPT.format(commands=" ".join([*helps, "completion"]), cases=cases)
