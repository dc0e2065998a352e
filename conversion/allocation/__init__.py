"""From a cache budget to the widths of every layer."""
