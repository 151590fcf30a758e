"""Which run a span belongs to, and when that run begins and ends."""
