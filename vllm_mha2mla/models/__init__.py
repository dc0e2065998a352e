"""vLLM architectures of converted models, one file per family."""
