"""What somebody at a terminal sees and types; each manner at a terminal of its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
import re
from subprocess import PIPE
import sys
import time

from hobot_vlm.cli.terminal import cut, Lines, Waiting, width_of
import pytest
from shell import ENDLESS, ROOT

QUESTION = 'Describe the picture.'
PROMPT = '> '


def talk(screen, *args, **more):
    """Begin a conversation; give the terminal and its banner."""
    terminal = screen('chat', *args, **more)
    return terminal, terminal.until(PROMPT)


def said(terminal, line):
    """Type a line; give what comes back before the next prompt."""
    terminal.type(f'{line}\n')
    terminal.until('\r\n')
    return terminal.until(PROMPT).replace('\r\n', '\n')


# -- what is said without being asked ---------------------------------------------------------


def test_loading_is_said_and_the_banner_names_the_model(screen, tmp_path):
    model = ROOT / 'test' / 'models' / 'smolvlm'
    mine = tmp_path / 'config' / 'hobot_vlm' / 'models.yaml'
    mine.parent.mkdir(parents=True)
    files = {'encoder': f'{model}/vision.onnx', 'decoder': f'{model}/decoder.gguf'}
    entry = {'title': 'My own model', 'variants': {'any': files}}
    mine.write_text(json.dumps({'models': {'mine': entry}}))
    _, banner = talk(screen, '-m', 'mine')
    assert re.search(r'loading mine … \d', banner)
    assert banner.index('mine: My own model') > banner.index('loading mine')
    assert '/help' in banner and 'toy' not in banner


def test_the_demo_model_says_that_it_is_a_toy(screen):
    _, banner = talk(screen)
    assert banner.count('toy') == 1
    name = re.search(r'`vlm download ([\w.-]+)`', banner).group(1)
    assert f'`-m {name}`' in ' '.join(banner.split())
    terminal = screen('ask', 'Hello')
    assert 'The demo model is a toy' in terminal.rest()
    terminal = screen('ask', 'Hello', stdout=PIPE, stderr=PIPE)
    with terminal.process.stderr as stderr, terminal.process.stdout:
        assert stderr.read() == b''  # nobody looks


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_waiting_line_counts_and_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    with Waiting() as waiting:
        waiting.show('looking')
        end = time.monotonic() + 10
        while 'looking … ' not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
        waiting.hide()
        shown = terminal.getvalue()
    lines = re.findall(r'looking … \d+\.\d s', shown)
    assert lines and shown.endswith('\r' + ' ' * len(lines[-1]) + '\r')
    assert terminal.getvalue() == shown


def test_the_waiting_line_tells_news_while_there_are_any(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    news = ['', 'encoding tile 3 of 13, about 8 s left', 'encoding tile 2 of 13']
    with Waiting('looking', lambda: news.pop() if news else '') as waiting:
        assert 'encoding tile 2 of 13' in terminal.getvalue()
        end = time.monotonic() + 10
        while 'looking … ' not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
        waiting.show('thinking')
        news.append('not any more')
        while 'thinking … ' not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
    shown = terminal.getvalue()
    words = ('tile 2', 'tile 3 of 13, about 8 s left', 'looking … ', 'thinking … ')
    places = [shown.index(word) for word in words]
    assert places == sorted(places)
    assert 'not any more' not in shown


def test_no_waiting_line_where_nobody_looks(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr('sys.stderr', pipe)
    with Waiting('loading') as waiting:
        waiting.show('looking')
        time.sleep(0.5)
    assert pipe.getvalue() == ''


# -- answers ----------------------------------------------------------------------------------


def test_no_word_is_broken_at_the_edge(screen, sample, demo):
    expected = demo.ask(QUESTION, images=sample).text
    terminal = screen('ask', QUESTION, sample, columns=33, stderr=PIPE)
    with terminal.process.stderr:
        lines = terminal.rest().split('\r\n')
    assert lines.pop() == ''
    assert len(lines) > 2 and max(map(len, lines)) <= 33
    assert ' '.join(lines) == expected


def test_no_word_of_a_message_is_broken(screen):
    terminal, banner = talk(screen, columns=40)
    help_ = said(terminal, '/help')
    for text in (banner.partition('The demo')[2], help_):
        text = re.sub(r'\x1b\[\?2004[hl]|\r', '', text)  # bracketed paste on and off
        words = [line.split() for line in text.split('\n')]
        assert max(len(' '.join(line)) for line in words) <= 40
        assert not {'photograp', 'conversati', 'restor'} & {line[-1] for line in words if line}


def test_lines_of_text():
    def broken(text, width, step=1):
        lines = Lines(lambda: width)
        pieces = [text[i : i + step] for i in range(0, len(text), step)]
        return (''.join(map(lines.feed, pieces)) + lines.end()).split('\n')

    assert broken('a bc def ghij', 4) == ['a bc', 'def', 'ghij']
    assert broken('a bc def ghij', 4, 5) == ['a bc', 'def', 'ghij']
    assert broken('one\n  two  three', 12) == ['one', '  two  three']
    assert broken('abcdefghij kl', 4) == ['abcd', 'efgh', 'ij', 'kl']
    assert broken('图片中有一只狗，和一朵花。', 8) == ['图片中有', '一只狗，', '和一朵', '花。']
    assert broken('一只猫狗，', 8) == ['一只猫', '狗，']
    assert broken('狗dog猫cat', 5) == ['狗dog', '猫cat']
    assert broken('safe\x1b[2Jtext\x07', 80) == ['safe[2Jtext']
    for width in range(8, 30):
        lines = broken('图片 with words，and 一朵花 that are long enough', width)
        assert max(map(width_of, lines)) <= width


def test_columns_of_text():
    assert [width_of(text) for text in ('dog', '一只狗', 'é', 'e\u0301')] == [3, 6, 1, 1]
    assert cut('abcdef', 6) == 'abcdef' and cut('abcdef', 5) == 'abcd…'
    assert cut('一只狗', 5) == '一只…'


def test_an_answer_that_was_cut_off_says_so(screen, sample):
    shown = screen('ask', QUESTION, sample, '--n-predict=3').rest()
    assert shown.rstrip().endswith('[cut off after 3 tokens; --n-predict allows more]')
    terminal, _ = talk(screen, sample, '--n-predict=3')
    assert 'cut off after 3 tokens' in said(terminal, QUESTION)


# -- what can be typed ------------------------------------------------------------------------


def test_a_terminal_conversation(screen, sample, demo):
    expected = demo.ask(QUESTION, images=sample).text
    terminal, _ = talk(screen, sample)
    assert expected in said(terminal, QUESTION).replace('\n', ' ')
    assert 'tokens/s' in said(terminal, '/stats')
    terminal.type('\x04')
    assert terminal.process.wait(60) == 0


@pytest.mark.parametrize('word', ['exit', 'quit', '/bye', '/quit', '/exit', 'EXIT', 'bye'])
def test_words_that_leave(screen, word):
    terminal, _ = talk(screen)
    terminal.type(f'{word}\n')
    terminal.rest()
    assert terminal.process.wait(60) == 0


def test_a_question_mark_is_help(screen):
    terminal, _ = talk(screen)
    for word in ('?', '/help', '/?'):
        shown = said(terminal, word)
        assert '/image FILE …' in shown and '/save FILE' in shown and 'Ctrl-D' in shown


def test_commands_confirm(screen, sample, tmp_path):
    terminal, _ = talk(screen)
    assert 'The next question is about sample.png.' in said(terminal, f'/image {sample}')
    assert 'system prompt' in said(terminal, '/system You are a robot.')
    assert 'forgotten' in said(terminal, '/reset')
    saved = said(terminal, f'/save {tmp_path}/talk')
    assert f'`vlm chat --restore {tmp_path}/talk`' in saved.replace('\n', ' ')
    assert 'no answer yet' in said(terminal, '/stats')
    assert 'there is no /nonsense' in said(terminal, '/nonsense')


def test_files_can_be_dropped(screen, sample, tmp_path, demo):
    expected = demo.ask(QUESTION, images=sample).text
    blank = tmp_path / "a dog's picture.png"
    blank.write_bytes(Path(sample).read_bytes())
    terminal, _ = talk(screen)
    for dropped in (
        f'"{blank}"',
        str(blank).replace(' ', '\\ ').replace("'", "\\'"),
        f'file://{blank}'.replace(' ', '%20'),
        f'/image {blank}',
        f'/image "{blank}"',
    ):
        said(terminal, '/reset')
        assert "about a dog's picture.png." in said(terminal, dropped)
        assert expected in said(terminal, QUESTION).replace('\n', ' ')
    said(terminal, '/reset')
    assert expected in said(terminal, f'{QUESTION} "{blank}"').replace('\n', ' ')
    said(terminal, '/reset')
    assert expected in said(terminal, f'{sample} {QUESTION}').replace('\n', ' ')
    both = said(terminal, f'/image "{blank}" {sample}')
    assert "a dog's picture.png, sample.png" in both


def test_pasted_lines_are_one_question(screen, sample):
    terminal, _ = talk(screen, sample)
    terminal.type('\x1b[200~Describe\nthe picture.\x1b[201~')
    terminal.until('the picture.')
    terminal.type('\n')
    shown = terminal.until(PROMPT)
    assert len(re.findall('background', shown)) == 1
    terminal.type('\x04')
    assert terminal.process.wait(60) == 0


# -- history and completion -------------------------------------------------------------------


def test_lines_can_be_called_back(screen, tmp_path):
    terminal, _ = talk(screen)
    said(terminal, '/nonsense')
    terminal.type('\x1b[A\n')  # arrow up
    terminal.until('there is no /nonsense')
    terminal.until(PROMPT)
    terminal.type('\x04')
    terminal.rest()
    # and in the next session
    terminal, _ = talk(screen)
    terminal.type('\x1b[A\n')
    terminal.until('there is no /nonsense')
    history = tmp_path / 'state' / 'hobot_vlm' / 'history'
    assert history.stat().st_mode & 0o777 == 0o600


def test_commands_and_files_are_completed(screen, tmp_path, sample):
    blank = tmp_path / 'my pictures' / 'one dog.png'
    blank.parent.mkdir()
    blank.write_bytes(Path(sample).read_bytes())
    (blank.parent / 'two.png').touch()
    terminal, _ = talk(screen)
    terminal.type('/im\t')
    terminal.until('/image ')
    terminal.type(f'{tmp_path}/my\t')
    terminal.until('my\\ pictures/')
    terminal.type('o\t')
    terminal.until('one\\ dog.png')
    terminal.type('\n')
    terminal.until('about one dog.png.')
    terminal.until(PROMPT)
    terminal.type('/s\t\t')
    terminal.until('/save  /stats  /system')
    terminal.type('y\t')
    terminal.until('/system')


# -- Ctrl-C -----------------------------------------------------------------------------------


def drop_the_line(terminal):
    """
    Press Ctrl-C at the prompt.

    Python's readline looks for signals and then waits for a key; one that comes just between is
    heard at the next.
    """
    for _ in range(20):
        terminal.type('\x03')
        try:
            return terminal.until(PROMPT, 3)
        except AssertionError:
            pass
    raise AssertionError('Ctrl-C is not heard')


def test_ctrl_c_stops_the_answer_and_not_the_chat(screen):
    terminal, _ = talk(screen, *ENDLESS)
    terminal.type('Say x.\n')
    terminal.until('xxxxx')
    terminal.type('\x03')
    terminal.until(PROMPT)
    terminal.type('half a quest')
    terminal.until('half a quest')
    drop_the_line(terminal)
    assert 'cancelled' in said(terminal, '/stats')
    terminal.type('Say x.\n')  # the model is still there
    terminal.until('xxxxx')
    terminal.type('\x03')
    terminal.until(PROMPT)
    terminal.type('/quit\n')
    assert terminal.process.wait(60) == 0


#: the command, whose model answers nothing until something was cancelled
PATIENT = """
import sys
from hobot_vlm.engine.engine import Engine
from hobot_vlm.engine.scheduler import Scheduler
admit, cancel, stopped = Scheduler._admit, Engine.cancel, []
Scheduler._admit = lambda self: admit(self) if stopped else None
Engine.cancel = lambda self, sequence: (stopped.append(1), cancel(self, sequence))
from hobot_vlm.cli.main import main
sys.exit(main())
"""


def test_a_picture_is_not_lost_when_its_first_question_was_stopped(screen, sample):
    terminal, _ = talk(screen, sample, '--json', program=[sys.executable, '-c', PATIENT])
    terminal.type(f'{QUESTION}\n')
    terminal.until('looking at the picture')
    terminal.interrupt()
    first = terminal.until(PROMPT)
    assert '"cancelled"' in first and 'shown again' in first
    terminal.type(f'{QUESTION}\n')
    shown = terminal.until('\r\n\x1b[?2004h')
    reply = json.loads(re.search(r'\{"text.*\}', shown, re.DOTALL)[0])
    assert reply['image_tokens'] > 0 and reply['completion_tokens'] > 0
