"""The network: encoders, adapters, frozen LLMs, and models that were trained elsewhere."""
