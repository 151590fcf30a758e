// Polls the REST routes with If-None-Match and shows what they say. No number is kept here but for the rates.
"use strict";

const EVERY = 2000; // ms between polls
const WINDOW = 30000; // ms over which a rate is taken
const HISTORY = 120; // points of the small chart
const TOKEN = "runmeter.read_token";

const byId = (id) => document.getElementById(id);
const known = new Map(); // path -> {etag, answer}
const samples = new Map(); // run id, or "" for everything -> [[ms, tokens], …]
const history = [];
let told = null; // about.json, once it was had
let skew = 0; // the server's clock minus this machine's, ms

class NeedsToken extends Error {}

async function ask(path) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const before = known.get(path);
  if (before) headers["If-None-Match"] = before.etag;
  const response = await fetch(path, { headers, cache: "no-store", credentials: "omit" });
  const date = Date.parse(response.headers.get("Date"));
  if (date) skew = date - Date.now();
  if (response.status === 304 && before) return before.answer;
  if (response.status === 401) throw new NeedsToken(token ? "That token is not in force." : "");
  if (!response.ok) {
    let why = `${response.status}`;
    try { why = (await response.json()).detail || why; } catch { /* not JSON: the status has to do */ }
    throw new Error(why);
  }
  const answer = await response.json();
  known.set(path, { etag: response.headers.get("ETag") || "", answer });
  return answer;
}

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const count = (n) => whole.format(n);
const cents = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
// Null is not free: nothing in it has a known price.
const money = (usd) => usd === null ? "–" : usd !== 0 && usd < 0.01 ? `$${usd.toFixed(4)}` : `$${cents.format(usd)}`;

function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} m`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

// Tokens per second over the window, from two sightings at least; null before.
function rate(key, tokens) {
  const now = performance.now();
  const seen = samples.get(key) || [];
  seen.push([now, tokens]);
  while (seen.length > 2 && now - seen[0][0] > WINDOW) seen.shift();
  samples.set(key, seen);
  if (seen.length < 2) return null;
  const [then, had] = seen[0];
  return Math.max(0, (tokens - had) / (now - then) * 1000);
}

const perSecond = (r) => r === null ? "–" : r > 0 && r < 10 ? r.toFixed(1) : count(Math.round(r));

function cell(row, text, className, title) {
  const td = row.insertCell();
  td.textContent = text;
  if (className) td.className = className;
  if (title) td.title = title;
  return td;
}

function named(row, run) {
  const td = cell(row, run.agent || run.service || "run", "id", run.run_id);
  const id = document.createElement("small");
  id.textContent = run.run_id;
  td.append(id);
  cell(row, run.thread_id === null ? "–" : run.thread_id, "id", run.thread_id || "");
}

function callers(row, run) {
  const parts = [["lead", "lead agent", run.lead_agent_tokens], ["sub", "subagents", run.subagent_tokens], ["mid", "middleware", run.middleware_tokens]];
  const total = parts.reduce((sum, [, , n]) => sum + n, 0);
  const said = parts.filter(([, , n]) => n).map(([, name, n]) => `${name} ${count(n)}`).join(", ") || "no tokens yet";
  const bar = document.createElement("div");
  bar.className = "split";
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", said);
  bar.title = said;
  for (const [name, , n] of parts) {
    if (!n) continue;
    const part = document.createElement("span");
    part.className = name;
    part.style.width = `${100 * n / total}%`; // through the CSSOM, which the content policy allows
    bar.append(part);
  }
  row.insertCell().append(bar);
}

function showRunning(answer) {
  const now = Date.now() + skew;
  const runs = answer.runs.map((run) => ({ run, rate: rate(run.run_id, run.total_tokens) }));
  const alive = new Set(answer.runs.map((run) => run.run_id));
  for (const key of samples.keys()) if (key !== "" && !alive.has(key)) samples.delete(key);
  runs.sort((a, b) => (b.rate || 0) - (a.rate || 0) || b.run.total_tokens - a.run.total_tokens);
  const body = document.createElement("tbody");
  body.id = "rows-running";
  for (const { run, rate: r } of runs) {
    const row = body.insertRow();
    named(row, run);
    cell(row, span(now - Date.parse(run.created_at)), "n", `since ${run.created_at}`);
    cell(row, count(run.llm_call_count), "n", run.llm_call_failures ? `and ${run.llm_call_failures} failed attempts` : "");
    cell(row, count(run.total_input_tokens), "n", `${count(run.cache_read_tokens)} from cache`);
    cell(row, count(run.total_output_tokens), "n", `${count(run.reasoning_tokens)} reasoning`);
    cell(row, perSecond(r), "n");
    cell(row, money(run.cost_usd), "n", run.unpriced_tokens ? `${count(run.unpriced_tokens)} tokens have no known price` : "");
    callers(row, run);
  }
  byId("rows-running").replaceWith(body);
  byId("n-running").textContent = runs.length ? (answer.next_cursor ? `${runs.length} newest` : `${runs.length}`) : "";
  byId("running").hidden = byId("key").hidden = !runs.length;
  return runs.length;
}

function whyAtLeast(run) {
  if (run.set_aside.uninstrumented_client) return "calls were made through a client that nothing instruments: runmeter doctor";
  if (run.set_aside.no_calls_seen) return "its agent succeeded and not one model call was seen: runmeter doctor";
  return "its writer vanished: what is shown was spent, maybe more";
}

function showEnded(answer) {
  const runs = answer.runs.filter((run) => run.ended_at !== null).slice(0, 10);
  const body = document.createElement("tbody");
  body.id = "rows-ended";
  for (const run of runs) {
    const row = body.insertRow();
    named(row, run);
    const bound = run.usage_state === "lower_bound";
    cell(row, bound ? `${run.status}, at least` : run.status, run.status === "success" && !bound ? "" : "bad",
      bound ? whyAtLeast(run) : run.stop_reason || "");
    cell(row, span(Date.parse(run.ended_at) - Date.parse(run.created_at)), "n", `ended ${run.ended_at}`);
    cell(row, count(run.llm_call_count), "n");
    cell(row, count(run.total_input_tokens), "n");
    cell(row, count(run.total_output_tokens), "n");
    cell(row, money(run.cost_usd), "n");
  }
  byId("rows-ended").replaceWith(body);
  byId("ended").hidden = !runs.length;
}

function showTotals(all) {
  const r = rate("", all.total_tokens);
  history.push(r || 0);
  if (history.length > HISTORY) history.shift();
  const top = Math.max(1, ...history);
  byId("spark").firstElementChild.setAttribute("points",
    history.map((v, i) => `${(i + HISTORY - history.length) * 120 / (HISTORY - 1)},${23 - 22 * v / top}`).join(" "));
  const set = (id, text) => { byId(id).textContent = text; };
  set("t-tokens", short.format(all.total_tokens));
  byId("t-tokens").title = count(all.total_tokens);
  set("t-split", `${count(all.total_input_tokens)} in, ${count(all.total_output_tokens)} out`);
  set("t-rate", r === null ? "–" : `${perSecond(r)} tokens/s`);
  set("t-cost", money(all.cost_usd));
  set("t-unpriced", all.unpriced_tokens ? `${count(all.unpriced_tokens)} tokens without a price` : "");
  set("t-calls", count(all.llm_call_count));
  set("t-failures", all.llm_call_failures ? `${count(all.llm_call_failures)} failed attempts` : "");
  set("t-runs", count(all.total_runs));
  set("t-status", all.active_runs ? `${count(all.active_runs)} active` : "");
}

// Where the numbers come from, and the lines that lead to a first one.
function showAbout(about) {
  let otlp = about.otlp || null;
  if (otlp && about.otlp_everywhere) otlp = otlp.replace(/\/\/[^/]*(:\d+)$/, `//${location.hostname}$1`);
  const hidden = about.store.includes(":***@");
  const named = about.by_default ? "" : JSON.stringify(about.store);
  byId("python").textContent = [
    "import runmeter", "",
    `runmeter.instrument(${named})${hidden && named ? "  # with its password in place of ***, and runmeter[postgres]" : ""}`,
    'with runmeter.run(thread_id="my-thread", agent="first"):',
    '    runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=1200, output_tokens=80)',
  ].join("\n");
  byId("otlp").textContent = [
    `export OTEL_EXPORTER_OTLP_ENDPOINT=${otlp}`, "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
    ...(about.otlp_token ? ["export OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN'  # the ingest token"] : []),
  ].join("\n");
  byId("otlp-on").hidden = !otlp;
  byId("otlp-off").hidden = Boolean(otlp);
  byId("serves").textContent = `Store: ${about.store}. ${otlp ? `OTLP/HTTP: ${otlp}.` : "No OTLP is taken."}`;
  byId("serves").hidden = false;
}

