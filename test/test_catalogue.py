"""Which files a configuration comes down to, and what is said of a catalogue that is wrong."""

from __future__ import annotations

from pathlib import Path

from hobot_vlm import catalogue
from hobot_vlm.catalogue import Files, resolve
from hobot_vlm.config import Config
from hobot_vlm.errors import ConfigError, DownloadError
from hobot_vlm.families.internvl import OnPhi3
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
import pytest
import yaml

PACKAGE = Path(catalogue.__file__).parent
COMMIT = 'c0ffee' + '0' * 34
INTERNVL, SMOLVLM = {'model_type': 0}, {'model_type': 1}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Give a folder for the user's catalogue and an empty cache."""
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    (tmp_path / 'config' / 'hobot_vlm').mkdir(parents=True)
    return tmp_path / 'config' / 'hobot_vlm'


@pytest.fixture
def on(monkeypatch):
    """Make this machine look like a board."""
    return lambda board: monkeypatch.setattr(catalogue, 'machine', lambda: board)


def own(home, text):
    (home / 'models.yaml').write_text(text, encoding='utf-8')


def cached(tmp_path, repo, *names):
    """Put files into the cache as huggingface_hub does; give their paths."""
    folder = tmp_path / 'hub' / f'models--{repo.replace("/", "--")}'
    (folder / 'refs').mkdir(parents=True, exist_ok=True)
    (folder / 'refs' / 'main').write_text(COMMIT)
    paths = []
    for name in names:
        blob = folder / 'blobs' / f'{abs(hash(name)):064x}'
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(name.encode())
        path = folder / 'snapshots' / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)
        paths.append(path)
    return paths


# -- the machine ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'content', 'expected'),
    [
        ('sys/class/boardinfo/soc_name', b'S100\n', 'rdks100'),
        ('sys/class/boardinfo/soc_name', b'S100P\n', 'rdks100'),
        ('sys/class/boardinfo/soc_name', b'S600\n', 'any'),
        ('sys/class/socinfo/soc_name', b'X5U\n', 'rdkx5'),
        ('proc/device-tree/model', b'D-Robotics RDK X5 V1.0\0', 'rdkx5'),
        ('proc/device-tree/model', b'D-Robotics RDK S100 V1P0\0', 'rdks100'),
        ('proc/device-tree/model', b'D-Robotics RDK X3 V1.2\0', 'any'),
        ('proc/device-tree/model', b'Radxa ROCK 5B\0', 'any'),
        ('proc/device-tree/compatible', b'drobot,s100-rdk\0drobot,s100\0', 'rdks100'),
        ('proc/device-tree/compatible', b'raspberrypi,5-model-b\0brcm,bcm2712\0', 'any'),
        ('proc/device-tree/model', b'\xff\xfe', 'any'),
    ],
)
def test_boards_are_known_by_what_they_say(tmp_path, name, content, expected):
    path = tmp_path / 'root' / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert catalogue.machine(tmp_path / 'root') == expected


def test_a_machine_that_says_nothing_is_any(tmp_path):
    assert catalogue.machine(tmp_path) == 'any'


# -- what the catalogue holds -----------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'board', 'encoder', 'decoder', 'repo'),
    [
        (
            'internvl2.5-1b',
            'rdkx5',
            'rdkx5/vit_model_int16_v2.bin',
            'Qwen2.5-0.5B-Instruct-Q4_0.gguf',
            'D-Robotics/InternVL2_5-1B-GGUF-BPU',
        ),
        (
            'internvl3-2b',
            'rdks100',
            'rdks100/vit_model_int16_VL3_2B_Instruct.hbm',
            'qwen2_5_1.5b_q8_0_InternVL3_2B_Instruct.gguf',
            'D-Robotics/InternVL3-2B-Instruct-GGUF-BPU',
        ),
        (
            'smolvlm2-256m',
            'rdkx5',
            'rdkx5/SigLip_int16_SmolVLM2_256M_Instruct_MLP_C1_UP_X5.bin',
            'SmolVLM2-256M-Video-Instruct-Q8_0.gguf',
            'D-Robotics/SmolVLM2-256M-Video-Instruct-GGUF-BPU',
        ),
        (
            'internvl3-1b',
            'any',
            'mmproj-InternVL3-1B-Instruct-Q8_0.gguf',
            'InternVL3-1B-Instruct-Q8_0.gguf',
            'ggml-org/InternVL3-1B-Instruct-GGUF',
        ),
        (
            'smolvlm2-500m',
            'any',
            'mmproj-SmolVLM2-500M-Video-Instruct-Q8_0.gguf',
            'SmolVLM2-500M-Video-Instruct-Q8_0.gguf',
            'ggml-org/SmolVLM2-500M-Video-Instruct-GGUF',
        ),
    ],
)
def test_a_name_stands_for_the_files_of_the_machine(
    on, tmp_path, name, board, encoder, decoder, repo
):
    on(board)
    paths = cached(tmp_path, repo, encoder, decoder)
    files = resolve(Config(model=name))
    assert [files.encoder, files.decoder] == paths
    one_tile = {} if board == 'any' else {'max_tiles': 1}
    assert files.options == {**(SMOLVLM if name.startswith('smol') else INTERNVL), **one_tile}


