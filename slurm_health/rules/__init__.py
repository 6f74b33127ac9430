"""Opinions: what a reading means, as data (rules.toml, xid.toml), and how it is judged.

Pure: no files but the two tables, no clock, no log. What must outlive a restart is in Memory, a JSON value.
"""

from slurm_health.rules.book import (
    EVENTS,
    FAULTS,
    WORDS,
    Above,
    Below,
    Condition,
    Is,
    IsNot,
    Opinion,
    Rises,
    Rule,
    RuleBook,
    RuleError,
    at_once,
    load,
)
from slurm_health.rules.judging import BURST, EVIDENCE, Memory, begin, counting, ends, judge, release

__all__ = [
    "BURST",
    "EVENTS",
    "EVIDENCE",
    "FAULTS",
    "WORDS",
    "Above",
    "Below",
    "Condition",
    "Is",
    "IsNot",
    "Memory",
    "Opinion",
    "Rises",
    "Rule",
    "RuleBook",
    "RuleError",
    "at_once",
    "begin",
    "counting",
    "ends",
    "judge",
    "load",
    "release",
]
