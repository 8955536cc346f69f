"""
Scenes for the demo model: sample one, draw it, ask about it, and know the right answers.

Training and evaluation share this file, with different seeds. It knows nothing of tokens or
models. All lengths are fractions of the picture, so that one scene can be drawn at any size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import cv2
import kinds as kinds_module
import numpy as np

KINDS = kinds_module.read()
FONT = '/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf'

#: name -> (Chinese name, list of (lowest RGB, highest RGB) that people call by that name)
COLOURS = {
    'red': ('红色', [((185, 0, 0), (255, 45, 45))]),
    'green': ('绿色', [((0, 120, 0), (60, 255, 60)), ((30, 110, 40), (100, 190, 100))]),
    'blue': ('蓝色', [((0, 0, 150), (60, 90, 255)), ((20, 60, 170), (70, 125, 240))]),
    'yellow': ('黄色', [((235, 215, 0), (255, 255, 90))]),
    'white': ('白色', [((235, 235, 235), (255, 255, 255))]),
    'black': ('黑色', [((0, 0, 0), (32, 32, 32))]),
    'gray': ('灰色', [((100, 100, 100), (180, 180, 180))]),
    'orange': ('橙色', [((240, 110, 0), (255, 168, 40))]),
    'purple': ('紫色', [((100, 0, 110), (165, 60, 200)), ((75, 0, 130), (160, 50, 240))]),
    'pink': ('粉色', [((245, 110, 150), (255, 200, 215)), ((250, 95, 170), (255, 185, 210))]),
}
ARRANGEMENT_WORDS = {  # arrangement -> positions in order
    'row2': ('left', 'right'),
    'column2': ('top', 'bottom'),
    'row3': ('left', 'middle', 'right'),
}
PLACES = {  # position -> (English, Chinese)
    'left': ('on the left', '左边'),
    'right': ('on the right', '右边'),
    'middle': ('in the middle', '中间'),
    'top': ('at the top', '上面'),
    'bottom': ('at the bottom', '下面'),
    'top left': ('at the top left', '左上角'),
    'top right': ('at the top right', '右上角'),
    'bottom left': ('at the bottom left', '左下角'),
    'bottom right': ('at the bottom right', '右下角'),
}
COUNT_WORDS = (('no', '没有'), ('one', '一'), ('two', '两'), ('three', '三'))


@dataclass
class Thing:
    """One object: its kind (index), centre and height as fractions, width as a fraction."""

    kind: int
    cx: float
    cy: float
    w: float
    h: float
    place: str = ''


@dataclass
class Scene:
    """What is in the picture; ``aspect`` is width / height."""

    aspect: float
    colour: str
    rgb: tuple[np.ndarray, np.ndarray]
    style: str  # plain, gradient or noisy
    style_seed: int
    arrangement: str  # none, one, row2, column2 or row3
    things: list[Thing] = field(default_factory=list)


@cache
def glyph(kind: int) -> np.ndarray:
    """
    Give the emoji's bitmap, cut to what is visible.

    :return: float32 (h, w, 4), colours premultiplied by alpha, 0..255 and alpha 0..1
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(FONT, 109)  # the only size that this bitmap font has
    canvas = Image.new('RGBA', (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), KINDS[kind].emoji, font=font, embedded_color=True)
    pixels = np.asarray(canvas.crop(canvas.getbbox()), np.float32)
    alpha = pixels[..., 3:] / 255.0
    return np.concatenate([pixels[..., :3] * alpha, alpha], axis=2)


def glyph_aspect(kind: int) -> float:
    """Give width / height of the emoji."""
    height, width = glyph(kind).shape[:2]
    return width / height


