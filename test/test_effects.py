"""Every option of the table changes what comes out, or says why it cannot."""

from __future__ import annotations

from dataclasses import fields
import logging

from core import batches, parts, sizes
from folders import DEMO, MODELS
from hobot_vlm import (
    BackendMissing,
    ConfigError,
    DownloadError,
    ModelFileError,
    ModelMismatch,
    VLM,
)
from hobot_vlm.config import Config
from hobot_vlm.llama import gpu
from llama_cpp import llama_cpp
from pictures import picture
import pytest

QUESTION = 'Tell me what you see.'
SHOWN = picture(200, 150, 340)
FILES = {
    'model_file_name': str(MODELS / 'internvl' / 'vision.onnx'),
    'llm_model_name': str(MODELS / 'internvl' / 'decoder.gguf'),
}
#: what each option changes, by the name of the test below that shows it
SHOWN_BY = {
    **dict.fromkeys(('model', 'model_file_name', 'llm_model_name'), 'files'),
    **dict.fromkeys(('max_tiles', 'fit', 'system_prompt', 'thinking'), 'prompt'),
    'keep_image_tokens': 'prompt',
    **dict.fromkeys(('temperature', 'top_k', 'top_p', 'min_p', 'repeat_penalty'), 'sampling'),
    **dict.fromkeys(('seed', 'grammar', 'json_schema', 'regex', 'n_predict'), 'sampling'),
    **dict.fromkeys(('lora', 'auto_download', 'model_type', 'encoder_device'), 'refusals'),
    **dict.fromkeys(('bpu_cores', 'lora_scale', 'bpu_priority'), 'elsewhere'),
    **dict.fromkeys(('n_ctx', 'n_batch', 'cache_type', 'flash_attention'), 'context'),
    **dict.fromkeys(('llm_threads', 'encoder_threads', 'mmap', 'warm_up'), 'runtime'),
    **dict.fromkeys(('n_gpu_layers', 'split_mode', 'main_gpu', 'tensor_split'), 'gpu'),
    **dict.fromkeys(('remote_model', 'remote_timeout', 'remote_image_side'), 'elsewhere'),
    **dict.fromkeys(('remote_jpeg_quality', 'fallback'), 'elsewhere'),
}


def load(**options):
    return VLM.load(**{**FILES, 'llm_threads': 1, 'n_predict': 24, 'max_tiles': 1, **options})


@pytest.fixture(scope='module')
def vlm():
    with load(max_tiles=4, n_ctx=1024) as opened:
        yield opened


def test_every_option_has_its_test():
    named = {item.name for item in fields(Config)}
    assert set(SHOWN_BY) == named
    for name in SHOWN_BY.values():
        assert f'test_{name}' in globals()


def test_files():
    with VLM.load(model='demo') as demo, VLM.load(llm_model_name=FILES['llm_model_name']) as text:
        assert demo.tile_size and not text.tile_size
        assert parts(demo).model.path == DEMO / 'decoder.gguf'
        assert str(parts(text).model.path) == FILES['llm_model_name']
    with load(model_file_name=str(MODELS / 'internvl' / 'mmproj.gguf')) as vlm:
        assert parts(vlm).encoder_path.name == 'mmproj.gguf'
    with pytest.raises(ConfigError, match="'nothing'"):
        VLM.load(model='nothing')


def test_prompt(vlm):
    whole = vlm.ask(QUESTION, SHOWN)
    assert vlm.ask(QUESTION, SHOWN, max_tiles=1).image_tokens < whole.image_tokens
    half = vlm.ask(QUESTION, SHOWN, keep_image_tokens=0.5)
    assert half.image_tokens == whole.image_tokens / 2
    fitted = {fit: vlm.ask(QUESTION, SHOWN[:, :60], max_tiles=1, fit=fit, n_predict=40).text
              for fit in ('contain', 'cover', 'fill', 'topleft')}  # fmt: skip
    assert len(set(fitted.values())) > 1
    assert (
        vlm.ask(QUESTION, system_prompt='Be short.').prompt_tokens
        != vlm.ask(QUESTION).prompt_tokens
    )
    assert vlm.ask(QUESTION, thinking=True).prompt_tokens > vlm.ask(QUESTION).prompt_tokens + 50


