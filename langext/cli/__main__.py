"""`python -m langext.cli` is the command `langext`."""

from langext.cli.app import app

app()
