"""
Choosing the next token: llama.cpp's chain of samplers, built from what the user chose.

A schema or a regular expression masks the logits first (``constraint.py``), a GBNF grammar is
llama.cpp's own (``grammar.py``). Nothing here knows of requests, or of what the answer is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
import math
import secrets

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from .candidates import Candidates
from .constraint import Constraint, open_constraint
from .context import Context, log_softmax
from .grammar import Grammar
from .model import Model
from ..config import Config
from ..errors import GrammarError, InferenceError
from ..values import TokenLogprob

#: tokens of the answer that repeat_penalty looks back at; llama.cpp's own default
PENALTY_WINDOW = 64
#: Largest bias of a token. Logits lie within some hundreds, so that this decides in every model,
#: and added to one it is still exact enough in float32; infinity would leave nothing to choose.
MAX_BIAS = 1e6
#: What stands for a probability of 0, as in OpenAI's API: JSON knows no infinity.
LOWEST_LOGPROB = -9999.0
#: options that say what an answer has to follow
FORMS = ('grammar', 'json_schema', 'regex')
THINK_OPEN, THINK_CLOSE = '<think>', '</think>'


def _bias(model: Model, logit_bias: Mapping[int, float] | None) -> dict[int, float]:
    """Give what is added to the logit of each token."""
    for token in logit_bias or ():
        if not 0 <= token < model.n_vocab:
            raise GrammarError(
                f'logit_bias names token {token}: the vocabulary has 0 to {model.n_vocab - 1}'
            )
    return {
        token: max(-MAX_BIAS, min(MAX_BIAS, bias)) for token, bias in (logit_bias or {}).items()
    }


def _open(model: Model, config: Config) -> Constraint | Grammar | None:
    """Give what the answer has to follow."""
    texts = dict(
        zip(FORMS, (config.grammar_text(), config.schema_text(), config.regex), strict=True)
    )
    chosen = [name for name, text in texts.items() if text]
    if len(chosen) > 1:
        raise GrammarError(f'{" and ".join(chosen)} are both set: give one of them')
    if not chosen:
        return None
    if texts['grammar']:
        return Grammar(model, texts['grammar'])
    return open_constraint(model, json_schema=texts['json_schema'], regex=texts['regex'])


class Sampler:
    """
    Chooses the tokens of one answer.

    The order is llama.cpp's own: bias, penalties, top-k, top-p, min-p, temperature, choice.
    Penalties count the tokens of the answer only, so that a word of the question may be repeated.
    The logits of tokens that a schema or an expression does not allow are -inf before all that. A
    grammar is asked about the chosen token first, and about all only if it refuses that one:
    asking it about one is cheap, and about all of them is not.

    :param logit_bias: token id -> what is added to its logit
    :param logprobs: likeliest tokens to report for each token; 0: none are reported
    :param thinking: the prompt ends within the model's reasoning. What the answer has to follow
        is followed behind it: it is closed at once or, with ``config.thinking``, after half of
        the tokens of the answer at the latest
    :raises GrammarError: a schema, an expression or a grammar cannot be followed, or a token of
        ``logit_bias`` does not exist
    """

    def __init__(
        self,
        context: Context,
        config: Config,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int = 0,
        thinking: bool = False,
    ):
        self._context, self._model, self._logprobs = context, context.model, logprobs
        self.reported: list[TokenLogprob] = []
        #: tokens that come next without a choice; the constraint is behind them already
        self._waiting: list[int] = []
        self._on_close = ExitStack()
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._on_close.callback(lib.llama_sampler_free, self._chain)
        try:
            biases = _bias(self._model, logit_bias)
            follows = _open(self._model, config)
        except BaseException:
            self.close()
            raise
        self._constraint = follows if isinstance(follows, Constraint) else None
        self._grammar = follows if isinstance(follows, Grammar) else None
        if self._grammar is not None:
            self._on_close.callback(self._grammar.close)
        #: what the reasoning ends with so far, while it lasts, and how many tokens it may have
        self._thought: bytes | None = b''
        #: the option that says what the answer has to follow; empty where there is none
        self.form = next((n for n in FORMS if follows is not None and getattr(config, n)), '')
        self._thoughts_left = config.n_predict // 2 if config.thinking else 0
        if follows is None or not (thinking or config.thinking):
            self._end_thought()
        elif not thinking:
            self._waiting = [*self._mark(THINK_OPEN), *self._model.tokenize('\n')]
        elif self._thoughts_left <= 0:
            self._end_thought(close=True)
        #: what must not end the reasoning; looked up where there is any
        self._ends = self._end_tokens() if self._thought is not None else []
        self._fill_chain(config, biases)

    def _end_tokens(self) -> list[int]:
        return [token for token in range(self._model.n_vocab) if self._model.is_end(token)]

    def _fill_chain(self, config: Config, biases: dict[int, float]) -> None:
        n_vocab = self._model.n_vocab
        if biases:
            pairs = (lib.llama_logit_bias * len(biases))()
            for pair, (token, bias) in zip(pairs, biases.items(), strict=True):
                pair.token, pair.bias = token, bias
            self._add(lib.llama_sampler_init_logit_bias(n_vocab, len(pairs), pairs))
        if config.repeat_penalty != 1.0:
            self._add(
                lib.llama_sampler_init_penalties(
                    n_vocab, PENALTY_WINDOW, config.repeat_penalty, 0.0, 0.0
                )
            )
        if config.temperature == 0:
            self._add(lib.llama_sampler_init_greedy())
            return
        seed = secrets.randbits(32) if config.seed < 0 else config.seed
        if config.top_k:
            self._add(lib.llama_sampler_init_top_k(config.top_k))
        self._add(lib.llama_sampler_init_top_p(config.top_p, 1))
        self._add(lib.llama_sampler_init_min_p(config.min_p, 1))
        self._add(lib.llama_sampler_init_temp(config.temperature))
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: object) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it now

    # -- choosing ----------------------------------------------------------------------------

    def sample(self, entry: int = -1) -> int:
        """
        Choose a token from the logits of an entry of the last batch, and remember it.

        The logits of tokens that may not stand here become -inf in the context, too.

        :raises InferenceError: the decoder gave logits that are no numbers
        :raises GrammarError: no token of the model fits
        """
        logits = self._context.logits(entry)
        if not math.isfinite(logits.max()):  # NaN, too: it is larger than any number to NumPy
            raise InferenceError(
                f'{self._model.path} gives logits that are not finite: the file is damaged, or '
                'was made wrongly; fetch it again, or convert the model anew'
            )
        before = logits.copy() if self._logprobs else logits
        if self._waiting:
            token = self._waiting.pop(0)
            lib.llama_sampler_accept(self._chain, token)
        elif self._thought is not None:
            logits[self._ends] = -np.inf  # what was asked for is still to come
            token = self._choose(entry)
            self._think(token)
        elif self._grammar is not None:
            token = self._choose_by_grammar(self._grammar, logits)
        else:
            if self._constraint is not None:
                self._constraint.mask(logits)
            token = self._choose(entry)
            if self._constraint is not None:
                self._constraint.accept(token)
        if self._logprobs:
            self._report(before, token)
        return token

    def forced(self) -> list[int]:
        """
        Give the tokens that must follow the last one; they count as chosen.

        None where log probabilities are reported: each token is decoded by itself then, and
        ``sample`` gives these tokens one by one. An end token stands last where the answer must
        end.

        :raises GrammarError: the constraint is too much work
        """
        if self._thought is None and self._constraint is not None and not self._constraint.ended:
            self._waiting += self._constraint.forced()
        if self._logprobs:
            return []
        tokens, self._waiting = self._waiting, []
        for token in tokens:
            lib.llama_sampler_accept(self._chain, token)
        return tokens

    @property
    def at_end(self) -> bool:
        """Whether nothing but an end token may come next: the answer has all of its form."""
        if self._thought is not None or len(self._waiting) > 1:
            return False
        if self._grammar is not None:
            return self._grammar.ended
        return self._constraint is not None and self._constraint.ended

    def _choose(self, entry: int) -> int:
        return int(lib.llama_sampler_sample(self._chain, self._context.handle, entry))

    def _choose_by_grammar(self, grammar: Grammar, logits: npt.NDArray[np.float32]) -> int:
        """Let the chain choose freely; where the grammar refuses, let it filter first."""
        everything = Candidates(logits)
        everything.apply(self._chain)
        if not grammar.allows(everything.chosen):
            everything = Candidates(logits)
            grammar.filter(everything)
            everything.apply(self._chain)
        token = everything.chosen
        grammar.accept(token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _think(self, token: int) -> None:
        """Note a token of the model's reasoning, and whether it is the last one."""
        assert self._thought is not None
        text = self._model.piece(token)
        if not text:  # a control token
            texts = (t for t, i in self._model.controls.items() if i == token)
            text = next(texts, '').encode()
        self._thought = self._thought[-len(THINK_CLOSE) :] + text
        self._thoughts_left -= 1
        if THINK_CLOSE.encode() in self._thought:
            self._end_thought()
        elif self._thoughts_left <= 0:
            self._end_thought(close=True)

    def _end_thought(self, close: bool = False) -> None:
        """Begin what is to be followed; close the reasoning first, as Qwen's models do it."""
        self._thought = None
        if close:
            self._waiting += [*self._model.tokenize('\n'), *self._mark(THINK_CLOSE)]
            self._waiting += self._model.tokenize('\n\n')
        if self._constraint is not None:
            self._waiting += self._constraint.forced()

    def _mark(self, text: str) -> list[int]:
        """Give a mark of reasoning: the token of that name where its text is heard, else text."""
        token = self._model.controls.get(text)
        if token is not None and self._model.piece(token):
            return [token]
        return self._model.tokenize(text)

    def _report(self, logits: npt.NDArray[np.float32], token: int) -> None:
        """Note the log probability of a token, and of the likeliest ones in its place."""
        exact = np.maximum(log_softmax(logits), LOWEST_LOGPROB)
        best = np.argsort(-exact)[: self._logprobs]

        def text(i: int) -> str:
            return self._model.piece(i).decode('utf-8', 'replace')

        self.reported.append(
            TokenLogprob(
                text(token),
                round(float(exact[token]), 5),
                tuple((text(int(i)), round(float(exact[i]), 5)) for i in best),
            )
        )

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Free the samplers; twice is harmless."""
        self._on_close.close()