@pytest.mark.parametrize(
    ('plain', 'changed'),
    [
        ({}, {'temperature': 5.0}),
        ({'temperature': 5.0}, {'top_k': 1}),
        ({'temperature': 5.0}, {'top_p': 0.0001}),
        ({'temperature': 5.0, 'top_p': 1.0, 'top_k': 0, 'min_p': 0.0}, {'min_p': 0.9}),
        ({'temperature': 5.0}, {'seed': 4}),
        ({'n_predict': 100}, {'repeat_penalty': 3.0}),
        ({}, {'n_predict': 3}),
        ({}, {'grammar': 'root ::= "yes" | "no"'}),
        ({}, {'json_schema': '{"type": "boolean"}'}),
        ({}, {'regex': '(left|right)'}),
    ],
    ids=lambda options: '-'.join(options),
)
def test_sampling(vlm, plain, changed):
    plain = {'seed': 3, **plain}
    before = vlm.ask(QUESTION, **plain).text
    after = vlm.ask(QUESTION, **{**plain, **changed}).text
    assert before == vlm.ask(QUESTION, **plain).text
    assert after != before
    if {'grammar', 'json_schema', 'regex'} & set(changed):
        assert after in ('yes', 'no', 'true', 'false', 'left', 'right')


@pytest.mark.parametrize(
    ('options', 'error', 'match'),
    [
        ({'lora': 'nofile.gguf'}, ModelFileError, 'lora'),
        ({'model_type': 1}, ModelMismatch, 'smolvlm'),
        ({'encoder_device': 'abacus'}, ConfigError, 'encoder_device'),
        ({'encoder_device': 'bpu'}, ConfigError, 'bpu'),
        ({'bpu_cores': 'x'}, ConfigError, 'bpu_cores'),
    ],
)
def test_refusals(options, error, match):
    with pytest.raises((error, BackendMissing), match=match):
        load(**options)


