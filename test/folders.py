"""Where the bundled model and the small test models lie."""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).parents[1] / 'hobot_vlm' / 'demo'
MODELS = Path(__file__).parent / 'models'
