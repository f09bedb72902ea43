"""The `featstore` command: parses, calls, prints. One file for each thing that a user does with a store."""

from featstore.cli import exchange, extraction, info, sharing, upkeep
from featstore.cli.options import app
from featstore.support import wait_briefly

__all__ = ["app", "exchange", "extraction", "info", "main", "sharing", "upkeep"]


def main() -> None:
    wait_briefly()
    app()
