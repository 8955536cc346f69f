"""
Answers that follow a JSON schema or a regular expression: which tokens may come next.

llguidance turns schemas and expressions into masks over the vocabulary. What a schema says is
checked in ``json_schema.py`` first. Nothing here knows of sampling or of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
import re
import threading
from typing import Any, NoReturn
import weakref

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
import numpy as np
import numpy.typing as npt

from .json_schema import checked_schema, keywords
from .model import Model
from ..errors import GrammarError, InferenceError

#: As Python's json writes: the form that models have read most. White space that may vary would
#: leave a choice behind every comma, and so no tokens that follow by themselves.
SEPARATORS: Any = {'whitespace_flexible': False, 'item_separator': ', ', 'key_separator': ': '}

#: Characters of a regular expression. llguidance builds one of this size in less than a second.
MAX_REGEX = 10_000

#: Characters that the model's tokenizer gets at once: it ends the process at some 27,000.
MAX_AT_ONCE = 2_000

#: Constraints that are kept ready, so that a standing question is compiled once
KEPT = 16


class Constraint:
    """
    What one answer has to follow, at the place where it is now.

    :param matcher: of llguidance; belongs to this constraint alone
    :param what: the option that asked for it, for messages
    """

    def __init__(self, matcher: LLMatcher, what: str, n_vocab: int, end: int):
        self._matcher, self._what, self._n_vocab, self._end = matcher, what, n_vocab, end

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """
        Give the tokens that may not come next the logit -inf, in place.

        :param logits: float32 (n_vocab,)
        :raises GrammarError: no token may come next, or it is too much work to find out which
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        if not bits.any():
            raise GrammarError(
                f'{self._what} cannot be followed: no token of the model fits its next place'
            )
        refused = np.unpackbits(~bits, count=self._n_vocab, bitorder='little').view(bool)
        np.copyto(logits, -np.inf, where=refused)

    def accept(self, token: int) -> None:
        """
        Go on behind a token.

        :raises GrammarError: it may not stand here, or it is too much work to find out
        """
        if not self._matcher.consume_token(token):
            self._check()

    def fits(self, tokens: Sequence[int]) -> bool:
        """Say whether tokens may come next; goes on behind them where they may."""
        n = self._matcher.try_consume_tokens(list(tokens))
        if n < len(tokens):
            self._matcher.rollback(n)
        return n == len(tokens)

    def forced(self) -> list[int]:
        """
        Go on behind the tokens that leave no choice, and give them.

        They are those that the model's own tokenizer makes of the text. An end token stands last
        where nothing more may follow.
        """
        tokens: list[int] = []
        while not self._matcher.is_stopped():
            more = self._matcher.compute_ff_tokens()
            if not more or not self._matcher.consume_tokens(more):
                break
            tokens += more
        self._check()
        if self._matcher.is_stopped() and (not tokens or tokens[-1] != self._end):
            tokens.append(self._end)
        return tokens

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    @property
    def ended(self) -> bool:
        """Whether the answer must end here."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().split('\n')[0][:300]
            raise GrammarError(f'{self._what} cannot be followed: {reason}')


def open_constraint(model: Model, *, json_schema: str = '', regex: str = '') -> Constraint:
    """
    Give the constraint of a JSON schema, or else of a regular expression.

    Safe from any thread; compiled ones are kept for the model.

    :raises GrammarError: it cannot be followed; says why and names the keyword
    """
    kind, text = ('json_schema', json_schema) if json_schema else ('regex', regex)
    return _of(model).open(kind, text)


class _Vocabulary:
    """A model's tokens in llguidance's form, and the constraints that are kept ready."""

    def __init__(self, model: Model):
        ends = [i for i in range(model.n_vocab) if model.is_end(i)]
        if not ends:
            raise GrammarError(
                f'{model.path} has no token that ends an answer, so none can follow a schema or '
                'a regular expression'
            )
        self._end, self._n_vocab = ends[0], model.n_vocab
        wrapper = TokenizerWrapper(_Tokens(model, self._end))
        self._tokenizer = LLTokenizer(
            wrapper,
            eos_token=[self._end, *(end for end in ends if end != self._end)],
            slices=LLTokenizer.json_slices(),
        )
        self._compiled = lru_cache(maxsize=KEPT)(self._compile)

    def open(self, kind: str, text: str) -> Constraint:
        matcher = self._compiled(kind, text).deep_copy()
        return Constraint(matcher, kind, self._n_vocab, self._end)

    def _compile(self, kind: str, text: str) -> LLMatcher:
        if kind == 'json_schema':
            text = checked_schema(text)
            try:
                grammar = LLMatcher.grammar_from_json_schema(text, overrides=SEPARATORS)
            except ValueError as exc:
                raise GrammarError(f'json_schema cannot be followed: {exc}') from exc
        elif len(text) > MAX_REGEX:
            raise GrammarError(f'regex has {len(text)} characters: expected {MAX_REGEX} or fewer')
        else:
            try:
                grammar = LLMatcher.grammar_from_regex(text)
            except (ValueError, UnicodeError) as exc:  # lone surrogates
                raise GrammarError(f'regex cannot be followed: {exc}') from exc
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            self._refuse(kind, text, matcher)
        probe = matcher.deep_copy()
        probe.consume_tokens(probe.compute_ff_tokens())
        fits = probe.is_stopped() or any(probe.compute_bitmask())
        if probe.is_error():
            self._refuse(kind, text, probe)
        if not fits:
            raise GrammarError(f'{kind} cannot be followed: it allows no answer at all')
        return matcher

    @staticmethod
    def _refuse(kind: str, text: str, matcher: LLMatcher) -> NoReturn:
        reason = _reason(matcher.get_error(), keywords(text) if kind == 'json_schema' else ())
        raise GrammarError(f'{kind} cannot be followed: {reason}')


#: what llguidance says, and the keywords that it means
_MEANT = (
    ('schema is false', 'false'),
    ('Resource ', '$ref'),
    ('Unknown format', 'format'),
    ('patternProperty', 'patternProperties'),
    ('incompatible types', 'type'),
    ('float range', 'minimum, maximum'),
    ('NoExtensionBias', '$ref'),
    ('Too many items', '$ref'),
    ('Current row', 'properties'),
    ('regex', 'pattern'),
    ('look', 'pattern'),
)


def _reason(error: str, of_schema: Sequence[str]) -> str:
    """
    Make one line of llguidance's message.

    :param of_schema: keywords of the schema: one at least is named
    """
    lines = [line.strip() for line in error.split('\n')]
    line = next((line for line in lines if line.startswith('error: ')), lines[0])
    line = line.removeprefix('error: ')[:300]
    if line == 'NoExtensionBias':
        line = 'it allows no answer at all'
    if not of_schema or any(keyword in re.findall(r'[$\w]+', line) for keyword in of_schema):
        return line
    known = {*of_schema, 'false'}
    meant = (words for said, words in _MEANT if said in error and known & set(words.split(', ')))
    return f'{next(meant, ", ".join(of_schema[:8]))}: {line}'


class _Tokens:
    """What llguidance asks of a tokenizer; keeps no model alive."""

    def __init__(self, model: Model, end: int):
        self._model = weakref.ref(model)
        self.eos_token_id, self.bos_token_id = end, None
        marks = {model.controls[text] for text in model.marks}
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for i in range(model.n_vocab):
            piece = b'' if i in marks else model.piece(i)
            if not piece:
                self.special_token_ids.append(i)
            self.tokens.append(piece or b'<%d>' % i)
        # SentencePiece writes a space before a text; a mark in front of it takes that space
        self._in_front = '' if self._bytes(model.tokenize('a')) == b'a' else '\n'

    def __call__(self, text: bytes | str) -> list[int]:
        """
        Give the tokens of a text that stands somewhere in an answer.

        A long one is cut: some pre-tokenizers of llama.cpp read a run of equal characters by
        recursion. Where the model's tokenizer changes a text, it gets the longest token that fits
        at each place.
        """
        whole = text if isinstance(text, str) else text.decode('utf-8', 'replace')
        cuts = range(0, len(whole), MAX_AT_ONCE)
        return [token for at in cuts for token in self._part(whole[at : at + MAX_AT_ONCE])]

    def _part(self, text: str) -> list[int]:
        model = self._model()
        assert model is not None
        wanted = text.encode('utf-8', 'replace')
        tokens = model.tokenize(self._in_front + text)
        if self._in_front:
            front = next((i for i, t in enumerate(tokens) if self.tokens[t] == b'\n'), None)
            tokens = [] if front is None else tokens[front + 1 :]
        return tokens if self._bytes(tokens) == wanted else self._greedy(wanted)

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        return b''.join(self.tokens[token] for token in tokens)

    def _greedy(self, data: bytes) -> list[int]:
        """Give the longest token at each place."""
        by_bytes = self._by_bytes()
        longest = max(map(len, by_bytes))
        tokens: list[int] = []
        at = 0
        while at < len(data):
            size = next((n for n in range(longest, 0, -1) if data[at : at + n] in by_bytes), 0)
            if not size:
                raise InferenceError(f'no token of the model begins with byte {data[at]}')
            tokens.append(by_bytes[data[at : at + size]])
            at += size
        return tokens

    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {piece: i for i, piece in enumerate(self.tokens) if i not in special}


_vocabularies: weakref.WeakKeyDictionary[Model, _Vocabulary] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _of(model: Model) -> _Vocabulary:
    """Give a model's vocabulary, which is read once."""
    with _lock:
        known = _vocabularies.get(model)
        if known is None:
            known = _vocabularies[model] = _Vocabulary(model)
        return known
