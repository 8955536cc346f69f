"""Conversations in files: they go on as if nothing had happened, or are refused by name."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

from core import batches, empty, sizes, slots
from folders import DEMO, MODELS
from hobot_vlm import InferenceError, ModelMismatch, StateError, VLM
import numpy as np
from pictures import picture
import pytest

FAMILIES = ('internvl', 'smolvlm')


def small(family, **options):
    """Load a small random model."""
    folder = MODELS / family
    return VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        llm_model_name=str(folder / 'decoder.gguf'),
        **{'llm_threads': 1, 'n_ctx': 512, 'n_predict': 12, **options},
    )


@pytest.fixture(scope='module')
def state(tmp_path_factory):
    """Save a conversation of two turns with one picture; give the file and the next answer."""
    path = tmp_path_factory.mktemp('state') / 'chat.state'
    with small('internvl') as vlm:
        chat = vlm.conversation('Be short.')
        chat.ask('What is it?', picture(80, 60, 1))
        chat.ask('And where?')
        chat.save(path)
        return path, chat.ask('Why?')


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('flash_attention', ['off', 'on'])
def test_a_conversation_goes_on_in_a_new_context(family, flash_attention, tmp_path, monkeypatch):
    options = {'flash_attention': flash_attention}
    path = tmp_path / 'chat.state'
    questions = [
        ('What is it?', picture(80, 60, 1)),
        ('And where?', None),
        ('And this?', [picture(40, 90, 2), picture(80, 60, 1)]),
    ]
    with small(family, **options) as vlm:
        chat = vlm.conversation('Be short.')
        for question in questions:
            chat.ask(*question)
    with small(family, **options) as vlm:
        saved = vlm.conversation('Be short.')
        for question in questions:
            saved.ask(*question)
        saved.save(path)
        held = len(slots(vlm)[-1].ids)
        expected = [saved.ask('Why?'), saved.ask('What is it?', picture(80, 60, 1))]
    with small(family, **options) as vlm:
        with batches(vlm) as seen:
            restored = vlm.restore(path)
            assert seen == []
            first = restored.ask('Why?')
        # all but the new text was there, and so is the picture shown again
        assert first.reused_tokens == held
        decoded = sum(sizes(seen)) - max(first.completion_tokens - 1, 0)
        assert decoded <= first.prompt_tokens - held
        second = restored.ask('What is it?', picture(80, 60, 1))
        assert second.timings.encode_ms > 0  # what a file brings stays with its conversation
        for got, wanted in zip((first, second), expected, strict=True):
            assert (got.text, got.prompt_tokens, got.image_tokens) == (
                wanted.text,
                wanted.prompt_tokens,
                wanted.image_tokens,
            )
        # without its cells the history is made anew, pictures included
        again = vlm.restore(path)
        empty(vlm)
        rebuilt = again.ask('Why?')
        assert (rebuilt.text, rebuilt.reused_tokens) == (expected[0].text, 0)


@pytest.mark.parametrize('options', [{}, {'cache_type': 'q8_0', 'flash_attention': 'on'}])
def test_the_demo_model_goes_on(sample, tmp_path, options):
    path = tmp_path / 'chat.state'
    with VLM.load('demo', **options) as vlm:
        chat = vlm.conversation()
        chat.ask('Describe the picture.', sample)
        chat.save(path)
        expected = chat.ask('What colour is the background?')
    with VLM.load('demo', **options) as vlm:
        reply = vlm.restore(path).ask('What colour is the background?')
        assert reply.text == expected.text
        assert reply.reused_tokens == expected.reused_tokens > expected.image_tokens


def test_a_system_prompt_before_the_first_turn(tmp_path, monkeypatch):
    prompt = 'You are a robot that looks for dogs and names what it sees in few words. ' * 3
    path = tmp_path / 'system.state'
    with small('internvl') as vlm:
        chat = vlm.conversation(prompt)
        chat.save(path)
        expected = chat.ask('What is it?', picture(80, 60, 1))
    with small('internvl') as vlm:
        with batches(vlm) as seen:
            chat = vlm.restore(path)
        assert seen == []
        reply = chat.ask('What is it?', picture(80, 60, 1))
        assert reply.text == expected.text
        assert reply.reused_tokens == expected.reused_tokens > len(vlm.tokenize(prompt))
        other = small('internvl')
        with other:
            assert (
                other.ask('What is it?', picture(80, 60, 1), system_prompt=prompt).text
                == reply.text
            )


def test_prefill_leaves_only_the_question(monkeypatch):
    with small('smolvlm') as vlm:
        alone = vlm.conversation('Look well.').ask('Hello')
    with small('smolvlm') as vlm:
        chat = vlm.conversation('Look well.')
        chat.prefill()
        with batches(vlm) as seen:
            chat.prefill()
            assert seen == []  # again is free
            reply = chat.ask('Hello')
        assert reply.text == alone.text
        assert (
            sizes(seen)[0] == reply.prompt_tokens - reply.reused_tokens < reply.prompt_tokens / 2
        )


def test_a_full_conversation_is_saved_and_makes_room(tmp_path):
    path = tmp_path / 'chat.state'
    with small('internvl', n_ctx=256) as vlm:
        chat = vlm.conversation()
        chat.ask('What is it?', picture(80, 80, 1), max_tiles=1)
        for _ in range(8):
            chat.ask('And what else is there to see, if anything?')
        assert len(chat.turns) < 8  # some have left, and the picture has not
        chat.save(path)
        expected = chat.ask('Why?')
        assert expected.image_tokens
    with small('internvl', n_ctx=256) as vlm:
        assert vlm.restore(path).ask('Why?').text == expected.text
        others = [vlm.conversation() for _ in range(3)]
        for other in others:  # who hold cells, and give way
            other.ask('Tell me all. ' * 5)
        assert vlm.restore(path).ask('Why?').text == expected.text


def test_a_smaller_context_is_refused(state):
    path, _ = state
    with small('internvl', n_ctx=80) as vlm:
        with pytest.raises(StateError, match='n_ctx'):
            vlm.restore(path)
        assert vlm.ask('Hello', system_prompt='Be short.').completion_tokens


def test_another_model_is_refused(state, tmp_path, demo):
    path, _ = state
    with pytest.raises(ModelMismatch, match=r'another language model.*decoder\.gguf'):
        demo.restore(path)
    # the same shape and other weights: one bit of the last tensor
    folder = tmp_path / 'internvl'
    shutil.copytree(MODELS / 'internvl', folder)
    data = bytearray((folder / 'decoder.gguf').read_bytes())
    data[-64] ^= 1
    (folder / 'decoder.gguf').write_bytes(data)
    with VLM.load(
        model_file_name=str(folder / 'vision.onnx'), llm_model_name=str(folder / 'decoder.gguf')
    ) as vlm:
        with pytest.raises(ModelMismatch, match='another language model'):
            vlm.restore(path)
        assert vlm.ask('Hello', n_predict=2).completion_tokens
    with VLM.load(
        model_file_name=str(MODELS / 'internvl' / 'mmproj.gguf'),
        llm_model_name=str(MODELS / 'internvl' / 'decoder.gguf'),
    ) as vlm:
        with pytest.raises(ModelMismatch, match='another vision encoder.*vision.onnx.*mmproj'):
            vlm.restore(path)


def test_another_cache_type_is_refused(demo, tmp_path):
    path = tmp_path / 'chat.state'
    demo.conversation('Be short.').save(path)
    with VLM.load('demo', cache_type='q8_0', flash_attention='on') as vlm:
        with pytest.raises(ModelMismatch, match='cache_type.*f16, and here it is q8_0'):
            vlm.restore(path)


def test_a_copy_of_the_model_elsewhere_is_the_same_model(state, tmp_path):
    path, expected = state
    shutil.copy(MODELS / 'internvl' / 'decoder.gguf', tmp_path / 'renamed.gguf')
    with VLM.load(
        model_file_name=str(MODELS / 'internvl' / 'vision.onnx'),
        n_predict=12,
        llm_model_name=str(tmp_path / 'renamed.gguf'),
    ) as vlm:
        assert vlm.restore(path).ask('Why?').text == expected.text


def test_damaged_files_are_refused(state, tmp_path):
    path, expected = state
    whole = path.read_bytes()
    bad = tmp_path / 'bad.state'
    with small('internvl') as vlm:
        with pytest.raises(StateError, match='No such file'):
            vlm.restore(bad)
        for data in (
            b'',
            b'GGUF',
            whole[:100],
            whole[:-1],
            whole[: len(whole) // 2],
            b'\0' * len(whole),
        ):
            bad.write_bytes(data)
            with pytest.raises(StateError, match='bad.state is no saved conversation'):
                vlm.restore(bad)
        rng = np.random.default_rng(0)
        for at in rng.integers(0, whole.index(b'PK\x01\x02'), 40):
            data = bytearray(whole)
            data[at] ^= 0x55
            bad.write_bytes(data)
            try:  # a byte of a date, which nobody reads, does no harm
                assert vlm.restore(bad).ask('Why?').text == expected.text
            except StateError:
                pass
        assert vlm.restore(path).ask('Why?').text == expected.text


def rewritten(path, out, change):
    """Write a file with sound checksums whose members were changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members['state.json'])
    change(content, members)
    members['state.json'] = json.dumps(content).encode()
    with zipfile.ZipFile(out, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out


@pytest.mark.parametrize(
    'change',
    [
        lambda c, m: c.update(format=1),
        lambda c, m: c.pop('turns'),
        lambda c, m: c.update(overflow='explode'),
        lambda c, m: c.update(system_prompt=3),
        lambda c, m: c['cells'].append(608),
        lambda c, m: c['cells'].append(True),
        lambda c, m: c['cells'].append(1),
        lambda c, m: c['cells'].clear(),
        lambda c, m: c['turns'][0]['answer'][0]['tokens'].append(-1),
        lambda c, m: c['turns'][0]['user'][0].append({'control': '<|nothing|>'}),
        lambda c, m: c['turns'][0]['user'][0].append({'image': 9, 'tile': 0}),
        lambda c, m: c['turns'][0].update(user=3),
        lambda c, m: c['turns'][0].update(image_parts=9),
        lambda c, m: c['images'][0].update(tokens=[1]),
        lambda c, m: c['images'][0].update(tokens=[-1, 1]),
        lambda c, m: c['images'][0].update(rows=7),
        lambda c, m: m.update(image_0=b'\xff' * len(m['image_0'])),
        lambda c, m: m.pop('image_0'),
        lambda c, m: m.update(kv=m['kv'][:-1]),
        lambda c, m: m.update(kv=m['kv'] + b'\0'),
        lambda c, m: m.update(kv=b''),
        lambda c, m: m.update(kv=b'\xff' * len(m['kv'])),
    ],
)
def test_forged_files_are_refused(state, tmp_path, small_vlm, change):
    path, expected = state
    with pytest.raises(StateError):
        small_vlm.restore(rewritten(path, tmp_path / 'forged.state', change))
    assert small_vlm.restore(path).ask('Why?').text == expected.text


@pytest.fixture(scope='module')
def small_vlm():
    with small('internvl') as vlm:
        yield vlm


def test_a_compressed_file_is_refused(state, tmp_path, small_vlm):
    path, _ = state
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(tmp_path / 'bomb.state', 'w', zipfile.ZIP_DEFLATED) as out,
    ):
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    with pytest.raises(StateError, match='compressed'):
        small_vlm.restore(tmp_path / 'bomb.state')


