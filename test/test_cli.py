"""
The ``vlm`` command, as a user types it.

What needs signals, pipes or a terminal runs in a process of its own; the rest is called.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
from pathlib import Path
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from hobot_vlm import __version__
from hobot_vlm.cli import _Waiting, main
from hobot_vlm.values import Reply
from PIL import Image
import pytest

ROOT = Path(__file__).parents[1]
VLM = [sys.executable, '-m', 'hobot_vlm.cli']
#: lets an answer never end by itself
ENDLESS = ['--set', 'grammar=root ::= "x" root', '--set', 'n_predict=100000']
REPLY = set(Reply('').as_dict())


@pytest.fixture(autouse=True)
def no_other_catalogue(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command; give (exit status, stdout, stderr)."""

    def call(*args, stdin=''):
        monkeypatch.setattr('sys.stdin', io.StringIO(stdin))
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as exc:  # argparse
            status = exc.code
        return status, *capsys.readouterr()

    return call


def complaint(result, status=2):
    """Give the one line in which a command says why it failed."""
    assert result[0] == status and result[1] == ''
    assert result[2].startswith('vlm: ') and result[2].count('\n') == 1
    return result[2]


# -- without a model --------------------------------------------------------------------------


def test_version(run):
    assert run('--version') == (0, f'vlm {__version__}\n', '')


def test_help_lists_every_option(run):
    status, out, _ = run('ask', '--help')
    assert status == 0
    for name in ('model', 'n_ctx', 'temperature', 'bpu_cores', 'auto_download'):
        assert f'  {name} (' in out


@pytest.mark.parametrize(
    'args', [(), ('nonsense',), ('ask',), ('ask', 'hi', '--nonsense'), ('models', 'extra')]
)
def test_a_wrong_command_line(run, args):
    status, out, err = run(*args)
    assert status == 2 and out == '' and 'usage: vlm' in err


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (('--set', 'n_ctx=1'), 'n_ctx is 1: expected 64 to'),
        (('--set', 'n_ctx'), '--set n_ctx: expected NAME=VALUE'),
        (('--set', 'n_ctxx=512'), "there is no option 'n_ctxx'; did you mean n_ctx?"),
        (('--set', 'feed_type=1'), "there is no option 'feed_type'"),
        (('--params-file', 'absent.yaml'), 'absent.yaml'),
        (('-m', 'nonsense'), "there is no model 'nonsense'"),
        (('-m', 'smolvlm2-256m'), '`vlm download smolvlm2-256m`'),
        (('--frames', '0', 'clip.mp4'), '--frames is 0: expected 1 or more'),
        (('absent.mp4',), 'absent.mp4: there is no such file'),
        (('absent.png',), 'absent.png'),
        (('--set', 'llm_model_name=absent.gguf'), 'absent.gguf'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run, args, words):
    assert words in complaint(run('ask', 'What is it?', *args))


def test_an_empty_prompt(run):
    assert 'the prompt is empty' in complaint(run('ask', ' '))
    assert 'the prompt is empty' in complaint(run('ask', '-', stdin='\n'))


def test_models_is_a_table(run):
    status, out, err = run('models')
    assert status == 0 and 'vlm download' in err and 'models.yaml' in err
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows['NAME'] == ['NAME', 'SIZE', 'LANGUAGES', 'HERE', 'TITLE']
    assert rows['demo'][2:6] == ['MB', 'en', 'zh', 'yes']
    assert rows['internvl3-1b'][1:6] == ['1010', 'MB', 'en', 'zh', 'no']


def test_models_as_json(run):
    status, out, _ = run('models', '--json')
    rows = {row['name']: row for row in json.loads(out)}
    assert status == 0 and rows['demo']['local'] and Path(rows['demo']['decoder']).is_file()
    assert rows['smolvlm2-500m']['languages'] == ['en']
    assert not rows['smolvlm2-500m']['local']


def test_listing_models_loads_no_runtime():
    script = (
        'import sys; from hobot_vlm.cli import main; main(["models"]); '
        'print({"llama_cpp", "onnxruntime", "torch", "cv2", "rclpy"} & set(sys.modules))'
    )
    out = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == 'set()'


