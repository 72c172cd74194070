"""What can be seen of a guard, and the ways in which it leaves; each knows one system."""
