"""Tiny models made on the spot: a real architecture, random weights, a byte tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Query heads and KV heads of each attention variant.
VARIANTS = {"gqa": (4, 2), "mqa": (4, 1), "mha": (4, 4)}
TEXT = (
    "Rotary embeddings turn each pair of query and key components by an angle that grows with "
    "the position. Attention then depends on distances only, and most heads look at the first "
    "token when nothing else is worth their while. "
) * 40


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tiny_llama(variant: str = "gqa", seed: int = 0, **changes) -> LlamaForCausalLM:
    heads, kv_heads = VARIANTS[variant]
    values = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**values | changes))
    # Larger than the usual initialisation: attention that is far from uniform, logits far apart.
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def save_tiny(folder: Path, variant: str = "gqa", shard_size: str = "1GB", **changes) -> Path:
    model = tiny_llama(variant, **changes)
    model.save_pretrained(folder, max_shard_size=shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder
