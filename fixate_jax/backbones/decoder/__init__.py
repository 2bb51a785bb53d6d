"""The Qwen3 decoder that both families share."""
