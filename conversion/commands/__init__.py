"""The subcommands of ``mha2mla``, one file each: options in, a call, tables out.

A command imports what it works with in its body: neither ``--help`` nor a mistyped option should
have to wait for torch.
"""
