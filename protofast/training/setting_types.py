"""What settings are made of: kinds of numbers and names, and the frozen table."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _tuple_from_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _number_from_ratio(value: Any) -> Any:
    """`8/255` as a number; whatever else is left for the type to refuse."""
    above, slash, below = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not slash:
        return value
    try:
        return float(above) / float(below)
    except (ValueError, ZeroDivisionError):
        return value


Pair = Annotated[tuple[int, int], BeforeValidator(_tuple_from_list)]
Names = Annotated[tuple[str, ...], BeforeValidator(_tuple_from_list)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positives = Annotated[tuple[Positive, ...], BeforeValidator(_tuple_from_list)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Location = Annotated[str, AfterValidator(os.path.expanduser)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Fraction, Fraction], BeforeValidator(_tuple_from_list)]
Brightness = Annotated[float, BeforeValidator(_number_from_ratio), Field(gt=0, le=1)]
Change = Annotated[float, BeforeValidator(_number_from_ratio), Field(ge=0, le=1)]


def wrong(key: str, problem: str) -> PydanticCustomError:
    """A problem between several settings, laid at the door of ``key`` (relative to its table)."""
    return PydanticCustomError("combination", "{problem}", {"key": key, "problem": problem})


class Frozen(BaseModel):
    """A table of settings that cannot be changed; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
