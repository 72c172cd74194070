"""The standard library made safe for forks, gevent and threads that must not wait; HTTP/1 heads."""
