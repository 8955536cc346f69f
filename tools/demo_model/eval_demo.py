"""
Measure the demo model on fresh scenes: ``make eval-demo``.

Each scene is drawn at its own size, shown through the public API as a user would show it, and
asked about in both languages. What the answers claim is read back and compared with the scene.
Exits with 1 if a figure is below its bound.
"""

from __future__ import annotations

import argparse
from collections import Counter
import json
import re
import sys
from time import perf_counter

from hobot_vlm import VLM
import numpy as np
import scenes

SIZES = (
    (96, 96),
    (128, 96),
    (160, 120),
    (240, 320),
    (320, 240),
    (400, 400),
    (480, 640),
    (640, 360),
    (640, 480),
    (800, 600),
    (1024, 1024),
    (1280, 720),
    (1920, 1080),
)
BOUNDS = {'objects': 95, 'positions': 95, 'yes/no': 97, 'counts': 95, 'colours': 97}
#: of choosing: per cent right, and the calibration error: how far, on average over equal steps of
#: how sure it says it is, that is from how often it is right
CHOOSING_RIGHT, CALIBRATION_ERROR, BINS = 97, 0.05, 10
#: yes and no, as the model says them, in English and in Chinese
YES_NO = {'en': ('yes', 'no'), 'zh': ('有，', '没有，')}
#: an object nearer than this to the border between two places may be said to be in either
TOLERANCE = 0.03

_EN = re.compile(
    r'(?:an? )?('
    + '|'.join(re.escape(k.en) for k in sorted(scenes.KINDS, key=lambda k: -len(k.en)))
    + ') ('
    + '|'.join(re.escape(en) for en, _ in sorted(scenes.PLACES.values(), key=lambda p: -len(p[0])))
    + r')(?=[,. ])'
)
_ZH = re.compile(
    '('
    + '|'.join(zh for _, zh in sorted(scenes.PLACES.values(), key=lambda p: -len(p[1])))
    + ')有一.('
    + '|'.join(re.escape(k.zh) for k in sorted(scenes.KINDS, key=lambda k: -len(k.zh)))
    + ')(?=[，。])'
)
_KIND_EN = {k.en: i for i, k in enumerate(scenes.KINDS)}
_KIND_ZH = {k.zh: i for i, k in enumerate(scenes.KINDS)}
_PLACE_EN = {en: place for place, (en, _) in scenes.PLACES.items()}
_PLACE_ZH = {zh: place for place, (_, zh) in scenes.PLACES.items()}


def claims(text: str, chinese: bool) -> list[tuple[int, str]]:
    """Read back what an answer claims: (kind, place) of each object."""
    if chinese:
        return [(_KIND_ZH[m[2]], _PLACE_ZH[m[1]]) for m in _ZH.finditer(text)]
    return [(_KIND_EN[m[1]], _PLACE_EN[m[2]]) for m in _EN.finditer(text)]


def colour_claim(text: str, chinese: bool) -> str | None:
    """Read back which colour an answer gives the background."""
    found = re.search(r'背景是(\w+?)[。的]' if chinese else r'background is (\w+)\.', text)
    return found and next(
        (
            name
            for name, (zh, _) in scenes.COLOURS.items()
            if found[1] == (zh if chinese else name)
        ),
        None,
    )


def verdict(text: str) -> str:
    """Give the last sentence of an answer: a yes, a no or a number."""
    return re.split(r'(?<=[.。]) ?', text)[-2] if text[-1:] in ('.', '。') else text


def places_of(scene: scenes.Scene, thing: scenes.Thing) -> set[str]:
    """Give the names that fit an object's place."""
    if scene.arrangement != 'one':
        return {thing.place}
    return {
        scenes.cell(thing.cx + dx, thing.cy + dy)
        for dx in (-TOLERANCE, 0, TOLERANCE)
        for dy in (-TOLERANCE, 0, TOLERANCE)
    }


