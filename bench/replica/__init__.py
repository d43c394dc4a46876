"""A simulated vLLM: its engine under virtual time, and an OpenAI HTTP server around it."""
