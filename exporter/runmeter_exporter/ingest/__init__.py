"""Door 2: OTLP in, readings folded into runs, exactly once."""
