"""What everything that stands in front of a server's threads has in common."""
