"""Rule 2, one call counts once: the readings of a run in, its calls out. `settler.py` says how."""
