"""The HTTP server itself: sockets, access, errors; what it serves is in `web`."""