def sample(
    rng: np.random.Generator,
    aspect: float | None = None,
    smallest: float = 0.2,
    largest: float = 0.6,
    empty: float = 0.02,
    same: float = 0.25,
) -> Scene:
    """
    Sample a scene.

    :param smallest: height of the smallest object, as a fraction of the picture's height
    :param empty: share of scenes without an object
    :param same: share of scenes with several objects in which two or more are of one kind
    """
    if aspect is None:
        aspect = float(rng.choice([1.0, 4 / 3, 16 / 9, 3 / 2, 3 / 4, rng.uniform(0.7, 1.8)]))
    colour = str(rng.choice(list(COLOURS)))
    shades = COLOURS[colour][1]

    def shade() -> np.ndarray:
        low, high = shades[rng.integers(len(shades))]
        if colour in ('white', 'black', 'gray'):
            return np.full(3, rng.uniform(low[0], high[0]), np.float32)
        return rng.uniform(low, high).astype(np.float32)

    style = str(rng.choice(['plain', 'gradient', 'noisy'], p=[0.5, 0.25, 0.25]))
    scene = Scene(aspect, colour, (shade(), shade()), style, int(rng.integers(2**31)), 'none')
    if rng.random() < empty:
        return scene
    while True:
        scene.arrangement = str(
            rng.choice(['one', 'row2', 'column2', 'row3'], p=[0.25, 0.25, 0.2, 0.3])
        )
        number = {'one': 1, 'row2': 2, 'column2': 2, 'row3': 3}[scene.arrangement]
        chosen = list(rng.choice(len(KINDS), number, replace=False))
        if number > 1 and rng.random() < same:
            chosen[1] = chosen[0]
            if number == 3 and rng.random() < 0.4:
                chosen[2] = chosen[0]
            rng.shuffle(chosen)
        if _place(rng, scene, [int(k) for k in chosen], smallest, largest):
            return scene


def _place(
    rng: np.random.Generator, scene: Scene, chosen: list[int], smallest: float, largest: float
) -> bool:
    """Put the objects somewhere without overlap; False where they do not fit."""
    number = len(chosen)
    heights = np.exp(rng.uniform(np.log(smallest), np.log(largest), number))
    aspects = np.array([glyph_aspect(k) for k in chosen])
    widths = heights * aspects / scene.aspect
    along, across = (heights, widths) if scene.arrangement == 'column2' else (widths, heights)
    room = 0.97
    if along.sum() > room:  # shrink together, if nothing becomes too small
        shrink = room / along.sum()
        heights, widths = heights * shrink, widths * shrink
        along, across = along * shrink, across * shrink
    if heights.min() < smallest * 0.999 or across.max() > room:
        return False
    gaps = rng.dirichlet(np.ones(number + 1)) * (1 - along.sum())
    positions = np.cumsum(gaps[:-1]) + np.cumsum(along) - along / 2
    base = rng.uniform(across.max() / 2, 1 - across.max() / 2)
    others = np.clip(base + rng.uniform(-0.08, 0.08, number), across / 2, 1 - across / 2)
    scene.things = []
    for i, kind in enumerate(chosen):
        cx, cy = (
            (others[i], positions[i])
            if scene.arrangement == 'column2'
            else (positions[i], others[i])
        )
        scene.things.append(Thing(kind, float(cx), float(cy), float(widths[i]), float(heights[i])))
    if scene.arrangement == 'one':
        scene.things[0].place = cell(scene.things[0].cx, scene.things[0].cy)
    else:
        for thing, place in zip(scene.things, ARRANGEMENT_WORDS[scene.arrangement], strict=True):
            thing.place = place
    return True


def cell(cx: float, cy: float) -> str:
    """Name the ninth of the picture in which a point lies."""
    column = 'left' if cx < 1 / 3 else 'right' if cx > 2 / 3 else ''
    row = 'top' if cy < 1 / 3 else 'bottom' if cy > 2 / 3 else ''
    return f'{row} {column}'.strip() or 'middle'


