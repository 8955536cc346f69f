"""
Spans -> what the decoder reads: token ids and embeddings, one after the other.

Knows a vocabulary and nothing of templates. What a person wrote never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..errors import PromptError
from ..llama.context import Entries, Placed
from ..llama.ids import embedding_ids
from ..llama.model import Model
from ..values import Control, Span, Text, Tile, TileSpan, Tokens


@dataclass
class Prompt:
    """
    What the decoder is to read.

    :param ids: a token id for each token, and for each embedding a negative number that names its
        tile and its place there; equal ids mean equal input
    :param tiles: (place of its first embedding in ``ids``, tile), in order
    """

    ids: list[int] = field(default_factory=list)
    tiles: list[tuple[int, Tile]] = field(default_factory=list)

    @property
    def image_tokens(self) -> int:
        """Count the embeddings."""
        return sum(tile.tokens for _, tile in self.tiles)

    @cached_property
    def positions(self) -> list[int]:
        """Where each id stands, and where what follows will."""
        return positions(self.ids, (tile for _, tile in self.tiles))

    def reach(self, start: int, most: int) -> int:
        """
        Give the end of what may be decoded from ``start`` on; where nothing is ready, ``start``.

        :param most: entries at most, but for a tile whose embeddings all see all
        :raises VlmError: a picture could not be encoded
        """
        ready = self.ready(start)
        end = min(ready, start + most)
        for first, tile in self.tiles:
            if tile.placing and not tile.placing.causal and first < end:
                if first == start:
                    return first + tile.tokens
                if first > start:
                    return first
        return end

    def ready(self, start: int) -> int:
        """
        Give the end of what may be decoded from ``start`` on: up to the first missing embedding.

        :raises VlmError: that tile could not be encoded
        """
        for first, tile in self.tiles:
            if first + tile.tokens <= start:
                continue
            if not tile.encoded.done():
                return first
            tile.encoded.result()
        return len(self.ids)

    def entries(self, start: int, end: int) -> Iterator[Entries]:
        """Give the input from ``start`` to ``end``, cut where tokens and embeddings meet."""
        for first, tile in self.tiles:
            last = first + tile.tokens
            if last <= start or start >= end:
                continue
            if start < first:
                yield self.ids[start : min(first, end)]
            if first < end:
                yield self._embeddings(tile, first, max(start, first), min(end, last))
            start = last
        if start < end:
            yield self.ids[start:end]

    def _embeddings(self, tile: Tile, first: int, start: int, end: int) -> Entries:
        """Give a part of a tile that begins at ``first``, by places in ``ids``."""
        data, placing = tile.data[start - first : end - first], tile.placing
        if placing is None:
            return data
        parts = placing.parts
        if parts is not None:
            parts = parts[:, start - first : end - first] + self.positions[first]
        return Placed(data, parts, placing.causal)


def positions(ids: Sequence[int], tiles: Iterable[Tile]) -> list[int]:
    """
    Give where each id stands, and where what follows will.

    :param tiles: all whose embeddings are among the ids, each once or more
    """
    placings = {ids_of(tile)[0]: (tile.tokens, tile.placing) for tile in tiles if tile.placing}
    if not placings:
        return list(range(len(ids) + 1))
    found: list[int] = []
    at = place = 0
    while place < len(ids):
        tokens, placing = placings.get(ids[place], (1, None))
        if placing is None or placing.parts is None:
            found += range(at, at + tokens)
            at += tokens
        else:
            found += (placing.parts[0] + at).tolist()
            at += placing.length
        place += tokens
    return [*found[: len(ids)], at]


def to_prompt(model: Model, spans: Sequence[Span]) -> Prompt:
    """Turn spans into a prompt. Neighbouring texts are tokenised as one."""
    prompt = Prompt()
    bos = model.bos()
    if bos is not None and not (
        spans and isinstance(spans[0], Control) and model.controls[spans[0].token] == bos
    ):
        prompt.ids.append(bos)
    text = ''
    for span in [*spans, None]:
        if isinstance(span, Text):
            text += span.text
            continue
        if text:
            prompt.ids += tokenize_plainly(model, text)
            text = ''
        if isinstance(span, Control):
            prompt.ids.append(model.controls[span.token])
        elif isinstance(span, Tokens):
            prompt.ids += span.ids
        elif isinstance(span, TileSpan):
            prompt.tiles.append((len(prompt.ids), span.tile))
            prompt.ids += ids_of(span.tile)
    return prompt


def ids_of(tile: Tile) -> list[int]:
    """Name the embeddings of a tile."""
    return embedding_ids(tile.key, tile.tokens, whole=tile.placing is not None)


def tokenize_plainly(model: Model, text: str) -> list[int]:
    """
    Tokenise text in which nothing is a control token.

    llama.cpp leaves control tokens alone in plain text, but not those that a file lists as
    user-defined, such as <img> in some conversions. They are cut in two before.

    :raises PromptError: it is no text
    :raises InferenceError: the model is closed
    """
    check_text(text)
    pieces = [text]
    for mark in model.marks:
        if mark in text:
            half = [mark[:1], mark[1:]]
            pieces = [part for piece in pieces for part in _cut(piece, mark, half)]
    return [token for piece in pieces for token in model.tokenize(piece)]


def check_text(text: object) -> None:
    """
    Check that there is something to be tokenised.

    :raises PromptError: it is no text
    """
    if not isinstance(text, str):
        raise PromptError(
            f'what is to be tokenised is of type {type(text).__name__}: expected text'
        )


def _cut(piece: str, mark: str, half: list[str]) -> list[str]:
    parts = piece.split(mark)
    parts[:-1] = [part + half[0] for part in parts[:-1]]
    parts[1:] = [half[1] + part for part in parts[1:]]
    return parts
