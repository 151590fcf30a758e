"""What a span says: `read.py` makes a `Reading` of it, free of content."""
