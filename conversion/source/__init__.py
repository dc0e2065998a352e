"""Source checkpoints: Hugging Face folders, GGUF files and the demo model."""

from conversion.source.checkpoint import ATTENTION, EMBEDDING, HEAD, SourceCheckpoint
from conversion.source.open import open_source

__all__ = ["ATTENTION", "EMBEDDING", "HEAD", "SourceCheckpoint", "open_source"]