def test_saving_replaces_a_file_whole_or_not_at_all(small_vlm, state, tmp_path, monkeypatch):
    path = tmp_path / 'chat.state'
    shutil.copy(state[0], path)
    chat = small_vlm.conversation('Another.')

    def full(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(StateError, match='No space left'):
        chat.save(path)
    assert path.read_bytes() == state[0].read_bytes()
    assert os.listdir(tmp_path) == ['chat.state']
    monkeypatch.undo()
    with pytest.raises(StateError, match='cannot save the conversation'):
        chat.save(tmp_path / 'nowhere' / 'chat.state')
    chat.save(path)
    assert small_vlm.restore(path).system_prompt == 'Another.'


def test_saving_waits_for_the_answer_that_is_made(small_vlm, tmp_path):
    chat = small_vlm.conversation()
    stream = chat.stream('Tell me.')
    next(stream)
    chat.save(tmp_path / 'chat.state')
    assert stream.result().finish_reason in ('stop', 'length')
    expected = chat.ask('Why?').text
    with small('internvl') as other:
        assert other.restore(tmp_path / 'chat.state').ask('Why?').text == expected


def test_the_demo_files_are_told_apart():
    from hobot_vlm.llama.gguf import identity

    assert identity(DEMO / 'decoder.gguf') != identity(DEMO / 'vision.onnx')


def test_a_large_file_is_known_by_a_sample(tmp_path):
    from hobot_vlm.llama.gguf import identity

    path = tmp_path / 'large'
    data = np.random.default_rng(1).integers(0, 256, 9 << 20, np.uint8)
    data.tofile(path)
    before = identity(path)
    assert identity(path) == before
    for changed in (
        data[:-1],
        np.concatenate([data[:-1], [data[-1] ^ 1]]).astype(np.uint8),
        data ^ np.uint8(1),
    ):
        changed.tofile(path)
        assert identity(path) != before


def test_a_closed_model_says_so(tmp_path, state):
    vlm = small('internvl')
    chat = vlm.conversation()
    vlm.close()
    for use in (
        lambda: vlm.ask('Hello'),
        lambda: vlm.ask('Hello', picture(30, 30, 1)),
        lambda: chat.ask('Hello'),
        chat.prefill,
        lambda: chat.save(tmp_path / 'chat.state'),
        lambda: vlm.restore(state[0]),
    ):
        with pytest.raises(InferenceError, match='the model is closed'):
            use()
    (error,) = vlm.ask_many([('Hello', None)])
    assert isinstance(error, InferenceError)
