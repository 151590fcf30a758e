"""REST, page, scrape and the OTLP door over HTTP."""
