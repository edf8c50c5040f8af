"""How protofast was built, and what this processor can do (csrc/bindings.cpp)."""

from typing import Any

def build_facts() -> dict[str, Any]:
    """The contents of build_facts.json."""

def cpu_features() -> dict[str, bool]:
    """Instruction set -> whether it can be used here."""
