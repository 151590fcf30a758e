"""LangGraph without `runmeter.run`: the outermost invocation is the run, `thread_id` its thread, and it knows who
calls. Also streamed, asynchronous, at once, in threads, nested, interrupted, and with a run of the host's around it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import openai
from harness import live
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph
from own import own as runs

import runmeter

TAGS = "its spans know neither tags nor middlewares"
LEAVES = "it leaves its context behind after a batch and a stream, so that what comes later is told of in an old trace"
BEYOND = "a run begins with a thread only where somebody says so: the client does not know of LangGraph"
LOOSE = {
    "genai": {"callers": TAGS, "status": "a cancelled invocation is an error on its span"},
    "openinference": {
        "callers": "its spans name no agents", "agent": "its spans name no agents",
        "status": "a cancelled invocation is an error on its span",
        "threads": "its spans are not in the context, so that a client's in a tool are of a trace of their own",
    },
    "openllmetry": {"reasoning_tokens": "it leaves reasoning out", "callers": TAGS, **dict.fromkeys(
        ("calls", "input_tokens", "output_tokens", "cache_read_tokens", "threads"), LEAVES)},
    "openai": dict.fromkeys(("threads", "agent", "callers", "status"), BEYOND),
}  # fmt: skip

with live() as scenario:
    modes = scenario.modes
    callbacks: list[Any] = []
    if "hook" in modes:
        from runmeter.hooks import langchain as hook

        assert hook.install()
    if "handler" in modes:
        from runmeter.hooks.langchain import UsageCallbackHandler

        callbacks = [UsageCallbackHandler()]
    if "genai" in modes:
        from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor

        LangChainInstrumentor().instrument()
    if "openinference" in modes:
        from openinference.instrumentation.langchain import LangChainInstrumentor as OpenInference

        OpenInference().instrument()
    if "openllmetry" in modes:
        from opentelemetry.instrumentation.langchain import LangchainInstrumentor as OpenLLMetry

        OpenLLMetry().instrument()
    if "openai" in modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    ours = "hook" in modes or "handler" in modes
    loose = {} if ours else next(LOOSE[mode] for mode in LOOSE if mode in modes)

    def own(*args: Any, **more: Any) -> Any:
        return runs(*args, **more, loose=loose)

    client = openai.OpenAI(base_url=scenario.provider.openai_url, api_key="none")

    def model(**more: Any) -> ChatOpenAI:
        return ChatOpenAI(model="gpt-5-mini", base_url=scenario.provider.openai_url, api_key="none", **more)

    def of(thread: str | None, **more: Any) -> Any:
        config: dict[str, Any] = {"configurable": {"thread_id": thread}} if thread else {}
        return config | ({"callbacks": callbacks} if callbacks else {}) | more

    def about(thread: str, **more: Any) -> Any:
        """For what is no graph: LangGraph alone makes metadata of what is configurable."""
        return {"metadata": {"thread_id": thread}, "callbacks": callbacks or None} | more

    def say(text: str) -> dict[str, Any]:
        return {"messages": [("user", text)]}

    @tool
    def look_up(q: str) -> str:
        """Look something up."""
        return "42"

    @tool
    def ask_expert(question: str) -> str:
        """Ask another agent."""
        expert = create_agent(model(), [look_up], name="expert")
        answer = expert.invoke(say(f'{question} [[tool look_up {{"q": "inner"}}]]'))
        return str(answer["messages"][-1].content)

    @tool
    def ask_tagged(question: str) -> str:
        """Ask another agent that goes by a tag, with callbacks of its own."""
        expert = create_agent(model(), [look_up], name="expert")
        config: Any = {"tags": ["subagent:tagged"], "callbacks": list(callbacks)}
        return str(expert.invoke(say(question), config)["messages"][-1].content)

    @tool
    def ask_client(question: str) -> str:
        """Ask a model past LangChain."""
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": question}])
        return "42"

    LOOK, EXPERT = '[[tool look_up {"q": "a"}]]', '[[tool ask_expert {"question": "why"}]]'
    boss = create_agent(model(), [look_up, ask_expert, ask_tagged, ask_client], name="boss")

    with own(scenario, "thread", {"t1": 1}, agent="boss", callers={"lead_agent": 3}):
        boss.invoke(say(f"{LOOK} {LOOK} "), of("t1"))
    with own(scenario, "two_turns", {"t2": 2}, callers={"lead_agent": 2}):
        for _ in range(2):
            boss.invoke(say("hello"), of("t2"))
    with own(scenario, "subagent", {"t3": 1}, agent="boss", callers={"lead_agent": 2, "subagent:expert": 2}):
        boss.invoke(say(EXPERT), of("t3"))
    with own(scenario, "subagent_tag", {"t4": 1}, agent="boss", callers={"lead_agent": 2, "subagent:tagged": 1}):
        boss.invoke(say('[[tool ask_tagged {"question": "why"}]]'), of("t4"))
    with own(scenario, "middleware", {"t5": 1}, callers={"lead_agent": 2, "middleware:SummarizationMiddleware": 1}):
        short = SummarizationMiddleware(model=model(), trigger=("messages", 3), keep=("messages", 1))
        create_agent(model(), [look_up], name="boss", middleware=[short]).invoke(say(LOOK), of("t5"))
    with own(scenario, "tags", {"t6": 1}, callers={"middleware:title": 1}):
        model().invoke("hello", about("t6", tags=["lead_agent", "middleware:title"]))
    with own(scenario, "model", {"t7": 1}, callers={"lead_agent": 1}):
        model().invoke("hello", about("t7"))
    with own(scenario, "model_batch", {"t8": 3}):
        model().batch(["a", "b", "c"], about("t8"))
    with own(scenario, "chain_batch", {"t9": 3}):
        (RunnableLambda(lambda x: x) | model()).batch(["a", "b", "c"], about("t9"))
    with own(scenario, "agent_batch", {"t10": 1, "t11": 1}):
        boss.batch([say(LOOK), say(LOOK)], [of("t10"), of("t11")])
    with own(scenario, "stream", {"t12": 1}, callers={"lead_agent": 2}):
        for _ in boss.stream(say(LOOK), of("t12")):
            pass
    with own(scenario, "streams_interleaved", {"t13": 1, "t14": 1}):
        one, two = boss.stream(say(LOOK), of("t13")), boss.stream(say(LOOK), of("t14"))
        for _ in zip(one, two, strict=False):
            pass
        list(one), list(two)
    with own(scenario, "stream_messages", {"t15": 1}):
        streaming = create_agent(model(stream_usage=True), [look_up], name="boss")
        for _ in streaming.stream(say(LOOK), of("t15"), stream_mode="messages"):
            pass
    with own(scenario, "invoke_while_streaming", {"t16": 1, "t17": 2}):
        for _ in boss.stream(say(LOOK), of("t16")):
            if len(scenario.provider.ledger) % 2:
                pass
        for number, _ in enumerate(boss.stream(say("hello"), of("t17"))):
            if number == 0:
                boss.invoke(say("hello"), of("t17"))

    async def asynchronous() -> None:
        with own(scenario, "async_at_once", {"a1": 1, "a2": 1, "a3": 1}):
            await asyncio.gather(*[boss.ainvoke(say(LOOK), of(f"a{i}")) for i in (1, 2, 3)])
        with own(scenario, "async_one_after_the_other", {"a4": 1, "a5": 1}):
            await boss.ainvoke(say(LOOK), of("a4"))
            await boss.ainvoke(say(EXPERT), of("a5"))
        with own(scenario, "async_stream", {"a6": 1}):
            async for _ in boss.astream(say(LOOK), of("a6")):
                pass
        with own(scenario, "async_abatch", {"a7": 2}):
            await boss.abatch([say("hello"), say(LOOK)], of("a7"))
        with own(scenario, "async_left", {"a8": 1}, status="interrupted"):
            waiting = asyncio.Event()

            @tool
            async def wait(q: str) -> str:
                """Wait for ever."""
                waiting.set()
                await asyncio.Event().wait()
                return q

            agent = create_agent(model(), [wait], name="boss")
            task = asyncio.ensure_future(agent.ainvoke(say('[[tool wait {"q": "a"}]]'), of("a8")))
            await waiting.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with own(scenario, "nested_graphs", {"t18": 1}, callers={"lead_agent": 2}):
        inner = StateGraph(MessagesState)
        inner.add_node("write", lambda state: {"messages": [model().invoke(state["messages"])]})
        inner.set_entry_point("write")
        outer = StateGraph(MessagesState)
        outer.add_node("first", inner.compile())
        outer.add_node("second", lambda state: {"messages": [model().invoke(state["messages"])]})
        outer.set_entry_point("first")
        outer.add_edge("first", "second")
        outer.compile(checkpointer=InMemorySaver()).invoke(say("hello"), of("t18"))
    with own(scenario, "error", {"t19": 1}, status="error"):

        @tool
        def fall(q: str) -> str:
            """Fall."""
            raise KeyError(q)

        try:
            create_agent(model(), [fall], name="boss").invoke(say('[[tool fall {"q": "a"}]]'), of("t19"))
        except KeyError:
            pass
    with own(scenario, "threads", {"t20": 1, "t21": 1}):
        at_work = [threading.Thread(target=boss.invoke, args=(say(LOOK), of(f"t{i}"))) for i in (20, 21)]
        for thread in at_work:
            thread.start()
        for thread in at_work:
            thread.join()
    with own(scenario, "no_thread", {None: 1}):
        boss.invoke(say(LOOK), of(None))
    with own(scenario, "no_calls", {}):
        idle = StateGraph(MessagesState)
        idle.add_node("only", lambda state: {"messages": []})
        idle.set_entry_point("only")
        idle.compile(name="idle").invoke(say("hello"), of("t26"))
        look_up.invoke({"q": "a"})
    with own(scenario, "run_of_the_host", {"host": 1}, callers={"lead_agent": 2, "subagent:expert": 2}), runmeter.run(
        thread_id="host"
    ):
        boss.invoke(say(EXPERT), of("t22"))
    with own(scenario, "caller_of_the_host", {"t23": 1}, callers={"middleware:mine": 2}), runmeter.caller(
        "middleware:mine"
    ):
        boss.invoke(say(LOOK), of("t23"))
    if "openai" in modes:
        with own(scenario, "client_in_a_tool", {"t24": 1}, callers={"lead_agent": 3}):
            boss.invoke(say('[[tool ask_client {"question": "why"}]]'), of("t24"))
        with own(scenario, "only_the_client", {"t25": 1}):
            RunnableLambda(lambda text: ask_client.invoke(text)).invoke({"question": "why"}, about("t25"))
    asyncio.run(asynchronous())
