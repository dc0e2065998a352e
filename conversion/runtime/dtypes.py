"""Names of the dtypes that weights can be written in.

The command line lists them, so torch is imported only where a dtype is asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def dtype_named(name: str) -> "torch.dtype":
    """Look up the value of ``--dtype``.

    Raises:
        UsageError: no such dtype.
    """
    import torch

    from conversion.errors import UsageError

    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: choose one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