SIZES = {
    'internvl2': '1b 2b 4b 8b 26b',
    'internvl2.5': '1b 2b 4b 8b 26b',
    'internvl3': '1b 2b 8b 9b 14b',
    'internvl3.5': '1b 2b 4b 8b 14b 20b-a4b 30b-a3b 1b-flash 2b-flash 4b-flash 8b-flash 14b-flash',
    'smolvlm': '256m 500m 2.2b',
    'smolvlm2': '256m 500m 2.2b',
    'qwen3-vl': '4b',
    'gemma-3': '4b',
    'minicpm-v': '4',
    'lfm2-vl': '1.6b',
}


def test_every_entry_can_be_used():
    models = catalogue.load()
    named = {f'{series}-{size}' for series, sizes in SIZES.items() for size in sizes.split()}
    assert set(models) == {'demo', *named}
    kinds = {'rdkx5': '.bin', 'rdks100': '.hbm', 'any': ('.gguf', '.onnx')}
    for model in models.values():
        assert model.title and model.family and model.languages and model.license
        assert 0 < model.size_mb < 24e3 - 900  # fits 24 GB, as it is there
        assert model.variant('any')  # every one runs on a PC
        for board, variant in model.variants.items():
            files = (variant.encoder, variant.decoder)
            assert all(bool(file.repo) != bool(model.checkpoint) for file in files) or (
                model.name == 'demo'
            )
            assert variant.encoder.path.endswith(kinds[board])
            assert variant.decoder.path.endswith('.gguf')
            assert Config.from_flat(variant.options)
            assert board == 'any' or variant.options['max_tiles'] == 1


@pytest.mark.parametrize(
    ('name', 'steps'),
    [
        (
            'internvl2-4b',
            [
                'hf download OpenGVLab/InternVL2-4B --local-dir internvl2-4b',
                'export_encoder.py --bits 8 internvl2-4b',
                'convert_hf_to_gguf.py internvl2-4b --outtype q8_0',
            ],
        ),
        (
            'internvl2.5-26b',
            [
                'hf download OpenGVLab/InternVL2_5-26B',
                'convert_hf_to_gguf.py internvl2.5-26b --mmproj',
                'llama-quantize internvl2.5-26b.gguf',
                'decoder-Q4_K_M.gguf Q4_K_M',
            ],
        ),
        (
            'internvl3.5-1b-flash',
            [
                'hf download OpenGVLab/InternVL3_5-1B-Flash --local-dir internvl3.5-1b-flash',
                'export_encoder.py --bits 8 internvl3.5-1b-flash',
                'without_router.py internvl3.5-1b-flash internvl3.5-1b-flash-decoder',
                'convert_hf_to_gguf.py internvl3.5-1b-flash-decoder --outtype q8_0',
            ],
        ),
    ],
)
def test_a_model_that_is_only_a_checkpoint_says_how_it_is_made(
    on, monkeypatch, tmp_path, name, steps
):
    on('any')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(catalogue, 'bundled', catalogue.bundled.__wrapped__)
    with pytest.raises(DownloadError) as caught:
        resolve(Config(model=name, auto_download=True))
    text = str(caught.value)
    for step in steps:
        assert step in text
    # made, it is there
    variant = catalogue.find(name).variant()
    for file in (variant.encoder, variant.decoder):
        assert file.path in text and file.path.startswith(str(tmp_path))
        Path(file.path).parent.mkdir(parents=True, exist_ok=True)
        Path(file.path).touch()
    assert resolve(Config(model=name)).decoder == Path(variant.decoder.path)


# -- removing ---------------------------------------------------------------------------------

TWO = """
models:
  one: {variants: {any: {encoder: 'o/r:e.onnx', decoder: 'o/r:d.gguf'}}}
  two: {variants: {any: {encoder: 'o/r:f.onnx', decoder: 'o/r:d.gguf'}}}
"""


