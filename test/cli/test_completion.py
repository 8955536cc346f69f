"""What shells complete, asked of the shells themselves."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

CASES = [
    (['vlm', 'a'], {'ask'}),
    (['vlm', 'ask', '--temp'], {'--temperature'}),
    (['vlm', 'ask', '-m', 'smolvlm2-25'], {'smolvlm2-256m'}),
    (['vlm', 'chat', '--fit', 'c'], {'contain', 'cover'}),
    (['vlm', 'ask', '--no-m'], {'--no-mmap'}),
    (['vlm', 'download', 'internvl3-1'], {'internvl3-1b', 'internvl3-14b'}),
    (['vlm', 'completion', 'f'], {'fish'}),
    (['vlm', 'ask', 'REA'], set()),  # left to files
]


@pytest.mark.parametrize(('words', 'expected'), CASES)
def test_bash(run, words, expected):
    status, script, err = run('completion', 'bash')
    assert (status, err) == (0, '')
    line = ' '.join(f"'{word}'" for word in words)
    script += f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _vlm; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(['bash', '-c', script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected and done.stderr == ''


@pytest.mark.skipif(not shutil.which('fish'), reason='fish is not installed')
@pytest.mark.parametrize(('words', 'expected'), CASES)
def test_fish(run, words, expected):
    script = run('completion', 'fish')[1] + f'complete -C "{" ".join(words)}"'
    done = subprocess.run(['fish', '-c', script], capture_output=True, text=True, check=True)
    found = {line.split('\t')[0] for line in done.stdout.splitlines()}
    assert found >= expected and done.stderr == ''


@pytest.mark.skipif(not shutil.which('zsh'), reason='zsh is not installed')
def test_zsh_takes_the_script(run):
    script = run('completion', 'zsh')[1] + 'print -- $_comps[vlm]'
    done = subprocess.run(['zsh', '-f', '-c', script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '_bash_complete -o default -F _vlm' and done.stderr == ''


def test_a_name_in_the_catalogue_is_no_command(run, tmp_path):
    mine = tmp_path / 'config' / 'hobot_vlm' / 'models.yaml'
    mine.parent.mkdir(parents=True)
    bad, good = ({'variants': {'any': {'decoder': 'x.gguf'}}} for _ in range(2))
    mine.write_text(json.dumps({'models': {"$(touch it)';": bad, 'mine-1b': good}}))
    for shell in ('bash', 'zsh', 'fish'):
        script = run('completion', shell)[1]
        assert 'touch' not in script and 'mine-1b' in script


def test_another_shell(run):
    status, out, err = run('completion', 'csh')
    assert status == 2 and out == '' and 'csh' in err and 'bash' in err
