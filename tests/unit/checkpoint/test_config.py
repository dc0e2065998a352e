"""The config of a converted checkpoint, and what of its source's it must not keep."""

import json

import torch

from conversion.checkpoint.config import converted_config
from conversion.source import open_source
from tests.support.tiny import save_tiny
from vllm_mha2mla.config import LatentWidths, Provenance, SourceInfo
from vllm_mha2mla.hf.auto_classes import MODULE


def test_the_sources_own_code_is_not_named(tmp_path):
    source = save_tiny(tmp_path / "source")
    values = json.loads((source / "config.json").read_text())
    values["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    (source / "config.json").write_text(json.dumps(values))
    info = SourceInfo(
        name="source", model_type="llama", fingerprint="", num_key_value_heads=2, head_dim=16
    )
    widths = [LatentWidths(24, 8)] * 2
    config = converted_config(
        open_source(str(source)), widths, None, torch.bfloat16, Provenance(source=info, recipe={})
    )
    config.save_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert sorted(saved) == ["AutoConfig", "AutoModelForCausalLM"]
    assert {reference.partition(".")[0] for reference in saved.values()} == {MODULE}
