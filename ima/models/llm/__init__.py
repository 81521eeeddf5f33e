"""The frozen LLM: site table, passes with roles, embedded and tiny models."""
