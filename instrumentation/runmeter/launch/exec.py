"""`runmeter exec -- CMD`: any program as one run, with no code of its own.

The program is a child, since its exit code or signal ends the run. Pythons below it count their calls themselves; every
program below it finds the run in TRACEPARENT and BAGGAGE, where OpenTelemetry's SDKs for many languages look.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runmeter.launch.auto import THREAD_VARIABLE
from runmeter.otel.context import Run, start_run
from runmeter.otel.handle import instrument

SITE = Path(__file__).resolve().parent / "_site"
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells have them

_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_SI_KERNEL = 0x80
"""`si_code` of a signal that the kernel sent (Linux): Ctrl-C in a terminal goes to the child by itself."""


def exec_command(
    argv: Sequence[str],
    *,
    thread_id: str | None = None,
    run_id: str | None = None,
    agent: str | None = None,
    user_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    database_url: str | None = None,
) -> int:
    """Run `argv` as one run and return its exit code; 128 + n for signal n, 127 where there is no such program, 126
    where it cannot be executed.

    The run ends as `success` (exit code 0), `error` (any other) or `interrupted` (a signal, or any failure after
    a signal that was passed on). Call it from the main thread of a process that does nothing else: signals are
    blocked there, and passed on to the program, until it ends.
    """
    program = shutil.which(argv[0]) if argv else None
    if program is None:
        print(f"runmeter exec: no such program: {argv[0] if argv else '(nothing)'}", file=sys.stderr)
        return NOT_FOUND
    watched = _watched()
    # Before any thread exists: threads inherit the mask, and one that had SIGTERM open would take it, and us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched) if watched else set()
    handle = instrument(database_url, otel_metrics=False, instrumentations=False)
    try:
        run = start_run(run_id=run_id, thread_id=thread_id, agent=agent, user_id=user_id, tags=tags)
        environment = _environment(run, thread_id, database_url)
        try:
            code, passed_on = _run(program, list(argv), environment, watched, before)
        except OSError as error:
            print(f"runmeter exec: {program}: {error.strerror}", file=sys.stderr)
            run.end("error", "not executable")
            return NOT_EXECUTABLE
        run.end(*_outcome(code, passed_on))
        return code if code >= 0 else 128 - code
    finally:
        handle.shutdown()
        if watched:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outcome(code: int, passed_on: bool) -> tuple[str, str | None]:
    if code == 0:
        return "success", None
    if code < 0:
        try:
            return "interrupted", signal.Signals(-code).name
        except ValueError:
            return "interrupted", f"signal {-code}"
    return ("interrupted" if passed_on else "error"), f"exit {code}"


def _environment(run: Run, thread_id: str | None, database_url: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    carrier: dict[str, str] = {}
    context = run.otel_context or Context()
    TraceContextTextMapPropagator().inject(carrier, context)
    W3CBaggagePropagator().inject(carrier, context)
    environment.update({name.upper(): value for name, value in carrier.items()})
    if thread_id is not None:
        environment[THREAD_VARIABLE] = thread_id
    if database_url is not None:
        environment["RUNMETER_DATABASE_URL"] = database_url
        environment.pop("RUNMETER_DATABASE_URL_FILE", None)  # a runmeter below would find both, and refuse
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(SITE)]
    environment["PYTHONPATH"] = os.pathsep.join([str(SITE), *paths])
    return environment


def _watched() -> set[signal.Signals]:
    """What is passed on, and the child's end; empty where signals cannot be waited for (Windows)."""
    if not hasattr(signal, "sigwait"):
        return set()
    names = [name for name in _PASSED_ON if hasattr(signal, name)]
    # What our caller has us ignore (nohup) stays ignored, by us and by the program.
    return {sig for name in names if signal.getsignal(sig := signal.Signals[name]) is not signal.SIG_IGN} | {
        signal.SIGCHLD
    }


def _run(
    program: str, argv: list[str], environment: dict[str, str], watched: set[signal.Signals], mask: set[int]
) -> tuple[int, bool]:
    """(exit code, negative for a signal; whether a signal was passed on)."""
    if not watched:
        return subprocess.run(argv, executable=program, env=environment, check=False).returncode, False
    # Not subprocess: only posix_spawn gives the child a mask of its own without code between fork and exec.
    # Python ignores SIGPIPE and SIGXFSZ; programs expect them as the system has them.
    plain = [sig for name in ("SIGPIPE", "SIGXFSZ") if (sig := getattr(signal, name, None)) is not None]
    child = os.posix_spawn(program, argv, environment, setsigmask=sorted(mask), setsigdef=plain)
    passed_on = False
    while True:
        number, from_terminal = _wait(watched)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return os.waitstatus_to_exitcode(status), passed_on
            continue
        passed_on = True
        if not from_terminal:
            try:
                os.kill(child, number)
            except ProcessLookupError:
                continue


def _wait(watched: set[signal.Signals]) -> tuple[int, bool]:
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(watched)
        return info.si_signo, info.si_code == _SI_KERNEL and info.si_signo in (signal.SIGINT, signal.SIGQUIT)
    number = signal.sigwait(watched)
    return number, number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()