def test_a_removed_model_leaves_what_others_need(on, home, tmp_path):
    on('any')
    own(home, TWO)
    paths = cached(tmp_path, 'o/r', 'e.onnx', 'f.onnx', 'd.gguf')
    blobs = [path.resolve() for path in paths]
    assert catalogue.remove('one') == len('e.onnx')
    assert [path.exists() for path in (*paths, *blobs)] == [False, True, True] * 2
    assert catalogue.remove('one') == 0
    half = tmp_path / 'hub' / 'models--o--r' / 'blobs' / 'x.incomplete'
    half.write_bytes(b'12345')
    assert catalogue.remove('two') == len('f.onnx') + len('d.gguf') + 5
    assert not any(path.exists() for path in (*paths, *blobs, half))


def test_content_that_another_revision_has_stays(on, home, tmp_path):
    on('any')
    own(home, TWO)
    paths = cached(tmp_path, 'o/r', 'e.onnx', 'd.gguf')
    other = tmp_path / 'hub' / 'models--o--r' / 'snapshots' / ('f' * 40) / 'old' / 'd.gguf'
    other.parent.mkdir(parents=True)
    other.symlink_to(paths[1].resolve())
    assert catalogue.remove('one') == len('e.onnx')
    assert other.read_bytes() == b'd.gguf' and not paths[1].exists()


@pytest.mark.parametrize('name', ['demo', 'mine'])
def test_files_that_were_not_downloaded_are_not_removed(home, name):
    (home / 'd.gguf').touch()
    own(home, 'models: {mine: {variants: {any: {decoder: d.gguf}}}}')
    with pytest.raises(ConfigError, match='were not downloaded.*d.*gguf'):
        catalogue.remove(name)
    assert (home / 'd.gguf').exists()


@pytest.mark.parametrize('size', ['1b', '2b', '8b', '26b'])
def test_internvl2_has_the_system_prompt_of_its_makers(size):
    options = catalogue.find(f'internvl2-{size}').variant('any').options
    # as for InternVL2-4B, whose vocabulary tells
    assert options['system_prompt'] == OnPhi3.system_text


def test_the_demo_model_is_bundled():
    files = resolve(Config())
    assert files.encoder == PACKAGE / 'demo' / 'vision.onnx'
    assert files.decoder == PACKAGE / 'demo' / 'decoder.gguf'
    assert files.encoder.is_file() and files.decoder.is_file()
    assert {**SMOLVLM, 'max_tiles': 1}.items() <= files.options.items()


def test_a_board_without_files_of_its_own_takes_those_for_any(on):
    on('rdkx5')
    variant = catalogue.find('internvl3.5-1b').variant()
    assert variant == catalogue.find('internvl3.5-1b').variants['any']


# -- explicit files ---------------------------------------------------------------------------


def test_both_files_win_over_the_model():
    files = resolve(Config(model='nonsense', model_file_name='a.onnx', llm_model_name='~/b.gguf'))
    assert files == Files(Path('a.onnx'), Path.home() / 'b.gguf', {})


def test_a_decoder_alone_is_a_language_model():
    assert resolve(Config(llm_model_name='b.gguf')) == Files(None, Path('b.gguf'), {})


def test_one_file_replaces_that_of_a_named_model(on, tmp_path):
    on('any')
    repo = 'ggml-org/InternVL3-1B-Instruct-GGUF'
    encoder, decoder = cached(
        tmp_path, repo, 'mmproj-InternVL3-1B-Instruct-Q8_0.gguf', 'InternVL3-1B-Instruct-Q8_0.gguf'
    )
    mine = resolve(Config(model='internvl3-1b', llm_model_name='mine.gguf'))
    assert mine == Files(encoder, Path('mine.gguf'), INTERNVL)
    mine = resolve(Config(model='internvl3-1b', model_file_name='mine.onnx'))
    assert mine == Files(Path('mine.onnx'), decoder, INTERNVL)


def test_an_encoder_alone_finds_the_decoder_that_belongs_to_it(tmp_path):
    # a command line of hobot_llamacpp, with both files in one folder
    encoder, decoder = (
        tmp_path / 'vit_model_int16.hbm',
        tmp_path / ('Qwen2.5-0.5B-Instruct-Q4_0.gguf'),
    )
    decoder.touch()
    files = resolve(Config(model_file_name=str(encoder)))
    assert files == Files(encoder, decoder, {**INTERNVL, 'max_tiles': 1})


