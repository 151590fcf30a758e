"""`make test-live`: real libraries at their current releases, an environment for each, against the loopback provider.

    python tests/live/run.py [--fresh] [--record] [LIBRARY …]

Makes `.venv-live-LIBRARY` with pip (kept for the next time; `--fresh` makes them anew), runs each scenario in each mode
in a process of its own, and compares what runmeter stored with what the provider says it returned. Exit code 1 where a
case differs that is not listed as impossible, with the reason, in the scenario itself. `--record` keeps what came out
as `results/LIBRARY.json`, from which `table.py` makes the page and what the doctor knows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from results import record  # noqa: E402
from sidecar_process import Sidecar  # noqa: E402

SCENARIO_SECONDS = 300


@dataclass(frozen=True)
class Library:
    """What one environment holds, and the modes its scenario is run in."""

    packages: tuple[str, ...]
    modes: tuple[str, ...]
    """`auto` is `runmeter.instrument()` alone; names joined by `+` are switched on together by the scenario."""
    scenario: str | None = None
    """Whose scenario is run, where two environments share one."""
    otlp: tuple[str, ...] = ()
    """Modes in which it is run at door 2 too: OTLP to a `runmeter serve`, without runmeter in the agent's process."""
    name: str = ""
    """What the page calls it; only what has a name is on the page."""
    says: Mapping[str, str] | None = None
    """Part of a mode → the distribution that does it, `hook`, or "" for spans that the framework makes by itself."""
    todo: str = ""
    """What a user does to be metered exactly, in a line: Markdown."""


GENAI = "opentelemetry-instrumentation-genai-"
ADK = ("auto", "own", "own+genai", "own+oi-genai", "openinference", "openinference+genai", "openinference+oi-genai")
SAYS_ADK = {
    "own": "", "openinference": "openinference-instrumentation-google-adk",
    "genai": "opentelemetry-instrumentation-google-genai", "oi-genai": "openinference-instrumentation-google-genai",
}  # fmt: skip


def _beside_openai(name: str, package: str, todo: str, *more: str, openinference: str = "") -> Library:
    """A framework that calls the openai client: by the client's instrumentation, OpenInference's of it, and both."""
    own = f"openinference-instrumentation-{openinference or package}"
    modes = ("openai", "openinference", "openinference+openai")
    says = {"openai": f"{GENAI}openai", "openinference": own}
    return Library((package, *more, f"{GENAI}openai>=1.3b0", own), modes, None, modes, name, says, todo)


