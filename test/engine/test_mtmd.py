"""
Any model that libmtmd knows: the same prompts, positions, logits and answers as its own way.

Each kind of projector is a pair of small random files, made by ``tools/make_mtmd_models.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
import json
from pathlib import Path
import sys
import zipfile

import core
from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.errors import ConfigError, InferenceError, ModelFileError, ModelMismatch, StateError
from hobot_vlm.llama.context import Placed
from mtmd_route import Answer, MARKER, memory_of, Route
import numpy as np
from pictures import picture
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))

import make_mtmd_models  # noqa: E402

USER, ASSISTANT = '<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'
NEXT = '<|im_end|>\n' + USER
WIDE, TALL = picture(90, 50, 1), picture(33, 120, 3)
#: more embeddings than fit a batch of ``OPTIONS``, where pictures of any size are read
LARGE = picture(310, 250, 4)
#: with flash attention, ggml rounds a row by how many others are computed with it
OPTIONS = {'n_predict': 32, 'n_ctx': 2048, 'n_batch': 32, 'flash_attention': 'off'}
SAME_LOGITS = 1e-3


@dataclass
class Pair:
    """One model, in both ways."""

    kind: str
    vlm: VLM
    route: Route

    def expect(self, text: str, *pictures: np.ndarray) -> Answer:
        """Ask libmtmd about a conversation of one turn."""
        self.route.reset()
        return self.route.ask(USER + text + ASSISTANT, pictures, 32)

    def logits(self) -> np.ndarray:
        """Give the logits by which the last token was chosen."""
        return self.vlm.engine.call(lambda: core.parts(self.vlm).context.logits().copy())

    def tokens(self, text: str) -> list[int]:
        """Give the tokens that an answer was made of."""
        return list(self.vlm.maker._answers[text].ids)


def files(folder: Path, kind: str, **options: object) -> dict[str, object]:
    """Give the options that load a model; of its own family where that is ours too."""
    return {
        'model_file_name': str(folder / kind / 'mmproj.gguf'),
        'llm_model_name': str(folder / kind / 'decoder.gguf'),
        **({'model_type': 2} if kind == 'idefics3' else {}),
        **OPTIONS,
        **options,
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the files."""
    path = tmp_path_factory.mktemp('mtmd')
    make_mtmd_models.write(path)
    return path


@pytest.fixture(scope='module', params=make_mtmd_models.KINDS)
def pair(request: pytest.FixtureRequest, folder: Path) -> Iterator[Pair]:
    """Load one kind after the other."""
    same = memory_of(0) if request.param == 'pixtral' else nullcontext()
    with same, VLM.load(**files(folder, request.param)) as vlm:
        route = Route(folder / request.param)
        yield Pair(request.param, vlm, route)
        route.close()


def test_prompt_positions_logits_and_answer_are_libmtmds(pair: Pair) -> None:
    assert pair.vlm.family == 'mtmd' and pair.vlm.runtime == 'libmtmd'

    def ask_parts() -> object:
        parts = [
            {'type': 'text', 'text': 'This: '},
            {'type': 'image', 'image': TALL},
            {'type': 'text', 'text': ' was what?'},
        ]
        return [{'role': 'user', 'content': parts}]

    cases: list[tuple[str, tuple[np.ndarray, ...], object, object]] = [
        (f'{MARKER}What is it?', (WIDE,), 'What is it?', WIDE),
        (f'{MARKER}{MARKER}Which?', (TALL, WIDE), 'Which?', [TALL, WIDE]),
        (f'This: {MARKER} was what?', (TALL,), ask_parts(), None),
        (f'{MARKER}So large', (LARGE,), 'So large', LARGE),
    ]
    for text, pictures, question, images in cases:
        expected = pair.expect(text, *pictures)
        prompt = core.prompt(pair.vlm, question, images).prompt
        assert [max(value, -1) for value in prompt.ids] == expected.ids
        assert prompt.positions == [*expected.places[0], expected.position]
        with core.batches(pair.vlm) as seen:
            reply = pair.vlm.ask(question, images)
        assert pair.tokens(reply.text) == expected.tokens
        assert reply.prompt_tokens == len(expected.ids)
        assert reply.image_tokens == expected.ids.count(-1)
        check_places(pair, seen, expected)
        core.empty(pair.vlm)
        pair.vlm.ask(question, images, n_predict=1)
        assert np.abs(pair.logits() - expected.logits).max() < SAME_LOGITS


