"""``vlm chat`` from a pipe, where each line is a question."""

from __future__ import annotations

import json

from PIL import Image
import pytest
from shell import complaint


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
