"""A child of the demo: the sidecar or one agent, in a process of its own that ends when the demo does.

`python -m runmeter_exporter.demo.child serve …` or `… agent …`. The demo holds the other end of the child's stdin: when
it closes, however the demo ended, the child asks itself to stop as a supervisor would. So nothing is orphaned.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def _stop_with_parent(number: signal.Signals) -> None:
    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, name="demo-parent", daemon=True).start()


def main() -> None:
    """Entry point of the child."""
    # A shell that starts jobs in the background hands SIGINT on as ignored; the demo stops agents with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _stop_with_parent(signal.SIGTERM if sys.argv[1] == "serve" else signal.SIGINT)
    if sys.argv[1] == "serve":
        from runmeter_exporter.cli import main as command

        command(sys.argv[1:])
    # Until the agent is at work: amid its imports whoever catches errors there may swallow a Ctrl-C, and all goes on.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    from runmeter_exporter.demo.agent import main as agent

    agent(sys.argv[2:])


if __name__ == "__main__":
    main()