def check_places(pair: Pair, seen: list[list[core.Run]], expected: Answer) -> None:
    """Check where the embeddings of pictures stood, and what they saw."""
    runs = [run for batch in seen for run in batch if isinstance(run.entries, Placed)]
    several = pair.kind in ('qwen2vl', 'qwen3vl')
    assert bool(runs) == (several or pair.kind == 'gemma3')
    assert all(run.entries.causal == (pair.kind != 'gemma3') for run in runs)
    if several:
        placed = np.concatenate([run.entries.positions for run in runs], axis=1)
        embedded = np.array(expected.ids) == -1
        np.testing.assert_array_equal(placed[:3], expected.places[:3, embedded])


def test_three_turns_and_a_restored_conversation(pair: Pair, tmp_path: Path) -> None:
    turns = [('First?', [WIDE]), ('And what else?', []), ('These two?', [TALL, WIDE])]
    pair.route.reset()
    start = USER
    expected = []
    for text, pictures in turns:
        asked = start + MARKER * len(pictures) + text + ASSISTANT
        expected.append(pair.route.ask(asked, pictures, 12).tokens)
        start = NEXT
    chat = pair.vlm.conversation()
    replies = []
    for text, pictures in turns:
        if len(replies) == 2:
            chat.save(tmp_path / 'chat')
        replies.append(chat.ask(text, pictures, n_predict=12))
        assert pair.tokens(replies[-1].text) == expected[len(replies) - 1]
    assert replies[1].reused_tokens >= replies[0].prompt_tokens
    core.empty(pair.vlm)
    restored = pair.vlm.restore(tmp_path / 'chat')
    with core.batches(pair.vlm) as seen:
        again = restored.ask(*turns[2], n_predict=12)
    assert (again.text, again.reused_tokens) == (replies[2].text, replies[2].reused_tokens)
    written = again.completion_tokens - (again.finish_reason == 'length')  # the last is not read
    assert sum(core.sizes(seen)) == again.prompt_tokens - again.reused_tokens + written
    restored.save(tmp_path / 'again')
    # without cells the history is decoded anew, from the embeddings in the file
    chat.save(tmp_path / 'short', cells=False)
    core.empty(pair.vlm)
    short = pair.vlm.restore(tmp_path / 'short')
    expected.append(pair.route.ask(NEXT + 'Last?' + ASSISTANT, [], 12).tokens)
    assert pair.tokens(short.ask('Last?', n_predict=12).text) == expected[3]
    third = pair.vlm.restore(tmp_path / 'again').ask('Last?', n_predict=12)
    assert pair.tokens(third.text) == expected[3] and third.reused_tokens > again.prompt_tokens


def test_eight_side_by_side(pair: Pair) -> None:
    shown = [[picture(40 + 9 * i, 60, i)] * (i % 3 > 0) for i in range(8)]
    expected = [
        pair.expect(MARKER * len(pictures) + f'Number {i}', *pictures)
        for i, pictures in enumerate(shown)
    ]
    replies = pair.vlm.ask_many([(f'Number {i}', pictures) for i, pictures in enumerate(shown)])
    assert [pair.tokens(reply.text) for reply in replies] == [one.tokens for one in expected]


def test_what_is_known_is_not_decoded_again(pair: Pair) -> None:
    core.empty(pair.vlm)
    first = pair.vlm.ask('Same?', [WIDE, TALL], n_predict=4)
    with core.batches(pair.vlm) as seen:
        again = pair.vlm.ask('Same?', [WIDE, TALL], n_predict=4)
    assert again.text == first.text and again.timings.encode_ms == 0
    if not core.parts(pair.vlm).context.rewinds:
        return  # such a memory cannot go back to where two prompts part
    assert again.reused_tokens == again.prompt_tokens - 1
    assert core.sizes(seen) == [1] * 4
    # the first picture and its marks are shared, the second goes whole
    shared = core.prompt(pair.vlm, 'Same?', [WIDE]).prompt
    expected = pair.expect(f'{MARKER}Other', WIDE)
    with core.batches(pair.vlm) as seen:
        other = pair.vlm.ask('Other', [WIDE])
    assert pair.tokens(other.text) == expected.tokens
    assert other.reused_tokens >= max(shared.tiles)[0] + max(shared.tiles)[1].tokens
    assert not any(isinstance(run.entries, Placed) for batch in seen for run in batch)


def test_cancelled_within_a_picture(pair: Pair) -> None:
    core.empty(pair.vlm)
    expected = pair.expect(f'{MARKER}So large', LARGE)
    context = core.parts(pair.vlm).context
    run = context.run

    def stopping(runs: list[core.Run]) -> object:
        outcome = run(runs)
        if any(one.embedded and len(one.entries) > 1 for one in runs):
            pair.vlm.cancel()
        return outcome

    pair.vlm.encode(LARGE)
    context.run = stopping
    try:
        assert pair.vlm.ask('So large', LARGE, n_predict=4).finish_reason == 'cancelled'
    finally:
        del context.run
    assert pair.tokens(pair.vlm.ask('So large', LARGE).text) == expected.tokens


def test_positions_of_a_file_are_checked(folder: Path, tmp_path: Path) -> None:
    with VLM.load(**files(folder, 'qwen2vl')) as vlm:
        chat = vlm.conversation()
        chat.ask('.', WIDE, n_predict=2)
        chat.save(tmp_path / 'chat', cells=False)
        with zipfile.ZipFile(tmp_path / 'chat') as archive:
            data = {name: archive.read(name) for name in archive.namelist()}
        content = json.loads(data['state.json'])
        (placing,) = content['images'][0]['placing']
        time, row, column = placing['parts']
        wrong: list[dict[str, object]] = [
            {'length': 0},
            {'length': 1.5},
            {'parts': [time, row]},
            {'parts': [time[1:], row, column]},
            {'parts': [[*time[:-1], 9], row, column]},
            {'parts': [[1, *time[1:]], row, column]},
            {'parts': [time, row, [*column[:-1], -1]]},
            {'parts': [time, [*row[:-1], 1 << 40], column]},
            {'parts': None},
        ]
        for change in [{}, *wrong]:
            content['images'][0]['placing'] = [placing | change]
            data['state.json'] = json.dumps(content).encode()
            with zipfile.ZipFile(tmp_path / 'changed', 'w') as archive:
                for name, value in data.items():
                    archive.writestr(name, value)
            if not change:
                assert vlm.restore(tmp_path / 'changed').ask('And?', n_predict=2).text
                continue
            with pytest.raises(StateError, match='damaged'):
                vlm.restore(tmp_path / 'changed')


def test_libmtmd_may_be_asked_for_where_the_family_is_ours() -> None:
    with VLM.load(**files(MODELS, 'internvl', model_type=2)) as vlm:
        reply = vlm.ask('What is it?', WIDE, n_predict=4)
        assert vlm.family == 'mtmd' and reply.image_tokens > 0
    onnx = str(MODELS / 'internvl' / 'vision.onnx')
    with pytest.raises(ModelMismatch, match='model_type'):
        VLM.load(**files(MODELS, 'internvl', model_type=2, model_file_name=onnx))


def changed(path: Path, target: Path, old: bytes, new: bytes) -> str:
    """Copy a file with one text, of the same length, in the place of another."""
    data = path.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    target.write_bytes(data.replace(old, new))
    return str(target)


