CREATE TABLE public.meta (
    name text NOT NULL,
    value text NOT NULL
)
WITH (fillfactor='80');
CREATE TABLE public.rollup (
    scope text NOT NULL,
    dimension text NOT NULL,
    key text NOT NULL,
    parts text NOT NULL,
    number bigint NOT NULL,
    updated_at bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    calls bigint NOT NULL,
    failures bigint NOT NULL,
    calls_without_usage bigint NOT NULL,
    messages bigint NOT NULL,
    cost_nanousd bigint NOT NULL,
    unpriced_tokens bigint NOT NULL
)
WITH (fillfactor='70');
CREATE TABLE public.run_usage (
    run_id text NOT NULL,
    cell text NOT NULL,
    source text NOT NULL,
    day text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    caller text NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    calls bigint NOT NULL,
    failures bigint NOT NULL,
    calls_without_usage bigint NOT NULL,
    messages bigint NOT NULL,
    cost_nanousd bigint NOT NULL,
    unpriced_tokens bigint NOT NULL,
    settled_input_tokens bigint NOT NULL,
    settled_output_tokens bigint NOT NULL,
    settled_cache_read_tokens bigint NOT NULL,
    settled_cache_write_tokens bigint NOT NULL,
    settled_reasoning_tokens bigint NOT NULL,
    settled_calls bigint NOT NULL,
    settled_failures bigint NOT NULL,
    settled_calls_without_usage bigint NOT NULL,
    settled_messages bigint NOT NULL,
    settled_cost_nanousd bigint NOT NULL,
    settled_unpriced_tokens bigint NOT NULL
)
WITH (fillfactor='70');
CREATE TABLE public.runs (
    run_id text NOT NULL,
    thread_id text,
    service text,
    agent text,
    user_id text,
    tags text NOT NULL,
    status text NOT NULL,
    usage_state text NOT NULL,
    owner text,
    ended_by text,
    trace_id text,
    root_span_id text,
    started_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    ended_at bigint,
    stop_reason text,
    first_status text,
    counted_status text,
    orphanings integer NOT NULL,
    overflow integer NOT NULL,
    version bigint NOT NULL,
    listed_at bigint NOT NULL,
    sources text NOT NULL,
    set_aside text NOT NULL,
    is_open integer NOT NULL
)
WITH (fillfactor='70');
CREATE TABLE public.sources (
    source text NOT NULL,
    service text,
    beat bigint NOT NULL,
    counts text NOT NULL,
    updated_at bigint NOT NULL
)
WITH (fillfactor='80');
CREATE TABLE public.spans (
    trace_id bytea NOT NULL,
    span_id bytea NOT NULL,
    parent_id bytea,
    run_id text,
    why integer NOT NULL,
    late integer NOT NULL,
    seen integer NOT NULL,
    reading bytea,
    twin bytea,
    twin_too bytea,
    ended_at bigint,
    priced bytea
);
CREATE TABLE public.usage_daily (
    id text NOT NULL,
    day text NOT NULL,
    service text NOT NULL,
    user_id text NOT NULL,
    agent text NOT NULL,
    tags text NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    caller text NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    calls bigint NOT NULL,
    failures bigint NOT NULL,
    calls_without_usage bigint NOT NULL,
    messages bigint NOT NULL,
    cost_nanousd bigint NOT NULL,
    unpriced_tokens bigint NOT NULL
)
WITH (fillfactor='80');
INSERT INTO public.meta VALUES ('schema_version', '1');
INSERT INTO public.meta VALUES ('label_limit', '100');
INSERT INTO public.meta VALUES ('horizon', '0');
INSERT INTO public.rollup VALUES ('l:', 'caller', '["lead_agent"]', '["lead_agent"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'kind', '["lead_agent"]', '["lead_agent"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'provider', '["openai"]', '["openai"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'service', '["tests"]', '["tests"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('t:t0', 'line', '["openai","gpt-5-mini","lead_agent"]', '["openai","gpt-5-mini","lead_agent"]', 0, 1700000003000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t0', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 2, 1700000003000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t0', 'status', '["success"]', '["success"]', 2, 1700000003000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t1', 'line', '["openai","gpt-5-mini","lead_agent"]', '["openai","gpt-5-mini","lead_agent"]', 0, 1700000004000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t1', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 2, 1700000004000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t1', 'status', '["success"]', '["success"]', 2, 1700000004000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t1', 'total', '[]', '[]', 2, 1700000004000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'closed', '["success"]', '["success"]', 4, 1700000004000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'line', '["openai","gpt-5-mini","lead_agent"]', '["openai","gpt-5-mini","lead_agent"]', 0, 1700000004000000000, 400, 80, 0, 0, 0, 4, 0, 0, 4, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 4, 1700000004000000000, 400, 80, 0, 0, 0, 4, 0, 0, 4, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'series', '["openai","gpt-5-mini","lead_agent","tests"]', '["openai","gpt-5-mini","lead_agent","tests"]', 0, 1700000004000000000, 400, 80, 0, 0, 0, 4, 0, 0, 4, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'status', '["success"]', '["success"]', 4, 1700000004000000000, 400, 80, 0, 0, 0, 4, 0, 0, 4, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'threads', '[]', '[]', 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:6', 'total', '[]', '[]', 4, 1700000004000000000, 400, 80, 0, 0, 0, 4, 0, 0, 4, 0, 0);
INSERT INTO public.rollup VALUES ('t:t', 'status', '["error"]', '["error"]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'series', '["openai","gpt-5-mini","lead_agent","tests"]', '["openai","gpt-5-mini","lead_agent","tests"]', 0, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('t:t0', 'total', '[]', '[]', 2, 1700000003000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t', 'line', '["openai","gpt-5-mini","lead_agent"]', '["openai","gpt-5-mini","lead_agent"]', 0, 1700000001000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 2, 1700000001000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('t:t', 'total', '[]', '[]', 2, 1700000001000000000, 200, 40, 0, 0, 0, 2, 0, 0, 2, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'closed', '["error"]', '["error"]', 1, 1700000001000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'line', '["openai","gpt-5-mini","lead_agent"]', '["openai","gpt-5-mini","lead_agent"]', 0, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'status', '["error"]', '["error"]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'threads', '[]', '[]', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:1', 'total', '[]', '[]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'model', '["model-0"]', '["model-0"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:7', 'series', '["openai","gpt-5-mini","lead_agent","tests"]', '["openai","gpt-5-mini","lead_agent","tests"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:7', 'series', '["openai","model-0","lead_agent","tests"]', '["openai","model-0","lead_agent","tests"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('t:t', 'lower_bound', '[]', '[]', 1, 1700000001000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('t:t', 'status', '["interrupted"]', '["interrupted"]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'closed', '["interrupted"]', '["interrupted"]', 1, 1700000001000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'line', '["openai","gpt-5-mini","lead_agent"]', '["openai","gpt-5-mini","lead_agent"]', 0, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'lower_bound', '[]', '[]', 1, 1700000001000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'model', '["gpt-5-mini"]', '["gpt-5-mini"]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'orphaned', '[]', '[]', 1, 1700000001000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'series', '["openai","gpt-5-mini","lead_agent","tests"]', '["openai","gpt-5-mini","lead_agent","tests"]', 0, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'status', '["interrupted"]', '["interrupted"]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:15', 'total', '[]', '[]', 1, 1700000001000000000, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'model', '["gpt-4o-mini-2024-07-18"]', '["gpt-4o-mini-2024-07-18"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'service', '["dialects-recorder"]', '["dialects-recorder"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:7', 'series', '["openai","gpt-4o-mini-2024-07-18","lead_agent","dialects-recorder"]', '["openai","gpt-4o-mini-2024-07-18","lead_agent","dialects-recorder"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'closed', '["success"]', '["success"]', 1, 1700003600000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'line', '["openai","gpt-4o-mini-2024-07-18","lead_agent"]', '["openai","gpt-4o-mini-2024-07-18","lead_agent"]', 0, 1700003600000000000, 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'model', '["gpt-4o-mini-2024-07-18"]', '["gpt-4o-mini-2024-07-18"]', 1, 1700003600000000000, 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'series', '["openai","gpt-4o-mini-2024-07-18","lead_agent","dialects-recorder"]', '["openai","gpt-4o-mini-2024-07-18","lead_agent","dialects-recorder"]', 0, 1700003600000000000, 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'status', '["success"]', '["success"]', 1, 1700003600000000000, 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'total', '[]', '[]', 1, 1700003600000000000, 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
INSERT INTO public.rollup VALUES ('e:5', 'unthreaded', '[]', '[]', 1, 1700003600000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('t:thread-7', 'total', '[]', '[]', 0, 1700003600000000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'model', '["gemini-2.5-flash"]', '["gemini-2.5-flash"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('l:', 'provider', '["gcp.gemini"]', '["gcp.gemini"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:3', 'series', '["gcp.gemini","gemini-2.5-flash","lead_agent","dialects-recorder"]', '["gcp.gemini","gemini-2.5-flash","lead_agent","dialects-recorder"]', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:3', 'threads', '[]', '[]', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:4', 'count', '["ingest_requests","200"]', '["ingest_requests","200"]', 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:4', 'count', '["ingest_spans",""]', '["ingest_spans",""]', 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:4', 'count', '["spans_by_scope","counted litellm"]', '["spans_by_scope","counted litellm"]', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:4', 'count', '["spans_by_scope","seen gcp.vertex.agent"]', '["spans_by_scope","seen gcp.vertex.agent"]', 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.rollup VALUES ('e:4', 'count', '["spans_by_scope","seen litellm"]', '["spans_by_scope","seen litellm"]', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.run_usage VALUES ('ended-0', '3dff137b4733b43c4dede866', 'a-source', '2023-11-14', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('ended-1', '3dff137b4733b43c4dede866', 'a-source', '2023-11-14', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('ended-2', '3dff137b4733b43c4dede866', 'a-source', '2023-11-14', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('ended-3', '3dff137b4733b43c4dede866', 'a-source', '2023-11-14', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('failed', '3dff137b4733b43c4dede866', 'a-source', '2023-11-14', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('open', '1380bf7aa11a45333126e71d', 'agent', '2023-11-14', 'openai', 'model-0', 'lead_agent', 100, 10, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.run_usage VALUES ('lost', '2796942f4db5223b5ea25fe1', 'lost', '2023-11-14', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0, 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('e0e9de1503314afdabe769ba90ac4453', '1b12bb1b9654252ae5603e4e', 'otlp', '2023-11-14', 'openai', 'gpt-4o-mini-2024-07-18', 'lead_agent', 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0, 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
INSERT INTO public.run_usage VALUES ('e847649b2e46c76b6c667850b48f82fd', '4171558f3834f038609b95e3', 'otlp', '2023-11-14', 'gcp.gemini', 'gemini-2.5-flash', 'lead_agent', 6033, 621, 387, 0, 69, 3, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.runs VALUES ('ended-0', 't0', 'tests', NULL, NULL, '', 'success', 'settled', 'a-source', 'owner', NULL, NULL, 1700000000000000000, 1700000001000000000, 1700000001000000000, NULL, 'success', 'success', 0, 0, 1, 1700000000000000000, '{"a-source":[1,true]}', '', 0);
INSERT INTO public.runs VALUES ('ended-1', 't1', 'tests', NULL, NULL, '', 'success', 'settled', 'a-source', 'owner', NULL, NULL, 1700000001000000000, 1700000002000000000, 1700000002000000000, NULL, 'success', 'success', 0, 0, 1, 1700000001000000000, '{"a-source":[1,true]}', '', 0);
INSERT INTO public.runs VALUES ('ended-2', 't0', 'tests', NULL, NULL, '', 'success', 'settled', 'a-source', 'owner', NULL, NULL, 1700000002000000000, 1700000003000000000, 1700000003000000000, NULL, 'success', 'success', 0, 0, 1, 1700000002000000000, '{"a-source":[1,true]}', '', 0);
INSERT INTO public.runs VALUES ('ended-3', 't1', 'tests', NULL, NULL, '', 'success', 'settled', 'a-source', 'owner', NULL, NULL, 1700000003000000000, 1700000004000000000, 1700000004000000000, NULL, 'success', 'success', 0, 0, 1, 1700000003000000000, '{"a-source":[1,true]}', '', 0);
INSERT INTO public.runs VALUES ('failed', 't', 'tests', NULL, 'ada', '{"team":"blue"}', 'error', 'settled', 'a-source', 'owner', NULL, NULL, 1700000000000000000, 1700000001000000000, 1700000001000000000, 'limit', 'error', 'error', 0, 0, 1, 1700000000000000000, '{"a-source":[1,true]}', '', 0);
INSERT INTO public.runs VALUES ('open', 't0', 'tests', NULL, NULL, '', 'running', 'active', 'agent', NULL, NULL, NULL, 1700000000000000000, 1700000001000000000, NULL, NULL, NULL, NULL, 0, 0, 1, 1700000000000000000, '{"agent":[1,false]}', '', 1);
INSERT INTO public.runs VALUES ('lost', 't', 'tests', NULL, NULL, '', 'interrupted', 'lower_bound', 'lost', 'orphan', NULL, NULL, 1700000000000000000, 1700000001000000000, 1700000001000000000, 'orphaned', 'interrupted', 'interrupted', 1, 0, 2, 1700000000000000000, '{"lost":[1,false]}', '', 0);
INSERT INTO public.runs VALUES ('e0e9de1503314afdabe769ba90ac4453', NULL, 'dialects-recorder', NULL, NULL, '', 'success', 'settled', 'otlp', 'owner', NULL, NULL, 1700003599007826944, 1700003600000000000, 1700003600000000000, NULL, 'success', 'success', 0, 0, 2, 1700003599007826944, '{"otlp":[1,true]}', '', 0);
INSERT INTO public.runs VALUES ('e847649b2e46c76b6c667850b48f82fd', 'thread-7', 'dialects-recorder', 'weather', NULL, '', 'success', 'closing', 'otlp', 'owner', NULL, NULL, 1700003599738068075, 1700003600000000000, 1700003600000000000, NULL, NULL, NULL, 0, 0, 1, 1700003599738068075, '{"otlp":[1,true]}', '', 1);
INSERT INTO public.sources VALUES ('agent', 'api', 1, '{}', 1700003600000000000);
INSERT INTO public.sources VALUES ('lost', NULL, 1, '{}', 1700003600000000000);
INSERT INTO public.sources VALUES ('sidecar:22d0b58fa6db4d2ab5242f0f4151c074', 'runmeter', 1, '{"[\"ingest_spans\",\"\"]": 8, "[\"spans_by_scope\",\"seen litellm\"]": 1, "[\"ingest_requests\",\"200\"]": 2, "[\"spans_by_scope\",\"counted litellm\"]": 1, "[\"spans_by_scope\",\"seen gcp.vertex.agent\"]": 7}', 1700003600000000000);
INSERT INTO public.spans VALUES ('\xe0e9de1503314afdabe769ba90ac4453', '\x53f4642c7236cba8', NULL, NULL, 0, 0, 472223, '\x5b312c3239383936313338303538333537313234303336373434333731333438393832393131393035392c363034393537303334313532323935313038302c6e756c6c2c302c7b2234223a312c2235223a226c6974656c6c6d222c2236223a2264373833316364636234643035323561222c2237223a313730303030333539393030373832363934342c2238223a313730303030333630303030303030303030302c223130223a5b313031312c3130372c36352c302c31332c302c302c302c302c302c305d2c223131223a2263686174636d706c2d61634f31222c223132223a226f70656e6169222c223133223a226770742d346f2d6d696e692d323032342d30372d3138222c223139223a226469616c656374732d7265636f72646572222c223232223a3231303937352c223333223a226770742d346f2d6d696e69227d5d', '\xe81e750af1974150', '\x77a8e05a7870533c', 1700003600000000000, '\xb734fba810f50ab800000000000000000000000000000000');
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\x11eb794f9964f15c', '\x213dcb64a1907e0e', NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c313239313235393130303935343638353738382c323339353239343230393839383734313236322c302c7b2234223a312c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393931303038353635312c2238223a313730303030333630303030303030303030302c223130223a5b313031312c3130372c36352c302c31332c302c302c302c302c302c305d2c223132223a226763702e67656d696e69222c223133223a2267656d696e692d322e352d666c617368222c223134223a2277656174686572222c223135223a227468726561642d37222c223139223a226469616c656374732d7265636f72646572222c223332223a2267656e65726174655f636f6e74656e74222c223333223a2267656d696e692d322e352d666c617368227d5d', '\x2c08c0a966f1608c', NULL, 1700003600000000000, '\x323c1a090bea4ce000000000000000000000000000000000');
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\x1af94c8e67a5b72f', '\x213dcb64a1907e0e', NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c313934333636383838383639353036303237312c323339353239343230393839383734313236322c302c7b2234223a342c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393939393232343933372c2238223a313730303030333630303030303030303030302c223134223a2277656174686572222c223139223a226469616c656374732d7265636f72646572227d5d', NULL, NULL, NULL, NULL);
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\x213dcb64a1907e0e', '\x83bb859654cde546', NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c323339353239343230393839383734313236322c393439323332373532303332373832303631342c302c7b2234223a332c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393733383036383037352c2238223a313730303030333630303030303030303030302c223134223a2277656174686572222c223135223a227468726561642d37222c223139223a226469616c656374732d7265636f72646572227d5d', NULL, NULL, 1700003600000000000, NULL);
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\x6911eb06b9d71843', '\x213dcb64a1907e0e', NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c373537313039303836323730363732363937392c323339353239343230393839383734313236322c302c7b2234223a312c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393934313238353131302c2238223a313730303030333630303030303030303030302c223130223a5b323031312c3230372c3132392c302c32332c302c302c302c302c302c305d2c223132223a226763702e67656d696e69222c223133223a2267656d696e692d322e352d666c617368222c223134223a2277656174686572222c223135223a227468726561642d37222c223139223a226469616c656374732d7265636f72646572222c223332223a2267656e65726174655f636f6e74656e74222c223333223a2267656d696e692d322e352d666c617368227d5d', '\x8eb3ab9d7e2e5379', NULL, 1700003600000000000, '\xa4758200b5b80de100000000000000000000000000000000');
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\x7b1ae5425279fb9a', '\x213dcb64a1907e0e', NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c383837303635343438393037333934313430322c323339353239343230393839383734313236322c302c7b2234223a312c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393933353434363232382c2238223a313730303030333630303030303030303030302c223130223a5b333031312c3330372c3139332c302c33332c302c302c302c302c302c305d2c223132223a226763702e67656d696e69222c223133223a2267656d696e692d322e352d666c617368222c223134223a2277656174686572222c223135223a227468726561642d37222c223139223a226469616c656374732d7265636f72646572222c223332223a2267656e65726174655f636f6e74656e74222c223333223a2267656d696e692d322e352d666c617368227d5d', '\x5d0503728ae3a6e6', NULL, 1700003600000000000, '\xbefd5a6adc7f9c0c00000000000000000000000000000000');
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\x83bb859654cde546', NULL, NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c393439323332373532303332373832303631342c6e756c6c2c302c7b2234223a352c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393732393233323039372c2238223a313730303030333630303030303030303030302c223135223a227468726561642d37222c223139223a226469616c656374732d7265636f72646572227d5d', NULL, NULL, NULL, NULL);
INSERT INTO public.spans VALUES ('\xe847649b2e46c76b6c667850b48f82fd', '\xa36623a1ca5ddd6b', '\x213dcb64a1907e0e', NULL, 0, 0, 472223, '\x5b312c3330383735313538383633343730333838373134353032313239313939303438373130363330312c31313737343133373435333539383539363435392c323339353239343230393839383734313236322c302c7b2234223a342c2235223a226763702e7665727465782e6167656e74222c2236223a2233623033656634633830646333353131222c2237223a313730303030333539393939373130333033332c2238223a313730303030333630303030303030303030302c223134223a2277656174686572222c223139223a226469616c656374732d7265636f72646572227d5d', NULL, NULL, NULL, NULL);
INSERT INTO public.usage_daily VALUES ('7c42c78cdb35d6c9ba64d58b53404298.6', '2023-11-14', 'tests', '', '', '', 'openai', 'gpt-5-mini', 'lead_agent', 400, 80, 0, 0, 0, 4, 0, 0, 4, 0, 0);
INSERT INTO public.usage_daily VALUES ('2459d177cf12c30fd5e59a8f37fd088f.1', '2023-11-14', 'tests', 'ada', '', '{"team":"blue"}', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.usage_daily VALUES ('7c42c78cdb35d6c9ba64d58b53404298.15', '2023-11-14', 'tests', '', '', '', 'openai', 'gpt-5-mini', 'lead_agent', 100, 20, 0, 0, 0, 1, 0, 0, 1, 0, 0);
INSERT INTO public.usage_daily VALUES ('32fa69742ae35789ac917b381d8c7b81.5', '2023-11-14', 'dialects-recorder', '', '', '', 'openai', 'gpt-4o-mini-2024-07-18', 'lead_agent', 1011, 107, 65, 0, 13, 1, 0, 0, 1, 0, 0);
ALTER TABLE ONLY public.meta
    ADD CONSTRAINT meta_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.rollup
    ADD CONSTRAINT rollup_pkey PRIMARY KEY (scope, dimension, key);
ALTER TABLE ONLY public.run_usage
    ADD CONSTRAINT run_usage_pkey PRIMARY KEY (run_id, cell);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY public.sources
    ADD CONSTRAINT sources_pkey PRIMARY KEY (source);
ALTER TABLE ONLY public.spans
    ADD CONSTRAINT spans_pkey PRIMARY KEY (trace_id, span_id);
ALTER TABLE ONLY public.usage_daily
    ADD CONSTRAINT usage_daily_pkey PRIMARY KEY (id);
CREATE INDEX rollup_threads ON public.rollup USING btree (updated_at, scope) WHERE (dimension = 'total'::text);
CREATE INDEX runs_closed ON public.runs USING btree (updated_at, run_id) WHERE (is_open = 0);
CREATE INDEX runs_listed ON public.runs USING btree (listed_at, run_id);
CREATE INDEX runs_open ON public.runs USING btree (is_open, thread_id, started_at) WHERE (is_open = 1);
CREATE INDEX runs_service ON public.runs USING btree (service, listed_at, run_id) WHERE (service IS NOT NULL);
CREATE INDEX runs_status ON public.runs USING btree (status, listed_at, run_id);
CREATE INDEX runs_thread_id ON public.runs USING btree (thread_id, listed_at, run_id) WHERE (thread_id IS NOT NULL);
CREATE INDEX runs_trace ON public.runs USING btree (trace_id) WHERE (trace_id IS NOT NULL);
CREATE INDEX runs_user_id ON public.runs USING btree (user_id, listed_at, run_id) WHERE (user_id IS NOT NULL);
CREATE INDEX spans_run_id ON public.spans USING btree (run_id) WHERE (run_id IS NOT NULL);
CREATE INDEX spans_seen ON public.spans USING btree (seen, trace_id);
CREATE INDEX spans_twin ON public.spans USING btree (twin, ended_at) WHERE (twin IS NOT NULL);
CREATE INDEX spans_twin_too ON public.spans USING btree (twin_too, ended_at) WHERE (twin_too IS NOT NULL);
CREATE INDEX usage_daily_day ON public.usage_daily USING btree (day);
