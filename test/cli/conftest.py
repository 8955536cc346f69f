"""What the tests of the command share."""

from __future__ import annotations

import io

import cv2
from hobot_vlm.cli.main import main
import pytest
from shell import Screen


@pytest.fixture(autouse=True)
def a_home_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command; give (exit status, stdout, stderr)."""

    def call(*args, stdin=''):
        monkeypatch.setattr('sys.stdin', io.StringIO(stdin))
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as exc:  # argparse
            status = exc.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def screen():
    """Run the command at a terminal."""
    screens = []

    def make(*args, **more):
        screens.append(Screen(*args, **more))
        return screens[-1]

    yield make
    for one in screens:
        one.close()


@pytest.fixture
def clip(sample, tmp_path):
    """Give a video of 20 frames, 320x240, in which the bundled picture stands still."""
    path = tmp_path / 'clip.mp4'
    picture = cv2.resize(cv2.imread(sample), (320, 240))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (320, 240))
    for _ in range(20):
        writer.write(picture)
    writer.release()
    return path
