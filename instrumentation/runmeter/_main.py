"""The `runmeter` command of the base install: hands over to the sidecar's, or says which line installs it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = ("click", "rich", "flask", "waitress", "sqlalchemy", "prometheus_client", "msgspec", "google.protobuf")


def _missing() -> str | None:
    """The first package of the `sidecar` extra that is not installed."""
    for name in _NEEDED:
        try:
            if find_spec(name) is None:
                return name
        except ModuleNotFoundError:  # the parent of a dotted name
            return name
    return None


def main() -> None:
    """Entry point; exits 2 without the `sidecar` extra."""
    missing = _missing()
    if missing is not None:
        print(
            f"runmeter: the command line needs {missing}, which is not installed. Run: pip install 'runmeter[sidecar]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from importlib import import_module

    # By name: the instrumentation never imports the exporter, it only starts it when asked to on the command line.
    import_module("runmeter_exporter.cli").main()


if __name__ == "__main__":
    main()