LIBRARIES = {
    "openai": Library(
        ("openai", f"{GENAI}openai>=1.3b0", "openinference-instrumentation-openai"),
        ("auto", "genai", "openinference", "genai+openinference"),
    ),
    # The SDK makes spans by itself once a provider is set, so one more is two at once.
    "anthropic": Library(("anthropic", f"{GENAI}anthropic>=1.3b0"), ("auto", "genai")),
    "langchain": Library(
        ("langchain", "langchain-openai", "langgraph", f"{GENAI}langchain>=1.3b0", f"{GENAI}openai>=1.3b0",
         "openinference-instrumentation-langchain"),
        ("auto", "hook", "genai", "openinference", "hook+genai", "hook+openai", "genai+openai", "openinference+openai"),
        None, (), "LangChain",
        {"openai": f"{GENAI}openai", "genai": f"{GENAI}langchain",
         "openinference": "openinference-instrumentation-langchain"},
        "`runmeter.hooks.langchain.install()`",
    ),
    # Without a run around it: which runs come about, of which threads, with which callers.
    "langgraph": Library(
        ("langchain", "langchain-openai", "langgraph", f"{GENAI}langchain>=1.3b0", f"{GENAI}openai>=1.3b0",
         "openinference-instrumentation-langchain", "opentelemetry-instrumentation-langchain"),
        ("hook", "handler", "handler+hook", "hook+genai", "hook+openinference", "hook+openllmetry", "hook+openai",
         "hook+genai+openai", "handler+genai", "genai", "genai+openai", "openinference", "openinference+openai",
         "openllmetry", "openai"),
        None, (), "LangGraph",
        {"handler": "hook", "openai": f"{GENAI}openai", "genai": f"{GENAI}langchain",
         "openinference": "openinference-instrumentation-langchain",
         "openllmetry": "opentelemetry-instrumentation-langchain"},
        "`runmeter.hooks.langchain.install()`",
    ),
    "llama-index": Library(
        ("llama-index-core", "llama-index-llms-openai", "llama-index-embeddings-openai", f"{GENAI}openai>=1.3b0",
         f"{GENAI}llama-index>=1.3b0", "openinference-instrumentation-llama-index",
         "opentelemetry-instrumentation-llamaindex", "llama-index-observability-otel"),
        ("hook", "hook+openai", "hook+genai", "hook+openinference", "hook+openllmetry", "hook+own", "openai", "genai",
         "genai+openai", "openinference", "openinference+openai", "openllmetry", "openllmetry+openai", "own",
         "own+openai"),
        None, ("genai", "genai+openai", "openinference", "openllmetry", "openllmetry+openai", "own", "own+openai"),
        "LlamaIndex",
        {"openai": f"{GENAI}openai", "genai": f"{GENAI}llama-index", "own": "llama-index-observability-otel",
         "openinference": "openinference-instrumentation-llama-index",
         "openllmetry": "opentelemetry-instrumentation-llamaindex"},
        "`runmeter.hooks.llama_index.install()`, with the client's instrumentation beside it for embeddings",
    ),
    "pydantic-ai": Library(
        ("pydantic-ai-slim[openai]", f"{GENAI}openai>=1.3b0"), ("hook", "hook+openai"), None, ("otel", "otel+openai"),
        "Pydantic AI", {"otel": "", "openai": f"{GENAI}openai"},
        "`runmeter.hooks.pydantic_ai.install()`; door 2: `Agent.instrument_all()`",
    ),
    "openai-agents": Library(
        ("openai-agents", f"{GENAI}openai-agents>=1.3b0", f"{GENAI}openai>=1.3b0"),
        ("hook", "openai", "hook+openai", "hook+genai+openai"), None, ("openai", "genai+openai"),
        "OpenAI Agents", {"openai": f"{GENAI}openai", "genai": f"{GENAI}openai-agents"},
        "`runmeter.hooks.openai_agents.install()`",
    ),
    "litellm": Library(
        ("litellm", f"{GENAI}openai>=1.3b0"), ("hook", "otel", "hook+otel", "hook+openai"), None, ("otel",),
        "LiteLLM", {"otel": "", "openai": f"{GENAI}openai"}, "`runmeter.hooks.litellm.install()`",
    ),
    "dspy": Library(
        ("dspy", "litellm", f"{GENAI}openai>=1.3b0", f"{GENAI}dspy>=1.3b0", "openinference-instrumentation-dspy",
         "openinference-instrumentation-litellm"),
        ("hook", "hook+openai", "hook+openinference", "hook+litellm", "openai", "genai", "openinference"), None,
        ("genai", "openinference", "openinference+litellm"), "DSPy",
        {"openai": f"{GENAI}openai", "genai": f"{GENAI}dspy", "openinference": "openinference-instrumentation-dspy",
         "litellm": "openinference-instrumentation-litellm"}, "`runmeter.hooks.dspy.install()`",
    ),
    "agno": Library(
        ("agno", "openai", f"{GENAI}openai>=1.3b0", "openinference-instrumentation-agno",
         "opentelemetry-instrumentation-agno"),
        ("openai", "openinference", "openinference+openai", "openllmetry", "openllmetry+openai"), None,
        ("openai", "openinference", "openinference+openai", "openllmetry"), "Agno",
        {"openai": f"{GENAI}openai", "openinference": "openinference-instrumentation-agno",
         "openllmetry": "opentelemetry-instrumentation-agno"},
        "OpenInference's for agents and the client's for tokens, or the client's alone",
    ),
    "autogen": _beside_openai(
        "AutoGen", "autogen-agentchat", "the client's instrumentation; AutoGen's own spans name the agents",
        "autogen-ext[openai]",
    ),
    "crewai": Library(
        ("crewai", f"{GENAI}openai>=1.3b0", "openinference-instrumentation-crewai",
         "opentelemetry-instrumentation-crewai"),
        ("openai", "openinference", "openinference+openai", "openllmetry", "openllmetry+openai"), None,
        ("openai", "openinference", "openinference+openai", "openllmetry"), "CrewAI",
        {"openai": f"{GENAI}openai", "openinference": "openinference-instrumentation-crewai",
         "openllmetry": "opentelemetry-instrumentation-crewai"},
        "OpenInference's for agents and the client's for tokens, or the client's alone",
    ),
    "haystack": _beside_openai("Haystack", "haystack-ai", "the client's instrumentation", openinference="haystack"),
    # What it makes of a call is the client's to tell of: OpenInference's spans are around what Instructor is asked for.
    "instructor": Library(
        ("instructor", "openai", "anthropic", f"{GENAI}openai>=1.3b0", f"{GENAI}anthropic>=1.3b0",
         "openinference-instrumentation-instructor", "openinference-instrumentation-openai",
         "opentelemetry-instrumentation-openai"),
        ("auto", "openai", "openinference", "openinference+openai", "oi-openai", "openinference+oi-openai",
         "openllmetry", "openinference+openllmetry"), None,
        ("openai", "openinference", "openinference+openai", "oi-openai", "openinference+oi-openai", "openllmetry"),
        "Instructor",
        {"openai": f"{GENAI}openai", "openinference": "openinference-instrumentation-instructor",
         "oi-openai": "openinference-instrumentation-openai", "openllmetry": "opentelemetry-instrumentation-openai"},
        "nothing but the client's instrumentation; with openai `opentelemetry-instrumentation-genai-openai`",
    ),
    "semantic-kernel": Library(
        ("semantic-kernel", f"{GENAI}openai>=1.3b0", "openinference-instrumentation-openai"),
        ("auto", "openai", "own", "own+openai", "own+oi-openai"), None,
        ("openai", "own", "own+openai", "own+oi-openai"), "Semantic Kernel",
        {"own": "", "openai": f"{GENAI}openai", "oi-openai": "openinference-instrumentation-openai"},
        "the client's instrumentation; Semantic Kernel's own spans, which name the agents, with "
        "`SEMANTICKERNEL_EXPERIMENTAL_GENAI_ENABLE_OTEL_DIAGNOSTICS=true`",
    ),
    "smolagents": _beside_openai(
        "smolagents", "smolagents[openai]",
        "OpenInference's for agents and the client's for tokens, or the client's alone", openinference="smolagents",
    ),
    # It makes spans by itself once a provider is set; OpenInference's is a processor that rewrites them.
    "strands": Library(
        ("strands-agents[openai,anthropic,gemini]>=1.62", f"{GENAI}openai>=1.3b0",
         "openinference-instrumentation-strands-agents"),
        ("auto", "own", "own+openai", "latest", "latest+openai", "openinference", "openinference+openai"), None,
        ("own", "own+openai", "latest", "openinference", "openinference+openai"), "Strands",
        {"own": "", "latest": "gen_ai_latest_experimental", "openai": f"{GENAI}openai",
         "openinference": "openinference-instrumentation-strands-agents"},
        "nothing; with the client's instrumentation beside its spans reasoning is told as well",
    ),
    # `genai` and `oi-genai` are instrumentations of the client below it.
    "adk": Library(
        ("google-adk>=2", "opentelemetry-instrumentation-google-genai>=1.3b0",
         "openinference-instrumentation-google-adk", "openinference-instrumentation-google-genai"),
        ADK, None, tuple(mode for mode in ADK if mode != "auto"), "ADK 2", SAYS_ADK, "nothing: its own spans",
    ),
    # OpenInference's from 1.0 on stays off before ADK 2.10.
    "adk-1": Library(
        ("google-adk<2", "opentelemetry-instrumentation-google-genai>=1.3b0",
         "openinference-instrumentation-google-adk<1", "openinference-instrumentation-google-genai"),
        ADK, "adk", tuple(mode for mode in ADK if mode != "auto"), "ADK 1", SAYS_ADK,
        "nothing: its own spans; `Runner.run` works in a thread without the context and is a run of its own",
    ),
    # `own` is the telemetry of the Claude Code program, which goes from it to a sidecar.
    "claude-agent-sdk": Library(
        ("claude-agent-sdk", "openinference-instrumentation-claude-agent-sdk"),
        ("hook", "hook+openinference", "openinference"), None, ("own", "own+openinference", "openinference"),
        "Claude Agent SDK",
        {"own": "Claude Code's telemetry", "openinference": "openinference-instrumentation-claude-agent-sdk"},
        "`runmeter.hooks.claude_agent_sdk.install()`; door 2: `CLAUDE_CODE_ENABLE_TELEMETRY=1 "
        "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA=1 OTEL_TRACES_EXPORTER=otlp` among the options' `env`",
    ),
    "google-genai": Library(("google-genai", "openinference-instrumentation-google-genai"), ("openinference",)),
    # 1.3b0 of the official instrumentation says that it stays off on google-genai 3, and does.
    "google-genai-2": Library(
        ("google-genai<3", "opentelemetry-instrumentation-google-genai>=1.3b0"), ("auto", "genai"), "google-genai"
    ),
}  # fmt: skip


