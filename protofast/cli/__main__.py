"""`python -m protofast.cli`, the same as `protofast`."""

from protofast.cli import main

main()
