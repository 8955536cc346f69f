"""
The line that is typed: editing, history over sessions, completion, pasted lines.

GNU readline does the work, which Python brings on every Linux: it needs no package of its own and
starts at once, and ``input`` uses it by itself. Where Python was built without it, or with
libedit, lines can be typed all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
import glob
import os
from pathlib import Path
import re
import signal
from typing import Any

from .interrupt import OnCtrlC
from .terminal import say

#: lines that are kept; a day's talk, and quickly read
HISTORY = 1000


class Editor:
    """Reads lines from the terminal."""

    def __init__(self, commands: Sequence[str], files_behind: Sequence[str]):
        """
        Set the editor up.

        :param commands: what is completed at the beginning of a line
        :param files_behind: those of them behind which files are completed
        """
        self._commands = commands
        self._files_behind = files_behind
        self._found: list[str] = []
        self._readline = _readline()
        self._history = history_file()
        readline = self._readline
        if readline is None:
            return
        with suppress(OSError):
            readline.read_history_file(self._history)
        readline.set_history_length(HISTORY)
        readline.set_auto_history(False)
        readline.set_completer(self._complete)
        readline.set_completer_delims('')  # a line is completed as a whole: paths hold blanks
        readline.set_completion_display_matches_hook(self._display)
        if 'libedit' in (readline.__doc__ or ''):
            readline.parse_and_bind('bind ^I rl_complete')
        else:
            readline.parse_and_bind('tab: complete')
            # pasted lines come as one
            readline.parse_and_bind('set enable-bracketed-paste on')

    def read(self, prompt: str) -> str | None:
        """Give the next line; None at the end. Ctrl-C drops what was typed, as a shell does."""
        while True:
            try:
                with OnCtrlC(signal.default_int_handler):
                    line = input(prompt)
            except EOFError:
                say('')
                return None
            except KeyboardInterrupt:
                say('')
                continue
            self._remember(line)
            return line

    def _remember(self, line: str) -> None:
        readline = self._readline
        line = ' '.join(line.split())  # the file has one entry a line
        if readline is None or not line:
            return
        last = readline.get_current_history_length()
        if last and readline.get_history_item(last) == line:
            return
        readline.add_history(line)
        with suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(self._history)

    # -- completion ----------------------------------------------------------------------------

    def _complete(self, line: str, number: int) -> str | None:
        if not number:
            self._found = self.completions(line)
        return self._found[number] if number < len(self._found) else None

    def completions(self, line: str) -> list[str]:
        """Give the lines that a line may become."""
        command, blank, _ = line.partition(' ')
        if line.startswith('/') and not blank:
            found = [name for name in self._commands if name.startswith(line.lower())]
            if found:
                return [f'{name} ' if name in self._files_behind else name for name in found]
        if command in self._files_behind and blank:
            head, word = _last_word(line)
        elif not blank:
            head, word = '', line
        else:
            return []
        quote = word[:1] if word[:1] in ('"', "'") else ''
        start = os.path.expanduser(word.lstrip('"\'') if quote else re.sub(r'\\(.)', r'\1', word))
        found = sorted(glob.glob(glob.escape(start) + '*'))
        return [head + _quoted(path, quote) for path in found]

    def _display(self, _: str, matches: Sequence[str], __: int) -> None:
        readline: Any = self._readline
        names = []
        for match in matches:
            head, word = _last_word(match.rstrip())
            names.append(os.path.basename(word.rstrip('/')) if head else word)
        print('\n' + '  '.join(names))
        print(f'> {readline.get_line_buffer()}', end='', flush=True)
        readline.redisplay()


def _last_word(line: str) -> tuple[str, str]:
    """Cut a line before its last word, which may hold quoted or escaped blanks."""
    found = re.search(r"""(?:"[^"]*"?|'[^']*'?|\\.|[^\s\\"'])*$""", line)
    at = found.start() if found else len(line)
    return line[:at], line[at:]


def _quoted(path: str, quote: str) -> str:
    tail = '/' if os.path.isdir(path) else ''
    if quote:
        return f'{quote}{path}{tail}{"" if tail else quote}'
    return re.sub(r"""([\s\\"'])""", r'\\\1', path) + tail


def history_file() -> Path:
    """Give the place of the lines of earlier sessions, which only their user may read."""
    home = os.environ.get('XDG_STATE_HOME') or '~/.local/state'
    return Path(os.path.expanduser(home)) / 'hobot_vlm' / 'history'


def _readline() -> Any:
    try:
        import readline
    except ImportError:
        return None
    return readline
