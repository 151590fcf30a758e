"""Where we meet OpenTelemetry: processor, provider, context, counters, and the client libraries it instruments."""
