"""``busyguard serve``: an app behind the guard, on a server of your choice."""
