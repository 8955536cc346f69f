"""
``vlm completion``: what makes the shell complete ``vlm``, written from the parser.

Names of models stand in the script as they are when it is made.
"""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ('bash', 'zsh', 'fish')
USE = """\
bash: echo 'eval "$(vlm completion bash)"' >> ~/.bashrc
zsh:  echo 'eval "$(vlm completion zsh)"' >> ~/.zshrc
fish: vlm completion fish > ~/.config/fish/completions/vlm.fish"""


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
    """Print the script of a shell."""
    raise NotImplementedError
