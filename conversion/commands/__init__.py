"""The subcommands of ``mha2mla``, one file each: options in, a call, tables out."""