class Choosing:
    """
    What choosing between yes and no comes to.

    :param choices: yes and no, as somebody would give them
    """

    def __init__(self, choices: tuple[str, str]) -> None:
        self.choices = choices
        self.sure: list[float] = []  # how likely the likelier choice is said to be
        self.right: list[bool] = []
        self.spent: list[tuple[float, float]] = []  # seconds of choosing, and of words
        self.said: list[tuple[int, int]] = []  # tokens, likewise

    def add(self, vlm: VLM, question: str, picture: np.ndarray, yes: bool) -> None:
        """Choose, and ask the same in words; the picture is in the KV cache before."""
        vlm.ask('.', picture, n_predict=1)
        spent, replies = [0.0, 0.0], [None, None]
        for i in (0, 1) if len(self.right) % 2 else (1, 0):
            more = {} if i else {'choices': self.choices}
            began = perf_counter()
            replies[i] = vlm.ask(question, picture, temperature=0.0, **more)
            spent[i] = perf_counter() - began
        chosen, words = replies
        self.sure.append(max(chosen.choices.values()))
        self.right.append((chosen.text == self.choices[0]) == yes)
        self.spent.append((spent[0], spent[1]))
        self.said.append((chosen.completion_tokens, words.completion_tokens))

    def figures(self) -> dict[str, float]:
        """Give per cent right, the calibration error, and what it takes as a share of words."""
        sure, right = np.array(self.sure), np.array(self.right, float)
        bins = np.minimum((sure * BINS).astype(int), BINS - 1)
        error = sum(
            abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(BINS)
        ) / len(sure)
        spent, said = np.array(self.spent), np.array(self.said)
        return {
            'right': round(100 * float(right.mean()), 2),
            'calibration_error': round(float(error), 4),
            'time': round(float(np.median(spent[:, 0]) / np.median(spent[:, 1])), 2),
            'tokens': round(float(said[:, 0].sum() / said[:, 1].sum()), 2),
        }


class Score:
    """Counts right and all, per figure and language."""

    def __init__(self) -> None:
        self.right: Counter[tuple[str, str]] = Counter()
        self.all: Counter[tuple[str, str]] = Counter()

    def add(self, figure: str, language: str, right: float, of: float = 1) -> None:
        """Count some answers."""
        self.right[figure, language] += right
        self.all[figure, language] += of

    def table(self) -> dict[str, dict[str, float]]:
        """Give per cent right."""
        return {
            figure: {
                language: round(100 * self.right[figure, language] / self.all[figure, language], 2)
                for language in ('en', 'zh')
            }
            for figure in BOUNDS
        }


def ask_all(
    vlm: VLM,
    rng: np.random.Generator,
    scene: scenes.Scene,
    picture: np.ndarray,
    score: Score,
    wrong: list[str],
) -> None:
    """Ask everything about one scene."""
    for chinese, language in ((False, 'en'), (True, 'zh')):

        def ask(what: str, chinese: bool = chinese) -> tuple[str, str, str]:
            _, question, truth, _ = scenes.question(rng, scene, chinese, what)
            answer = vlm.ask(question, picture, temperature=0.0).text
            if answer != truth:
                wrong.append(
                    f'{picture.shape[1]}x{picture.shape[0]} {question} -> {answer} [{truth}]'
                )
            return question, answer, truth

        answer = ask('describe')[1]
        said = claims(answer, chinese)
        size = max(len(said), len(scene.things))
        common = Counter(k for k, _ in said) & Counter(t.kind for t in scene.things)
        score.add('objects', language, sum(common.values()), size)
        placed = sum(
            any(k == t.kind and p in places_of(scene, t) for k, p in said) for t in scene.things
        )
        score.add('positions', language, placed, len(scene.things))
        score.add('colours', language, colour_claim(answer, chinese) == scene.colour)
        _, answer, truth = ask('place')
        score.add(
            'positions',
            language,
            answer == truth
            or (scene.arrangement == 'one' and answer in place_answers(scene, truth, chinese)),
        )
        _, answer, truth = ask('is')
        score.add('yes/no', language, verdict(answer) == verdict(truth))
        _, answer, truth = ask('count')
        score.add('counts', language, verdict(answer) == verdict(truth))
        _, answer, _ = ask('colour')
        score.add('colours', language, colour_claim(answer, chinese) == scene.colour)


