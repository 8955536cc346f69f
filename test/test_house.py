"""The rules of the house: who imports what, who decodes, what is private, how long files are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'hobot_vlm'
FILES = sorted(PACKAGE.rglob('*.py'))

#: folder or file at the top of the package -> its layer. Imports go down, or stay in their layer
LAYERS = {
    **dict.fromkeys(('cli', 'server', 'ros', 'maix', '__main__'), 4),
    **dict.fromkeys(
        (
            'vlm',
            'vision',
            'conversation',
            'conversation_file',
            'many',
            'choosing',
            'option_types',
            'remote',
        ),
        3,
    ),
    **dict.fromkeys(
        ('loader', 'engine', 'prompt_maker', 'catalogue', 'catalogue_file', 'hub', 'transfer'), 2
    ),
    **dict.fromkeys(('prompt', 'families', 'encoders', 'llama', 'image', 'demo'), 1),
    **dict.fromkeys(
        (
            'values',
            'encoded',
            'errors',
            'config',
            'option',
            'futures',
            'machine',
            'net',
            'parameter_file',
            '__init__',
        ),
        0,
    ),
}
#: what front ends may import, besides themselves
DOORS = {'vlm', 'vision', 'config', 'option', 'option_types', 'errors', 'values', 'encoded'}
DOORS |= {'machine', '__init__'}
#: files of other front ends that serve what ``server`` reads and writes
SERVED = ('serve.py', 'node.py', 'serving.py', 'llama_goals.py', 'llama_actions.py')
FRONT_ENDS = {name for name, layer in LAYERS.items() if layer == 4}
#: within the engine, from what runs a model to what is asked
ENGINE = ('engine', 'scheduler', 'room', 'sequence', 'stream', 'request', 'detokenizer')


def place(path: Path) -> str:
    """Give the folder or file at the top of the package in which a file lies."""
    top = path.relative_to(PACKAGE).parts[0]
    return top.removesuffix('.py')


def imports(path: Path, typing: bool = False) -> set[tuple[str, ...]]:
    """
    Give the modules of the package that a file imports, as parts of their names.

    :param typing: also those that only type checkers see
    """
    found = set()
    here = path.relative_to(PACKAGE).parts[:-1]
    tree = ast.parse(path.read_text(encoding='utf-8'))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING')
        for inner in ast.walk(node)
        if not typing
    }
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = here[: len(here) + 1 - node.level]
        module = tuple((node.module or '').split('.')) if node.module else ()
        for alias in node.names:
            name = (*base, *module) if base or module else (alias.name,)
            found.add(name)
    return found


def test_every_file_has_a_layer():
    assert {place(path) for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = LAYERS[place(path)]
    for module in imports(path):
        top = module[0] if module[0] in LAYERS else '__init__'
        assert LAYERS[top] <= here, f'{path} imports {".".join(module)}, which lies above it'


@pytest.mark.parametrize(
    'path',
    [path for path in FILES if place(path) in FRONT_ENDS],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_front_ends_go_by_the_door(path):
    for module in imports(path, typing=True):
        top = module[0] if module[0] in LAYERS else '__init__'
        if top == place(path) or path.name == '__main__.py':
            continue
        served = path.name in SERVED and top == 'server'
        assert top in DOORS or served, f'{path} imports {".".join(module)}'


def test_the_core_knows_no_llama_cpp_but_in_its_folder():
    for path in FILES:
        text = path.read_text(encoding='utf-8')
        if 'import llama_cpp' in text or 'from llama_cpp' in text:
            assert place(path) in ('llama', 'encoders', 'cli', 'conversation_file', 'prompt'), path


def test_only_the_scheduler_decodes():
    """Others may run a context to try it, before anybody is served."""
    for path in FILES:
        calls = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
            if isinstance(node, ast.Call)
        ]
        if any(call.endswith('llama_decode') for call in calls):
            # the second is a child process that tries a file before anybody opens it
            assert path.relative_to(PACKAGE) in (Path('llama/context.py'), Path('llama/trial.py'))
        if any(call.endswith('cache.run') for call in calls):
            assert path.relative_to(PACKAGE) == Path('engine/scheduler.py')


def test_the_main_loop_stays_short():
    lines = (PACKAGE / 'engine' / 'scheduler.py').read_text(encoding='utf-8').count('\n')
    assert lines < 200


@pytest.mark.parametrize('folder', ['hobot_vlm', 'benchmarks', 'tools'])
def test_no_file_is_long(folder):
    """Tools that make a model once are exempt: they are read once."""
    for path in (ROOT / folder).rglob('*.py'):
        lines = path.read_text(encoding='utf-8').count('\n')
        assert lines <= 400 or 'demo_model' in path.parts, f'{path} has {lines} lines'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_class_reads_the_private_members_of_another(path):
    """What begins with an underscore is read from ``self``, ``cls`` or the own class alone."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    #: of libraries that have no public name for it
    known = {'_parameter_overrides', '_lib', '_asdict', '_fields_', '_replace', '_pack_'}
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith('_'):
            continue
        if node.attr.startswith('__') or node.attr in known:
            continue
        owner = ast.unparse(node.value)
        assert owner in {'self', 'cls', 'os', 'sys', *own}, (
            f'{path}:{node.lineno} {owner}.{node.attr}'
        )
