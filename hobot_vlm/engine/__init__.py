"""Runs one model for all callers at once; ``scheduler.py`` is the file to read first."""
