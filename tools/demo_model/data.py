"""Training sequences for the demo model: pictures, chat turns about them, and what to learn."""

from __future__ import annotations

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
        _, asked, answer = scenes.question(rng, scene, False)
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

    def __init__(self, tokenizer: Tokenizer, image_tokens: int, pool: list[scenes.Scene]):
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.pool = pool
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
    ) -> tuple[list[int], list[int], list[float]]:
        """
        Make one conversation.

        A token counts by one over the square root of its answer's length: a yes or no would
        otherwise drown in long descriptions.

        :return: token ids (-1 - number: embedding slots of that scene of the pool), labels, and
            how much each counts
        """
        ids, labels, weights = [self.id['<|im_start|>']], [ASIDE], [0.0]
        pictures: list[int] = []  # numbers of scenes

        def add(more: list[int], learn: bool = False) -> None:
            ids.extend(more)
            labels.extend(more if learn else [ASIDE] * len(more))
            weights.extend([len(more) ** -0.5] * len(more))

        end = self.id['<end_of_utterance>']
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
            if not pictures and chance < 0.02:
                asked, answer = self.without_picture(rng, chinese)
            elif chance < (0.04 if not turn else 0.03):
                shown = [int(n) for n in rng.integers(len(self.pool), size=2)]
                asked, answer = self.both(rng, *(self.pool[n] for n in shown), chinese)
            else:
                if not pictures or chance < 0.12:
                    shown = [int(rng.integers(len(self.pool)))]
                seen = self.pool[(pictures + shown)[-1]]
                what = 'describe' if not turn and rng.random() < 0.2 else None
                _, asked, answer = scenes.question(rng, seen, chinese, what)
            pictures += shown
            add(self.text('User:' if shown else 'User: '))
            for number in shown:
                add(self.picture(number))
            add([*self.text(asked), end, *self.text('\n'), *self.text('Assistant:')])
            add([*self.text(' ' + answer), end], learn=True)
            add(self.text('\n'))
        return ids, labels, weights

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