def test_an_encoder_alone_whose_decoder_is_elsewhere(tmp_path):
    config = Config(model_file_name=str(tmp_path / 'vit_model_int16.hbm'))
    with pytest.raises(DownloadError, match='`vlm download internvl2.5-1b`'):
        resolve(config)
    paths = cached(
        tmp_path, 'D-Robotics/InternVL2_5-1B-GGUF-BPU', 'Qwen2.5-0.5B-Instruct-Q4_0.gguf'
    )
    assert resolve(config).decoder == paths[0]


def test_an_encoder_alone_that_nobody_knows():
    with pytest.raises(ConfigError, match='mine.onnx.*llm_model_name'):
        resolve(Config(model_file_name='mine.onnx'))


# -- what is not here -------------------------------------------------------------------------


def test_a_model_that_is_not_here_says_what_to_do(on):
    on('any')
    with pytest.raises(DownloadError) as caught:
        resolve(Config(model='smolvlm2-256m'))
    text = str(caught.value)
    assert (
        'SmolVLM2-256M-Video-Instruct-GGUF:mmproj-SmolVLM2-256M-Video-Instruct-Q8_0.gguf' in text
    )
    assert '`vlm download smolvlm2-256m`' in text
    assert '-p auto_download:=true' in text
    assert 'model_file_name' in text and 'llm_model_name' in text


def test_half_a_model_is_not_here(on, tmp_path):
    on('any')
    cached(tmp_path, 'ggml-org/InternVL3-1B-Instruct-GGUF', 'InternVL3-1B-Instruct-Q8_0.gguf')
    with pytest.raises(DownloadError, match='mmproj-InternVL3-1B'):
        resolve(Config(model='internvl3-1b'))


def test_a_broken_link_in_the_cache_is_no_file(on, tmp_path):
    on('any')
    paths = cached(
        tmp_path,
        'ggml-org/InternVL3-1B-Instruct-GGUF',
        'mmproj-InternVL3-1B-Instruct-Q8_0.gguf',
        'InternVL3-1B-Instruct-Q8_0.gguf',
    )
    paths[1].resolve().unlink()
    with pytest.raises(DownloadError, match='`vlm download internvl3-1b`'):
        resolve(Config(model='internvl3-1b'))


def test_an_unknown_model_names_a_likely_one():
    with pytest.raises(ConfigError, match="no model 'internvl3_1b'; did you mean internvl3-1b?"):
        resolve(Config(model='internvl3_1b'))


# -- the user's own catalogue -----------------------------------------------------------------


def test_own_entries_are_added_and_win(home):
    (home / 'e.onnx').touch()
    (home / 'd.gguf').touch()
    own(
        home,
        """
models:
  mine:
    title: 我的模型
    languages: [zh]
    variants:
      any: {encoder: e.onnx, decoder: d.gguf, options: {max_tiles: 4, temperature: 0.5}}
  words-only:
    variants: {any: {decoder: d.gguf}}
  demo:
    variants: {any: {decoder: d.gguf}}
""",
    )
    models = catalogue.load()
    assert models['mine'].title == '我的模型' and 'internvl3-1b' in models
    assert resolve(Config(model='mine')) == Files(
        home / 'e.onnx', home / 'd.gguf', {'max_tiles': 4, 'temperature': 0.5}
    )
    assert resolve(Config(model='words-only')) == Files(None, home / 'd.gguf', {})
    assert resolve(Config()).encoder is None


def test_without_xdg_config_home_it_lies_in_dot_config(home, monkeypatch):
    monkeypatch.delenv('XDG_CONFIG_HOME')
    monkeypatch.setenv('HOME', '/home/somebody')
    assert catalogue.user_file() == Path('/home/somebody/.config/hobot_vlm/models.yaml')


def test_a_missing_local_file_is_named(home):
    own(home, 'models: {mine: {variants: {any: {decoder: absent.gguf}}}}')
    with pytest.raises(DownloadError, match='absent.gguf.*models.yaml'):
        resolve(Config(model='mine'))


def test_a_model_for_another_board_only(home, on):
    on('any')
    own(home, "models: {mine: {variants: {rdkx5: {decoder: 'a/b:c.gguf'}}}}")
    with pytest.raises(ConfigError, match='no files for this machine .any., only for rdkx5'):
        resolve(Config(model='mine'))


