"""What belongs to which run: across tasks, threads, forks and processes, and how a run ends."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_sink import SOURCE, Meter
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import attach, detach, get_current

import runmeter
from runmeter.otel.context import outcome
from runmeter.otel.processor import PROCESSOR


@pytest.fixture
def meter() -> Iterator[Meter]:
    found = Meter()
    yield found
    found.close()


def test_a_run_has_its_calls(meter: Meter) -> None:
    """Calls inside a run are its own; it begins running with what it is for, and ends with success."""
    with runmeter.run(thread_id="t", agent="a", user_id="u", tags={"team": "x"}) as run:
        info = meter.sink.run(run.run_id)
        assert (info.status, info.thread_id, info.agent, info.user_id, info.tags, info.service) == (
            "running", "t", "a", "u", {"team": "x"}, "svc",
        )  # fmt: skip
        meter.call(10, 5)
        assert run.usage.total_tokens == 15
    assert meter.sink.ends[0][0] is info
    assert (info.status, info.stop_reason, info.owns) == ("success", None, True)
    assert info.root_span_id is not None
    assert meter.sink.usage(run.run_id).calls == 1


def test_every_span_below_carries_run_thread_and_source(meter: Meter) -> None:
    """Run id, thread and source stand on every span of the run; a conversation the span names itself stays."""
    with runmeter.run(run_id="r", thread_id="t", agent="a"):
        with meter.span("tool"), meter.span("own", gen_ai__conversation__id="mine"):
            meter.call()
        with runmeter.caller("middleware:m"):
            meter.call(model="n")
    spans = meter.spans()
    for name in ("run a", "tool", "own", "chat m", "chat n"):
        assert spans[name]["runmeter.run.id"] == "r"
        assert spans[name]["runmeter.source.id"] == SOURCE
        assert spans[name]["gen_ai.conversation.id"] == ("mine" if name == "own" else "t")
    assert spans["run a"]["runmeter.run.root"] is True
    assert spans["run a"]["runmeter.run.status"] == "success"
    assert spans["chat n"]["runmeter.caller"] == "middleware:m"
    assert "runmeter.caller" not in spans["chat m"]


def test_only_the_run_id_travels(meter: Meter) -> None:
    """Headers to model providers carry the opaque run id and no thread or user."""
    with runmeter.run(thread_id="secret-thread", user_id="secret-user") as run:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
    assert carrier["baggage"] == f"runmeter.run.id={run.run_id}"
    assert "secret" not in json.dumps(carrier)


def test_the_innermost_run_has_the_call(meter: Meter) -> None:
    """Nested runs do not share calls."""
    with runmeter.run() as outer:
        meter.call(1, 0)
        with runmeter.run() as inner:
            meter.call(10, 0)
        meter.call(100, 0)
    assert meter.sink.tokens() == {outer.run_id: 101, inner.run_id: 10}


def test_the_same_id_again_adds(meter: Meter) -> None:
    """A run id used again adds to the run: while it is open as part of it, afterwards by opening it once more."""
    with runmeter.run(run_id="r") as first:
        meter.call(1, 0)
        with runmeter.run(run_id="r") as again:
            meter.call(10, 0)
        assert len(meter.sink.runs) == 1
        assert not meter.sink.ends
        assert first.usage == again.usage
    with runmeter.run(run_id="r"):
        meter.call(100, 0)
    assert meter.sink.usage("r").total_tokens == 111
    assert len(meter.sink.runs) == 2
    assert len(meter.sink.ends) == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ("success", None)),
        (SystemExit(0), ("success", None)),
        (SystemExit(), ("success", None)),
        (ValueError("x"), ("error", "ValueError")),
        (TimeoutError(), ("timeout", "TimeoutError")),
        (KeyboardInterrupt(), ("interrupted", "KeyboardInterrupt")),
        (SystemExit(3), ("interrupted", "SystemExit")),
        (asyncio.CancelledError(), ("interrupted", "CancelledError")),
        (GeneratorExit(), ("interrupted", "GeneratorExit")),
        (type("Cancelled", (BaseException,), {})(), ("interrupted", "Cancelled")),  # trio's
        (ExceptionGroup("g", [TimeoutError()]), ("timeout", "ExceptionGroup")),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()]), ("error", "BaseExceptionGroup")),
    ],
)
def test_exits_map_to_statuses(meter: Meter, error: BaseException | None, expected: tuple[str, str | None]) -> None:
    """However a run is left it ends with the design's status, and the exception goes on unchanged."""
    assert outcome(error) == expected
    if error is None:
        with runmeter.run() as run:
            pass
    else:
        with pytest.raises(type(error)) as caught, runmeter.run() as run:
            raise error
        assert caught.value is error
    info = meter.sink.run(run.run_id)
    assert (info.status, info.stop_reason) == expected


