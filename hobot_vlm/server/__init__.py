"""The HTTP server: OpenAI's API and a page, on one loaded model."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import BackendMissing

#: what the server is made of, by the names that Python knows
LIBRARIES = ('starlette', 'uvicorn', 'prometheus_client')


def check_libraries() -> None:
    """
    See whether all that serving needs is there.

    :raises BackendMissing: it is not
    """
    for name in LIBRARIES:
        if find_spec(name) is None:
            raise BackendMissing(
                f'{name} is not installed, which serving needs',
                "run `pip install 'hobot_vlm[serve]'`, or apt install python3-starlette "
                'python3-uvicorn python3-prometheus-client',
            )
