"""A model elsewhere is asked as one here is, and says the same; `vlm serve` is the other side."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from io import BytesIO
import json
import os

from core import unfinished
from hobot_vlm import (
    ConfigError,
    GrammarError,
    InferenceError,
    PictureError,
    PromptError,
    RemoteError,
    StateError,
    VLM,
    VlmError,
)
from hobot_vlm.config import Config
from hobot_vlm.remote.address import Address, read_address
from hobot_vlm.remote.body import body_of, Exchange, Question, question_of
from hobot_vlm.remote.dialect import DIALECTS
from hobot_vlm.remote.pictures import Picture, prepare
from hobot_vlm.remote.vlm import KEY_VARIABLE
from hobot_vlm.values import Reply, Video
from hobot_vlm.vlm import make_request
import numpy as np
from PIL import Image
import pytest

from .conftest import remote, serving

QUESTION = 'Describe the picture.'
ENDLESS = {'grammar': 'root ::= "x" root', 'n_predict': 100000}


# -- the same face -----------------------------------------------------------------------------


def test_an_answer_is_as_it_is_here(far, demo, sample, address):
    here, there = demo.ask(QUESTION, sample), far.ask(QUESTION, sample)
    assert (there.text, there.finish_reason) == (here.text, 'stop')
    for name in ('prompt_tokens', 'image_tokens', 'completion_tokens'):
        assert getattr(there, name) == getattr(here, name)
    assert there.timings.ttft_ms > 0 and there.timings.tokens_per_second > 0
    assert there.timings.encode_ms >= 0 and there.timings.preprocess_ms > 0
    assert (there.model, here.model) == (f'demo@{address}', '')
    assert there.as_dict()['model'] == there.model and 'model' not in here.as_dict()
    assert far.ask(QUESTION, sample).reused_tokens > 40


def test_it_streams_to_threads_and_to_coroutines(far, demo, sample):
    expected = demo.ask(QUESTION, sample).text
    pieces = [chunk.text for chunk in far.stream(QUESTION, sample)]
    assert len(pieces) > 5 and ''.join(pieces) == expected

    async def ask():
        stream = far.stream(QUESTION, sample)
        pieces = [chunk.text async for chunk in stream]
        return pieces, await stream.result()

    pieces, reply = asyncio.run(ask())
    assert ''.join(pieces) == reply.text == expected


@pytest.mark.parametrize(
    'options',
    [
        {'json_schema': {'type': 'boolean'}},
        {'grammar': 'root ::= "yes" | "no"'},
        {'regex': '(left|right)'},
        {'n_predict': 4},
        {'stop': ('dog',)},
        {'temperature': 2.0, 'seed': 7, 'top_k': 5, 'top_p': 0.9, 'min_p': 0.01},
        {'repeat_penalty': 1.5},
        {'system_prompt': 'Be short.'},
        {'logit_bias': {368: 20.0}, 'n_predict': 8},
        {'max_tiles': 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_are_followed(far, demo, sample, options):
    picture = np.asarray(Image.open(sample).convert('RGB'))
    file = BytesIO()
    # the same bytes as are sent, so that both read the same pixels
    Image.fromarray(picture).save(file, 'JPEG', quality=far.config.remote_jpeg_quality)
    assert far.ask(QUESTION, picture, **options).text == (
        demo.ask(QUESTION, file.getvalue(), **options).text
    )


def test_logprobs(far, demo):
    here, there = (vlm.ask('Hello', logprobs=3).logprobs for vlm in (demo, far))
    # the end of the answer has no text, and a stream no event for it
    assert [entry.text for entry in here[:-1]] == [entry.text for entry in there]
    assert {len(entry.top) for entry in there} == {3}
    chunks = list(far.stream('Hello', logprobs=1))
    assert sum(len(chunk.logprobs) for chunk in chunks) == len(there)


def test_messages_labels_and_videos(far, demo, sample, odd, tmp_path):
    messages = [
        {'role': 'system', 'content': 'Be short.'},
        {'role': 'user', 'content': [{'type': 'image', 'image': sample},
                                     {'type': 'text', 'text': 'What is on the left?'}]},
        {'role': 'assistant', 'content': 'There is a dog on the left.'},
        {'role': 'user', 'content': 'What is on the right?'},
    ]  # fmt: skip
    assert far.ask(messages).text == demo.ask(messages).text
    video = Video(str(make_video(tmp_path)), frames=2)
    with remote(odd.url, remote_image_side=28) as vlm:
        vlm.ask('good', [sample, video], labels=['Door', ''])
    (message,) = odd.bodies[-1]['messages']
    texts = [part.get('text') for part in message['content']]
    assert texts == ['Door: ', None, 'frame at 0.0 s: ', None, 'frame at 0.5 s: ', None, 'good']


def make_video(folder):
    import cv2

    path = folder / 'clip.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 2, (64, 48))
    for shade in (0, 250):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    return path


def test_many_at_once_and_what_fails_among_them(far, demo, sample):
    replies = far.ask_many([(QUESTION, sample)] * 4 + [('x', 'nofile.png'), ('Hello', None)])
    assert [type(reply) for reply in replies] == [Reply] * 4 + [PictureError, Reply]
    assert {reply.text for reply in replies[:4]} == {demo.ask(QUESTION, sample).text}
    with pytest.raises(ConfigError, match='parallel'):
        far.ask_many([], parallel=0)


def test_each_door_refuses_what_it_cannot_take(far, odd, sample):
    for wrong in (
        lambda: far.ask_many(None),
        lambda: far.ask_many([('Hello', None)], parallel='all'),
        lambda: far.conversation(5),
        lambda: far.tokenize(None),
        lambda: far.tokenize(b'Hello'),
        lambda: far.restore(None),
        lambda: far.encode(5),
    ):
        with pytest.raises(VlmError) as caught:
            wrong()
        assert 10 < len(str(caught.value)) < 300
    first, *rest = far.ask_many([('Hello', None), 'Hello', ('Hello',), 7], n_predict=2)
    assert first.completion_tokens
    assert all(isinstance(each, PromptError) for each in rest)
    with pytest.raises(InferenceError, match='timeout was over before all choices'):
        far.choose(QUESTION, sample, ['yes', 'no'], timeout=1e-6)


def test_leaving_and_cancelling_end_it_there_too(far, demo):
    with unfinished(demo):
        left = far.stream('Hello', **ENDLESS)
        for _ in left:
            break
        assert left.wait().finish_reason == 'cancelled'
        while demo.status().running:
            pass  # the server hears of it
        stream = far.stream('Hello', **ENDLESS)
        next(stream)
        assert far.status().running
        far.cancel()
        assert stream.wait().finish_reason == 'cancelled'
        assert far.ask('Hello', timeout=0.2, **ENDLESS).finish_reason == 'timeout'
        while demo.status().running:
            pass
    with far.stream('Hello', **ENDLESS):
        pass
    assert far.status().running == 0


def test_tokens_and_choices(far, demo, sample):
    assert far.tokenize('<|im_end|> hello') == demo.tokenize('<|im_end|> hello')
    choices = ['There is a dog', 'There is a cat', 'No']
    here, there = (vlm.ask(QUESTION, sample, choices=choices) for vlm in (demo, far))
    assert there.text == here.text == choices[0]
    assert there.choices == pytest.approx(here.choices, abs=0.02)
    assert far.choose('Is there a dog?', sample, ['yes', 'no'])['yes'] > 0.5
    with pytest.raises(ConfigError, match='exact'):
        far.choose(QUESTION, sample, choices, exact=True)
    with pytest.raises(ConfigError, match='choices'):
        far.choose(QUESTION, sample, ['yes'])


def test_choices_by_the_first_token(address, demo, sample):
    with VLM.load(f'vllm/demo@{address}') as vlm:
        stream = vlm.stream(QUESTION, sample, choices=['There is a dog', 'No'])
        (chunk,) = stream
        reply = stream.wait()
        assert reply.text == chunk.text == 'There is a dog'
        assert sum(reply.choices.values()) == pytest.approx(1) and not reply.logprobs
        with pytest.raises(RemoteError, match='begin alike'):
            vlm.choose(QUESTION, sample, ['There is a dog', 'There is a cat'])
        with pytest.raises(RemoteError, match='none of the choices'):
            vlm.choose(QUESTION, sample, ['qqq', 'zzz'])
        vlm.local = demo
        assert (
            vlm.ask(QUESTION, sample, choices=['There is a dog', 'There is a cat']).model == 'demo'
        )
        vlm.local = None


def test_what_it_is(far, demo, sample, address):
    assert isinstance(far, VLM) and far.name == 'demo' and far.runtime == address
    assert far.config.model == address and far.tile_size == 1344
    assert far.troubles() == demo.troubles() == []
    far.encode(sample)
    with pytest.raises(PictureError):
        far.encode('nofile.png')
    with pytest.raises(RemoteError, match='on this machine'):
        far.start_images(make_request('Hello'))
    with pytest.raises(RemoteError, match='on this machine'):
        far.encode_image(sample)


# -- conversations -----------------------------------------------------------------------------


def test_a_conversation_keeps_turns_and_pictures(far, demo, sample, tmp_path):
    talk, here = far.conversation(), demo.conversation()
    for question, picture in (
        ('What is on the left?', sample),
        ('What is on the right?', None),
        ('What is in the middle?', None),
    ):
        assert talk.ask(question, picture).text == here.ask(question, picture).text
    path = tmp_path / 'talk.json'
    talk.save(path)
    again = far.restore(path)
    assert len(again.exchanges) == 3
    assert again.ask('What colour is the background?').text == 'The background is blue.'
    talk.reset()
    assert 'no picture' in talk.ask('What is on the left?').text
    here.save(tmp_path / 'here')
    for file in (tmp_path / 'here', tmp_path / 'nofile', sample):
        with pytest.raises(StateError):
            far.restore(file)
    path.write_text('{"format": "hobot_vlm remote conversation 1", "turns": [{"user": [7]}]}')
    with pytest.raises(StateError, match='save it anew'):
        far.restore(path)


@pytest.mark.parametrize('kind', ['link', 'FIFO', 'folder', 'missing folder'])
def test_the_file_of_a_conversation_is_not_what_it_seems(far, tmp_path, kind):
    """Written through a link, else refused; and nothing half written is left."""
    path, target = tmp_path / 'talk', tmp_path / 'target'
    talk = far.conversation('Be short.')
    if kind == 'link':
        path.symlink_to(target)
        talk.save(path)
        assert path.is_symlink() and target.stat().st_size
        assert far.restore(path).system_prompt == 'Be short.'
    else:
        if kind == 'FIFO':
            os.mkfifo(path)
        elif kind == 'folder':
            path.mkdir()
        else:
            path = path / 'file'
        for use in (talk.save, far.restore):
            with pytest.raises(StateError):
                use(path)
    assert {each.name for each in tmp_path.iterdir()} <= {'talk', 'target'}


def test_turns_are_answered_in_order_and_one_that_was_forgotten_stays_so(far):
    talk = far.conversation()
    streams = [talk.stream('Hello', grammar=f'root ::= "{n}"') for n in range(3)]
    assert [stream.wait().text for stream in streams] == ['0', '1', '2']
    assert [exchange.answer for exchange in talk.exchanges] == ['0', '1', '2']
    stream = talk.stream('Hello', **ENDLESS)
    next(stream)
    talk.reset()
    stream.close()
    assert talk.exchanges == []


def test_a_conversation_that_is_too_long_loses_its_oldest_turns():
    with VLM.load('demo', n_ctx=256, n_predict=8) as small, serving(small) as url:
        with VLM.load(url, n_predict=8) as vlm:
            talk = vlm.conversation()
            for _ in range(4):
                talk.ask('word ' * 60)
            assert 1 <= len(talk.exchanges) < 4
            strict = vlm.conversation(overflow='refuse')
            with pytest.raises(PromptError, match='n_ctx'):
                for _ in range(4):
                    strict.ask('word ' * 60)
            with pytest.raises(PromptError, match='n_ctx'):
                talk.ask('word ' * 300)


def test_the_newest_picture_stays():
    picture = Picture(b'x', (1, 1))
    question = Question('', [Exchange([picture, 'a']), Exchange(['b'])], user=['c'])
    assert question.shorten()
    assert question.exchanges[0].user == [picture, 'b']
    assert question.shorten()
    assert question.user == [picture, 'c'] and not question.shorten()


# -- what is sent ------------------------------------------------------------------------------


def sent(kind, request, **options):
    """Give the fields of a request as a kind of server gets them."""
    config = Config(**options)
    question = question_of(request, config, [], [], False)
    return json.loads(body_of('m', DIALECTS[kind], question, request, config))


@pytest.mark.parametrize('kind', DIALECTS)
def test_every_kind_of_server_gets_its_own_fields(kind):
    fields = sent(kind, make_request('Hello', stop=['.'], logprobs=2), seed=3)
    assert fields['messages'] == [{'role': 'user', 'content': 'Hello'}]
    assert (fields['max_tokens'], fields['temperature'], fields['seed']) == (256, 0.0, 3)
    assert (fields['stop'], fields['top_logprobs'], fields['stream']) == (['.'], 2, True)
    form = sent(kind, make_request('Hello'), json_schema='{"type": "null"}')['response_format']
    assert {'type': 'null'} in (form.get('schema'), form.get('json_schema', {}).get('schema'))
    for option, value in (('regex', 'a+'), ('grammar', 'root ::= "a"')):
        write = getattr(DIALECTS[kind], option)
        if write:
            assert write(value).items() <= sent(kind, make_request('x'), **{option: value}).items()
        else:
            with pytest.raises(GrammarError, match=f'{option} cannot be asked of'):
                sent(kind, make_request('x'), **{option: value})
    for option, value in (('top_k', 3), ('thinking', True), ('fit', 'fill'), ('max_tiles', 2)):
        try:
            assert sent(kind, make_request('x'), **{option: value})
        except ConfigError as exc:
            assert exc.name == option and DIALECTS[kind].title in str(exc)


def test_two_forms_of_one_answer_and_a_schema_that_is_none():
    with pytest.raises(GrammarError, match='json_schema and regex'):
        sent('vllm', make_request('x'), json_schema='{}', regex='a')
    with pytest.raises(GrammarError, match='no JSON'):
        sent('vllm', make_request('x'), json_schema='{')


def test_pictures_are_small_jpegs_without_notes(sample):
    picture = Image.new('RGB', (2000, 1000), 'red')
    exif = Image.Exif()
    exif[0x010E] = 'a secret place'
    file = BytesIO()
    picture.save(file, 'JPEG', exif=exif)
    config = Config(remote_image_side=500, remote_jpeg_quality=50)
    ((made,),) = prepare([file.getvalue()], config, lambda: False)
    assert made.size == (2000, 1000) and b'secret' not in made.jpeg
    with Image.open(BytesIO(made.jpeg)) as small:
        assert (small.size, small.format) == ((500, 250), 'JPEG')
    ((same,),) = prepare([Image.new('RGB', (5, 3))], config, lambda: False)
    assert Image.open(BytesIO(same.jpeg)).size == (5, 3)


def test_boxes_are_read_in_pixels_of_the_picture(far):
    grammar = 'root ::= "door[[100, 200, 500, 1000]]"'
    reply = far.ask('door', np.zeros((300, 3000, 3), np.uint8), find=True, grammar=grammar)
    (box,) = reply.boxes
    assert (box.label, box.x1, box.y1, box.x2, box.y2) == ('door', 300, 60, 1500, 300)


def test_the_key_is_sent_and_named_nowhere(odd, monkeypatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, 'sesame-77')
    with VLM.load(odd.url) as vlm, caplog.at_level('DEBUG', 'hobot_vlm'):
        reply = vlm.ask('good')
        with pytest.raises(RemoteError) as refused:
            vlm.ask('wrong_key')
    assert 'authorization: bearer sesame-77' in odd.headers[-1].lower()
    for text in (str(reply.as_dict()), str(refused.value), repr(vlm.config), caplog.text):
        assert 'sesame' not in text
    monkeypatch.setenv(KEY_VARIABLE, 'two\nlines')
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        VLM.load(odd.url)


def test_a_server_that_wants_a_key(demo, monkeypatch):
    with serving(demo, api_key='sesame') as url:
        with pytest.raises(RemoteError, match='401.*HOBOT_VLM_REMOTE_KEY'):
            VLM.load(url)
        monkeypatch.setenv(KEY_VARIABLE, 'sesame')
        with VLM.load(url) as vlm:
            assert vlm.ask('Hello').text == demo.ask('Hello').text


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        ('http://host:8000/v1', Address('', '', ('http://host:8000/v1',))),
        ('https://host', Address('', '', ('https://host/v1',))),
        ('http://a/v1/,http://b:1/x', Address('', '', ('http://a/v1', 'http://b:1/x'))),
        (
            'lmdeploy/OpenGVLab/InternVL3_5-8B@http://host:23333/v1',
            Address('lmdeploy', 'OpenGVLab/InternVL3_5-8B', ('http://host:23333/v1',)),
        ),
        (
            'OpenGVLab/InternVL3_5-8B@http://a/v1, http://b/v1',
            Address('', 'OpenGVLab/InternVL3_5-8B', ('http://a/v1', 'http://b/v1')),
        ),
        ('vllm/m@http://[::1]:8000/v1', Address('vllm', 'm', ('http://[::1]:8000/v1',))),
    ],
)
def test_addresses(model, expected):
    assert Config(model=model).is_remote
    assert read_address(Config(model=model)) == expected


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'model': 'ftp://host/v1'}, 'expected http://HOST'),
        ({'model': 'http://'}, 'expected http://HOST'),
        ({'model': 'http://host:port/v1'}, 'expected http://HOST'),
        ({'model': '@http://host/v1'}, 'no name before the @'),
        ({'model': 'http://me:secret@host/v1'}, KEY_VARIABLE),
        ({'model': 'http://host/v1?key=secret'}, KEY_VARIABLE),
        ({'model': 'a@http://host/v1', 'remote_model': 'b'}, 'remote_model'),
        ({'model': 'http://host/v1', 'llm_model_name': 'x.gguf'}, 'llm_model_name'),
        ({'model': 'http://host/v1', 'fallback': 'http://other/v1'}, 'fallback'),
        ({'model': 'http://host/v1', 'fallback': 'nothing'}, "'nothing'"),
    ],
)
def test_addresses_that_are_none(options, match):
    with pytest.raises(ConfigError, match=match) as error:
        VLM.load(**options)
    if 'secret' in options['model']:
        assert 'secret' not in str(error.value)


def test_a_server_with_no_list_of_models(odd):
    before = odd.models
    try:
        for models in ({'data': []}, {}, 'x'):
            odd.models = models
            with pytest.raises(RemoteError, match='remote_model|list of models'):
                VLM.load(odd.url)
            with VLM.load(f'any@{odd.url}') as vlm:
                vlm.ask('good')
        assert odd.bodies[-1]['model'] == 'any'
    finally:
        odd.models = before


def test_an_address_with_no_list_of_models(address):
    """Something else is there, as where the path is wrong; with a name, only asking will tell."""
    wrong = address.replace('/v1', '/v2')
    with pytest.raises(RemoteError, match='no list of models: is the address that of /v1'):
        VLM.load(wrong)
    with VLM.load(f'someone@{wrong}') as vlm:
        with pytest.raises(RemoteError, match='answers 404'):
            vlm.ask('Hello')


def test_every_public_member_of_a_model_here_is_there_too(far):
    """What ``VLM`` has and a model elsewhere cannot have says so."""
    own = {name for name in vars(VLM) if not name.startswith('_')}
    there = {name for name in vars(type(far)) if not name.startswith('_')}
    shared = {'load', 'models', 'download', 'ask', 'stream', 'choose'}
    assert own - there == shared
    assert {item.name for item in fields(Config)} >= {'remote_model', 'remote_timeout', 'fallback'}
