"""A seccomp profile as data, with everything conditional resolved: which system call meets which fate."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One argument of a call, compared as 64 bits. For SCMP_CMP_MASKED_EQ `value` is the mask, `value_two` the result."""

    index: int
    operator: str
    value: int
    value_two: int = 0


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to calls of this name whose arguments meet every comparison."""

    name: str
    action: str
    errno: int
    comparisons: tuple[Comparison, ...] = ()


@dataclasses.dataclass(frozen=True)
class Profile:
    """A profile with everything conditional resolved."""

    default_action: str
    default_errno: int
    rules: tuple[Rule, ...]
