"""Lets a transformers model of a source keep its keys and values in a quantised cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from conversion.evaluation.quantised_cache.kind import CacheKind
from conversion.families import family_of


class _RoundingCache:
    """The cache that an attention is given: it rounds what goes into the real one, if any."""

    def __init__(self, kind: CacheKind, cache: Any) -> None:
        self._kind = kind
        self._cache = cache

    def update(self, keys: Tensor, values: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Round new keys and values, then return all that are to be attended to.

        Args:
            keys: new ones, after RoPE  # [batch, kv_heads, tokens, head_dim]
            values: new ones  # [batch, kv_heads, tokens, head_dim]
            args: further arguments of the real cache.
        """
        read = (
            self._kind.keys(keys.float()).to(keys.dtype),
            self._kind.values(values.float()).to(values.dtype),
        )
        if self._cache is not None:
            read = self._cache.update(*read, *args)
        return read


@contextmanager
def quantised_cache(model: Any, kind: CacheKind) -> Iterator[None]:
    """Round a source model's keys and values within the block, with or without a cache given.

    Every query reads rounded keys and values, its own token's included, as in vLLM's decoding.

    Args:
        model: a transformers model of a source, not a converted one.
        kind: the cache.
    """

    def replace(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = kwargs.get("past_key_values")
        return args, kwargs | {"past_key_values": _RoundingCache(kind, cache)}

    family = family_of(model.config)
    layers = family.layers(model)
    hooks = [
        family.attention(layer).register_forward_pre_hook(replace, with_kwargs=True)
        for index, layer in enumerate(layers)
        if not kind.is_exact(index, len(layers))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
