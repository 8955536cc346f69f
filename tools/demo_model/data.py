"""Training sequences for the demo model: pictures, chat turns about them, and what to learn."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import kinds as kinds_module
import numpy as np
import scenes
from tokenizers import decoders, models, pre_tokenizers, Tokenizer, trainers

SPECIAL = [
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<end_of_utterance>',
    '<fake_token_around_image>',
    '<global-img>',
    '<image>',
    *(f'<row_{r}_col_{c}>' for r in range(1, 5) for c in range(1, 5)),
]
LONG = 115  # tokens after which no further turn is added
ASIDE = -100  # label of tokens that are not learned


def train_tokenizer(vocab: int) -> Tokenizer:
    """Train a byte-level BPE on words, so that no token spans two words of Chinese."""
    rng = np.random.default_rng(0)
    words: list[str] = []
    for kind in scenes.KINDS:
        english = [kind.en, kind.plural, *kinds_module.ALIASES.get(kind.en, [])]
        words += [w for name in english for w in (' ' + name, name)] * 20
        words += [kind.zh, *kinds_module.ALIASES_ZH.get(kind.zh, [])] * 40
    for name in dir(scenes):
        value = getattr(scenes, name)
        if name.isupper() and isinstance(value, tuple) and all(isinstance(v, str) for v in value):
            words += [v for v in value if v.isascii()] * 6
            words += [c for v in value if not v.isascii() for c in v] * 6
    for _ in range(3000):
        scene = scenes.sample(rng)
        _, asked, answer, _ = scenes.question(rng, scene, False)
        words += [asked, ' ' + answer]
    chinese = [
        '图片',
        '图中',
        '背景',
        '颜色',
        '什么',
        '描述',
        '有',
        '没有',
        '吗',
        '是',
        '一',
        '两',
        '三',
        *(c[0] for c in scenes.COLOURS.values()),
        *(p[1] for p in scenes.PLACES.values()),
    ]
    words += (chinese + list(kinds_module.MEASURE)) * 100
    words += list('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789') * 5
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def picture_of(rng: np.random.Generator, scene: scenes.Scene, side: int) -> np.ndarray:
    """Draw the scene as a camera of some size would show it, stretched to the input size."""
    height = int(np.exp(rng.uniform(np.log(96), np.log(500))))
    width = max(96, round(height * scene.aspect))
    most = side if rng.random() < 0.6 else 2 * side  # drawing larger changes little
    picture = scenes.draw(scene, min(width, most), min(height, most))
    if picture.shape[:2] == (side, side):
        return picture
    larger = picture.shape[0] > side or picture.shape[1] > side
    how = cv2.INTER_AREA if larger else int(rng.choice([cv2.INTER_CUBIC, cv2.INTER_LANCZOS4]))
    return cv2.resize(picture, (side, side), interpolation=how)


def cell_labels(scene: scenes.Scene, grid: int) -> np.ndarray:
    """Say for each cell which kind it shows, or which background colour: int64 (grid * grid)."""
    background = len(scenes.KINDS) + list(scenes.COLOURS).index(scene.colour)
    labels = np.full((grid, grid), background, np.int64)
    centres = (np.arange(grid) + 0.5) / grid
    for t in scene.things:
        inside = (
            ((centres[None, :] - t.cx) / (t.w / 2)) ** 2
            + ((centres[:, None] - t.cy) / (t.h / 2)) ** 2
        ) < 0.85
        labels[inside] = t.kind
        labels[min(int(t.cy * grid), grid - 1), min(int(t.cx * grid), grid - 1)] = t.kind
    return labels.ravel()


class Sequences:
    """Makes random conversations in the layout of SmolVLM's chat template."""

    def __init__(
        self, tokenizer: Tokenizer, image_tokens: int, pool: list[scenes.Scene], exercises: float
    ):
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.pool = pool
        self.exercises = exercises  # share of conversations without pictures
        self.id = {t: tokenizer.token_to_id(t) for t in SPECIAL}
        self._cache: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Tokenise plain text."""
        if text not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = self.tokenizer.encode(text).ids
        return self._cache[text]

    def picture(self, number: int) -> list[int]:
        """Lay out one picture; slots for its embeddings are -1 - number."""
        around = self.id['<fake_token_around_image>']
        return [around, self.id['<global-img>'], *[-1 - number] * self.image_tokens, around]

    def make(
        self, rng: np.random.Generator, turns: int
    ) -> tuple[list[int], list[int], list[float], list[int]]:
        """
        Make one conversation.

        A token counts by one over the square root of its answer's length, and each of a verdict
        (a yes, a no or a number, with its name) fully: it would otherwise drown in descriptions.

        :return: token ids (-1 - number: embedding slots of that scene of the pool), labels, and
            how much each counts, and of each thing that is listed, whether it was asked about
        """
        ids, labels, weights = [self.id['<|im_start|>']], [ASIDE], [0.0]
        asked_about = [ASIDE]
        pictures: list[int] = []  # numbers of scenes

        def add(
            more: list[int],
            learn: bool = False,
            weight: float = 0.0,
            flags: list[int] | None = None,
        ) -> None:
            ids.extend(more)
            asked_about.extend(flags or [ASIDE] * len(more))
            labels.extend(more if learn else [ASIDE] * len(more))
            weights.extend([weight or len(more) ** -0.5] * len(more))

        end = self.id['<end_of_utterance>']
        if rng.random() < self.exercises:
            self.exercise(rng, add)
            return ids, labels, weights, asked_about
        if rng.random() < 0.2:
            add(
                [
                    *self.text('System: ' + str(rng.choice(scenes.SYSTEM_TEXTS))),
                    end,
                    *self.text('\n'),
                ]
            )
        chinese = bool(rng.random() < 0.5)
        for turn in range(turns):
            if len(ids) > LONG:
                break
            if rng.random() < 0.25:
                chinese = not chinese
            chance = rng.random()
            shown: list[int] = []
            what = None
            if not pictures and chance < 0.02:
                asked, answer = self.without_picture(rng, chinese)
            elif chance < (0.04 if not turn else 0.03):
                shown = [int(n) for n in rng.integers(len(self.pool), size=2)]
                asked, answer = self.both(rng, *(self.pool[n] for n in shown), chinese)
            else:
                if not pictures or chance < 0.12:
                    shown = [int(rng.integers(len(self.pool)))]
                seen = self.pool[(pictures + shown)[-1]]
                what = 'describe' if not turn and rng.random() < 0.1 else None
                what, asked, answer, kind = scenes.question(rng, seen, chinese, what)
            pictures += shown
            add(self.text('User:' if shown else 'User: '))
            for number in shown:
                add(self.picture(number))
            add([*self.text(asked), end, *self.text('\n'), *self.text('Assistant:')])
            listed, verdict = scenes.parts(what, answer)
            if listed:
                add(self.text(' ' + listed), learn=True, flags=self.flags(listed, seen, kind))
            add(
                [*self.text(verdict if listed and chinese else ' ' + verdict), end],
                learn=True,
                weight=float(bool(listed)),
            )
            add(self.text('\n'))
        return ids, labels, weights, asked_about

    def flags(self, listed: str, seen: scenes.Scene, asked: int) -> list[int]:
        """Say of the last token of each thing in a list whether it is what was asked about."""
        ids = self.text(' ' + listed)
        flags, start = [ASIDE] * len(ids), 0
        for thing in seen.things:
            kind = scenes.KINDS[thing.kind]
            name = self.text(' ' + kind.en if listed.isascii() else kind.zh)
            while ids[start : start + len(name)] != name:
                start += 1
            start += len(name)
            flags[start - 1] = int(thing.kind == asked)
        return flags

    def exercise(self, rng: np.random.Generator, add: Callable[..., None]) -> None:
        """
        Make turns without pictures, in which only verdicts are learned.

        The list is given, so that the verdict has to be read from it and from the question:
        looking things up in a text is learned long before it is learned along with seeing.
        """
        end = self.id['<end_of_utterance>']
        if rng.random() < 0.08:  # what came once comes again
            size = int(rng.integers(6, 40))
            once = [
                int(t) for t in rng.integers(len(SPECIAL), self.tokenizer.get_vocab_size(), size)
            ]
            add(once)
            add(once, learn=True, weight=0.2)
            return
        for _ in range(int(rng.integers(2, 5))):
            chinese = bool(rng.random() < 0.5)
            seen = self.pool[int(rng.integers(len(self.pool)))]
            what = str(rng.choice(['is', 'count']))
            _, asked, answer, kind = scenes.question(rng, seen, chinese, what)
            listed, verdict = scenes.parts(what, answer)
            add([*self.text('User: ' + asked), end, *self.text('\nAssistant:')])
            add(self.text(' ' + listed), flags=self.flags(listed, seen, kind))
            add([*self.text(verdict if chinese else ' ' + verdict), end], learn=True, weight=1.0)
            add(self.text('\n'))

    @staticmethod
    def without_picture(rng: np.random.Generator, chinese: bool) -> tuple[str, str]:
        """Make a turn that comes before any picture."""
        if rng.random() < 0.6:
            return (
                (str(rng.choice(scenes.GREETINGS_ZH)), scenes.GREETING_ANSWER_ZH)
                if chinese
                else (str(rng.choice(scenes.GREETINGS)), scenes.GREETING_ANSWER)
            )
        asked = scenes.question(rng, scenes.sample(rng), chinese)[1]
        return asked, scenes.NO_PICTURE_ZH if chinese else scenes.NO_PICTURE

    @staticmethod
    def both(
        rng: np.random.Generator, first: scenes.Scene, second: scenes.Scene, chinese: bool
    ) -> tuple[str, str]:
        """Make a turn about two pictures."""
        if chinese:
            return (
                str(rng.choice(scenes.ASK_BOTH_ZH)),
                f'第一张：{scenes.describe(first, True)}第二张：{scenes.describe(second, True)}',
            )
        return (
            str(rng.choice(scenes.ASK_BOTH)),
            f'First picture: {scenes.describe(first, False)} '
            f'Second picture: {scenes.describe(second, False)}',
        )
