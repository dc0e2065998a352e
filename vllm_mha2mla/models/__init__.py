"""vLLM architectures of converted models, one file for each way in which they are served."""
