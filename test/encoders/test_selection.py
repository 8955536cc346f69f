"""keep_image_tokens: which embeddings stay, and that answers come from them."""

from __future__ import annotations

from core import embed, parts
from folders import MODELS
from hobot_vlm import ConfigError, VLM
from hobot_vlm.encoders.selection import kept, select
from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.parameters import valid
import numpy as np
import pytest

QUESTION = 'Describe the picture.'


def embeddings(tokens=64, width=48, seed=0):
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


def places(some, of):
    """Give where rows stand in others."""
    return [int(np.flatnonzero((of == row).all(1))[0]) for row in some]


def test_as_many_as_the_share_rounded_up():
    assert [kept(256, share) for share in (0.1, 0.5, 0.75, 1.0)] == [26, 128, 192, 256]
    assert kept(100, 0.07) == 7  # 0.07 * 100 is a little more
    assert kept(36, 0.1) == 4
    assert kept(1, 0.1) == 1
    assert kept(0, 0.5) == 0  # not known yet


@pytest.mark.parametrize('count', [1, 7, 40, 63])
def test_those_that_stay_are_in_order_and_unchanged(count):
    of = embeddings()
    found = select(of, count)
    assert found.shape == (count, 48)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    where = places(found, of)
    assert where == sorted(set(where))


def test_all_stay_where_all_are_wanted():
    of = embeddings()
    assert select(of, 64) is of
    assert select(of, 99) is of


def test_equal_input_gives_equal_output():
    assert np.array_equal(select(embeddings(), 20), select(embeddings().copy(), 20))


def test_of_those_that_are_alike_one_stays():
    kinds = embeddings(8, seed=3)
    of = np.repeat(kinds, 8, axis=0) * np.linspace(1, 2, 64, dtype=np.float32)[:, None]
    of += 1e-3 * embeddings(64, seed=4)
    assert sorted({place // 8 for place in places(select(of, 8), of)}) == list(range(8))


def test_each_next_one_is_what_the_others_explain_least():
    of = embeddings(24, 16, seed=5)
    units = of / np.linalg.norm(of, axis=1, keepdims=True)
    chosen = [0]
    while len(chosen) < 10:  # the same by least squares
        basis = units[chosen].T
        rest = units.T - basis @ np.linalg.lstsq(basis, units.T, rcond=None)[0]
        left = np.linalg.norm(rest, axis=0)
        left[chosen] = -1
        chosen.append(int(left.argmax()))
    assert places(select(of, 10), of) == sorted(chosen)


@pytest.mark.parametrize('of', [np.zeros((9, 4)), np.ones((9, 4)), embeddings(9, 2)])
def test_more_than_there_are_directions(of):
    assert select(of.astype(np.float32), 5).shape == (5, of.shape[1])


def test_answers_come_from_fewer(demo, sample):
    whole = demo.ask(QUESTION, sample)
    for share in (0.1, 0.5, 0.9):
        reply = demo.ask(QUESTION, sample, keep_image_tokens=share)
        assert reply.image_tokens == kept(parts(demo).encoder.tokens, share)
        assert reply.text
    again = demo.ask(QUESTION, sample)
    assert (again.text, again.image_tokens) == (whole.text, whole.image_tokens)


def test_tiles_of_another_share_are_other_tiles(fresh, sample):
    (whole,) = embed(fresh, sample)
    (half,) = embed(fresh, sample, keep_image_tokens=0.5)
    (same,) = embed(fresh, sample, keep_image_tokens=0.5)
    assert same is half
    assert whole.key != half.key
    assert not {tile.key for tile in whole.tiles} & {tile.key for tile in half.tiles}
    for less, tile in zip(half.tiles, whole.tiles, strict=True):
        assert np.array_equal(less.data, select(tile.data, less.tokens))


def test_a_saved_conversation_goes_on(tmp_path, sample):
    path = tmp_path / 'talk.vlm'
    with VLM.load('demo', keep_image_tokens=0.5) as vlm:
        chat = vlm.conversation()
        chat.ask(QUESTION, sample)
        chat.save(path)
        expected = chat.ask('What colour is the background?')
    with VLM.load('demo') as vlm:
        reply = vlm.restore(path).ask('What colour is the background?')
    assert (reply.text, reply.image_tokens) == (expected.text, expected.image_tokens)
    assert reply.reused_tokens >= reply.image_tokens


def test_refused_together_with_boxes(sample):
    with VLM.load(
        model_file_name=str(MODELS / 'internvl' / 'vision.onnx'),
        llm_model_name=str(MODELS / 'internvl' / 'decoder.gguf'),
        keep_image_tokens=0.5,
    ) as vlm:
        with pytest.raises(ConfigError, match=r'keep_image_tokens is 0\.5, and boxes'):
            vlm.ask('the dog', sample, find=True)
        assert vlm.ask('dog', sample, find=True, keep_image_tokens=1.0, n_predict=2).image_tokens
    with pytest.raises(ConfigError, match='parser_mode is 1'):
        valid(NodeConfig(parser_mode=1, keep_image_tokens=0.5))
    for share in (0.0, 0.05, 1.1):
        with pytest.raises(ConfigError, match='keep_image_tokens'):
            NodeConfig(keep_image_tokens=share)
