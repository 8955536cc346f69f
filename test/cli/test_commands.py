"""The ``vlm`` command without a model: help, wrong words, lists."""

from __future__ import annotations

import json
from pathlib import Path
import subprocess
import sys

from hobot_vlm import __version__
import pytest
from shell import complaint, ROOT


def test_version(run):
    assert run('--version') == (0, f'vlm {__version__}\n', '')


def test_help_lists_every_option(run):
    status, out, _ = run('ask', '--help')
    assert status == 0
    for name in ('model', 'n_ctx', 'temperature', 'bpu_cores', 'auto_download'):
        assert f'--{name.replace("_", "-")}' in out


@pytest.mark.parametrize('args', [('nonsense',), ('ask', 'hi', '--nonsense'), ('models', 'extra')])
def test_a_wrong_command_line(run, args):
    status, out, err = run(*args)
    assert status == 2 and out == '' and 'usage: vlm' in err


@pytest.mark.parametrize(
    'args',
    [
        ('x' * 100_000,),
        ('ask', 'hi', '--' + 'x' * 100_000),
        ('ask', 'hi', '--set', 'x' * 100_000),
        ('ask', 'hi', '--set', 'x' * 100_000 + '=1'),
        ('ask', 'hi', '--set', 'n_ctx=' + 'x' * 100_000),
        ('ask', 'hi', '--params-file', 'x' * 100_000),
        ('ask', 'hi', '--params-file', '/dev/zero'),
        ('ask', 'hi', '--json-schema', '{"' + 'x' * 100_000),
        ('ask', 'hi', '-m', 'x' * 100_000),
        ('ask', 'x' * 5_000, 'y' * 5_000),
        ('download', 'x' * 100_000),
    ],
    ids=lambda args: ' '.join(args)[:30],
)
def test_no_message_carries_what_was_typed(run, args):
    status, out, err = run(*args)
    assert status == 2 and out == '' and len(err) < 1000 and 'Traceback' not in err


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
        (('absent.mp4',), "'absent.mp4': there is no such file"),
        (('absent.png',), 'absent.png'),
        (('--set', 'llm_model_name=absent.gguf'), 'absent.gguf'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run, args, words):
    assert words in complaint(run('ask', 'What is it?', *args))


def test_help_is_a_word_too(run):
    status, whole, err = run('--help')
    assert run() == run('help') == (0, whole, err) and 'usage: vlm' in whole
    assert run('help', 'models') == run('models', '--help')


@pytest.mark.parametrize('args', [('ask', 'What is it?', 'no.jpg'), ('chat', 'no.jpg')])
def test_a_file_that_is_not_there_is_heard_of_before_the_model_loads(run, args):
    nothing = ('--llm-model-name', 'absent.gguf')
    assert "'no.jpg': there is no such file" in complaint(run(*args, *nothing))


def test_the_name_of_a_picture_is_no_question(run):
    assert 'there is no question' in complaint(run('ask', 'absent.jpg'))


def test_an_empty_prompt(run):
    assert 'the prompt is empty' in complaint(run('ask', ' '))
    assert 'the prompt is empty' in complaint(run('ask', '-', stdin='\n'))


def test_models_is_a_table(run):
    status, out, err = run('models')
    assert status == 0 and 'vlm download' in err and 'models.yaml' in err
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert rows['NAME'][:5] == ['NAME', 'STATE', 'SIZE', 'MEMORY', 'LANGUAGES']
    assert rows['demo'][1:] == 'here 7 MB 0.9 GB en zh - apache-2.0'.split() + rows['demo'][10:]
    assert rows['internvl3-1b'][2:11] == '1010 MB 1.9 GB en zh x5 s100 apache-2.0'.split()


def test_models_fit_the_terminal(screen):
    for columns in (120, 60):
        out, notes = screen('models', columns=columns).rest().split('here: on this machine')
        lines = out.rstrip().split('\r\n')
        assert max(map(len, lines)) <= columns
        assert [line.split()[0] for line in lines[:2]] == ['NAME', 'demo']
        assert any(line.endswith('…') for line in lines) is (columns == 60)
        assert all(line.split()[1] != '…' for line in lines)  # the state is still there
        assert 'Your own models go into' in notes


def test_what_suits_this_machine_is_said(run, monkeypatch):
    def listed(memory):
        monkeypatch.setattr('hobot_vlm.cli.models.memory_bytes', lambda: (memory, memory))
        out, err = run('models')[1:]
        return {line.split()[0]: line for line in out.splitlines()}, err

    rows, notes = listed(8e9)
    assert ' fits ' in rows['internvl3-2b'] and ' too big ' in rows['internvl3-8b']
    assert 'For this machine with 8 GB: `vlm download internvl3.5-1b`' in notes
    assert 'too big: wants more memory' in notes and 'other board' not in notes
    rows, notes = listed(3e9)
    assert ' too big ' in rows['internvl3-1b'] and '`vlm download smolvlm2-500m`' in notes
    assert ' best ' in rows['smolvlm2-500m'] and 'best: suits this machine best' in notes
    rows, notes = listed(1e9)
    assert ' here ' in rows['demo'] and 'For this machine' not in notes


def test_what_suits_a_board_is_said(run, monkeypatch, tmp_path):
    mine = tmp_path / 'config' / 'hobot_vlm' / 'models.yaml'
    mine.parent.mkdir(parents=True)
    mine.write_text('models: {mine: {variants: {rdks100: {decoder: x.gguf}}}}')
    monkeypatch.setattr('hobot_vlm.catalogue.machine', lambda: 'rdkx5')
    out, err = run('models')[1:]
    (line,) = [line for line in out.splitlines() if line.startswith('mine ')]
    assert ' other board ' in line and 'other board: has no files for this machine' in err
    assert '`vlm download internvl3-1b`' in err  # internvl3.5 would run beside the BPU


def test_models_as_json(run):
    status, out, _ = run('models', '--json')
    rows = {row['name']: row for row in json.loads(out)}
    assert status == 0 and rows['demo']['local'] and Path(rows['demo']['decoder']).is_file()
    assert rows['smolvlm2-500m']['languages'] == ['en']
    assert not rows['smolvlm2-500m']['local']
    made = rows['internvl2-4b']
    assert made['checkpoint'] == 'OpenGVLab/InternVL2-4B' and made['license'] == 'mit'
    assert made['memory_mb'] == made['size_mb'] + 900 and made['boards'] == []
    assert rows['internvl3-1b']['boards'] == ['x5', 's100']


def test_what_cannot_be_removed_is_said(run):
    assert 'were not downloaded' in complaint(run('models', '--remove', 'demo'))
    assert "no model 'nothing'" in complaint(run('models', '--remove', 'nothing'))


def test_help_loads_nothing_heavy():
    script = (
        'import sys\nfrom hobot_vlm.cli.main import main\n'
        'try: main(["ask", "--help"])\nexcept SystemExit: pass\n'
        'heavy = {"numpy", "llama_cpp", "onnxruntime", "cv2", "PIL", "yaml", "jinja2", "rclpy"}\n'
        'print(heavy & set(sys.modules))'
    )
    out = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == 'set()'


def test_a_missing_library_is_named():
    script = (
        'import sys; sys.modules["llama_cpp"] = None; '
        'from hobot_vlm.cli.main import main; sys.exit(main(["ask", "Hello"]))'
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        'vlm: llama-cpp-python is not installed; run `pip install llama-cpp-python`\n'
    )
