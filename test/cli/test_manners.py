"""The command in a shell of its own at a terminal, as somebody types it."""

from __future__ import annotations

import os
import shutil
import sys

from hobot_vlm.cli.terminal import width_of
import pytest

pytestmark = pytest.mark.skipif(not shutil.which('bash'), reason='bash is not installed')

PROMPT = 'ready$ '


@pytest.fixture
def bash(screen, tmp_path):
    """Start a shell that finds ``vlm`` and ``hobot_vlm``."""
    for name, module in (('vlm', 'hobot_vlm'), ('hobot_vlm', 'hobot_vlm.ros.main')):
        script = tmp_path / 'bin' / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(0o755)

    def make(**more):
        path = f'{tmp_path}/bin{os.pathsep}{os.environ["PATH"]}'
        env = os.environ | {'PATH': path, 'PS1': PROMPT, 'TERM': 'dumb', 'LANG': 'C.UTF-8'}
        shell = ['bash', '--norc', '--noprofile', '--noediting', '-i']
        if more.pop('editing', False):
            shell.remove('--noediting')
        terminal = screen(program=shell, env=env, **more)
        terminal.until(PROMPT)
        return terminal

    return make


def typed(terminal, line):
    """Type a command; give its output and its exit status."""
    terminal.type(f'{line}; echo "[$?]"\n')
    terminal.until('\r\n')
    out, _, status = terminal.until(PROMPT).rpartition('[')
    return out.replace('\r\n', '\n'), int(status.strip(' \r\n]'))


def test_tab_completes_commands_flags_and_values(bash):
    terminal = bash(editing=True)
    terminal.type('eval "$(vlm completion bash)"\n')
    terminal.until('\r\n')
    terminal.until(PROMPT)
    terminal.type('vlm as\t--temp\t0.5 -m smolvlm2-25\t')
    terminal.until('vlm ask --temperature 0.5 -m smolvlm2-256m')


def test_question_and_picture_in_either_order(bash, sample, demo):
    question = 'Describe the picture.'
    terminal = bash(columns=200)
    expected = demo.ask(question, sample).text
    for words in (f'"{question}" {sample}', f'{sample} "{question}"'):
        out, status = typed(terminal, f'vlm ask {words} 2> /dev/null')
        assert (out.strip(), status) == (expected, 0)


def test_help_and_hints_fit_the_terminal(bash):
    terminal = bash(columns=60)
    out, status = typed(terminal, 'vlm ask --help')
    assert status == 0 and max(map(width_of, out.splitlines())) <= 60
    for heading in ('model:', 'pictures:', 'answer:', 'form of the answer:'):
        assert f'\n{heading}\n' in out
    assert '0 to 10; default 0.0' in ' '.join(out.split())
    out, status = typed(terminal, 'vlm --help')
    assert status == 0 and max(map(width_of, out.splitlines())) <= 60
    out, status = typed(terminal, 'vlm ask Hello --temprature 1')
    assert status == 2 and 'did you mean --temperature?' in ' '.join(out.split())
    out, status = typed(terminal, 'vlm ask Hello -m smolvlm2-265m')
    assert status == 2 and 'smolvlm2-256m' in out and 'Traceback' not in out


@pytest.mark.parametrize('command', ['ask Hello', 'chat'])
def test_ctrl_c_while_the_model_loads(bash, command):
    terminal = bash()
    terminal.type(f'vlm {command}; echo "[$?]"\n')
    terminal.until('loading demo')
    terminal.type('\x03')
    rest = terminal.until(PROMPT)
    assert rest.endswith('\r\n[130]\r\n') and 'Traceback' not in rest


def test_the_node_says_how_it_is_called(bash):
    pytest.importorskip('rclpy')
    out, status = typed(bash(columns=200), 'hobot_vlm --help')
    assert status == 0 and out.startswith('usage: hobot_vlm --ros-args')
