"""Checkpoints that transformers can load where nobody has imported this package.

``config.json`` names a module of the checkpoint's folder for transformers' Auto classes, and that
module imports the installed package, nothing else. transformers runs it only if the user passes
``trust_remote_code=True``, and says so otherwise; where the package is not installed, it names it.
Once the package has been imported (vLLM does it, through its plugin), its own classes are taken
without the module, and nobody has to trust anything.
"""

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

MODULE = "modeling_mha2mla"

SOURCE = '''\
"""Lets transformers find this model's classes in the installed package vllm-mha2mla.

Not needed, and not run, where ``vllm_mha2mla`` has been imported.
"""

from {module} import {config}, {causal_lm}

__all__ = ["{config}", "{causal_lm}"]
'''


class FindsPackage(PreTrainedConfig):
    """A config whose saved folder leads transformers to the installed package."""

    causal_lm: ClassVar[str]
    """Name of the model class, in the module of the config class."""

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> None:
        """Save ``config.json`` and the module that it names."""
        name = type(self).__name__
        self.auto_map = {
            "AutoConfig": f"{MODULE}.{name}",
            "AutoModelForCausalLM": f"{MODULE}.{self.causal_lm}",
        }
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        source = SOURCE.format(module=type(self).__module__, config=name, causal_lm=self.causal_lm)
        (folder / f"{MODULE}.py").write_text(source, "utf-8")
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Ignore transformers' wish to copy this package's source into saved folders."""