def test_a_model_is_fetched_only_where_that_is_allowed(monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')  # nobody listens there
    with pytest.raises(DownloadError, match='vlm download smolvlm2-256m.*auto_download'):
        VLM.load(model='smolvlm2-256m')


def test_elsewhere():
    """Shown by tests with what they need: an adapter, a board's runtime, a server."""
    for name, file, word in (
        ('lora_scale', 'llama/test_lora.py', 'lora_scale'),
        ('bpu_cores', 'encoders/test_bpu.py', 'bpu_cores'),
        ('bpu_priority', 'encoders/test_bpu.py', 'priority'),
        ('remote_model', 'remote/test_remote.py', 'remote_model'),
        ('remote_timeout', 'remote/test_odd_servers.py', 'remote_timeout=timeout'),
        ('remote_image_side', 'remote/test_remote.py', 'remote_image_side=500'),
        ('remote_jpeg_quality', 'remote/test_remote.py', 'remote_jpeg_quality=50'),
        ('fallback', 'remote/test_engines.py', "fallback='demo'"),
    ):
        assert word in (MODELS.parent / file).read_text(encoding='utf-8'), name


@pytest.mark.parametrize(
    ('options', 'files'),
    [
        ({'lora_scale': 2.0}, FILES),
        ({'bpu_cores': '0,1'}, FILES),
        ({'bpu_priority': 9}, FILES),
        ({'max_tiles': 3}, {'llm_model_name': FILES['llm_model_name']}),
        ({'fit': 'cover'}, {'llm_model_name': FILES['llm_model_name']}),
        ({'keep_image_tokens': 0.5}, {'llm_model_name': FILES['llm_model_name']}),
        ({'encoder_threads': 1}, {'llm_model_name': FILES['llm_model_name']}),
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_without_effect_is_said_to_have_none(options, files, caplog):
    with caplog.at_level(logging.WARNING, 'hobot_vlm'), VLM.load(**files):
        assert 'no effect' not in caplog.text
    with caplog.at_level(logging.WARNING, 'hobot_vlm'), VLM.load(**files, **options):
        (name,) = options
        assert f'{name} is {options[name]} and has no effect: ' in caplog.text


def test_context():
    with load(n_ctx=128) as small, load(n_batch=32, n_ctx=512) as cut:
        assert parts(small).context.n_ctx == 128
        with batches(cut) as seen:
            cut.ask('word ' * 100, n_predict=1)
        assert max(sizes(seen)) == 32
    texts = set()
    for options in ({}, {'cache_type': 'q4_0', 'flash_attention': 'on'}):
        with VLM.load('demo', **options) as demo:
            reply = demo.ask('Describe the picture.', str(DEMO / 'sample.png'), logprobs=2)
            texts.add(tuple(token.top for token in reply.logprobs))
    assert len(texts) == 2  # a coarser cache gives other numbers
    with pytest.raises(ModelFileError, match='makes no context.*set flash_attention to auto'):
        VLM.load('demo', cache_type='q4_0', flash_attention='off')


@pytest.mark.usefixtures('all_cores')
def test_runtime(caplog):
    """These change how fast an answer comes, or from where, and not what it says."""
    with load() as plain:
        expected = plain.ask(QUESTION, SHOWN).text
    for options in ({'llm_threads': 2}, {'encoder_threads': 1}, {'mmap': False}):
        with load(**options) as vlm:
            assert vlm.ask(QUESTION, SHOWN).text == expected
    with load(warm_up=False) as vlm, batches(vlm) as seen:
        assert vlm.ask(QUESTION, SHOWN).text == expected and seen


@pytest.mark.parametrize(
    'options', [{}, {'split_mode': 'none'}, {'main_gpu': 1}, {'tensor_split': '3,1'}], ids=str
)
def test_gpu(caplog, options):
    """Where there is a GPU the layers go there; elsewhere it is said why they do not, and how."""
    with caplog.at_level(logging.WARNING, 'hobot_vlm'):
        if llama_cpp.llama_supports_gpu_offload():
            if len(gpu.devices()) < 2 and options and 'split_mode' not in options:
                with pytest.raises(ConfigError, match='this machine has'):
                    load(n_gpu_layers=99, **options)
                return
            load(n_gpu_layers=99, **options).close()
            assert 'no effect' not in caplog.text
            return
        with load(n_gpu_layers=99, **options) as vlm:
            assert vlm.ask(QUESTION, n_predict=1).completion_tokens
        (line,) = caplog.messages
        assert 'n_gpu_layers is 99' in line and all(name in line for name in options)
        assert all(word in line for word in ('no effect', 'CUDA', 'Jetson', 'VULKAN', 'METAL'))
        if options:
            caplog.clear()
            load(**options).close()
            (line,) = caplog.messages
            assert all(name in line for name in options) and 'n_gpu_layers is 0' in line


def test_the_gpus_that_are_named_must_be_there():
    two = ['NVIDIA A', 'NVIDIA B']
    gpu.check_devices(gpu.Sharing(-1, 'none', 1, (3.0, 1.0)), two)
    with pytest.raises(ConfigError, match='main_gpu is 2, .*has 2: NVIDIA A, NVIDIA B'):
        gpu.check_devices(gpu.Sharing(-1, 'none', 2), two)
    with pytest.raises(ConfigError, match='tensor_split has 3 shares.*has 2'):
        gpu.check_devices(gpu.Sharing(-1, shares=(1.0, 1.0, 1.0)), two)
    for wrong in ('x', '1,,2', '-1,2', '0,0', '1;2', 'nan'):
        with pytest.raises(ConfigError, match='tensor_split is .*as in 3,1'):
            Config(tensor_split=wrong)


def test_llama_cpp_is_given_what_was_chosen():
    params = llama_cpp.llama_model_default_params()
    kept = gpu.Sharing(7, 'row', 1, (3.0, 1.0)).apply(params)
    assert (params.n_gpu_layers, params.main_gpu) == (7, 1)
    assert params.split_mode == llama_cpp.LLAMA_SPLIT_MODE_ROW
    assert params.tensor_split[:3] == [3.0, 1.0, 0.0] and len(kept) >= 2


def test_an_mmproj_is_on_the_gpu_where_the_model_is(monkeypatch):
    from llama_cpp import mtmd_cpp

    used = []
    init = mtmd_cpp.mtmd_init_from_file

    def noting(path, model, params):
        used.append(params.use_gpu)
        return init(path, model, params)

    monkeypatch.setattr(mtmd_cpp, 'mtmd_init_from_file', noting)
    for layers in (0, -1):
        encoder = str(MODELS / 'internvl' / 'mmproj.gguf')
        load(model_file_name=encoder, encoder_device='libmtmd', n_gpu_layers=layers).close()
    assert used == [False, True]