function say(text, className) {
  const state = byId("state");
  if (state.textContent !== text) state.textContent = text;
  state.className = className;
}

async function poll() {
  try {
    const [running, latest, all] = await Promise.all([
      ask("api/runs?status=running&limit=200"), ask("api/runs?limit=50"), ask("api/usage?include_active=true")]);
    if (!told) showAbout(told = await ask("about.json"));
    byId("ask").hidden = true;
    byId("numbers").hidden = false;
    const working = showRunning(running);
    showEnded(latest);
    showTotals(all);
    const never = !working && !latest.runs.length && !all.total_runs;
    byId("first").hidden = !never;
    byId("quiet").hidden = never || working > 0;
    say("live", "live");
  } catch (error) {
    if (error instanceof NeedsToken) {
      byId("numbers").hidden = true;
      if (byId("ask").hidden) {
        byId("ask").hidden = false;
        byId("token").focus();
      }
      byId("refused").textContent = error.message;
      say("needs a token", "");
    } else {
      say(error instanceof TypeError ? "the server does not answer; the numbers below are the last known" : error.message, "away");
    }
  }
}

let asking = false;
async function turn() {
  if (asking || document.visibilityState === "hidden") return;
  asking = true;
  try { await poll(); } finally { asking = false; }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token").value = "";
  turn();
});
// A link cannot show the token, so what it leads to is fetched with it.
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", async (event) => {
    const token = sessionStorage.getItem(TOKEN);
    if (!token) return;
    event.preventDefault();
    const answer = await fetch(link.href, { headers: { Authorization: `Bearer ${token}` }, credentials: "omit" });
    location.href = URL.createObjectURL(new Blob([await answer.text()], { type: "text/plain" }));
  });
}
document.addEventListener("visibilitychange", turn);
setInterval(turn, EVERY);
turn();
