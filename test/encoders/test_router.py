"""
InternVL3.5-Flash: tiles of a quarter of the embeddings, where the router says so.

What is expected was stored by ``tools/make_flash_model.py``: a reading of the makers' code in
torch, on random weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from core import embed, empty, parts, prompt
from folders import MODELS
from hobot_vlm import Vision, VLM
from hobot_vlm.config import Config
from hobot_vlm.encoders import EncoderOptions, open_encoder, router, runtimes
from hobot_vlm.encoders.choice import agreement
from hobot_vlm.encoders.selection import kept
from hobot_vlm.engine.image_encoder import ImageEncoder
from hobot_vlm.errors import InferenceError, ModelMismatch
from hobot_vlm.families import family
from hobot_vlm.families.pairing import check_router
from hobot_vlm.llama.sampler import Sampler
from hobot_vlm.values import ImageTiles
import numpy as np
import onnx
import onnxruntime
from pictures import picture
import pytest

ENCODER = MODELS / 'flash' / 'vision.onnx'
DECODER = MODELS / 'internvl' / 'decoder.gguf'
DATA = Path(__file__).parents[1] / 'data'
CASES = json.loads((DATA / 'flash.json').read_text('utf-8'))
STORED = np.load(DATA / 'flash.npz')


def shown(case: str) -> list[np.ndarray]:
    return [picture(*recipe) for recipe in CASES[case]['pictures']]


def options_of(case: str) -> dict[str, int]:
    return {'max_tiles': 1} if case == 'single' else {}


@pytest.fixture(scope='module')
def vlm():
    with VLM.load(
        model_file_name=ENCODER,
        llm_model_name=DECODER,
        llm_threads=1,
        encoder_threads=1,
        encoder_device='cpu',
        n_ctx=1024,
        warm_up=False,
    ) as made:
        yield made


@pytest.mark.parametrize('case', CASES)
def test_embeddings_and_counts_are_those_of_torch(case):
    with open_encoder(ENCODER, EncoderOptions(threads=1, device='cpu')) as encoder:
        assert (encoder.routed, encoder.tokens, encoder.tile_size) == (True, 0, 16)
        found = []
        for rgb in shown(case):
            tiles = family('internvl').tiles(rgb, 16, options_of(case).get('max_tiles', 0))
            found += encoder.encode_each(tiles)
            assert encoder.encode(tiles).shape == (len(tiles.pixels), 4, 64)
    assert [len(tile) for tile in found] == CASES[case]['counts']
    expected = STORED[f'{case}/embeddings']
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)
    assert {1, 4} == {len(tile) for tile in found} or case == 'single'


def test_tiles_of_several_runs_are_decided_together():
    pixels = np.random.default_rng(5).integers(0, 256, (20, 16, 16, 3), np.uint8)
    kind = family('internvl')
    tiles = ImageTiles(pixels, 4, 5, False, kind.mean, kind.std)
    given = (pixels / 255 - kind.mean) / kind.std
    feeds = {'pixel_values': given.transpose(0, 3, 1, 2).astype(np.float32)}
    fine, coarse, gate = onnxruntime.InferenceSession(str(ENCODER)).run(
        ['image_features', *router.OUTPUTS], feeds
    )
    with open_encoder(ENCODER, EncoderOptions(threads=1, device='cpu')) as encoder:
        found = encoder.encode_each(tiles)
    small = router.compressed(gate)
    assert 0 < small.sum() < 20
    for i, made in enumerate(found):
        np.testing.assert_allclose(made, coarse[i] if small[i] else fine[i], atol=1e-4)


@pytest.mark.skipif(bool(runtimes.available()['openvino']), reason='OpenVINO is not installed')
def test_openvino_runs_both_branches_and_the_gate():
    """Where the CPU has them, OpenVINO computes in 16 bits."""
    tiles = family('internvl').tiles(shown('tiles')[0], 16, 0)
    with open_encoder(ENCODER, EncoderOptions(threads=1, device='openvino')) as encoder:
        assert (encoder.routed, encoder.tokens) == (True, 0)
        found = encoder.encode_each(tiles)
    counts = CASES['tiles']['counts']
    expected = np.split(STORED['tiles/embeddings'], np.cumsum(counts)[:-1])
    alike = [(a, b) for a, b in zip(found, expected, strict=True) if len(a) == len(b)]
    assert len(alike) > len(found) / 2 and {len(each) for each in found} == {1, 4}
    assert min(agreement(a[None], b[None]) for a, b in alike) > 0.999


@pytest.mark.parametrize(
    'chances, absolute, relative, expected',
    [
        ([0.9, 0.2, 0.6, 0.7], 0.5, 0.0, [1, 0, 1, 1]),
        ([0.9, 0.2, 0.6, 0.7], 0.65, 0.0, [1, 0, 0, 1]),
        ([0.9, 0.2, 0.6, 0.7], 0.1, 0.5, [1, 0, 0, 1]),
        ([0.9, 0.8, 0.6, 0.7], 0.5, 0.0, [1, 1, 0, 1]),  # the least is not above itself
        ([0.9, 0.8], 0.5, 1.0, [0, 0]),
        ([0.99], 0.5, 0.0, [0]),
        ([0.5, 0.4], 0.5, 0.0, [1, 0]),
    ],
)
def test_both_thresholds_decide(chances, absolute, relative, expected):
    gate = np.array([[chance, absolute, relative] for chance in chances], np.float32)
    assert router.compressed(gate).tolist() == list(map(bool, expected))


@pytest.mark.parametrize('case', CASES)
def test_prompt_logits_and_answer_with_tiles_of_both_kinds(vlm, case, monkeypatch):
    told, options = CASES[case], options_of(case)
    made = prompt(vlm, told['question'], shown(case), **options).prompt
    assert [told['placeholder'] if i < 0 else i for i in made.ids] == told['ids']
    empty(vlm)
    chosen = []
    sample = Sampler.sample

    def noting(sampler, entry=-1):
        chosen.append((sample(sampler, entry), parts(vlm).context.logits(entry).copy()))
        return chosen[-1][0]

    monkeypatch.setattr(Sampler, 'sample', noting)
    reply = vlm.ask(told['question'], shown(case), n_predict=32, **options)
    assert reply.prompt_tokens == len(told['ids']) and reply.image_tokens == sum(told['counts'])
    logits = STORED[f'{case}/logits']
    assert np.abs(chosen[0][1] - logits).max() < 1e-2 * np.abs(logits).max()
    tokens = [token for token, _ in chosen][: reply.completion_tokens]
    assert tokens == told['greedy'][: len(tokens)]
    assert len(tokens) == 32 or reply.finish_reason == 'stop'
    again = vlm.ask(told['question'], shown(case), n_predict=2, **options)
    assert again.reused_tokens >= len(told['ids']) - 1 and again.timings.encode_ms == 0


def test_the_same_tile_is_another_one_in_another_picture(vlm):
    """How many embeddings a tile has depends on the others."""
    flat = np.full((32, 16, 3), 90, np.uint8)
    noise = flat.copy()
    noise[16:] = np.random.default_rng(3).integers(0, 256, (16, 16, 3))
    (one,), (other,) = (embed(vlm, each, max_tiles=2) for each in (flat, noise))
    assert one.tiles[0].key != other.tiles[0].key
    assert len({tile.key for tile in one.tiles}) == len(one.tiles) == 3


def test_a_picture_that_was_abandoned_or_failed():
    (rgb,) = shown('tiles')
    config = Config(encoder_device='cpu')
    encoder = open_encoder(ENCODER, EncoderOptions(threads=1, device='cpu'))
    images = ImageEncoder(encoder, family('internvl'), encoder.n_embd)
    try:
        images.abandon(images.submit([rgb], config, 0))
        (image,) = images.submit([rgb], config, 0).images.result(60)
        assert [tile.tokens for tile in image.tiles] == CASES['tiles']['counts']
        encoder.close()
        for _ in range(2):
            with pytest.raises(InferenceError, match='closed'):
                images.submit([rgb[1:]], config, 0).images.result(60)
    finally:
        images.close()


def test_keeping_a_share_boxes_and_encoding_elsewhere(vlm):
    counts = CASES['tiles']['counts']
    (image,) = embed(vlm, *shown('tiles'), keep_image_tokens=0.5)
    assert [tile.tokens for tile in image.tiles] == [kept(count, 0.5) for count in counts]
    reply = vlm.ask('Where is the cup?', shown('tiles'), keep_image_tokens=0.5, n_predict=2)
    assert reply.image_tokens == image.tokens
    with Vision.load(model_file_name=ENCODER, encoder_device='cpu', model_type=0) as vision:
        sent = vision.encode_image(shown('tiles')[0])
    assert [len(tile) for tile in sent.tiles] == counts
    whole = vlm.ask(CASES['tiles']['question'], shown('tiles'), n_predict=4)
    assert vlm.ask(CASES['tiles']['question'], [sent], n_predict=4).text == whole.text


def test_a_conversation_goes_on_and_comes_back_from_a_file(vlm, tmp_path):
    chat = vlm.conversation()
    first = chat.ask('What is it?', shown('tiles'), n_predict=6)
    chat.save(tmp_path / 'chat')
    second = chat.ask('Where?', n_predict=6)
    assert second.reused_tokens >= first.prompt_tokens
    assert vlm.restore(tmp_path / 'chat').ask('Where?', n_predict=6).text == second.text


def test_halves_that_do_not_belong_together(vlm, caplog):
    with pytest.raises(ModelMismatch, match='Flash.*smolvlm.*give the encoder'):
        VLM.load(
            model_file_name=ENCODER,
            llm_model_name=MODELS / 'smolvlm' / 'decoder.gguf',
            encoder_device='cpu',
        )
    model, encoder = parts(vlm).model, parts(vlm).encoder
    with caplog.at_level('WARNING', 'hobot_vlm'):
        check_router(model, encoder, ENCODER, family('internvl'))
    assert 'Flash' in caplog.text and str(DECODER) in caplog.text


def test_a_graph_whose_router_is_wrong(tmp_path):
    graph = onnx.load(str(ENCODER))
    other = dict(zip(router.OUTPUTS, reversed(router.OUTPUTS), strict=True))
    for node in graph.graph.node:
        node.output[:] = [other.get(name, name) for name in node.output]
    for value in graph.graph.output:
        value.name = other.get(value.name, value.name)
    path = tmp_path / 'vision.onnx'
    onnx.save(graph, str(path))
    with pytest.raises(ModelMismatch, match='compressed_features of shape.*expected'):
        open_encoder(path, EncoderOptions(device='cpu'))


@pytest.mark.parametrize(
    'coarse, gate, wrong',
    [
        ((2, 1, 8), np.full((2, 3), 0.5), ''),
        ((2, 1, 4), np.full((2, 3), 0.5), 'compressed_features'),
        ((1, 1, 8), np.full((2, 3), 0.5), 'compressed_features'),
        ((2, 0, 8), np.full((2, 3), 0.5), 'compressed_features'),
        ((2, 1, 8), np.full((2, 1), 0.5), 'gate of shape'),
        ((2, 1, 8), np.full((2, 3), 1.5), 'gate with numbers'),
        ((2, 1, 8), np.full((2, 3), np.nan), 'gate with numbers'),
    ],
)
def test_what_a_graph_gives_is_checked(coarse, gate, wrong):
    said = router.check(np.zeros((2, 4, 8), np.float32), np.zeros(coarse, np.float32), gate)
    assert said.startswith(wrong) and bool(said) == bool(wrong)
