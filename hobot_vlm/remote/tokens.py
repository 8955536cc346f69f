"""The tokens of a text, as a server says; knows its dialect."""

from __future__ import annotations

import httpx

from .engines import check, Engine, limited, reason
from .trouble import Trouble


async def tokenize(client: httpx.AsyncClient, engine: Engine, text: str) -> list[int]:
    """
    Ask for the tokens of a text.

    :raises Trouble: the server does not tell
    """
    assert engine.dialect is not None
    way = engine.dialect.tokenizing
    if way is None:
        raise Trouble(
            'has no way to give tokens that is known: name its kind in model, as in '
            'vllm/NAME@http://…'
        )
    body = {'model': engine.name, way.text: text, **way.more}
    try:
        url = engine.url.removesuffix('/v1') + way.path
        async with client.stream('POST', url, json=body, timeout=30) as response:
            await check(response)
            data = await limited(response)
    except httpx.HTTPError as exc:
        raise Trouble(reason(exc), away=True) from exc
    try:
        tokens = httpx.Response(200, content=data).json()[way.tokens]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Trouble(f'gives no {way.tokens}') from exc
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise Trouble(f'gives {way.tokens} that are no token ids')
    return tokens
