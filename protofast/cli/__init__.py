"""The command line, the only place that composes all parts of protofast."""

import sys


def main() -> None:
    """Run `protofast`; the entry point of the console script."""
    try:
        from protofast.cli.app import app
    except ModuleNotFoundError as missing:
        if sys.argv[1:2] == ["info"]:
            from protofast.info import main as info

            sys.exit(info(sys.argv[2:]))
        sys.exit(
            f"protofast: the command line needs {missing.name}, which is not installed; "
            "run: pip install 'protofast[all]'"
        )
    app()
