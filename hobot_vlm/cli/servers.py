"""
What ``vlm doctor`` checks of a model on another machine: whether it is there, and answers.

Asks it one short question; knows ``VLM``, and nothing of HTTP.
"""

from __future__ import annotations

from .checks import Finding
from ..errors import BackendMissing, VlmError

#: a question that any model answers in a few tokens
QUESTION, TOKENS = 'Say yes.', 4
#: seconds that somebody at a terminal waits for it
SECONDS = 10.0


def check_servers(model: str) -> list[Finding]:
    """
    Ask the servers of an address.

    :param model: as the option of that name
    """
    from ..vlm import VLM

    try:
        with VLM.load(model, remote_timeout=SECONDS) as vlm:
            cure = 'start it, or check the address, the network and the firewall between'
            found = [Finding('server', 'bad', trouble, cure) for trouble in vlm.troubles()]
            if len(found) == len(vlm.runtime.split(', ')):
                return found
            reply = vlm.ask(QUESTION, n_predict=TOKENS)
    except BackendMissing as exc:
        return [Finding('server', 'bad', str(exc), exc.cure)]
    except VlmError as exc:
        return [Finding('server', 'bad', str(exc))]
    text = f'{reply.model} answers, its first word after {reply.timings.ttft_ms:.0f} ms'
    return [*found, Finding('server', 'ok', text)]
