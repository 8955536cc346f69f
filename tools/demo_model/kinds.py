"""
The kinds of objects that the demo model knows, and how their names are used in a sentence.

``KINDS`` is the only place where kinds are chosen. ``python tools/demo_model/kinds.py`` writes
``hobot_vlm/demo/kinds.tsv`` (emoji, English name, Chinese name) with the names of the ``emoji``
package, which are the names that answers use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TSV = Path(__file__).parents[2] / 'hobot_vlm' / 'demo' / 'kinds.tsv'

#: One line a measure word, then the emoji that take it in Chinese: 一只狗, 一辆出租车.
MEASURE = {
    '只': '🐕🐈🐘🐒🐇🦔🐻🐼🐨🐸🐢🐬🐙🦀🐌🦋🐝🐞🐓🦆🦉🦜🦩🐧🦁🦊👟🦒',
    '匹': '🐎🦓',
    '头': '🐄🐖🐪',
    '条': '🐍🐊🐠',
    '个': '🍎🍐🍋🍉🍓🍍🥝🍆🥑🍄🥐🍔🍕🌮🍩🎂💡🧲⏰🎒🎈🏀⚽🏆🔔🎁👑🧯🌵🥁',
    '根': '🍌🥕🍭🕯🔑',
    '棵': '🥦',
    '份': '🍿',
    '块': '🧀',
    '辆': '🚗🚕🚌🚑🚒🚜🏍🚲🚂',
    '架': '🚁✈🛸🪜',
    '艘': '🚀⛵🚢',
    '把': '🔨🪓🔧🔦🎸🎺🪑🧹☂🫖',
    '台': '🔬💻📺📷',
    '张': '🛏',
    '座': '🏠🚽',
    '盆': '🪴',
    '朵': '🌻',
    '本': '📖',
    '件': '👕',
}

#: English plurals that are not name + s.
PLURALS = {
    'butterfly': 'butterflies',
    'fox': 'foxes',
    'octopus': 'octopuses',
    'tropical fish': 'tropical fish',
    'strawberry': 'strawberries',
    'broccoli': 'broccoli',
    'popcorn': 'popcorn',
    'bus': 'buses',
    'wrench': 'wrenches',
    'cactus': 'cacti',
    'trophy': 'trophies',
}

#: Names that stand without an article.
UNCOUNTED = {'broccoli', 'popcorn'}

#: Other words that a person may use in a question.
ALIASES = {
    'automobile': ['car'],
    'airplane': ['plane', 'aeroplane'],
    'red apple': ['apple'],
    'honeybee': ['bee'],
    'lady beetle': ['ladybug', 'ladybird'],
    'tropical fish': ['fish'],
    'doughnut': ['donut'],
    'birthday cake': ['cake'],
    'kiwi fruit': ['kiwi'],
    'fire engine': ['fire truck'],
    'flying saucer': ['UFO'],
    'locomotive': ['steam train'],
    'bicycle': ['bike'],
    'motorcycle': ['motorbike'],
    'television': ['TV'],
    'wrapped gift': ['gift', 'present'],
    'soccer ball': ['football'],
    'flashlight': ['torch'],
    'running shoe': ['shoe', 'sneaker'],
    'cheese wedge': ['cheese'],
    'potted plant': ['plant'],
    'open book': ['book'],
    't-shirt': ['shirt'],
}
ALIASES_ZH = {
    '红苹果': ['苹果'],
    '奶牛': ['牛'],
    '龟': ['乌龟'],
    '蟹': ['螃蟹'],
    '公鸡': ['鸡'],
    '热带鱼': ['鱼'],
    '鸭子': ['鸭'],
    '汽车': ['小汽车', '车'],
    '蒸汽火车': ['火车'],
    '盆栽植物': ['植物', '盆栽'],
    '打开的书本': ['书', '书本'],
    '生日蛋糕': ['蛋糕'],
    '礼物': ['礼品'],
    '跑鞋': ['鞋', '鞋子'],
    '书包': ['背包'],
    '伞': ['雨伞'],
    '笔记本电脑': ['电脑'],
    '电视机': ['电视'],
    '公交车': ['巴士'],
    '芝士': ['奶酪'],
    '西兰花': ['花椰菜'],
    '大象': ['象'],
    '猴子': ['猴'],
    '兔子': ['兔'],
    '狮子': ['狮'],
}

KINDS = ''.join(MEASURE.values())


@dataclass(frozen=True)
class Kind:
    """One kind of object and the words for it."""

    emoji: str
    en: str
    zh: str

    @property
    def measure(self) -> str:
        """Give the Chinese measure word."""
        bare = self.emoji.rstrip('\ufe0f')
        return next(word for word, kinds in MEASURE.items() if bare in kinds)

    @property
    def plural(self) -> str:
        """Give the English plural."""
        return PLURALS.get(self.en, self.en + 's')

    def some(self, capital: bool = False) -> str:
        """Give the name with its article: 'a dog', 'an owl', 'popcorn'."""
        article = '' if self.en in UNCOUNTED else 'an ' if self.en[0] in 'aeiou' else 'a '
        text = article + self.en
        return text[0].upper() + text[1:] if capital else text

    def some_zh(self, count: str = '一') -> str:
        """Give the Chinese name with count and measure word: '一只狗'."""
        return count + self.measure + self.zh


def read(path: Path = TSV) -> list[Kind]:
    """Read the list of kinds."""
    lines = path.read_text(encoding='utf-8').splitlines()
    return [Kind(*line.split('\t')) for line in lines if line and not line.startswith('#')]


def write(path: Path = TSV) -> None:
    """Write the list of kinds with the names of the ``emoji`` package."""
    import emoji

    emoji.config.load_language('zh')
    rows = ['# emoji\tEnglish\tChinese']
    for char in KINDS:
        full = char if emoji.EMOJI_DATA.get(char, {}).get('status') == 2 else char + '\ufe0f'
        names = emoji.EMOJI_DATA[full]
        en = names['en'].strip(':').replace('_', ' ')
        rows.append(f'{full}\t{en}\t{names["zh"].strip(":").replace("_", " ")}')
    path.write_text('\n'.join(rows) + '\n', encoding='utf-8')


if __name__ == '__main__':
    write()
    print(f'{len(read())} kinds written to {TSV}')
