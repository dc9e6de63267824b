"""`python -m anthesis`: the command line."""

from anthesis.cli import main

main()
