"""
``vlm completion``: what makes a shell complete ``vlm``, written from the parser.

Names of models stand in the script as they are when it is made. A script of a few lines needs no
package, and no start of Python at each press of Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
import re
from typing import Any

from ..config import Config

SHELLS = ('bash', 'zsh', 'fish')
USE = """\
bash: echo 'eval "$(vlm completion bash)"' >> ~/.bashrc
zsh:  echo 'eval "$(vlm completion zsh)"' >> ~/.zshrc
fish: vlm completion fish > ~/.config/fish/completions/vlm.fish"""

BASH = """\
_vlm() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} known=
  if [ "$COMP_CWORD" -eq 1 ]; then
    known='{commands}'
  else
    case $before in
{values}
      *) case ${{COMP_WORDS[1]}} in
{positionals}
      esac ;;
    esac
    case $word in -*)
      case ${{COMP_WORDS[1]}} in
{flags}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _vlm vlm
"""
ZSH = """\
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""


def add_parser(commands: Any) -> None:
    """Add the command to those of ``vlm``."""
    command = commands.add_parser(
        'completion',
        help='print what makes a shell complete `vlm`',
        description='Print what makes a shell complete `vlm`.',
        epilog=USE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument('shell', choices=SHELLS, metavar='SHELL', help=', '.join(SHELLS))
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    Print the script of a shell.

    :raises ConfigError: the user's own catalogue cannot be understood
    """
    from .main import make_parser
    from ..vlm import VLM

    _, commands = make_parser()
    # a name with other characters could be a command, which the shell would run
    models = [name for name in VLM.models() if re.fullmatch(r'[\w.+-]+', name)]
    script = _fish(commands, models) if args.shell == 'fish' else _bash(commands, models)
    print((ZSH if args.shell == 'zsh' else '') + script, end='')
    return 0


def flags_of(command: argparse.ArgumentParser) -> list[str]:
    """Give the flags of a command."""
    found = re.findall(r'(?<![\w`-])--?[a-z][\w-]*', command.format_help())
    return sorted(set(found))


def _values(models: list[str]) -> dict[str, list[str]]:
    """Give what may stand behind a flag, where that is one of a few words."""
    values = {'--model': models, '-m': models, '--remove': models}
    for item in fields(Config):
        words = [str(choice) for choice in item.metadata['choices'] if choice != '']
        if words:
            values['--' + item.name.replace('_', '-')] = words
    return values


def _positionals(models: list[str]) -> dict[str, list[str]]:
    """Give what may stand behind a command, where that is one of a few words."""
    return {'download': models, 'completion': list(SHELLS)}


def _bash(commands: Mapping[str, argparse.ArgumentParser], models: list[str]) -> str:
    def cases(words: Mapping[str, list[str]], indent: int) -> str:
        return '\n'.join(
            f"{'':{indent}}{name}) known='{' '.join(known)}' ;;" for name, known in words.items()
        )

    return BASH.format(
        commands=' '.join(commands),
        values=cases(_values(models), 6),
        positionals=cases(_positionals(models), 8),
        flags=cases({name: flags_of(command) for name, command in commands.items()}, 8),
    )


def _fish(commands: Mapping[str, argparse.ArgumentParser], models: list[str]) -> str:
    lines = [f"complete -c vlm -f -n __fish_use_subcommand -a '{' '.join(commands)}'"]
    values, behind = _values(models), _positionals(models)
    for name, command in commands.items():
        seen = f"complete -c vlm -n '__fish_seen_subcommand_from {name}'"
        for flag in flags_of(command):
            kind = '-l' if flag.startswith('--') else '-s'
            words = f" -x -a '{' '.join(values[flag])}'" if flag in values else ''
            lines.append(f'{seen} {kind} {flag.lstrip("-")}{words}')
        if name in behind:
            lines.append(f"{seen} -f -a '{' '.join(behind[name])}'")
    return '\n'.join(lines) + '\n'
