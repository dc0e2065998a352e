"""Models whose attention is not served exactly are refused with the reason."""

import pytest
from transformers import AutoConfig

from conversion.errors import SourceError
from conversion.families import FAMILIES
from conversion.families.refused import REASONS
from conversion.source.kinds import check_convertible
from tests.support.ropes import yarn

HALF = {"partial_rotary_factor": 0.5}
PART = {"rope_type": "default", "rope_theta": 1e4} | HALF
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}
S, PLAIN = "sliding_attention", {"rope_type": "default", "rope_theta": 1e4}
SLIDING = {"sliding_window": 256, "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("mistral", SLIDING, "slides over a window of 256"),
        ("llama", {"is_causal": False}, "attends to all others"),
        ("llama", {"max_position_embeddings": 0}, "leaves nothing to attend to"),
        ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps -1.0 makes"),
        ("cohere", {"layer_norm_eps": float("nan")}, "layer_norm_eps nan makes"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta 0"),
        ("qwen2", SLIDING | {"use_sliding_window": True, "max_window_layers": 0}, "slides over"),
        ("ministral", SLIDING, "slides over"),
        ("olmo3", {"rope_parameters": {"full_attention": DYNAMIC, S: PLAIN}}, "'dynamic' changes"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attend to those behind"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("mixtral", SLIDING, "slides over"),
        # Their code in transformers knows no such switch, and no kinds of layers.
        ("mistral", SLIDING | {"use_sliding_window": False}, "slides over a window of 256"),
        ("mixtral", SLIDING | {"use_sliding_window": False}, "slides over a window of 256"),
        ("phi3", SLIDING | {"layer_types": ["full_attention"] * 32}, "slides over a window of 256"),
        ("llama", SLIDING | {"layer_types": [S, "full_attention"] * 16}, "slides over"),
        ("phi3", {"layer_types": [S] * 32, "sliding_window": None}, "window (layer_types) of no"),
        ("qwen2", {"rope_parameters": PLAIN | {"mrope_section": [16, 24, 24]}}, "mrope_section"),
        ("phi3", {"rope_parameters": LONG}, "rope_type 'longrope' changes"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "'dynamic' changes",
        ),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
        ("llama", {"rope_parameters": PART}, "partial_rotary_factor 0.5 is not"),
        (
            "qwen2",
            {"rope_parameters": yarn(partial_rotary_factor=0.5)},
            "partial_rotary_factor 0.5 is not",
        ),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_it_is_refused(model_type, changes, reason):
    config = AutoConfig.for_model(model_type, **changes)
    assert reason in (FAMILIES[model_type].refusal(config) or "nothing")


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"rope_parameters": yarn()}),
        ("qwen2", {"sliding_window": 256, "use_sliding_window": False}),
        # A window that no context of the model fills.
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 4096}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {"rope_parameters": PART}),
        # Some layers slide over a window, and are kept.
        ("qwen2", SLIDING | {"use_sliding_window": True, "max_window_layers": 1}),
        ("olmo3", SLIDING),
        ("gemma3_text", SLIDING),
    ],
)
def test_it_is_taken(model_type, changes):
    config = AutoConfig.for_model(model_type, **changes)
    assert FAMILIES[model_type].refusal(config) is None


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_defaults_of_a_family_are_known(model_type):
    config = AutoConfig.for_model(model_type)
    reason = FAMILIES[model_type].refusal(config)
    assert reason is None or "slides over" in reason


@pytest.mark.parametrize("model_type", REASONS)
def test_a_family_that_is_not_converted_says_why(model_type):
    config = AutoConfig.for_model(model_type)
    with pytest.raises(SourceError) as error:
        check_convertible(config, "[a] model")
    assert str(error.value).startswith(f"[a] model: model family {model_type!r} is not supported: ")
    assert REASONS[model_type] in str(error.value)


def test_images_are_not_converted():
    with pytest.raises(SourceError, match="it reads images or sound"):
        check_convertible(AutoConfig.for_model("qwen2_5_vl"), "model")
