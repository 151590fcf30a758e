"""LangChain and LangGraph: a chat model by itself, an agent with tools and a subagent, threads, worker threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from harness import live
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

with live() as scenario:
    if "hook" in scenario.modes:
        from runmeter.hooks import langchain as hook

        assert hook.install()
    if "genai" in scenario.modes:
        from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor

        LangChainInstrumentor().instrument()
    if "openinference" in scenario.modes:
        from openinference.instrumentation.langchain import LangChainInstrumentor as OpenInference

        OpenInference().instrument()
    if "openai" in scenario.modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()

    def model(**more: object) -> ChatOpenAI:
        return ChatOpenAI(model="gpt-5-mini", base_url=scenario.provider.openai_url, api_key="none", **more)

    @tool
    def look_up(q: str) -> str:
        """Look something up."""
        return "42"

    @tool
    def ask_expert(question: str) -> str:
        """Ask another agent."""
        expert = create_agent(model(), [look_up], name="expert")
        prompt = f'{question} [[tool look_up {{"q": "inner"}}]]'
        answer = expert.invoke({"messages": [("user", prompt)]}, {"tags": ["subagent:expert"]})
        return str(answer["messages"][-1].content)

    with scenario.case("invoke"):
        for i in range(3):
            model().invoke(f"hello {i}")
    with scenario.case("stream_with_usage"):
        for _ in model(stream_usage=True).stream("hello"):
            pass
    with scenario.case("batch"):
        model().batch(["one", "two", "three"])
    with scenario.case("responses"):
        model(use_responses_api=True).invoke("hello")
    with scenario.case("agent_with_tools"):
        agent = create_agent(model(), [look_up], name="boss")
        agent.invoke({"messages": [("user", '[[tool look_up {"q": "a"}]] [[tool look_up {"q": "b"}]]')]})
    with scenario.case("agent_with_subagent"):
        boss = create_agent(model(), [ask_expert], name="boss")
        boss.invoke({"messages": [("user", '[[tool ask_expert {"question": "why"}]]')]})
    with scenario.case("async_at_once"):

        async def at_once() -> None:
            agent = create_agent(model(), [look_up], name="boss")
            ask = {"messages": [("user", '[[tool look_up {"q": "a"}]]')]}
            await asyncio.gather(*[agent.ainvoke(ask) for _ in range(3)])

        asyncio.run(at_once())
    with scenario.case("worker_threads") as run, ThreadPoolExecutor(3) as pool:

        def work(number: int) -> None:
            with run.activate():
                model().invoke(f"hello {number}")

        list(pool.map(work, range(3)))
