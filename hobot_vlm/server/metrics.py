"""
What the server counts, in the form of Prometheus.

Each application has counters of its own, so that several may run in one process. Knows replies,
no requests and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..values import Reply, Status

#: seconds; from a repeated question on a PC to a large picture on a board
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: seconds for each token: 1000 to 1 tokens a second
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class _Now:
    """What the model counts itself, for all who ask it; read when somebody asks."""

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Give the figures."""
        now = self._status()
        if now is None:
            return
        yield GaugeMetricFamily('vlm_requests_running', 'Answers being made', now.running)
        yield GaugeMetricFamily('vlm_requests_waiting', 'Requests waiting', now.waiting)
        yield GaugeMetricFamily('vlm_tiles_encoding', 'Tiles in the encoder', now.encoding)
        yield GaugeMetricFamily(
            'vlm_encoding_seconds_left', 'Until these tiles are encoded', now.encoding_s
        )
        yield CounterMetricFamily(
            'vlm_picture_cache_hits', 'Pictures that were known', now.image_hits
        )
        yield CounterMetricFamily(
            'vlm_picture_cache_misses', 'Pictures that had to be encoded', now.image_misses
        )


class Metrics:
    """
    Counts requests and answers.

    :param status: says what the model is doing; None while there is no model
    """

    def __init__(self, status: Callable[[], Status | None]) -> None:
        self.registry = kept = CollectorRegistry()
        kept.register(_Now(status))
        self._requests = Counter(
            'vlm_http_requests', 'Requests by path and status', ('path', 'status'), registry=kept
        )
        self._answers = Counter(
            'vlm_answers', 'Answers by why they ended', ('finish_reason',), registry=kept
        )
        self._first = Histogram(
            'vlm_time_to_first_token_seconds',
            'From the question to the first token',
            buckets=SECONDS,
            registry=kept,
        )
        self._token = Histogram(
            'vlm_time_per_token_seconds',
            'Between two tokens of an answer, on average',
            buckets=TOKEN_SECONDS,
            registry=kept,
        )
        self._encode = Histogram(
            'vlm_encode_seconds',
            'Encoding the pictures of a request that were not known',
            buckets=SECONDS,
            registry=kept,
        )
        self._prompt = Counter('vlm_prompt_tokens', 'Tokens of prompts', registry=kept)
        self._reused = Counter(
            'vlm_reused_tokens', 'Tokens of prompts that the KV cache had', registry=kept
        )
        self._said = Counter('vlm_answer_tokens', 'Tokens of answers', registry=kept)

    def request(self, path: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()

    def answer(self, reply: Reply) -> None:
        """Count an answer, also one that was cut short."""
        times = reply.timings
        self._answers.labels(reply.finish_reason).inc()
        self._prompt.inc(reply.prompt_tokens)
        self._reused.inc(reply.reused_tokens)
        self._said.inc(reply.completion_tokens)
        if reply.completion_tokens:
            self._first.observe(times.ttft_ms / 1000)
        if times.tokens_per_second:
            self._token.observe(1 / times.tokens_per_second)
        if times.encode_ms:
            self._encode.observe(times.encode_ms / 1000)

    def text(self) -> bytes:
        """Give all of it as Prometheus reads it."""
        return bytes(generate_latest(self.registry))
