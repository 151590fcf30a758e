"""The Google GenAI client: content whole and streamed, thoughts, cached tokens."""

from __future__ import annotations

from google import genai
from google.genai import types
from harness import live

with live() as scenario:
    if "genai" in scenario.modes:
        from opentelemetry.instrumentation.google_genai import GoogleGenAiSdkInstrumentor

        GoogleGenAiSdkInstrumentor().instrument()
    if "openinference" in scenario.modes:
        from openinference.instrumentation.google_genai import GoogleGenAIInstrumentor

        GoogleGenAIInstrumentor().instrument()
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=scenario.provider.url))
    with scenario.case("generate"):
        for i in range(3):
            client.models.generate_content(model="gemini-3-flash", contents=f"hello {i}")
    with scenario.case("stream"):
        for _ in client.models.generate_content_stream(model="gemini-3-flash", contents="hello"):
            pass
    with scenario.case("chat"):
        chat = client.chats.create(model="gemini-3-flash")
        for i in range(2):
            chat.send_message(f"hello {i}")
