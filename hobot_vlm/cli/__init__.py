"""The ``vlm`` command."""
