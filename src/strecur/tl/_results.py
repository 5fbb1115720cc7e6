"""Rows of a long computation, kept in a file so that an interruption loses none."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEYS = ["group", "seed", "method"]
TYPES = {"group": str, "method": str, "caution": str, "settings": str, "shared_donor": "boolean"}


def digest(*parts: object) -> str:
    """Short name of some settings and data: the same for the same, another for others."""
    found = sha1(usedforsecurity=False)
    for part in parts:
        found.update(part if isinstance(part, bytes) else repr(part).encode())
    return found.hexdigest()[:12]


@dataclass
class Results:
    """What was computed so far.

    Attributes
    ----------
    settings
        By group and method: :func:`digest` of the data and settings that give its rows.
    path
        CSV that holds the rows, or ``None``.
    table
        The rows.
    """

    settings: Mapping[tuple[str, str], str]
    path: Path | None
    table: pd.DataFrame

    def has(self, group: str, seed: int, method: str) -> bool:
        if self.table.empty:
            return False
        same = (self.table["group"] == group) & (self.table["seed"] == seed) & (self.table["method"] == method)
        return bool(same.any())

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Add rows, and write the file anew: at any moment one of the two is whole."""
        new = pd.DataFrame([{**row, "settings": self.settings[str(row["group"]), str(row["method"])]} for row in rows])
        new = new.astype({"shared_donor": TYPES["shared_donor"]})
        self.table = pd.concat([self.table, new], ignore_index=True) if len(self.table) else new
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_name(f"{self.path.name}.part")
            self.table.to_csv(unfinished, index=False)
            unfinished.replace(self.path)

    def select(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Rows of the groups and methods there are settings for, in order."""
        keys = list(zip(self.table["group"], self.table["method"], strict=True))
        wanted = [key in self.settings for key in keys]
        found = self.table[wanted].query("seed in @seeds").drop(columns="settings")
        order = list(dict.fromkeys(method for _, method in self.settings))
        return found.sort_values(
            KEYS, key=lambda column: column.map(order.index) if column.name == "method" else column, ignore_index=True
        )


def open_results(path: str | Path | None, settings: Mapping[tuple[str, str], str]) -> Results:
    """Read the results that exist; raise if they come from other data or settings."""
    path = None if path is None else Path(path)
    if path is None or not path.exists():
        return Results(settings, path, pd.DataFrame())
    table = pd.read_csv(path, dtype=TYPES)
    absent = [name for name in [*KEYS, "settings"] if name not in table]
    if absent:
        msg = f"path={str(path)!r} is not a table of strecur.tl.cross_validate (it has no {absent}); choose another"
        raise ValueError(msg)
    for group, method, made_with in table[["group", "method", "settings"]].itertuples(index=False):
        if settings.get((group, method), made_with) != made_with:
            msg = f"path={str(path)!r} holds results of other data or settings for {group}, {method}; choose another"
            raise ValueError(msg)
    return Results(settings, path, table.fillna({"caution": ""}))
