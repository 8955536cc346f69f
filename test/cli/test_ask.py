"""``vlm ask``: answers, options and files, as a script uses them."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import io
import json
from pathlib import Path
import threading

from hobot_vlm import VLM
from hobot_vlm.cli.main import main
from hobot_vlm.values import Video
import pytest
from shell import complaint, REPLY


def test_an_answer(run, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    assert run('ask', 'Describe the picture.', sample) == (0, f'{expected}\n', '')
    assert run('ask', '-', sample, stdin='Describe the picture.\n')[1] == f'{expected}\n'


def test_choosing(run, sample, demo):
    question = 'Is there a banana?'
    shares = demo.choose(question, sample, ['yes', 'no'])
    status, out, err = run('ask', question, sample, '--choose', 'yes, no')
    assert (status, err) == (0, '')
    assert [line.split('  ') for line in out.splitlines()] == [
        [pytest.approx(f'{share:.3f}'), choice] for choice, share in shares.items()
    ]
    status, out, _ = run(
        'ask', question, sample, '--choose', 'yes, there', '--choose', 'no, there', '--json'
    )
    reply = json.loads(out)
    assert list(reply['choices']) == ['yes, there', 'no, there'] and status == 0
    assert reply['text'] == max(reply['choices'], key=reply['choices'].get)
    said = complaint(run('ask', question, sample, '--choose', 'yes'))
    assert 'there are 1 choices: expected 2 to 32' in said


def test_question_and_pictures_in_any_order(run, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    for words in (
        (sample, 'Describe the picture.'),
        ('--stop', 'zebra', sample, '--seed', '3', 'Describe the picture.'),
        (f'file://{sample}', 'Describe the picture.'),
    ):
        assert run('ask', *words) == (0, f'{expected}\n', '')
    assert run('ask', sample, '-', stdin='Describe the picture.')[1] == f'{expected}\n'


def test_a_picture_on_the_network(run, sample, demo, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    expected = demo.ask('Describe the picture.', images=sample).text
    handler = partial(SimpleHTTPRequestHandler, directory=Path(sample).parent)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/{Path(sample).name}?size=1'
        assert run('ask', url, 'Describe the picture.')[:2] == (0, f'{expected}\n')
        server.shutdown()


def test_without_a_question(run, sample):
    for words in ((), (sample,), (sample, sample)):
        assert 'there is no question' in complaint(run('ask', *words))
    said = complaint(run('ask', 'What', 'is', 'it?', sample))
    assert "'is' is no file: put a question of several words into quotes" in said


def test_an_answer_that_was_cut_off(run, sample, tmp_path):
    question = ('ask', 'Describe the picture.', sample)
    whole = run(*question)[1]
    status, out, err = run(*question, '--n-predict', 4)
    assert status == 0 and whole.startswith(out.strip())
    assert err == '[cut off after 4 tokens; --n-predict allows more]\n'
    assert run(*question, '--n-predict', 4, '--json')[::2] == (0, '')
    status, out, err = run('chat', sample, '--n-predict', 4, stdin='Describe the picture.\n')
    assert status == 0 and 'cut off after 4 tokens' in err


@pytest.mark.parametrize(
    'form',
    [
        ('--json-schema', '{"type": "array", "items": {"type": "string"}, "minItems": 9}'),
        ('--grammar', 'root ::= "a b c d e f g h i j k l m n o p q r s t u v w x y z"'),
    ],
)
def test_a_part_of_an_answer_with_a_form_is_an_error(run, form):
    for command, more, stdin in (('ask', ('Hello',), ''), ('chat', (), 'Hello\n')):
        for json_too in ((), ('--json',)):
            words = (command, *more, *form, '--n-predict', 4, *json_too)
            status, out, err = run(*words, stdin=stdin)
            assert status == 2 and out.strip()
            assert 'vlm: the answer was cut off after 4 tokens' in err and err.count('\n') == 1
    assert json.loads(out)['finish_reason'] == 'length'


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


def test_a_video(run, sample, clip, demo):
    one = demo.ask('Describe the picture.', images=sample)
    reply = json.loads(run('ask', 'Describe the video.', '--json', '--frames', 4, clip)[1])
    assert reply['image_tokens'] == 4 * one.image_tokens and reply['text']
    reply = json.loads(run('ask', 'Describe it.', '--json', '--end', '0.01', clip)[1])
    assert reply['image_tokens'] == one.image_tokens  # the first frame alone
    assert 'give an earlier start' in complaint(run('ask', 'What?', '--start', '99', clip))
    assert 'a start before the end' in complaint(run('ask', '?', clip, '--start=2', '--end=1'))


def test_videos_and_pictures_stay_in_order(run, sample, clip, monkeypatch):
    seen = []
    original = VLM.stream

    def stream(self, prompt, images=None, **options):
        seen.extend(images)
        return original(self, prompt, images, **options)

    monkeypatch.setattr(VLM, 'stream', stream)
    assert run('ask', clip, 'What happens?', sample, '--frames', 3)[0] == 0
    assert seen == [Video(str(clip), 3), sample]


def test_stop_and_logprobs(run, sample):
    question = ('ask', 'Describe the picture.', sample, '--json')
    whole = json.loads(run(*question)[1])
    reply = json.loads(run(*question, '--stop', ' on the', '--stop', 'zebra', '--logprobs', 2)[1])
    assert reply['finish_reason'] == 'stop'
    assert reply['text'] == whole['text'].partition(' on the')[0]
    assert len(reply['logprobs']) == reply['completion_tokens']
    assert all(len(token['top']) == 2 for token in reply['logprobs'])
