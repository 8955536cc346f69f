"""
What a grammar would cost llama.cpp, found out before llama.cpp reads it.

llama.cpp trusts a grammar. Some of 20 bytes make it run for ever, take all memory or end the
process; here they are refused. Knows nothing of models, and runs nothing of llama.cpp.
"""

from __future__ import annotations

from functools import lru_cache

from .gbnf import Element, Reader, Rule, wrong
from ..errors import GrammarError

#: Ways to begin a rule. llama.cpp goes all of them without noting where it was.
MAX_WAYS = 20_000
#: Places of a grammar where an answer may be at once. Each one compares every token of the
#: vocabulary: a thousand of them and 150,000 tokens make half a second.
MAX_PLACES = 1_000
#: Steps into rules behind one character: llama.cpp makes 500,000 in a second.
MAX_WORK = 20_000
#: Characters of an answer for which the places are tried out: where they grow without end, they
#: double every character or two.
TRIED = 32
#: Steps into rules for all that is tried: some tenths of a second.
MAX_TRIED = 200_000

#: where a sequence goes on: (rule, alternative, element)
Place = tuple[int, int, int]


@lru_cache(maxsize=16)  # a standing question brings the same one every time
def check_grammar(text: str) -> None:
    """
    Check that llama.cpp can follow a grammar in bounded time and memory.

    :raises GrammarError: it cannot, or the text is no GBNF; says why
    """
    reader = Reader(text)
    rules = reader.read()
    empty = _may_be_empty(rules)
    begins = [_begins(rule, empty) for rule in rules]
    _check_recursion(begins, reader.names)
    _check_ways(begins, reader.names)
    _check_places(rules, reader.root)


def _may_be_empty(rules: list[Rule]) -> list[bool]:
    """Say of each rule whether it matches nothing at all."""
    empty = [False] * len(rules)
    used_by: list[list[int]] = [[] for _ in rules]
    for number, rule in enumerate(rules):
        for used in {e for alternative in rule for e in alternative if isinstance(e, int)}:
            used_by[used].append(number)
    waiting = list(range(len(rules)))
    while waiting:
        number = waiting.pop()
        if not empty[number] and any(
            all(isinstance(e, int) and empty[e] for e in alternative)
            for alternative in rules[number]
        ):
            empty[number] = True
            waiting += used_by[number]
    return empty


def _begins(rule: Rule, empty: list[bool]) -> list[tuple[int, bool]]:
    """Give the rules that may stand first in a rule, and whether more follows, one by one."""
    found: list[tuple[int, bool]] = []
    for alternative in rule:
        for i, element in enumerate(alternative):
            if not isinstance(element, int):
                break
            found.append((element, i + 1 < len(alternative)))
            if not empty[element]:
                break
    return found


def _in_order(edges: list[set[int]]) -> list[int]:
    """Give the numbers of all rules, each behind those that it leads to, but for circles."""
    order: list[int] = []
    seen: set[int] = set()
    for first in range(len(edges)):
        waiting = [(first, False)]
        while waiting:
            number, done = waiting.pop()
            if done:
                order.append(number)
            elif number not in seen:
                seen.add(number)
                waiting.append((number, True))
                waiting += [(following, False) for following in edges[number] - seen]
    return order


def _check_recursion(begins: list[list[tuple[int, bool]]], names: list[str]) -> None:
    """
    Refuse rules that begin with themselves where more follows.

    Each turn of such a circle puts what follows on llama.cpp's stack. Where nothing follows, as
    in a repetition of what may be empty, it comes back to where it was, and sees that.
    """
    edges = [{following for following, _ in rule} for rule in begins]
    back: list[set[int]] = [set() for _ in edges]
    for number, following in enumerate(edges):
        for one in following:
            back[one].add(number)
    circle = [-1] * len(edges)  # rules of one circle have one number (Kosaraju's algorithm)
    for first in reversed(_in_order(edges)):
        waiting = [first]
        while waiting:
            number = waiting.pop()
            if circle[number] < 0:
                circle[number] = first
                waiting += back[number]
    for number, rule in enumerate(begins):
        if any(more and circle[one] == circle[number] for one, more in rule):
            raise wrong(
                f'the rule {names[number][:40]} begins with itself (left recursion): let it end '
                'with itself, or say it with * or +'
            )


