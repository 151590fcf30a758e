"""What a terminal shows: options, tables, `top`, `doctor`."""
