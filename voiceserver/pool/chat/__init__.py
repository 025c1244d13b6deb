"""The `chat` reply engine: an LLM behind an OpenAI-compatible HTTP endpoint, as a pool of requests on the loop."""