def environment(name: str, library: Library, fresh: bool) -> Path:
    """The Python of the library's environment, made where it is not there."""
    folder = ROOT / f".venv-live-{name}"
    stamp = folder / ".installed"
    wanted = json.dumps([*library.packages, (ROOT / "pyproject.toml").read_text()])
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"== {name}: installing {', '.join(library.packages)} into {folder.name} with pip", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        subprocess.run([*install, "--upgrade", "pip"], check=True)  # older ones take minutes to resolve these
        otlp = ["opentelemetry-exporter-otlp-proto-http"] if library.otlp else []
        subprocess.run([*install, "-e", f"{ROOT}[store]", *otlp, *library.packages], check=True)
        stamp.write_text(wanted)
    return python


def run(scenario: str, mode: str, python: Path, door: int = 1) -> list[dict[str, object]]:
    """The cases of one scenario in one mode, as it reported them; a crash is a case that failed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "RUNMETER_"))}
    # Nothing of a scenario leaves the machine: no telemetry of a library's own, no list of prices from the network.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "none"}
    script = HERE / "scenarios" / f"live_{scenario.replace('-', '_')}.py"
    with ExitStack() as stack:
        if door == 2:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="runmeter-live-"))
            store = f"sqlite:///{folder}/store.sqlite"
            sidecar = stack.enter_context(Sidecar(store, "--grace", "1s", env=kept))
            quiet |= {"RUNMETER_LIVE_STORE": store, "RUNMETER_LIVE_OTLP": sidecar.otlp_url}
        try:
            done = subprocess.run(
                [python, script, mode], env=kept | quiet | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True,
                timeout=SCENARIO_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return [{"case": "(all)", "ok": False, "why": f"not done within {SCENARIO_SECONDS} s"}]
    cases = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    if done.returncode != 0 or not cases:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-12:]
        cases.append({"case": "(the scenario)", "ok": False, "why": "\n      ".join(last)})
    return cases


def main(given: Sequence[str] | None = None) -> int:
    """Run what was asked for and print a line for each case."""
    parser = argparse.ArgumentParser(description="Compare real libraries with the provider's ledger.")
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=", ".join(LIBRARIES))
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument("--record", action="store_true", help="keep the outcome in tests/live/results")
    parser.add_argument("--python", help="use this Python, which holds what the library needs, and install nothing")
    arguments = parser.parse_args(given)
    unknown = set(arguments.libraries) - set(LIBRARIES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(LIBRARIES)}")
    right = wrong = impossible = 0
    for name in arguments.libraries or LIBRARIES:
        library = LIBRARIES[name]
        try:
            python = Path(arguments.python) if arguments.python else environment(name, library, arguments.fresh)
        except subprocess.CalledProcessError as error:
            print(f"FAIL {name}: its environment could not be made: {error}", flush=True)
            wrong += 1
            continue
        outcome = []
        for door, mode in [(1, mode) for mode in library.modes] + [(2, mode) for mode in library.otlp]:
            cases = run(library.scenario or name, mode, python, door)
            outcome.append((mode, door, cases))
            for case in cases:
                if case["ok"]:
                    right, word = right + 1, "ok  "
                elif case.get("impossible"):
                    impossible, word = impossible + 1, "can't"
                else:
                    wrong, word = wrong + 1, "FAIL"
                where = f"{word} {name:<14} {door} {mode:<22} {case['case']:<28}"
                print(f"{where} {case.get('why', '')}".rstrip(), flush=True)
        if arguments.record and library.name:
            record(HERE / "results", name, library, python, outcome)
    print(f"{right} right, {wrong} wrong, {impossible} that cannot be right from what the library says")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