def test_a_message_never_becomes_a_stop_reason(meter: Meter) -> None:
    """An exception's text may hold content; only its class is kept."""
    with pytest.raises(ValueError, match="secret"), runmeter.run():
        raise ValueError("secret prompt")
    assert "secret" not in repr(meter.sink.runs)


def test_a_life_cycle_of_ones_own(meter: Meter) -> None:
    """start_run is pending until it runs, has what happens while activated, and ends once."""
    run = runmeter.start_run(thread_id="t", status="pending")
    assert meter.sink.run(run.run_id).status == "pending"
    meter.call(1000, 0)
    run.running()
    assert meter.sink.updates
    assert run.status == "running"
    with run.activate():
        meter.call(1, 0)
    runmeter.record_usage(provider="p", model="m", input_tokens=10, output_tokens=0, run_id=run.run_id)
    run.end("timeout", "too slow")
    run.end("success")
    info = meter.sink.run(run.run_id)
    assert (info.status, info.stop_reason) == ("timeout", "too slow")
    assert meter.sink.usage(run.run_id).total_tokens == 11
    assert [run for run, _ in meter.sink.ends].count(info) == 1


def test_a_wrong_status_is_said_and_not_raised(meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """Ending with a word that is no status ends the run as error, with a warning that names the word."""
    run = runmeter.start_run(status="paused")
    assert run.status == "running"
    run.end("finished-odd")
    assert meter.sink.run(run.run_id).status == "error"
    assert "'finished-odd'" in caplog.text


def test_callers(meter: Meter) -> None:
    """The outermost agent is the lead, an agent inside it a subagent, and an explicit caller wins over both."""
    with runmeter.run() as run:
        with meter.agent("boss"):
            meter.call(1, 0)
            with meter.span("tool", gen_ai__operation__name="execute_tool"), meter.agent("helper"):
                meter.call(2, 0)
                with runmeter.caller("middleware:summarize"):
                    meter.call(4, 0)
        with runmeter.caller("subagent:late"):
            runmeter.record_usage(provider="p", model="m", input_tokens=8, output_tokens=0)
        runmeter.record_usage(provider="p", model="m", input_tokens=16, output_tokens=0, caller="subagent:said")
    assert {call.usage.input_tokens: call.caller for call in meter.sink.of(run.run_id)} == {
        1: "lead_agent", 2: "subagent:helper", 4: "middleware:summarize", 8: "subagent:late", 16: "subagent:said",
    }  # fmt: skip


def test_async_runs_do_not_mix(meter: Meter) -> None:
    """Two conversations at once in one loop, with gather, tasks and to_thread, keep their calls apart."""

    async def one(thread_id: str, tokens: int, barrier: asyncio.Barrier) -> str:
        async with runmeter.run(thread_id=thread_id) as run:
            await barrier.wait()
            await asyncio.gather(*(call(tokens) for _ in range(3)))
            await asyncio.create_task(call(tokens))
            await asyncio.to_thread(meter.call, tokens, 0)
            async with runmeter.caller("subagent:a"):
                await call(tokens)
            return run.run_id

    async def call(tokens: int) -> None:
        await asyncio.sleep(0)
        meter.call(tokens, 0)

    async def main() -> list[str]:
        barrier = asyncio.Barrier(2)
        return await asyncio.gather(one("a", 1, barrier), one("b", 100, barrier))

    first, second = asyncio.run(main())
    assert meter.sink.tokens() == {first: 6, second: 600}
    assert [call.caller for call in meter.sink.of(first)].count("subagent:a") == 1


def test_cancellation_keeps_what_was_spent(meter: Meter) -> None:
    """A cancelled run is interrupted and has the calls that had settled."""

    async def main() -> None:
        entered = asyncio.Event()

        async def work() -> None:
            async with runmeter.run(run_id="cancelled"):
                meter.call(5, 5)
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert meter.sink.run("cancelled").status == "interrupted"
    assert meter.sink.usage("cancelled").total_tokens == 10


def test_a_generator_closed_elsewhere(meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """An async generator closed in another context ends its run as interrupted, without an error in the log."""

    async def stream() -> AsyncIterator[int]:
        with runmeter.run(run_id="generator"):
            meter.call(3, 0)
            yield 1
            yield 2

    async def main() -> None:
        generator = stream()
        await anext(generator)
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]

    asyncio.run(main())
    assert meter.sink.run("generator").status == "interrupted"
    assert meter.sink.usage("generator").total_tokens == 3
    assert "detach" not in caplog.text


def test_threads(meter: Meter) -> None:
    """A thread belongs to the run when it is given the context, or enters the run; bare, Python starts it without."""
    with runmeter.run() as run:
        context = contextvars.copy_context()

        def entered() -> None:
            with run.activate():
                meter.call(10, 0)

        for target in (lambda: context.run(meter.call, 1, 0), entered, lambda: meter.call(100, 0)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.copy_context().run, meter.call, 1, 0).result()
    assert meter.sink.usage(run.run_id).total_tokens == 12
    assert sorted(meter.sink.tokens().values()) == [12, 100]


def test_an_explicit_context(meter: Meter) -> None:
    """A context passed by hand is as good as the current one."""
    run = runmeter.start_run()
    assert run.otel_context is not None
    meter.finish(meter.begin_call(context=run.otel_context), 7, 0)
    token = attach(run.otel_context)
    meter.call(1, 0)
    detach(token)
    run.end()
    assert meter.sink.usage(run.run_id).total_tokens == 8


def test_a_process_that_receives_the_context_joins(meter: Meter) -> None:
    """Spans under an extracted context belong to the run of the baggage, which this process does not own."""
    carrier = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "baggage": "runmeter.run.id=their%20run",
    }
    context = propagate.extract(carrier)
    for tokens in (1, 2):
        with meter.tracer.start_as_current_span("job", context):
            meter.call(tokens, 0)
    (info,) = meter.sink.runs
    assert (info.run_id, info.owns) == ("their run", False)
    assert meter.sink.usage("their run").total_tokens == 3
    assert len(meter.sink.ends) == 2


