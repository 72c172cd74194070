"""Adapters: each reads one server's load, or stands in front of its queue.

Nothing is imported here, so that no server is imported unasked.
"""