def _check_ways(begins: list[list[tuple[int, bool]]], names: list[str]) -> None:
    """Refuse rules with too many ways to begin."""
    ways: dict[int, int] = {}
    for number in _in_order([{following for following, _ in rule} for rule in begins]):
        ways[number] = 1 + sum(ways.get(following, 1) for following, _ in begins[number])
        if ways[number] > MAX_WAYS:
            raise wrong(f'the rule {names[number][:40]} can begin in more than {MAX_WAYS} ways')


def _check_places(rules: list[Rule], root: int) -> None:
    """
    Refuse a grammar in which an answer may be at too many places at once.

    Goes the way on which they become most.
    """
    places = _Places(rules)
    stacks = places.first(root)
    for _ in range(TRIED):
        following = []
        for code in places.codes(stacks):
            if places.work > MAX_TRIED:
                return
            following.append(places.after(stacks, code))
        stacks = max(following, key=len)
        if not stacks:
            return


#: places of a sequence within the rules that lead to it, the innermost last
_Stack = tuple[Place, ...]


class _Places:
    """
    Where in a grammar an answer may be.

    ``work`` counts the steps into rules.
    """

    def __init__(self, rules: list[Rule]):
        self._rules = rules
        self.work = 0

    def first(self, root: int) -> set[_Stack]:
        found: set[_Stack] = set()
        for i in range(len(self._rules[root])):
            self._open(self._pushed((), (root, i, 0)), found)
        return found

    def codes(self, stacks: set[_Stack]) -> list[int]:
        """Give some of the characters that may come next; those that most allow first."""
        counts: dict[int, int] = {}
        for stack in stacks:
            element = self._element(stack[-1]) if stack else None
            if isinstance(element, tuple):
                for code in {ord('a'), *(code for pair in element[1][:4] for code in pair)}:
                    if _fits(element, code):
                        counts[code] = counts.get(code, 0) + 1
        return sorted(counts, key=lambda code: -counts[code])[:6] or [ord('a')]

    def after(self, stacks: set[_Stack], code: int) -> set[_Stack]:
        """Give the stacks behind a character."""
        found: set[_Stack] = set()
        before = self.work
        for stack in stacks:
            if stack and _fits(self._element(stack[-1]), code):
                self._open(self._beyond(stack), found)
            if self.work - before > MAX_WORK:
                raise _too_many()
        return found

    def _element(self, place: Place) -> Element:
        return self._rules[place[0]][place[1]][place[2]]

    def _pushed(self, stack: _Stack, place: Place) -> _Stack:
        """Put a place on a stack, if anything follows there."""
        rule, alternative, at = place
        return (*stack, place) if at < len(self._rules[rule][alternative]) else stack

    def _beyond(self, stack: _Stack) -> _Stack:
        rule, alternative, at = stack[-1]
        return self._pushed(stack[:-1], (rule, alternative, at + 1))

    def _open(self, stack: _Stack, found: set[_Stack]) -> None:
        """Go into rules until each stack ends at a character, or is empty."""
        waiting, seen = [stack], set[_Stack]()
        while waiting:
            stack = waiting.pop()
            if stack in seen:
                continue
            seen.add(stack)
            self.work += 1
            element = self._element(stack[-1]) if stack else None
            if not isinstance(element, int):
                found.add(stack)
            else:
                outer = self._beyond(stack)
                waiting += [
                    self._pushed(outer, (element, i, 0)) for i in range(len(self._rules[element]))
                ]
            if len(seen) > MAX_WORK or len(found) > MAX_PLACES:
                raise _too_many()


def _fits(element: Element, code: int) -> bool:
    if not isinstance(element, tuple):
        return element is None
    return any(low <= code <= high for low, high in element[1]) != element[0]


def _too_many() -> GrammarError:
    return wrong(
        f'an answer may be at more than {MAX_PLACES} places of it at once, or is in reach of too '
        'many: say the same with fewer alternatives and options that begin alike'
    )
