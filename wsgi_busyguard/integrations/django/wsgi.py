"""The guarded application; made at import, as Django's own ``wsgi.py`` does."""

from __future__ import annotations

from .conf import guarded

application = guarded()
