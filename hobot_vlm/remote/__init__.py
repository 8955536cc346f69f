"""The same ``VLM`` on another machine: any server that speaks OpenAI's chat completions."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .vlm import RemoteVLM


def remote_class() -> type[RemoteVLM]:
    """
    Give the class of models elsewhere.

    :raises BackendMissing: httpx is not installed
    """
    try:
        import httpx  # noqa: F401
    except ImportError as exc:
        from ..errors import BackendMissing

        raise BackendMissing(
            'model is an address, and httpx is not installed',
            "pip install 'hobot_vlm[remote]', or apt install python3-httpx",
        ) from exc
    from .vlm import RemoteVLM

    return RemoteVLM