@pytest.mark.parametrize(
    ('kind', 'old', 'new', 'words'),
    [
        ('pixtral', b'pixtral', b'pixtrax', ["'pixtrax'", 'qwen2vl_merger', 'gemma3', 'lfm2']),
        ('minicpmv', b'resampler', b'hunyuanvl', ['stands before', 'resampler', 'gemma3']),
    ],
)
def test_other_projectors_are_refused_by_the_names_of_those_that_are_known(
    folder: Path, tmp_path: Path, kind: str, old: bytes, new: bytes, words: list[str]
) -> None:
    path = changed(folder / kind / 'mmproj.gguf', tmp_path / 'a.gguf', old, new)
    with pytest.raises(ModelMismatch) as caught:
        VLM.load(**files(folder, kind, model_file_name=path))
    assert all(word in str(caught.value) for word in words)


def test_files_that_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    qwen = str(folder / 'qwen2vl' / 'mmproj.gguf')
    with pytest.raises(ModelMismatch, match='qwen2vl'):
        VLM.load(**files(folder, 'llava', model_file_name=qwen))
    for model_type in 0, 1:
        with pytest.raises(ModelMismatch, match='another family'):
            VLM.load(**files(folder, 'llava', model_type=model_type))
    path = changed(
        folder / 'minicpmv' / 'decoder.gguf', tmp_path / 'a.gguf', b'<slice>', b'<slize>'
    )
    with pytest.raises(ModelMismatch, match='lacks a token'):
        VLM.load(**files(folder, 'minicpmv', llm_model_name=path))
    other = str(MODELS / 'plain' / 'decoder.gguf')
    with pytest.raises(ModelMismatch, match='do not belong together'):
        VLM.load(**files(folder, 'llava', llm_model_name=other))
    cut = tmp_path / 'cut.gguf'
    cut.write_bytes((folder / 'llava' / 'mmproj.gguf').read_bytes()[:-4000])
    with pytest.raises(ModelFileError):
        VLM.load(**files(folder, 'llava', model_file_name=str(cut)))
    with pytest.raises(ConfigError, match='encoder_device'):
        VLM.load(**files(folder, 'llava', encoder_device='cpu'))


def test_what_libmtmd_decides_cannot_be_asked_for(folder: Path) -> None:
    with VLM.load(**files(folder, 'gemma3')) as vlm:
        refused: list[tuple[str, Callable[[], object]]] = [
            ('max_tiles', lambda: vlm.ask('.', WIDE, max_tiles=2)),
            ('fit', lambda: vlm.ask('.', WIDE, fit='fill')),
            ('keep_image_tokens', lambda: vlm.ask('.', WIDE, keep_image_tokens=0.5)),
        ]
        for word, ask in refused:
            with pytest.raises(ConfigError, match=word):
                ask()
        assert vlm.ask('dog', WIDE, find=True).text  # boxes count in the whole picture


def test_a_picture_too_large_to_be_decoded_at_once_is_an_error(folder: Path) -> None:
    with VLM.load(**files(folder, 'gemma3', n_ctx=128, n_predict=4)) as vlm:
        context = core.parts(vlm).context
        data = np.zeros((129, core.parts(vlm).model.n_embd), np.float32)
        run = core.Run(0, 0, Placed(data, None, causal=False))
        with pytest.raises(InferenceError, match='set n_batch to 129'):
            vlm.engine.call(lambda: context.run([run]))
        assert vlm.ask('Still there?', WIDE).text


def test_ends_of_rows_are_numbers_whatever_memory_holds(folder: Path) -> None:
    found = []
    for byte in 0, 0xFF:  # float32 of the second is no number
        with memory_of(byte), VLM.load(**files(folder, 'pixtral')) as vlm:
            (image,) = core.embed(vlm, LARGE)
            found += [tile.data for tile in image.tiles]
    np.testing.assert_array_equal(*found)
