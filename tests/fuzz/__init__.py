"""One target for each parser: bytes in, an assertion out.

``python -m fuzz NAME`` in ``tests/`` has atheris look for bytes that break it.
"""
