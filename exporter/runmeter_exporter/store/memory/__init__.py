"""The store in memory: the same algorithm over dictionaries."""
