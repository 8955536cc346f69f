"""
Write the tables of models in docs/models.md and docs/models_cn.md.

``python tools/make_model_table.py``. They are what ``hobot_vlm/catalogue.yaml`` says; a test runs
this and compares.
"""

from __future__ import annotations

from pathlib import Path

from hobot_vlm.catalogue import bundled, Model

ROOT = Path(__file__).parents[1]
HEADS = {
    'models.md': ('name', 'model', 'size', 'languages', 'licence', 'BPU of', 'files'),
    'models_cn.md': ('名称', '模型', '大小', '语言', '许可证', 'BPU', '文件'),
}
HUB = 'https://huggingface.co/'


def row(model: Model, chinese: bool) -> tuple[str, ...]:
    """Describe a model."""
    size = f'{model.size_mb / 1e3:.1f} GB' if model.size_mb >= 1e3 else f'{model.size_mb:.0f} MB'
    boards = [board.removeprefix('rdk').upper() for board in model.variants if board != 'any']
    decoder = model.variants['any'].decoder
    made = '由此转换：' if chinese else 'made from '
    repo = model.checkpoint or decoder.repo
    files = f'{made if model.checkpoint else ""}[{repo}]({HUB}{repo})' if repo else '—'
    return (
        f'`{model.name}`',
        model.title,
        size,
        ', '.join(model.languages),
        model.license,
        ', '.join(boards) or '—',
        files,
    )


def with_table(text: str, name: str) -> str:
    """Put the table between its marks."""
    before, _, rest = text.partition('<!-- models -->')
    after = rest.partition('<!-- /models -->')[2]
    head = HEADS[name]
    rows = [row(model, 'cn' in name) for model in bundled().values()]
    lines = ['| ' + ' | '.join(cells) + ' |' for cells in (head, ('---',) * len(head), *rows)]
    return '\n'.join([f'{before}<!-- models -->\n', *lines, f'\n<!-- /models -->{after}'])


def main() -> None:
    """Write the tables of both languages."""
    for name in HEADS:
        path = ROOT / 'docs' / name
        path.write_text(with_table(path.read_text(encoding='utf-8'), name), encoding='utf-8')


if __name__ == '__main__':
    main()
