"""DSPy: its cache, retries, streams, async, threads, its LiteLLM engine, models of one's own and whole programs."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import dspy
from harness import live

NATIVE = "DSPy 3.4 speaks to providers itself, past the openai and LiteLLM libraries"
SPANS = "its spans are of DSPy's calls, so answers from DSPy's cache are calls, and models below others are not"
BLANK = "its spans carry no usage that DSPy 3.4 reports, and answers from DSPy's cache are calls"
INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "genai": ("opentelemetry.instrumentation.genai.dspy", "DSPyInstrumentor"),
              "openinference": ("openinference.instrumentation.dspy", "DSPyInstrumentor"),
              "litellm": ("openinference.instrumentation.litellm", "LiteLLMInstrumentor")}  # fmt: skip

with live() as scenario:
    hooked = "hook" in scenario.modes
    scenario.switch_on(INSTRUMENT)
    if hooked:
        from runmeter.hooks import dspy as hook

        assert hook.install()
    # What a mode cannot have right, in any case; with the hook only answers from the cache, which OpenInference shows.
    lost = None if hooked else {"openai": NATIVE, "genai": SPANS}.get(scenario.modes[0], BLANK)
    cached = BLANK if "openinference" in scenario.modes else lost
    dspy.configure_cache(disk_cache_dir=tempfile.mkdtemp(prefix="runmeter-live-"), enable_disk_cache=False)

    def model(**more: Any) -> Any:
        given: dict[str, Any] = {"cache": False, "api_base": scenario.provider.openai_url, "api_key": "none", **more}
        return dspy.LM("openai/gpt-4.1-mini", **given)

    class Text(dspy.BaseLM):  # type: ignore[misc]
        """A model of the user's own that asks another one."""

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return model().forward(prompt=prompt, messages=messages)

    dspy.configure(lm=model(), adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))
    with scenario.case("lm", impossible=lost, callers={"lead_agent": 3} if hooked else None):
        for i in range(3):
            model()(f"hello {i}")
    with scenario.case("responses", impossible=lost):
        model(model_type="responses")("hello")
    with scenario.case("litellm_engine", impossible=lost):
        model(engine="litellm")("hello")
    with scenario.case("cached", impossible=cached):
        for _ in range(3):
            model(cache=True)("the same question")
    with scenario.case("retried", impossible=lost):
        model(num_retries=2)("[[fail 500]]")
    with scenario.case("failed_then_ours", impossible=lost):
        try:
            model(num_retries=0)("[[fail 400]] ours")
        except Exception:
            model(num_retries=0)("[[fail 400]] ours")
    with scenario.case("n", impossible=lost):
        model()("hello", n=2, temperature=1.0)
    with scenario.case("own_model", impossible=lost):
        Text("own/model")("hello")
    with scenario.case("parallel", impossible=lost):
        work = dspy.Parallel(num_threads=4, disable_progress_bar=True)
        work([(lambda text: model()(text), {"text": f"hello {i}"}) for i in range(8)])

    async def asynchronous() -> None:
        with scenario.case("async", impossible=lost):
            await asyncio.gather(*[model().acall(f"hello {i}") for i in range(4)])
        with scenario.case("async_cached", impossible=cached):
            for _ in range(2):
                await model(cache=True).acall("the same again")
        with scenario.case("asyncify", impossible=lost):
            await dspy.asyncify(lambda text: model()(text))("hello")
        with scenario.case("stream", impossible=lost):
            predict = dspy.Predict("question -> answer")
            try:
                async for _ in dspy.streamify(predict)(question="hello"):
                    pass
            except Exception:  # the provider's answer has no fields: it was given all the same
                pass

    asyncio.run(asynchronous())
    with scenario.case("program", impossible=lost):
        try:
            dspy.ChainOfThought("question -> answer")(question="hello")
        except Exception:
            pass
