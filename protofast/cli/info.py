"""`protofast info`."""

from typing import Annotated

import typer


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> int:
    """Say what is installed and what would run here, and check every operator.

    Each operator is compared with its plain-PyTorch reference; the exit code is 1 if one disagrees.

    Examples:
      protofast info
      protofast info --json
    """
    from protofast.info import main

    return main(["--json"] if as_json else [])
