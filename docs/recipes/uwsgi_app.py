"""app.py beside uwsgi.ini."""

from wsgi_busyguard.adapters.uwsgi import guarded_app


def site(environ, start_response):
    """Your own app takes the place of this."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"home\n"]


application = guarded_app(site, board="/run/shop/board")
