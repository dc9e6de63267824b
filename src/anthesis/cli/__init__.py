"""The command line: one file per command, registered in `app`; options that commands share are in `options`."""

from anthesis.cli.app import main

__all__ = ["main"]
