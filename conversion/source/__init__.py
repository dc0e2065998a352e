"""Source checkpoints: Hugging Face folders, GGUF files and the demo model."""

from conversion.source.checkpoint import SourceCheckpoint
from conversion.source.open import open_source

__all__ = ["SourceCheckpoint", "open_source"]
