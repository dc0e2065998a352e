"""KV connectors, which keep cached blocks elsewhere or send them to other engines."""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_mha2mla.errors import UnsupportedEngineError

SERVED = ("ExampleConnector",)
"""Connectors of vLLM's that have been run with latent caches."""


def refuse_connectors(vllm_config: Any) -> None:
    """Refuse connectors of vLLM's that have not been run with latent caches.

    Several know two layouts by name, heads of keys and values or DeepSeek's, and would move parts
    of this one's rows. A connector of the user's own is called as for every model.

    Raises:
        UnsupportedEngineError: one is asked for.
    """
    if vllm_config.cache_config.kv_offloading_size is not None:
        raise UnsupportedEngineError(
            "--kv-offloading-size: not run with latent caches in this release; leave the option out"
        )
    transfer = vllm_config.kv_transfer_config
    if transfer is None or transfer.kv_connector is None:
        return
    settings = {
        "kv_connector": transfer.kv_connector,
        "kv_connector_module_path": transfer.kv_connector_module_path,
        "kv_connector_extra_config": transfer.kv_connector_extra_config,
    }
    for name in _connectors(settings):
        raise UnsupportedEngineError(
            f"--kv-transfer-config: {name} has not been run with latent caches; this release "
            f"serves {', '.join(SERVED)} and connectors of your own (kv_connector_module_path)"
        )


def _connectors(settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of connectors that are not served."""
    name, own = settings["kv_connector"], settings.get("kv_connector_module_path")
    if name == "MultiConnector" and not own:
        for inner in settings["kv_connector_extra_config"].get("connectors", ()):
            yield from _connectors(inner)
    elif not own and name not in SERVED:
        yield name