def draw(scene: Scene, width: int, height: int) -> np.ndarray:
    """
    Draw the scene.

    :return: RGB uint8 (height, width, 3)
    """
    rng = np.random.default_rng(scene.style_seed)
    first, second = scene.rgb
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = first
    if scene.style == 'gradient':
        angle = rng.uniform(0, 2 * np.pi)
        ramp = (
            np.cos(angle) * np.linspace(-0.5, 0.5, width)[None, :]
            + np.sin(angle) * np.linspace(-0.5, 0.5, height)[:, None]
        )
        ramp = ((ramp - ramp.min()) / (np.ptp(ramp) + 1e-9))[..., None].astype(np.float32)
        picture += ramp * (second - first)
    elif scene.style == 'noisy':
        strength = rng.uniform(4, 25)
        noise = rng.standard_normal((height, width, 3), np.float32)
        if rng.random() < 0.5:
            noise[:] = noise[..., :1]
        picture += strength * noise
    for thing in scene.things:
        _paste(picture, thing, width, height)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _paste(picture: np.ndarray, thing: Thing, width: int, height: int) -> None:
    """Blend one emoji into the picture."""
    w = max(2, round(thing.w * width))
    h = max(2, round(thing.h * height))
    x = min(max(round(thing.cx * width - w / 2), 0), max(width - w, 0))
    y = min(max(round(thing.cy * height - h / 2), 0), max(height - h, 0))
    source = glyph(thing.kind)
    smaller = h < source.shape[0] or w < source.shape[1]
    scaled = cv2.resize(
        source, (w, h), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    region = picture[y : y + h, x : x + w]
    scaled = scaled[: region.shape[0], : region.shape[1]]
    region *= 1 - scaled[..., 3:]
    region += scaled[..., :3]


# ---------------------------------------------------------------------------------------------
# Questions. Each is (question, answer); `facts` in eval_demo.py reads the answers back.

ASK_DESCRIBE = (
    'Describe the picture.',
    'Describe the image.',
    'Describe this picture.',
    'Describe this image.',
    'Please describe the picture.',
    'Please describe this image.',
    'Describe the scene.',
    'Describe what you see.',
    'What do you see?',
    'What can you see?',
    'What is in the picture?',
    'What is in this picture?',
    'What is in the image?',
    "What's in this image?",
    'What is this?',
    'What does the picture show?',
    'Can you describe this image?',
    'Tell me what you see.',
    'What is shown in the image?',
    'describe the picture',
    'describe the image',
    'Describe it.',
    'What is there?',
    'Describe the picture in detail.',
    'What objects are in the picture?',
    'Describe this image in one sentence.',
    'What do you see in this image?',
)
ASK_DESCRIBE_ZH = (
    '描述一下这张图片.',
    '描述一下这张图片。',
    '描述这张图片。',
    '描述图片。',
    '描述一下图片。',
    '请描述这张图片。',
    '请描述图中有什么',
    '图里有什么？',
    '图中有什么？',
    '图片里有什么？',
    '这是什么？',
    '你看到了什么？',
    '你看见什么？',
    '看看图里有什么。',
    '请描述一下图片内容。',
    '这张图片里有什么？',
    '图片中有哪些物体？',
    '描述这幅图。',
    '请描述图片。',
    '描述一下',
    '图上有什么？',
    '请用一句话描述图片。',
    '详细描述这张图片。',
    '这张图里面有什么东西?',
)
ASK_PLACE = (
    'What is {p}?',
    "What's {p}?",
    'What is {p} of the picture?',
    'What is {p} side?',
    'What do you see {p}?',
    'Which object is {p}?',
    'what is {p}',
    'What is {p} of the image?',
    'What object is {p}?',
    'Tell me what is {p}.',
    'What can you see {p}?',
)
ASK_PLACE_ZH = (
    '{p}是什么？',
    '{p}有什么？',
    '图片{p}是什么？',
    '图片{p}有什么？',
    '{p}是什么?',
    '{p}的物体是什么？',
    '图中{p}是什么？',
    '请问{p}是什么？',
    '{p}的东西是什么？',
    '{p}是什么',
)
PLACE_SYNONYMS_ZH = {
    'left': ('左边', '左侧', '左面'),
    'right': ('右边', '右侧', '右面'),
    'middle': ('中间', '中央', '正中间'),
    'top': ('上面', '上方', '上边', '顶部'),
    'bottom': ('下面', '下方', '下边', '底部'),
}
PLACE_SYNONYMS = {
    'left': ('on the left', 'to the left', 'on the left side', 'at the left'),
    'right': ('on the right', 'to the right', 'on the right side', 'at the right'),
    'middle': ('in the middle', 'in the center', 'in the centre', 'at the center'),
    'top': ('at the top', 'on top', 'on the top', 'above', 'in the upper part'),
    'bottom': ('at the bottom', 'on the bottom', 'below', 'in the lower part'),
}
ASK_COUNT = (
    'How many {x} are there?',
    'How many {x} are in the picture?',
    'How many {x}?',
    'How many {x} do you see?',
    'How many {x} can you see?',
    'how many {x} are there',
    'How many {x} are there in the image?',
    'Count the {x}.',
    'How many {x} are in the image?',
    'What is the number of {x}?',
    'How many {x} are there in the picture?',
)
ASK_COUNT_ZH = (
    '有几{m}{x}？',
    '图中有几{m}{x}？',
    '有多少{m}{x}？',
    '图片里有几{m}{x}？',
    '图里有多少{x}？',
    '有几个{x}？',
    '图中有多少个{x}？',
    '一共有几{m}{x}？',
    '图片中有几个{x}？',
    '有多少{x}?',
    '有几{m}{x}',
)
ASK_IS = (
    'Is there {x}?',
    'Is there {x} in the picture?',
    'Is there {x} in the image?',
    'Do you see {x}?',
    'Can you see {x}?',
    'is there {x}',
    'Is there {x} here?',
    'Does the picture show {x}?',
    'Is there any {y} in the picture?',
    'Are there any {z}?',
    'Is {x} in the picture?',
    'Does the image contain {x}?',
)
ASK_IS_ZH = (
    '有{x}吗？',
    '图中有{x}吗？',
    '图片里有{x}吗？',
    '有没有{x}？',
    '图里有没有{x}？',
    '图中有没有{x}？',
    '你看到{x}了吗？',
    '这张图片里有{x}吗？',
    '是否有{x}？',
    '图片中有一{m}{x}吗？',
    '有{x}吗',
    '有{x}吗?',
)
ASK_COLOUR = (
    'What colour is the background?',
    'What color is the background?',
    'What is the background colour?',
    'What is the background color?',
    'what color is the background',
    "What's the color of the background?",
    'What is the colour of the background?',
    'Which colour is the background?',
    'Tell me the background color.',
    'Background color?',
    'What colour is the background of the picture?',
)
ASK_COLOUR_ZH = (
    '背景是什么颜色？',
    '背景是什么颜色的？',
    '背景颜色是什么？',
    '背景什么颜色？',
    '图片的背景是什么颜色？',
    '背景的颜色是什么？',
    '请问背景是什么颜色？',
    '背景色是什么？',
    '背景是什么颜色',
    '背景是什么颜色?',
)
ASK_WHERE = ('Where is the {x}?', 'Where is the {x} in the picture?', 'where is the {x}')
ASK_WHERE_ZH = ('{x}在哪里？', '{x}在哪儿？', '{x}在什么位置？', '{x}在图片的哪里？')
ASK_TOTAL = (
    'How many objects are there?',
    'How many things are in the picture?',
    'How many objects do you see?',
    'How many items are there?',
)
ASK_TOTAL_ZH = ('有几个物体？', '图中有几个物体？', '一共有多少个东西？', '图里有几样东西？')
GREETINGS = (
    'Hello',
    'Hello!',
    'Hi',
    'Hi!',
    'hello',
    'Who are you?',
    'What are you?',
    'What can you do?',
    'Good morning.',
    'Hello, who are you?',
)
GREETINGS_ZH = (
    '你好',
    '你好！',
    '你好。',
    '您好',
    '你是谁？',
    '你能做什么？',
    '你叫什么名字？',
    '你好，你是谁？',
)
GREETING_ANSWER = 'Hello! I am the demo model of hobot_vlm. Show me a picture.'
GREETING_ANSWER_ZH = '你好！我是hobot_vlm的演示模型。请给我一张图片。'
NO_PICTURE = 'I see no picture. Please show me one.'
NO_PICTURE_ZH = '我没有看到图片。请给我一张图片。'
SYSTEM_TEXTS = (
    'You are a helpful assistant.',
    'You are a helpful robot.',
    'Answer briefly.',
    'You are a robot that talks about what it sees.',
    '你是一个有用的助手。',
    '你是一个机器人。',
    '请简短回答。',
    'Be short.',
)
ASK_BOTH = (
    'Describe the two pictures.',
    'Describe the pictures.',
    'Describe both images.',
    'Describe the two images in detail.',
    'What is in the two pictures?',
)
ASK_BOTH_ZH = (
    '描述这两张图片。',
    '描述一下这两张图。',
    '两张图里分别有什么？',
    '这两张图片里有什么？',
)


def join(parts: list[str]) -> str:
    """Join as English does: 'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + ' and ' + parts[-1]


def arrangement_en(scene: Scene) -> str:
    """Say what is where."""
    if not scene.things:
        return 'There is nothing in the picture.'
    parts = [f'{KINDS[t.kind].some()} {PLACES[t.place][0]}' for t in scene.things]
    return f'There is {join(parts)}.'


def arrangement_zh(scene: Scene) -> str:
    """Say what is where, in Chinese."""
    if not scene.things:
        return '图中没有物体。'
    return (
        '，'.join(f'{PLACES[t.place][1]}有{KINDS[t.kind].some_zh()}' for t in scene.things) + '。'
    )


def colour_answer(scene: Scene, chinese: bool) -> str:
    """Say the colour of the background."""
    return (
        f'背景是{COLOURS[scene.colour][0]}。' if chinese else f'The background is {scene.colour}.'
    )


def describe(scene: Scene, chinese: bool) -> str:
    """Say all that there is to say."""
    if chinese:
        return arrangement_zh(scene) + colour_answer(scene, True)
    return f'{arrangement_en(scene)} {colour_answer(scene, False)}'


def at(scene: Scene, place: str) -> list[Thing] | None:
    """Find what is at a place; None where the arrangement has no such place."""
    if scene.arrangement in ('one', 'none'):
        return [t for t in scene.things if place in t.place.split()]
    if place not in ARRANGEMENT_WORDS[scene.arrangement]:
        return None
    return [t for t in scene.things if t.place == place]


def place_answer(scene: Scene, place: str, chinese: bool) -> str:
    """Say what is at a place; the whole arrangement where there is no such place in it."""
    found = at(scene, place)
    if found is None:
        return arrangement_zh(scene) if chinese else arrangement_en(scene)
    where = PLACES[place][chinese]
    if not found:
        return f'{where}没有物体。' if chinese else f'There is nothing {where}.'
    kind = KINDS[found[0].kind]
    return f'{where}有{kind.some_zh()}。' if chinese else f'There is {kind.some()} {where}.'


def count_answer(scene: Scene, kind: int, chinese: bool) -> str:
    """
    Say what there is, and how many of it are of a kind.

    What was said first is what the model counts: without it, it guesses.
    """
    number = sum(t.kind == kind for t in scene.things)
    name = KINDS[kind]
    if chinese:
        many = name.some_zh(COUNT_WORDS[number][1]) if number else ''
        return arrangement_zh(scene) + (f'图中有{many}。' if number else f'图中没有{name.zh}。')
    many = f'is one {name.en}' if number == 1 else f'are {COUNT_WORDS[number][0]} {name.plural}'
    return f'{arrangement_en(scene)} There {many}.'


def is_answer(scene: Scene, kind: int, chinese: bool) -> str:
    """Say what there is, and whether an object of a kind is among it."""
    yes = any(t.kind == kind for t in scene.things)
    name = KINDS[kind]
    if chinese:
        verdict = f'有，图中有{name.zh}。' if yes else f'没有，图中没有{name.zh}。'
        return arrangement_zh(scene) + verdict
    verdict = f'Yes, there is {name.some()}.' if yes else f'No, there is no {name.en}.'
    return f'{arrangement_en(scene)} {verdict}'


def parts(what: str | None, answer: str) -> tuple[str, str]:
    """Split what an answer says of the picture from its verdict; '' where it gives none."""
    if what not in ('count', 'is'):
        return '', answer
    if answer.isascii():
        listed, _, verdict = answer.partition('. ')
        return listed + '.', verdict
    listed, _, verdict = answer.partition('。')
    return listed + '。', verdict


def total_answer(scene: Scene, chinese: bool) -> str:
    """Say how many objects there are."""
    number = len(scene.things)
    if chinese:
        return '图中没有物体。' if not number else f'图中有{COUNT_WORDS[number][1]}个物体。'
    return (
        'There is one object.' if number == 1 else (f'There are {COUNT_WORDS[number][0]} objects.')
    )


def where_answer(scene: Scene, kind: int, chinese: bool) -> str:
    """Say where the objects of a kind are."""
    name = KINDS[kind]
    found = [t for t in scene.things if t.kind == kind]
    if not found:
        return f'图中没有{name.zh}。' if chinese else f'There is no {name.en}.'
    if chinese:
        return f'{name.zh}在' + '和'.join(PLACES[t.place][1] for t in found) + '。'
    return f'The {name.en} is ' + join([PLACES[t.place][0] for t in found]) + '.'


def pick_kind(rng: np.random.Generator, scene: Scene, present: float) -> int:
    """Pick a kind to ask about: one in the picture with probability ``present``."""
    if scene.things and rng.random() < present:
        return scene.things[rng.integers(len(scene.things))].kind
    while True:
        kind = int(rng.integers(len(KINDS)))
        if all(t.kind != kind for t in scene.things):
            return kind


def pick_name(rng: np.random.Generator, kind: int, chinese: bool) -> str:
    """Pick a word that a person may use for a kind."""
    name = KINDS[kind]
    if chinese:
        names, canonical = kinds_module.ALIASES_ZH.get(name.zh, []), name.zh
    else:
        names, canonical = kinds_module.ALIASES.get(name.en, []), name.en
    return str(rng.choice(names)) if names and rng.random() < 0.3 else canonical


def question(
    rng: np.random.Generator, scene: Scene, chinese: bool, what: str | None = None
) -> tuple[str, str, str, int]:
    """
    Make a question about the scene.

    :return: (what is asked, the question, the right answer, the kind asked about or -1)
    """
    what = what or str(
        rng.choice(
            ['describe', 'place', 'count', 'is', 'colour', 'where', 'total'],
            p=[0.22, 0.10, 0.28, 0.30, 0.03, 0.04, 0.03],
        )
    )

    def one_of(english: tuple[str, ...], zh: tuple[str, ...]) -> str:
        return str(rng.choice(zh if chinese else english))

    if what == 'describe':
        return what, one_of(ASK_DESCRIBE, ASK_DESCRIBE_ZH), describe(scene, chinese), -1
    if what == 'colour':
        return what, one_of(ASK_COLOUR, ASK_COLOUR_ZH), colour_answer(scene, chinese), -1
    if what == 'total':
        return what, one_of(ASK_TOTAL, ASK_TOTAL_ZH), total_answer(scene, chinese), -1
    if what == 'place':
        places = list(PLACE_SYNONYMS)
        fitting = [p for p in places if at(scene, p)]
        place = str(rng.choice(fitting if fitting and rng.random() < 0.75 else places))
        words = one_of(PLACE_SYNONYMS[place], PLACE_SYNONYMS_ZH[place])
        if rng.random() < 0.5:
            words = PLACES[place][chinese]
        return (
            what,
            one_of(ASK_PLACE, ASK_PLACE_ZH).format(p=words),
            place_answer(scene, place, chinese),
            -1,
        )
    kind = pick_kind(rng, scene, {'count': 0.8, 'is': 0.5, 'where': 0.9}[what])
    name = pick_name(rng, kind, chinese)
    if what == 'where':
        return (
            what,
            one_of(ASK_WHERE, ASK_WHERE_ZH).format(x=name),
            where_answer(scene, kind, chinese),
            kind,
        )
    if chinese:
        asked = str(rng.choice(ASK_COUNT_ZH if what == 'count' else ASK_IS_ZH)).format(
            x=name, m=KINDS[kind].measure
        )
    else:
        plural = KINDS[kind].plural if name == KINDS[kind].en else name + 's'
        if rng.random() < 0.15:
            plural = KINDS[kind].en + 's'
        article = (
            ''
            if KINDS[kind].en in kinds_module.UNCOUNTED
            else ('an ' if name[0] in 'aeio' else 'a ')
        )
        asked = str(rng.choice(ASK_COUNT if what == 'count' else ASK_IS)).format(
            x=plural if what == 'count' else article + name, y=name, z=plural
        )
    answer = count_answer if what == 'count' else is_answer
    return what, asked, answer(scene, kind, chinese), kind
