"""Readers: each reads the load of one server, and knows no HTTP."""
