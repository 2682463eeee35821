"""The type checker that the whole suite runs under: beartype, with int where float is asked for (PEP 484)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
