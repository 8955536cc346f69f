"""
The encode node: the vision half of a model, for a language half on another machine.

Its states, parameters and reports are those of the main node; only what it consists of differs.
"""

from __future__ import annotations

from .diagnostics import Statistics
from .encoding import EncodeAssembly, EncodeStatistics
from .node import VlmNode, Working
from ..config import EncodeConfig


class EncodeNode(VlmNode):
    """Encodes pictures, and publishes what a language model reads of them."""

    default_name = 'encode'
    kind = EncodeConfig
    working = 'encoding'
    reports = 'embeddings'

    def _make_statistics(self) -> Statistics:
        return EncodeStatistics()

    def _assemble(self) -> Working:
        assert isinstance(self.config, EncodeConfig)
        assert isinstance(self.statistics, EncodeStatistics)
        return EncodeAssembly(self, self.config, self.statistics)

    def _model(self) -> dict[str, object]:
        return {'model': self.config.model_file_name or self.config.model}
