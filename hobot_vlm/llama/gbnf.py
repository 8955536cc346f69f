"""
GBNF, the notation of llama.cpp's grammars: from text to rules, as llama.cpp makes them.

Sizes are bounded while it is read; what the rules mean is the business of ``gbnf_check.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import re

from ..errors import GrammarError

#: Characters. The largest grammar that llama.cpp brings as an example has 4,000.
MAX_GRAMMAR = 100_000
#: Groups within groups: llama.cpp reads them by recursion, and 20,000 end the process.
MAX_NESTING = 100
#: Rules, one for each group and each optional repetition included: llama.cpp goes from one to the
#: next by recursion, in some 200 bytes of stack a step.
MAX_RULES = 5_000
#: Characters and references of all rules, 16 bytes each, repetitions written out.
MAX_ELEMENTS = 100_000

#: what one element matches: ranges of code points, and whether they are the ones not to match;
#: None: a token of the vocabulary
Chars = tuple[bool, tuple[tuple[int, int], ...]]
#: a rule by its number, characters, or a token
Element = int | Chars | None
Rule = list[list[Element]]

_ESCAPES = {'t': '\t', 'r': '\r', 'n': '\n', '\\': '\\', '"': '"', '[': '[', ']': ']', '-': '-'}
_HEX = {'x': 2, 'u': 4, 'U': 8}
_ANY: Chars = (True, ())
_WORD = re.compile(r'[a-zA-Z0-9-]+')
_COUNT = re.compile(r'\{[ \t]*(\d+)[ \t]*(?:(,)[ \t]*(\d*)[ \t]*)?\}')
_TOKEN = re.compile(r'!?<(?:\[\d+\]|[^>]*)>')
#: a repetition of more times than this is without end to llama.cpp
_ENDLESS = 2000


def wrong(message: str, at: int | None = None) -> GrammarError:
    """Make the error of a grammar; ``at`` is the character where it is no GBNF."""
    what = 'cannot be used' if at is None else f'is no GBNF at character {at + 1}'
    return GrammarError(f'grammar {what}: {message}')


@dataclass
class Reader:
    """Reads rules, and writes groups and repetitions as rules of their own, as llama.cpp does."""

    text: str
    at: int = 0
    depth: int = 0
    elements: int = 0
    names: list[str] = field(default_factory=list)
    rules: list[Rule | None] = field(default_factory=list)
    by_name: dict[str, int] = field(default_factory=dict)

    @property
    def root(self) -> int:
        return self.by_name['root']

    def read(self) -> list[Rule]:
        if len(self.text) > MAX_GRAMMAR:
            raise wrong(f'it has {len(self.text)} characters: expected {MAX_GRAMMAR} or fewer')
        if not self.text.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in self.text):
            raise wrong('it holds half a character (a surrogate), which is no text')
        self._space(True)
        while self.at < len(self.text):
            name = self._name()
            self._space(False)
            if not self.text.startswith('::=', self.at):
                raise wrong(f'expected ::= behind the name {name[:40]}', self.at)
            self.at += 3
            self._space(True)
            number = self._number(name)
            self.rules[number] = self._alternatives(name)
            if self.at < len(self.text) and self.text[self.at] not in '\r\n':
                raise wrong('expected the end of the line', self.at)
            self._space(True)
        if 'root' not in self.by_name:
            raise wrong('expected GBNF with a rule named root')
        for name, rule in zip(self.names, self.rules, strict=True):
            if rule is None:
                raise wrong(f'the rule {name[:40]} is used, and nowhere given')
        return [rule for rule in self.rules if rule is not None]

    def _space(self, lines: bool) -> None:
        blanks = ' \t\r\n' if lines else ' \t'
        while self.at < len(self.text):
            if self.text[self.at] == '#':
                while self.at < len(self.text) and self.text[self.at] not in '\r\n':
                    self.at += 1
            elif self.text[self.at] in blanks:
                self.at += 1
            else:
                return

    def _name(self) -> str:
        found = _WORD.match(self.text, self.at)
        if not found:
            raise wrong('expected the name of a rule', self.at)
        self.at = found.end()
        return found.group()

    def _number(self, name: str) -> int:
        if name not in self.by_name:
            self.by_name[name] = self._new(name)
        return self.by_name[name]

    def _new(self, name: str, rule: Rule | None = None) -> int:
        if len(self.rules) >= MAX_RULES:
            raise wrong(
                f'it has more than {MAX_RULES} rules, groups and repetitions: say it with fewer, '
                'and with smaller numbers of repetitions'
            )
        self.names.append(name)
        self.rules.append(rule)
        return len(self.rules) - 1

    def _count(self, n: int) -> None:
        self.elements += n
        if self.elements > MAX_ELEMENTS:
            raise wrong(
                f'its repetitions make more than {MAX_ELEMENTS} characters: use smaller numbers'
            )

    def _alternatives(self, name: str) -> Rule:
        rule = [self._sequence(name)]
        while self.text.startswith('|', self.at):
            self.at += 1
            self._space(True)
            rule.append(self._sequence(name))
        return rule

    def _sequence(self, name: str) -> list[Element]:
        elements: list[Element] = []
        last = 0  # where the last thing that can be repeated starts
        while self.at < len(self.text):
            mark = self.text[self.at]
            counts = self._repetition(mark)
            if counts is not None:
                if last == len(elements):
                    raise wrong(f'expected something in front of {mark}', self.at)
                self._repeat(elements, last, *counts, name)
                continue
            start = len(elements)
            if not self._item(mark, elements, name):
                return elements
            last = start
            self._count(len(elements) - start)
            self._space(self.depth > 0)
        return elements

    def _item(self, mark: str, elements: list[Element], name: str) -> bool:
        """Read one thing into the elements; False where none starts here."""
        if mark == '"':
            self.at += 1
            while self._until('"'):
                code = self._character()
                elements.append((False, ((code, code),)))
        elif mark == '[':
            elements += self._class()
        elif mark == '.':
            self.at += 1
            elements.append(_ANY)
        elif mark == '(':
            elements.append(self._group(name))
        elif mark in '<!':
            found = _TOKEN.match(self.text, self.at)
            if not found:
                raise wrong('expected a token, as in <[17]>', self.at)
            self.at = found.end()
            elements.append(None)
        elif _WORD.match(mark):
            elements.append(self._number(self._name()))
        else:
            return False
        return True

    def _group(self, name: str) -> int:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise wrong(f'its groups are nested more than {MAX_NESTING} deep', self.at)
        self.at += 1
        self._space(True)
        number = self._new(name)
        self.rules[number] = self._alternatives(name)
        if not self.text.startswith(')', self.at):
            raise wrong('expected )', self.at)
        self.at += 1
        self.depth -= 1
        return number

    def _class(self) -> list[Element]:
        self.at += 1
        negated = self.text.startswith('^', self.at)
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while self._until(']'):
            low = high = self._character()
            if self.text.startswith('-', self.at) and not self.text.startswith('-]', self.at):
                self.at += 1
                high = self._character()
            ranges.append((low, high))
        return [(negated, tuple(ranges))] if ranges else []

    def _until(self, end: str) -> bool:
        """Say whether more comes before the end; goes behind it where not."""
        if self.at >= len(self.text):
            raise wrong(f'expected {end}', self.at)
        if self.text[self.at] != end:
            return True
        self.at += 1
        return False

    def _character(self) -> int:
        text, at = self.text, self.at
        if at >= len(text):
            raise wrong('expected a character', at)
        if text[at] != '\\':
            self.at += 1
            return ord(text[at])
        kind = text[at + 1 : at + 2]
        if kind in _ESCAPES:
            self.at += 2
            return ord(_ESCAPES[kind])
        digits = text[at + 2 : at + 2 + _HEX.get(kind, 0)]
        if not re.fullmatch(f'[0-9a-fA-F]{{{_HEX.get(kind, 1)}}}', digits):
            raise wrong('there is no such escape', at)
        self.at += 2 + len(digits)
        return int(digits, 16)

    def _repetition(self, mark: str) -> tuple[int, int | None] | None:
        """Give how often the last thing is repeated, at least and at most."""
        if mark in '*+?':
            self.at += 1
            self._space(self.depth > 0)
            return {'*': (0, None), '+': (1, None), '?': (0, 1)}[mark]
        if mark != '{':
            return None
        found = _COUNT.match(self.text, self.at)
        if not found or max(len(found[1]), len(found[3] or '')) > 9:
            raise wrong('expected a number of repetitions, as in {2}, {2,} or {2,4}', self.at)
        self.at = found.end()
        self._space(self.depth > 0)
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else None
        if most is not None and most < least:
            raise wrong(f'{{{least},{most}}} asks for at least {least} and at most {most}')
        if least > _ENDLESS:
            raise wrong(f'{least} repetitions: expected {_ENDLESS} or fewer')
        return least, None if most is not None and most > _ENDLESS else most

    def _repeat(
        self, elements: list[Element], start: int, least: int, most: int | None, name: str
    ) -> None:
        thing = elements[start:]
        optional = 1 if most is None else most - least
        self._count(len(thing) * (max(least - 1, 0) + optional))
        del elements[start:]
        elements += thing * least
        following: list[Element] = []
        for _ in range(optional):
            number = self._new(name)
            after: list[Element] = [number] if most is None else following
            self.rules[number] = [thing + after, []]
            following = [number]
        elements += following
