"""The README.md of a converted checkpoint."""

from collections.abc import Sequence
from typing import Any

import yaml

from conversion.checkpoint.cache_size import cache_figures
from vllm_mha2mla.coding.row_code import RowCode, row_codes
from vllm_mha2mla.config import HealingInfo, Provenance, latent_widths

TEMPLATE = """\
# {name}, with multi-head latent attention

Converted by vllm-mha2mla {version} from `{source}`.

Per token and layer it caches {widths} numbers{coded}, where the original caches {original}:
{bytes} bytes per token for the whole model, {fraction:.2%} of the original.{kept}{queries}

## Serve

```
vllm serve <this folder>
```

vLLM needs the vllm-mha2mla plugin installed beside it; without it, it refuses this checkpoint. In
transformers, `import vllm_mha2mla` first, or pass `trust_remote_code=True`.

## Made with

Calibrated on {tokens} tokens of {files}, in windows of {window}.

```yaml
{recipe}
```

Source fingerprint: `{fingerprint}`. Versions: {versions}.
{healing}
## Measured{when}

{figures}
"""

CODED = " in coded rows, {bits:.2f} bits a number on average"
RATES = "\nIt was resumed with another learning rate: {rates}.\n"
KEPT = """
{kept} of its {layers} layers keep their attention, which slides over a window, and count in neither
number."""
KEPT_START = " These are the weights from before this training, which did better."
HEALING = """
## Healed

On {tokens} tokens of {files}{teacher}.

```yaml
{recipe}
```
{rates}
On held-out windows of that text: {figures}.{kept}
"""


def model_card(provenance: Provenance, config: Any) -> str:
    """Describe in Markdown how a checkpoint was made, what it caches and what was measured.

    Args:
        provenance: the checkpoint's.
        config: the converted model's.
    """
    layer_widths, codes, cache = latent_widths(config), row_codes(config), cache_figures(config)
    widths = sorted({widths.width for widths in layer_widths if not widths.kept})
    kept = sum(widths.kept for widths in layer_widths)
    original = provenance.source.cache_width
    calibration = provenance.calibration
    figures = "\n".join(f"- {key}: {value:.4g}" for key, value in provenance.figures.items())
    q_lora_rank = provenance.recipe.get("q_lora_rank")
    return TEMPLATE.format(
        name=provenance.source.name.rstrip("/").rsplit("/", 1)[-1],
        version=provenance.versions.get("vllm-mha2mla", ""),
        source=provenance.source.name,
        widths=str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}",
        original=original,
        coded=CODED.format(bits=_mean_bits(codes)) if codes else "",
        bytes=cache.bytes_per_token,
        fraction=cache.fraction,
        kept=KEPT.format(kept=kept, layers=len(layer_widths)) if kept else "",
        queries=f" Queries are factorised through {q_lora_rank} numbers." if q_lora_rank else "",
        tokens=calibration.tokens if calibration else 0,
        files=", ".join(calibration.files) if calibration else "no text",
        window=calibration.window if calibration else 0,
        recipe=yaml.safe_dump(provenance.recipe, sort_keys=False).strip(),
        fingerprint=provenance.source.fingerprint,
        healing="".join(map(_healing, provenance.healing)),
        versions=", ".join(f"{key} {value}" for key, value in provenance.versions.items()),
        when=" in the conversion" if provenance.healing else "",
        figures=figures or "Nothing yet; `mha2mla eval` measures perplexity against the original.",
    )


def _mean_bits(codes: Sequence[RowCode]) -> float:
    bits = [bits for code in codes for bits in code.column_bits]
    return sum(bits) / len(bits)


def _healing(done: HealingInfo) -> str:
    changes = (f"{key} {value:.4g} to {done.after[key]:.4g}" for key, value in done.before.items())
    teacher = ""
    if done.recipe.get("objective") != "lm" or done.recipe.get("hidden_weight"):
        teacher = f", with `{done.teacher}` ({done.teacher_fingerprint[:12]}) as teacher"
    if done.stored_top_k:
        teacher += f", of each prediction the likeliest {done.stored_top_k} tokens"
    return HEALING.format(
        tokens=done.tokens,
        files=", ".join(done.files),
        teacher=teacher,
        recipe=yaml.safe_dump(done.recipe, sort_keys=False).strip(),
        rates=RATES.format(rates=_rates(done.rates)) if done.rates else "",
        figures=", ".join(changes) or "nothing was held out",
        kept=KEPT_START if done.kept == "start" else "",
    )


def _rates(rates: dict[int, float]) -> str:
    return ", ".join(f"{rate:g} from step {step} on" for step, rate in rates.items())
