"""
What a grammar would cost llama.cpp, found out before llama.cpp reads it.

llama.cpp trusts a grammar. Some of 20 bytes make it run for ever, take all memory or end the
process; here they are refused. Knows nothing of models, and runs nothing of llama.cpp.
"""

from __future__ import annotations

from .gbnf import Element, Reader, Rule, wrong

#: Ways to begin a rule. llama.cpp goes all of them without noting where it was.
MAX_WAYS = 20_000
#: Places of a grammar where an answer may be at once. Each one compares every token of the
#: vocabulary: a thousand of them and 150,000 tokens make half a second.
MAX_PLACES = 2_000
#: Characters of an answer for which the number of places is tried out: the exponential ones reach
#: ``MAX_PLACES`` within a dozen.
TRIED = 48

#: where a sequence goes on: (rule, alternative, element)
Place = tuple[int, int, int]


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


def _begins(rule: Rule, empty: list[bool]) -> list[int]:
    """Give the rules that may stand first in a rule, as often as they may."""
    found: list[int] = []
    for alternative in rule:
        for element in alternative:
            if not isinstance(element, int):
                break
            found.append(element)
            if not empty[element]:
                break
    return found


def _check_recursion(begins: list[list[int]], names: list[str]) -> None:
    """Refuse rules that begin with themselves, behind something that may be empty, too."""
    done: set[int] = set()
    for first in range(len(begins)):
        path: list[int] = []
        waiting = [(first, False)]
        while waiting:
            number, leave = waiting.pop()
            if leave:
                done.add(path.pop())
                continue
            if number in done:
                continue
            if number in path[-1:] or number in set(path):
                raise wrong(
                    f'the rule {names[number][:40]} begins with itself (left recursion), or '
                    'repeats what may be empty'
                )
            path.append(number)
            waiting.append((number, True))
            waiting += [(following, False) for following in set(begins[number]) - done]


def _check_ways(begins: list[list[int]], names: list[str]) -> None:
    """Refuse rules with too many ways to begin; none begins with itself."""
    ways: dict[int, int] = {}
    for first in range(len(begins)):
        waiting = [first]
        while waiting:
            number = waiting[-1]
            unknown = [following for following in begins[number] if following not in ways]
            if unknown:
                waiting += set(unknown)
                continue
            waiting.pop()
            ways[number] = 1 + sum(ways[following] for following in begins[number])
            if ways[number] > MAX_WAYS:
                raise wrong(
                    f'the rule {names[number][:40]} can begin in more than {MAX_WAYS} ways'
                )


def _check_places(rules: list[Rule], root: int) -> None:
    """
    Refuse a grammar in which an answer may be at too many places at once.

    Goes the way on which they become most.
    """
    places = _Places(rules)
    stacks = places.first(root)
    for _ in range(TRIED):
        following = [places.after(stacks, code) for code in places.codes(stacks)]
        stacks = max(following, key=len, default=set())
        if not stacks:
            return


class _Places:
    """Where in a grammar an answer may be: stacks of places, the innermost last."""

    def __init__(self, rules: list[Rule]):
        self._rules = rules

    def first(self, root: int) -> set[tuple[Place, ...]]:
        return self._opened([((root, i, 0),) for i in range(len(self._rules[root]))])

    def codes(self, stacks: set[tuple[Place, ...]]) -> list[int]:
        """Give code points that between them tell all characters apart; a few of them."""
        codes = {ord('a')}
        for stack in stacks:
            element = self._element(stack[-1]) if stack else None
            if isinstance(element, tuple):
                for low, high in element[1][:4]:
                    codes |= {low, high}
        return sorted(codes)[:8]

    def after(self, stacks: set[tuple[Place, ...]], code: int) -> set[tuple[Place, ...]]:
        """Give the stacks behind a character."""
        fitting = [stack for stack in stacks if stack and self._fits(stack[-1], code)]
        return self._opened([self._beyond(stack) for stack in fitting])

    def _element(self, place: Place) -> Element:
        return self._rules[place[0]][place[1]][place[2]]

    def _fits(self, place: Place, code: int) -> bool:
        element = self._element(place)
        if not isinstance(element, tuple):
            return element is None
        return any(low <= code <= high for low, high in element[1]) != element[0]

    def _beyond(self, stack: tuple[Place, ...]) -> tuple[Place, ...]:
        rule, alternative, at = stack[-1]
        return (*stack[:-1], (rule, alternative, at + 1))

    def _opened(self, waiting: list[tuple[Place, ...]]) -> set[tuple[Place, ...]]:
        """Go into rules until each stack ends at a character, or is empty."""
        seen: set[tuple[Place, ...]] = set()
        found: set[tuple[Place, ...]] = set()
        while waiting:
            stack = waiting.pop()
            while stack and stack[-1][2] == len(self._rules[stack[-1][0]][stack[-1][1]]):
                stack = stack[:-1]
            if stack in seen:
                continue
            seen.add(stack)
            element = self._element(stack[-1]) if stack else None
            if not isinstance(element, int):
                found.add(stack)
            else:
                outer = self._beyond(stack)
                waiting += [(*outer, (element, i, 0)) for i in range(len(self._rules[element]))]
            if len(seen) > 4 * MAX_PLACES or len(found) > MAX_PLACES:
                raise wrong(
                    f'an answer may be at more than {MAX_PLACES} places of it at once: say the '
                    'same with fewer alternatives that begin alike'
                )
        return found