def test_a_missing_library_is_named():
    script = (
        'import sys; sys.modules["llama_cpp"] = None; '
        'from hobot_vlm.cli import main; sys.exit(main(["ask", "Hello"]))'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        'vlm: llama-cpp-python is not installed; run `pip install llama-cpp-python`\n'
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_waiting_line_counts_and_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    with _Waiting() as waiting:
        waiting.show('looking')
        end = time.monotonic() + 10
        while 'looking … 0.' not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
        waiting.hide()
        shown = terminal.getvalue()
    assert 'looking … 0.' in shown
    last = shown.rsplit('looking', 1)[1]
    assert last.endswith('\r' + ' ' * len('looking … 0.4 s') + '\r')
    assert terminal.getvalue() == shown


def test_no_waiting_line_where_nobody_looks(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr('sys.stderr', pipe)
    with _Waiting() as waiting:
        waiting.show('looking')
        time.sleep(0.5)
    assert pipe.getvalue() == ''


# -- ask --------------------------------------------------------------------------------------


def test_an_answer(run, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    assert run('ask', 'Describe the picture.', sample) == (0, f'{expected}\n', '')
    assert run('ask', '-', sample, stdin='Describe the picture.\n')[1] == f'{expected}\n'


def test_json_is_one_object_with_the_fields_of_reply(run, sample, demo):
    expected = demo.ask('描述一下这张图片.', images=sample)
    status, out, err = run('ask', '描述一下这张图片.', '--json', sample)  # behind an option
    assert status == 0 and err == '' and out.count('\n') == 1
    reply = json.loads(out)
    assert set(reply) == REPLY
    assert reply['text'] == expected.text and expected.text in out  # no escapes
    assert reply['image_tokens'] == expected.image_tokens > 0


def test_text_is_printed_as_it_comes(monkeypatch, sample):
    class Recorder(io.StringIO):
        flushed: list[str] = []

        def flush(self):
            self.flushed.append(self.getvalue())

    monkeypatch.setattr('sys.stdout', Recorder())
    assert main(['ask', 'Describe the picture.', sample]) == 0
    lengths = {len(text) for text in Recorder.flushed}
    assert len(lengths) > 5


def test_options_reach_the_model(run, sample, tmp_path):
    args = 'ask', 'Describe the picture.', sample, '--json'
    params = tmp_path / 'params.yaml'
    params.write_text('/**: {ros__parameters: {n_predict: 2, feed_type: 1, temperature: 0}}')
    first = json.loads(run(*args, '--params-file', params)[1])
    assert (first['completion_tokens'], first['finish_reason']) == (2, 'length')
    over = json.loads(run(*args, '--params-file', params, '--set', 'n_predict=3')[1])
    assert over['completion_tokens'] == 3


def test_an_answer_that_fits_a_schema(run, sample, tmp_path):
    schema = tmp_path / 'schema.json'
    schema.write_text(
        '{"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}'
    )
    out = run('ask', 'Is it red?', sample, '--json-schema', schema)[1]
    assert type(json.loads(out)['red']) is bool


def test_stats_go_to_stderr(run, sample):
    status, out, err = run('ask', 'Describe the picture.', sample, '--stats')
    assert status == 0 and 'tokens/s' not in out
    assert err.count('\n') == 1 and 'prompt tokens' in err and 'tokens/s' in err


def test_two_pictures(run, sample, demo):
    one = demo.ask('Describe the picture.', images=sample)
    two = json.loads(run('ask', 'Describe the pictures.', '--json', sample, sample)[1])
    assert two['image_tokens'] == 2 * one.image_tokens
    assert two['text']


def test_a_video(run, sample, tmp_path, demo):
    import cv2

    path = tmp_path / 'clip.mp4'
    picture = cv2.resize(cv2.imread(sample), (320, 240))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (320, 240))
    for _ in range(20):
        writer.write(picture)
    writer.release()
    one = demo.ask('Describe the picture.', images=sample)
    clip = json.loads(run('ask', 'Describe the video.', '--json', '--frames', 4, path)[1])
    assert clip['image_tokens'] == 4 * one.image_tokens and clip['text']


def test_frames_are_labelled(run, sample, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr('hobot_vlm.cli.read_frames', lambda path, frames: [sample] * frames)
    from hobot_vlm.engine import VLM as Engine

    original = Engine.stream

    def stream(self, prompt, images=None, **options):
        seen.update(options, images=images)
        return original(self, prompt, images, **options)

    monkeypatch.setattr(Engine, 'stream', stream)
    assert run('ask', 'What happens?', 'clip.mp4', sample, '--frames', 3)[0] == 0
    assert seen['images'] == [sample] * 4
    assert seen['labels'] == ['Frame1', 'Frame2', 'Frame3', 'Image-1']
    assert seen['max_tiles'] == 1


# -- signals and pipes ------------------------------------------------------------------------


def start(*args, **streams):
    streams = streams or {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen([*VLM, *map(str, args)], cwd=ROOT, **streams)


def test_ctrl_c_stops_an_answer():
    with start('ask', 'Say x.', *ENDLESS) as process:
        assert process.stdout.read(3) == b'xxx'
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.strip(b'x') == b'\n' and err == b''


def test_ctrl_c_with_json_still_prints_what_there_is():
    with start('ask', 'Say x.', *ENDLESS, '--json', '--set', 'n_ctx=16384') as process:
        wait_for_answer(process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(out)['finish_reason'] == 'cancelled'


def wait_for_answer(process):
    """Wait until the process watches for Ctrl-C, through a pair of sockets."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):  # a file that was closed meanwhile
            open_files = [os.readlink(fd) for fd in Path(f'/proc/{process.pid}/fd').iterdir()]
            if sum(name.startswith('socket:') for name in open_files) >= 2:
                return
        time.sleep(0.02)
    raise AssertionError('the answer never began')


def test_a_reader_that_leaves_is_no_error():
    with start('ask', 'Say x.', *ENDLESS) as process:
        process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == b''
        assert process.wait(20) == 141


# -- chat from a pipe -------------------------------------------------------------------------


def test_a_conversation(run, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    status, out, err = run(
        'chat', sample, '--json', stdin='Describe the picture.\n\nHow many objects?\n'
    )
    first, second = map(json.loads, out.splitlines())
    assert status == 0 and err == ''
    assert first['text'] == expected
    # the second question is read after all that went before, which is not read again
    assert second['prompt_tokens'] > second['reused_tokens'] > first['prompt_tokens']
    assert second['timings']['encode_ms'] == 0


def test_chat_prints_answers_only(run, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    assert run('chat', sample, stdin='Describe the picture.\n') == (0, f'{expected}\n', '')


def test_image_reset_and_system(run, sample, tmp_path):
    blue = tmp_path / 'a blue one.png'
    Image.new('RGB', (200, 200), (30, 60, 220)).save(blue)
    status, out, err = run(
        'chat',
        '--json',
        stdin=f'/image {sample}\nDescribe the picture.\nDescribe the picture.\n'
        f'/reset\nDescribe the picture.\n'
        f'/image {blue}\nDescribe the picture.\n'
        f'/system You are a robot.\nDescribe the picture.\n',
    )
    replies = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and err == ''
    first, again, afresh, other, system = replies
    assert afresh['text'] == first['text']
    assert afresh['prompt_tokens'] == first['prompt_tokens'] < again['prompt_tokens']
    assert again['image_tokens'] == first['image_tokens']
    assert other['image_tokens'] == 2 * first['image_tokens']
    assert system['image_tokens'] == first['image_tokens']  # the last picture alone
    assert system['prompt_tokens'] > first['prompt_tokens']


def test_a_chat_goes_on_where_it_was_saved(run, sample, tmp_path):
    path, question = tmp_path / 'a talk.state', 'Describe the picture.'
    status, out, err = run(
        'chat', '--json', sample, stdin=f'{question}\n/save {path}\n{question}\n'
    )
    assert (status, err) == (0, '')
    expected = json.loads(out.splitlines()[1])
    status, out, err = run('chat', '--json', '--restore', path, stdin=f'{question}\n')
    assert (status, err) == (0, '')
    reply = json.loads(out)
    timings = reply.pop('timings'), expected.pop('timings')
    assert reply == expected
    assert timings[0]['encode_ms'] == 0
    path.write_bytes(path.read_bytes()[:1000])
    assert str(path) in complaint(run('chat', '--restore', path, stdin=f'{question}\n'))


def test_stop_and_logprobs(run, sample):
    question = ('ask', 'Describe the picture.', sample, '--json')
    whole = json.loads(run(*question)[1])
    reply = json.loads(run(*question, '--stop', ' on the', '--stop', 'zebra', '--logprobs', 2)[1])
    assert reply['finish_reason'] == 'stop'
    assert reply['text'] == whole['text'].partition(' on the')[0]
    assert len(reply['logprobs']) == reply['completion_tokens']
    assert all(len(token['top']) == 2 for token in reply['logprobs'])


def test_chat_commands_answer_on_stderr(run, sample):
    status, out, err = run(
        'chat', stdin=f'/stats\n/help\n/image {sample}\nDescribe the picture.\n/stats\n'
    )
    lines = err.splitlines()
    assert status == 0 and out.count('\n') == 1
    assert lines[0] == 'no answer yet' and '/image FILE' in lines[1] and 'tokens/s' in lines[-1]


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('/nonsense', 'there is no /nonsense; /help'),
        ('/', 'there is no /; /help'),
        ('/image', '/image wants a file'),
        ('/image absent.png', 'absent.png'),
        ('/system', '/system wants a text'),
        ('/save', '/save wants a file'),
        ('/save /no/such/folder/talk', '/no/such/folder/talk'),
        ('word ' * 6000, 'n_ctx'),
    ],
)
def test_an_error_does_not_end_a_chat(run, line, words):
    status, out, err = run('chat', stdin=f'{line}\nHello\n')
    assert status == 2 and words in err and err.count('\n') == 1
    assert out.count('\n') == 1


def test_quit_ends_it(run):
    assert run('chat', stdin='/quit\nDescribe the picture.\n') == (0, '', '')


# -- chat at a terminal -----------------------------------------------------------------------


class Screen:
    """A process at a terminal of its own."""

    def __init__(self, *args):
        self._main, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, 120, 0, 0))
        self.process = start(
            *args,
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self.text = ''

    def type(self, text):
        os.write(self._main, text.encode())

    def until(self, words, seconds=40):
        """Read until the words appear; give what came before and forget it all."""
        end = time.monotonic() + seconds
        while words not in self.text:
            ready, _, _ = select.select([self._main], [], [], max(0, end - time.monotonic()))
            assert ready, f'{words!r} never came; the screen shows {self.text!r}'
            self.text += os.read(self._main, 4096).decode(errors='replace')
        before, _, self.text = self.text.partition(words)
        return before

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        os.close(self._main)
        return self.process.wait()


@pytest.fixture
def screen():
    screens = []

    def make(*args):
        screens.append(Screen(*args))
        return screens[-1]

    yield make
    for one in screens:
        one.close()


def test_a_terminal_conversation(screen, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    terminal = screen('chat', sample)
    terminal.until('> ')
    terminal.type('Describe the picture.\n')
    assert expected in terminal.until('> ').replace('\r\n', ' ')
    terminal.type('/stats\n')
    terminal.until('tokens/s')
    terminal.until('> ')
    terminal.type('\x04')
    assert terminal.process.wait(20) == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(screen):
    terminal = screen('chat', *ENDLESS)
    terminal.until('> ')
    terminal.type('Say x.\n')
    terminal.until('xxxxx')
    terminal.type('\x03')
    terminal.until('\r\n> ')
    terminal.type('half a quest\x03')  # at the prompt it drops the line
    terminal.until('> ')
    terminal.type('/stats\n')
    assert 'cancelled' in terminal.until('> ')
    terminal.type('Say x.\n')  # the model is still there
    terminal.until('xxxxx')
    terminal.type('\x03')
    terminal.until('\r\n> ')
    terminal.type('/quit\n')
    assert terminal.process.wait(20) == 0


def test_lines_can_be_called_back(screen):
    terminal = screen('chat')
    terminal.until('> ')
    terminal.type('/nonsense\n')
    terminal.until('there is no /nonsense')
    terminal.until('> ')
    terminal.type('\x1b[A\n')  # arrow up
    terminal.until('there is no /nonsense')
