"""Source checkpoints: Hugging Face folders, GGUF files and the demo model."""

from conversion.source.checkpoint import EMBEDDING, HEAD, SourceCheckpoint
from conversion.source.open import open_source

__all__ = ["EMBEDDING", "HEAD", "SourceCheckpoint", "open_source"]
