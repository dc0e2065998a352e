"""The converted classes of a family, made of transformers' own.

Everything outside the attention stays the family's code. A family's file calls :func:`make_classes`
once and names the results as the classes name themselves, so that they can be imported and pickled.
"""

from typing import Any, ClassVar, NamedTuple

from huggingface_hub.dataclasses import strict

from vllm_mha2mla.coding.row_code import row_codes
from vllm_mha2mla.config import CONSTANTS, check_format_version, check_scale, latent_widths
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.fixed_rope import other_rope
from vllm_mha2mla.hf.attention import LatentAttention
from vllm_mha2mla.hf.auto_classes import FindsPackage
from vllm_mha2mla.hf.loading import LoadsExactly
from vllm_mha2mla.hf.normed_inputs import MakesNorms, Norms


class Classes(NamedTuple):
    """The three classes of a converted family."""

    config: Any
    model: Any
    causal_lm: Any


@strict
class LatentKeys(FindsPackage):
    """The keys that a family's config gets; see ``vllm_mha2mla.config``."""

    source_type: ClassVar[str]
    """``model_type`` of the family's own config."""

    kv_lora_rank: int = 512
    q_lora_rank: int | None = None
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    kv_b_proj_groups: int | None = None
    kv_lora_rank_per_layer: list[int] | None = None
    qk_rope_head_dim_per_layer: list[int] | None = None
    row_bits_per_layer: list[list[int]] | None = None
    attention_scale: float = 128**-0.5
    attention_bias: bool = False
    mha2mla: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_format_version(self.mha2mla)
        check_scale(self.attention_scale)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config as transformers does, unless RoPE is to be another than the checkpoint's.

        Raises:
            CheckpointError: it is, or the context longer.
        """
        words = other_rope(config_dict, kwargs)
        if words is not None:
            raise CheckpointError(words)
        return super().from_dict(config_dict, **kwargs)

    def query_key_norms(self) -> Norms | None:
        """New norms of a layer's queries and keys, which its heads or all of them together have."""
        return None


class LatentModel(LoadsExactly):
    """A decoder with latent attention in every layer but those that keep the source's."""

    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: Any) -> None:
        # Before any layer is made, as there may be as many as a damaged config says.
        codes, all_widths = row_codes(config), latent_widths(config)
        super().__init__(config)
        for index, widths in enumerate(all_widths):
            if widths.kept:
                continue
            code = None if codes is None else codes[index]
            self.layers[index].self_attn = LatentAttention(config, index, widths, code)
        self.post_init()


class LatentCausalLM(LoadsExactly):
    """A decoder with latent attention and a language-model head."""

    decoder_class: ClassVar[type[Any]]
    """The class of the decoder."""
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: Any) -> None:
        # Refuses a config before the source's layers are made, as ``LatentModel`` does.
        latent_widths(config)
        super().__init__(config)
        self.model = self.decoder_class(config)
        self.post_init()


def make_classes(
    module: str,
    name: str,
    config: type[Any],
    model: type[Any],
    causal_lm: type[Any],
    norms: MakesNorms | None = None,
) -> Classes:
    """The converted classes of a family.

    Args:
        module: where they are named: ``__name__``.
        name: the beginning of their names, ``Llama`` for ``LlamaMLAConfig``.
        config: the family's config class.
        model: its decoder.
        causal_lm: its causal language model.
        norms: with QK-norm, makes :meth:`LatentKeys.query_key_norms` from a converted config.
    """
    names = [f"{name}MLA{part}" for part in ("Config", "Model", "ForCausalLM")]

    def make(name: str, bases: tuple[type[Any], ...], **attributes: Any) -> Any:
        doc = f"{bases[-1].__name__} with latent attention: {bases[0].__name__}."
        return type(name, bases, {"__module__": module, "__doc__": doc} | attributes)

    keys: dict[str, Any] = {
        "model_type": f"{config.model_type}_mla",
        "source_type": config.model_type,
        "causal_lm": names[2],
        # Ranks that share a layer's heads each need its whole cache row.
        "base_model_tp_plan": {
            part: style
            for part, style in (config.base_model_tp_plan or {}).items()
            if ".self_attn." not in part
        },
    }
    if norms is not None:
        keys["query_key_norms"] = norms
    made_config = strict(make(names[0], (LatentKeys, config), **keys))
    # In 16 bits, rotary angles of long contexts would be wrong by whole turns.
    exact = {*CONSTANTS, *(model._keep_in_fp32_modules_strict or ())}
    shared = {"config_class": made_config, "_keep_in_fp32_modules_strict": exact}
    recorded = model._can_record_outputs | {"attentions": LatentAttention}
    made_model = make(names[1], (LatentModel, model), **shared, _can_record_outputs=recorded)
    made_lm = make(names[2], (LatentCausalLM, causal_lm), **shared, decoder_class=made_model)
    return Classes(made_config, made_model, made_lm)
