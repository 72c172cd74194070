# /srv/shop/shop.wsgi: your own app takes the place of "site".
from wsgi_busyguard.adapters.mod_wsgi import guarded_app


def site(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"home\n"]


application = guarded_app(site, board="/run/shop/board")
