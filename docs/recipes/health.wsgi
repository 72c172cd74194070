# /srv/shop/health.wsgi
from wsgi_busyguard import Board
from wsgi_busyguard.board.watcher import Watcher
from wsgi_busyguard.checkport import CheckApp

check = CheckApp(Watcher(Board("/run/shop/board")))


def application(environ, start_response):
    environ["PATH_INFO"] = "/readyz"  # and never /load, whose figures are not for visitors
    return check(environ, start_response)
