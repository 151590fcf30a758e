"""What a run and its totals are, and how a snapshot changes them. Pure."""
