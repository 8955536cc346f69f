"""Files as terminals and people write them."""

from __future__ import annotations

from hobot_vlm.cli import files
from hobot_vlm.cli.lines import Editor
import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'my pictures').mkdir()
    for name in ('dog.jpg', 'CAT.PNG', 'clip.mp4', 'notes.txt', 'my pictures/a b.webp'):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ('line', 'found', 'rest'),
    [
        ('dog.jpg', ['dog.jpg'], ''),
        ('dog.jpg what is this?', ['dog.jpg'], 'what is this?'),
        ('what is this? dog.jpg', ['dog.jpg'], 'what is this?'),
        ("dog.jpg 'CAT.PNG'  which is larger?", ['dog.jpg', 'CAT.PNG'], 'which is larger?'),
        ('my pictures/a b.webp', ['my pictures/a b.webp'], ''),
        ('"my pictures/a b.webp" why?', ['my pictures/a b.webp'], 'why?'),
        ('my\\ pictures/a\\ b.webp why?', ['my pictures/a b.webp'], 'why?'),
        ('~/clip.mp4 what happens?', ['{}/clip.mp4'], 'what happens?'),
        ('file://{}/my%20pictures/a%20b.webp', ['{}/my pictures/a b.webp'], ''),
        ('notes.txt what is this?', [], 'notes.txt what is this?'),
        ('is dog.jpg a file?', [], 'is dog.jpg a file?'),
        ("what's in bird.jpg", [], "what's in bird.jpg"),
        ("what's this? dog.jpg", ['dog.jpg'], "what's this?"),
        ('a backslash \\ stays', [], 'a backslash \\ stays'),
    ],
)
def test_dropped_files(line, found, rest, folder):
    found = [path.format(folder) for path in found]
    assert files.dropped(line.format(folder)) == (found, rest)


@pytest.mark.parametrize(
    ('text', 'paths'),
    [
        ('dog.jpg', ['dog.jpg']),
        ('dog.jpg CAT.PNG', ['dog.jpg', 'CAT.PNG']),
        ('my pictures/a b.webp', ['my pictures/a b.webp']),
        ("'my pictures/a b.webp' dog.jpg", ['my pictures/a b.webp', 'dog.jpg']),
        ('"half a quote', ['"half', 'a', 'quote']),
    ],
)
def test_paths(text, paths):
    assert files.paths_of(text) == paths


@pytest.mark.parametrize(
    ('text', 'path'),
    [('a new file', 'a new file'), ('"a new file"', 'a new file'), ('a\\ b', 'a b')],
)
def test_one_path(text, path):
    assert files.path_of(text) == path


@pytest.mark.parametrize(
    ('word', 'is_file'),
    [
        ('dog.jpg', True),
        ('absent.jpg', True),
        ('notes.txt', True),
        ('/absent/thing', True),
        ('./absent', True),
        ('data:image/png;base64,AAAA', True),
        ('Describe the picture.', False),
        ('Is there a bird in absent.jpg', False),
        ('hello', False),
        ('-', False),
        ('and/or?', False),
    ],
)
def test_what_is_a_file(word, is_file):
    assert files.seems_file(word) is is_file


@pytest.mark.parametrize(
    ('line', 'found'),
    [
        ('/', ['/image ', '/save ', '/stats']),
        ('/st', ['/stats']),
        ('/image d', ['/image dog.jpg']),
        ('/image dog.jpg C', ['/image dog.jpg CAT.PNG']),
        ('/image my', ['/image my\\ pictures/']),
        ('/image my\\ pictures/', ['/image my\\ pictures/a\\ b.webp']),
        ('/image "my pictures/a', ['/image "my pictures/a b.webp"']),
        ('/image ~/cl', ['/image {}/clip.mp4']),
        ('{}/do', ['{}/dog.jpg']),
        ('what is d', []),
    ],
)
def test_completion(line, found, folder):
    editor = Editor(['/image', '/save', '/stats'], ['/image', '/save'])
    expected = [text.format(folder) for text in found]
    assert editor.completions(line.format(folder)) == expected