def test_fork(meter: Meter) -> None:
    """A forked child joins the run with a source of its own; its calls are its own and the parent's go on."""
    with runmeter.run(run_id="forked", thread_id="t") as run:
        meter.call(1, 0)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                meter.call(10, 0)
                sink = meter.sink
                told = {
                    "runs": [(info.run_id, info.owns, info.thread_id) for info in sink.runs],
                    "tokens": [call.usage.total_tokens for call in sink.calls[id(sink.runs[-1])]],
                    "source": PROCESSOR.source_id,
                    "stamp": meter.exported.get_finished_spans()[-1].attributes["runmeter.source.id"],  # type: ignore[index]
                }
                run.end("error")
                told["ends"] = len(sink.ends)
                told["status"] = sink.runs[0].status
                os.write(write, json.dumps(told).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            told = json.load(pipe)
        assert os.waitpid(child, 0)[1] == 0
        meter.call(100, 0)
    assert told["runs"] == [["forked", True, "t"], ["forked", False, "t"]]
    assert told["tokens"] == [10]
    assert told["source"] == told["stamp"] == f"{SOURCE}-fork1"
    assert told["status"] == "running"
    assert meter.sink.usage("forked").total_tokens == 101
    assert meter.sink.run("forked").status == "success"


def test_records(meter: Meter) -> None:
    """record_usage counts inclusive numbers once per call id, states its messages and cost, and failures."""
    with runmeter.run() as run:
        for _ in range(3):
            runmeter.record_usage(
                provider="anthropic", model="claude", input_tokens=100, output_tokens=50, cache_read_tokens=60,
                cache_write_tokens=10, reasoning_tokens=20, messages=3, cost_usd=0.25, call_id="one",
            )  # fmt: skip
        runmeter.record_usage(provider="anthropic", model="claude", failed=True)
        runmeter.record_usage(provider="anthropic", model="claude")
    usage = meter.sink.usage(run.run_id)
    assert usage[:9] == (100, 50, 60, 10, 20, 2, 1, 1, 4)
    assert [call.reported_cost_nanousd for call in meter.sink.of(run.run_id)].count(250_000_000) == 1


def test_records_outside_any_run(meter: Meter) -> None:
    """A record without a run is a run of its own trace; one in a trace belongs to that trace's run."""
    runmeter.record_usage(provider="p", model="m", input_tokens=1, output_tokens=0)
    with meter.span("GET /"):
        runmeter.record_usage(provider="p", model="m", input_tokens=2, output_tokens=0)
        runmeter.record_usage(provider="p", model="m", input_tokens=4, output_tokens=0)
        trace_id = trace.get_current_span().get_span_context().trace_id
    assert sorted(meter.sink.tokens().values()) == [1, 6]
    assert meter.sink.usage(format(trace_id, "032x")).total_tokens == 6
    assert all(info.status == "success" for info, _ in meter.sink.ends)


def test_records_by_run_id(meter: Meter) -> None:
    """A run id addresses a run from anywhere: an outer one, an ended one, one of another process."""
    with runmeter.run() as outer, runmeter.run() as inner:
        runmeter.record_usage(provider="p", model="m", input_tokens=1, output_tokens=0, run_id=outer.run_id)
        runmeter.record_usage(provider="p", model="m", input_tokens=2, output_tokens=0)
    runmeter.record_usage(provider="p", model="m", input_tokens=4, output_tokens=0, run_id=inner.run_id)
    runmeter.record_usage(provider="p", model="m", input_tokens=8, output_tokens=0, run_id="elsewhere")
    assert meter.sink.tokens() == {outer.run_id: 1, inner.run_id: 6, "elsewhere": 8}
    assert meter.sink.run("elsewhere").owns is False
    assert [info.run_id for info, _ in meter.sink.ends].count(inner.run_id) == 2


def test_ids_are_cleaned(meter: Meter) -> None:
    """Ids are text of at most 256 characters without NUL and lone surrogates, told apart by a digest where that is not
    all of them; an empty one is no id."""
    with runmeter.run(run_id="x" * 300, thread_id="a\0b\ud800c", agent="", tags={"k": 1}) as run:  # type: ignore[dict-item]
        pass
    info = meter.sink.run(run.run_id)
    assert (len(info.run_id), info.run_id[:240]) == (256, "x" * 239 + "~")
    assert (str(info.thread_id)[:4], info.agent, info.tags) == ("abc~", None, {"k": "1"})
    with runmeter.run(run_id="", thread_id="") as other:
        pass
    assert len(other.run_id) == 32
    assert meter.sink.run(other.run_id).thread_id is None


def test_nothing_is_left_in_the_context(meter: Meter) -> None:
    """After a run the context is what it was before."""
    before = get_current()
    with runmeter.run(), runmeter.caller("subagent:x"):
        assert baggage.get_baggage("runmeter.run.id")
        assert get_current() != before
    assert get_current() == before


def test_without_instrument_everything_is_harmless() -> None:
    """Runs, callers and records do nothing, and say nothing but one line, where nobody counts."""
    code = (
        "import runmeter\n"
        "with runmeter.run(thread_id='t') as run, runmeter.caller('subagent:x'):\n"
        "    runmeter.record_usage(provider='p', model='m', input_tokens=1, output_tokens=1)\n"
        "run2 = runmeter.start_run(); run2.running(); run2.end('success')\n"
        "print(run.usage.calls, len(run.run_id), run.status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["0", "32"]
    assert done.stderr == ""
