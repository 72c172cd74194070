"""gunicorn -c gunicorn.conf.py mysite.wsgi: two processes of eight threads, and the check port."""

bind = "0.0.0.0:8000"
workers = 2  # one for each processor that the container may use
threads = 8  # requests at once, in each
worker_class = "wsgi_busyguard.adapters.gunicorn.GuardedThreads"
worker_tmp_dir = "/dev/shm"  # where workers show that they live
graceful_timeout = 30
raw_env = [
    "BUSYGUARD_CHECK=0.0.0.0:8081",
    "BUSYGUARD_CLIENT_TIMEOUT=5",
]
