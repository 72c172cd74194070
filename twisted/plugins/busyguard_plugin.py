"""Makes ``twist busyguard`` known to Twisted. There is no __init__.py here, and must not be."""

from twisted.application.service import ServiceMaker

busyguard = ServiceMaker(
    "wsgi_busyguard",
    "wsgi_busyguard.cli.twist",
    "A WSGI app behind a guard: truthful health checks, a short queue.",
    "busyguard",
)
