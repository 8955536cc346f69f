"""
What a MaixPy program for InternVL asks for, over the VLM of this package.

Such a program runs here once ``from maix import ...`` reads ``from hobot_vlm.maix import ...``.
``nn``, ``image``, ``err``, ``sys``, ``log`` and ``display`` hold what its vision language examples
use; a camera is not here.
"""