def place_answers(scene: scenes.Scene, truth: str, chinese: bool) -> set[str]:
    """Give the answers that are right for an object near the border of a place."""
    place = next(
        p
        for p, words in sorted(scenes.PLACES.items(), key=lambda i: -len(i[1][0]))
        if words[chinese] in truth
    )
    answers = set()
    for name in places_of(scene, scene.things[0]):
        scene.things[0].place, kept = name, scene.things[0].place
        answers.add(scenes.place_answer(scene, place, chinese))
        scene.things[0].place = kept
    return answers


def eval_choose(args: argparse.Namespace) -> None:
    """Measure choosing and print."""
    rng = np.random.default_rng(args.seed)
    found = {language: Choosing(choices) for language, choices in YES_NO.items()}
    with VLM.load('demo') as vlm:
        for number in range(args.scenes):
            width, height = SIZES[rng.integers(len(SIZES))]
            scene = scenes.sample(rng, aspect=width / height, empty=0.0)
            picture = scenes.draw(scene, width, height)
            for language, choosing in found.items():
                _, question, truth, _ = scenes.question(rng, scene, language == 'zh', 'is')
                choosing.add(vlm, question, picture, verdict(truth)[0] in 'Y有')
            if sys.stderr.isatty():
                print(f'\r{number + 1}/{args.scenes} scenes', end='', file=sys.stderr)
    figures = {language: choosing.figures() for language, choosing in found.items()}
    if args.json:
        print(json.dumps({'scenes': args.scenes, 'seed': args.seed, 'choose': figures}))
    else:
        print(f'{args.scenes} fresh scenes, seed {args.seed}: yes/no by choosing')
        for language, row in figures.items():
            print(
                f'{language}: {row["right"]} % right, calibration error '
                f'{row["calibration_error"]}; of asking in words it takes {row["time"]} of the '
                f'time and {row["tokens"]} of the tokens'
            )
    sys.exit(
        any(
            row['right'] < CHOOSING_RIGHT or row['calibration_error'] > CALIBRATION_ERROR
            for row in figures.values()
        )
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--scenes', type=int, default=500)
    parser.add_argument('--seed', type=int, default=20260)
    parser.add_argument(
        '--keep',
        type=float,
        default=1.0,
        metavar='SHARE',
        help='keep_image_tokens; below 1 the bounds are not applied',
    )
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--wrong', action='store_true', help='print the answers that are wrong')
    parser.add_argument(
        '--choose', action='store_true', help='measure choosing between yes and no instead'
    )
    args = parser.parse_args()
    if args.choose:
        eval_choose(args)
    rng = np.random.default_rng(args.seed)
    score, wrong = Score(), []
    with VLM.load('demo', keep_image_tokens=args.keep) as vlm:
        for number in range(args.scenes):
            width, height = SIZES[rng.integers(len(SIZES))]
            scene = scenes.sample(rng, aspect=width / height, empty=0.0)
            ask_all(vlm, rng, scene, scenes.draw(scene, width, height), score, wrong)
            if sys.stderr.isatty():
                print(f'\r{number + 1}/{args.scenes} scenes', end='', file=sys.stderr)
    table = score.table()
    bounds = BOUNDS if args.keep == 1 else {}
    below = [f for f, bound in bounds.items() if min(table[f].values()) < bound]
    if args.wrong:
        print('\n'.join(wrong))
    if args.json:
        print(
            json.dumps(
                {
                    'scenes': args.scenes,
                    'seed': args.seed,
                    'keep': args.keep,
                    'right': table,
                    'below': below,
                }
            )
        )
    else:
        title = f'{args.scenes} fresh scenes, seed {args.seed}, keep_image_tokens {args.keep:g}'
        print(f'{title}: per cent right')
        print(f'{"":12}{"English":>10}{"Chinese":>10}{"bound":>8}')
        for figure, row in table.items():
            print(f'{figure:12}{row["en"]:10.2f}{row["zh"]:10.2f}{BOUNDS[figure]:8}')
    sys.exit(bool(below))


if __name__ == '__main__':
    main()
