"""
Standing questions: how they are written, and what is believed of each.

Knows times and probabilities; nothing of pictures, of the model or of ROS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import re

from ..errors import ConfigError

#: as a part of the name of a topic
NAME = re.compile(r'[A-Za-z](_?[A-Za-z0-9])*')
NAME_LENGTH = 60
#: the answers that end a question: "Which light is on? [green | red]"
ANSWERS = re.compile(r'\[([^\[\]|]+)\|([^\[\]|]+)\]$')
CHINESE = re.compile('[\u4e00-\u9fff]')
#: as many as run side by side: each weighs two answers, and the scheduler runs 16 sequences
MOST = 8

#: probabilities from which on the answer is yes, and down to which it is no. Between them it
#: stays what it was: a model that is unsure says 0.45 and 0.55 in turn of one and the same thing
YES, NO = 0.6, 0.4


@dataclass(frozen=True)
class StandingQuestion:
    """
    A question that is asked again and again.

    :param name: what its topic is called
    :param answers: what stands for yes, and what for no
    """

    name: str
    question: str
    answers: tuple[str, str]


def read_questions(texts: Sequence[str]) -> list[StandingQuestion]:
    """
    Read standing questions, each written as ``name: question`` or ``name: question [yes | no]``.

    :raises ConfigError: one is written otherwise, or a name stands twice
    """
    found: dict[str, StandingQuestion] = {}
    for text in texts:
        name, colon, rest = (part.strip() for part in text.partition(':'))
        answers = ('是', '否') if CHINESE.search(rest) else ('yes', 'no')
        written = ANSWERS.search(rest)
        if written:
            answers = written[1].strip(), written[2].strip()
            rest = rest[: written.start()].strip()
        good = NAME.fullmatch(name) and len(name) <= NAME_LENGTH
        if not (good and rest and all(answers) and len({a.casefold() for a in answers}) == 2):
            raise ConfigError(
                f'watch holds {text[:80]!r}: expected "name: question", with a name of letters, '
                'digits and single underscores, and optionally two different answers after it, '
                'as in "light: Which light is on? [green | red]"',
                'watch',
            )
        if name in found:
            raise ConfigError(f'watch holds {name!r} twice: give each its own name', 'watch')
        found[name] = StandingQuestion(name, rest, answers)
    if len(found) > MOST:
        raise ConfigError(f'watch holds {len(found)} questions: expected at most {MOST}', 'watch')
    return list(found.values())


@dataclass
class Belief:
    """
    What is believed of one question: the value that was published last, and what may follow it.

    All times are those of the pictures, in seconds.

    :param value: what was published; None: nothing yet, or not any more
    :param probability: of yes, in the newest picture; None: in none
    :param seen: when the newest picture was taken that tells; None: there is none
    """

    value: bool | None = None
    probability: float | None = None
    seen: float | None = None
    _level: bool | None = None
    _since: float = 0.0

    def observe(self, probability: float, at: float, hold: float) -> bool:
        """
        Note what one picture says.

        :param hold: seconds that a new value must hold
        :return: whether ``value`` is another one now
        """
        level = self._level
        if level is None:
            level = probability >= (YES + NO) / 2
        elif probability >= YES:
            level = True
        elif probability <= NO:
            level = False
        if level is not self._level:
            self._level, self._since = level, at
        self.probability, self.seen = probability, at
        if level is self.value or at - self._since < hold:
            return False
        self.value = level
        return True

    def due(self, hold: float) -> float | None:
        """Say when a new value has held for long enough; None where none is on its way."""
        return self._since + hold if self._level is not self.value else None

    def forget(self) -> bool:
        """Know nothing any more; whether something was known."""
        known = self.value is not None
        self.value = self.probability = self._level = None
        return known