@pytest.mark.parametrize('text', ['', 'models:', 'models: {}'])
def test_an_empty_catalogue_adds_nothing(home, text):
    own(home, text)
    assert 'demo' in catalogue.load()


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('models: [', 'cannot be read'),
        ('models: 3', 'models is 3: expected names with values'),
        ('[1]', 'the file is .1.: expected names with values'),
        ('model: {}', "there is no 'model'; did you mean models"),
        ('models: {m: 3}', 'm is 3: expected names with values'),
        ('models: {m: {}}', 'm: variants is None: expected names with values'),
        ('models: {m: {variants: {}}}', 'm: variants is empty.*rdkx5, rdks100, any'),
        ('models: {m: {variants: {rdkx6: {}}}}', "no 'rdkx6'; did you mean rdkx5"),
        ('models: {m: {varients: {}}}', "m: there is no 'varients'; did you mean variants"),
        ('models: {m: {variants: {any: {}}}}', 'm: any: decoder is None: expected OWNER/NAME:F'),
        ('models: {m: {variants: {any: {decoder: 3}}}}', 'm: any: decoder is 3'),
        ('models: {m: {variants: {any: {decoder: "x:y"}}}}', "'x:y' is no file on the hub"),
        ('models: {m: {variants: {any: {decoder: "a/b:../../c"}}}}', 'is no file on the hub'),
        ('models: {m: {variants: {any: {decoder: "a/b:/etc/passwd"}}}}', 'is no file on the hub'),
        (
            'models: {m: {variants: {any: {decoder: d, options: {max_tiles: 99}}}}}',
            'm: any: options: max_tiles is 99: expected 0 to 64',
        ),
        (
            'models: {m: {variants: {any: {decoder: d, options: {tiles: 9}}}}}',
            "m: any: options: there is no option 'tiles'",
        ),
        ('models: {m: {family: llava}}', "m: family is 'llava': expected internvl or smolvlm or"),
        ('models: {m: {checkpoint: x}}', "m: checkpoint is 'x': expected OWNER/NAME"),
        ('models: {m: {languages: en}}', "m: languages is 'en': expected a list"),
        ('models: {m: {size_mb: big}}', "m: size_mb is 'big': expected a number"),
    ],
)
def test_a_wrong_catalogue_is_named_with_what_is_wrong(home, text, words):
    own(home, text)
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(Config())
    assert str(home / 'models.yaml') in str(caught.value)


ALIASES = 'a0: &a0 [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]\n' for i in range(1, 12)
)


@pytest.mark.parametrize(
    'entry',
    [
        'models: *a11',
        'models: {m: *a11}',
        'models: {m: {languages: *a11, variants: {any: {decoder: d}}}}',
        'models: {m: {family: *a11}}',
        'models: {m: {size_mb: *a11}}',
        'models: {m: {variants: *a11}}',
        'models: {m: {variants: {any: {decoder: *a11}}}}',
        'models: {m: {variants: {any: {decoder: d, options: {n_ctx: *a11}}}}}',
        'models: {m: {variants: {any: {decoder: d, options: {n_ctx: "' + 'x' * 9999 + '"}}}}}',
        'models: {' + 'x' * 9999 + ': 3}',
        'models: ' + '[' * 5000,
        '#' * (2 << 20),
    ],
)
def test_messages_do_not_carry_the_data(home, entry):
    own(home, ALIASES + entry if '*a11' in entry else entry)
    with pytest.raises(ConfigError) as caught:
        catalogue.load()
    assert len(str(caught.value)) < 900


def test_an_unreadable_catalogue_is_named(home):
    (home / 'models.yaml').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(ConfigError, match='models.yaml: cannot be read'):
        catalogue.load()
    (home / 'models.yaml').unlink()
    (home / 'models.yaml').mkdir()
    with pytest.raises(ConfigError, match='models.yaml: cannot be read'):
        catalogue.load()


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.sampled_from(
    ['models', 'm', 'title', 'family', 'languages', 'size_mb', 'variants', 'any', 'rdkx5',
     'encoder', 'decoder', 'options', 'max_tiles']
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(keys | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text()
    | trees.map(yaml.safe_dump)
    | trees.map(lambda t: yaml.safe_dump({'models': {'m': {'variants': {'any': t}}}}))
    | trees.map(lambda t: yaml.safe_dump({'models': {'m': t}}))
)
def test_no_catalogue_does_more_harm_than_a_config_error(home, text):
    (home / 'models.yaml').write_bytes(text.encode('utf-8', 'surrogatepass'))
    try:
        assert 'demo' in catalogue.load()
    except ConfigError as exc:
        assert 'models.yaml' in str(exc)
