from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def _default_dataset_dir() -> Path:
    return Path(os.environ.get("STRECUR_DATA", Path.home() / ".cache" / "strecur"))


@dataclass
class Settings:
    """Where computations run and what they show; :meth:`override` changes them for a while."""

    accelerator: str = "auto"
    """Device family in the words of Lightning, such as ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``."""

    devices: int = 1
    """Number of devices to train on; more than one needs ``torchrun``."""

    precision: str | None = None
    """Lightning precision such as ``"32-true"`` or ``"bf16-mixed"``; ``None``: bf16 where that is faster."""

    progress: bool = True
    """Show one progress bar for training and long computations."""

    dataset_dir: Path = field(default_factory=_default_dataset_dir)
    """Folder of data sets and downloads; the environment variable ``STRECUR_DATA`` sets it."""

    min_reliability: float | None = 0.2
    """Reliability (correlation on held-out spots) below which plots of expression mute a gene; ``None``: never."""

    @contextmanager
    def override(self, **values: object) -> Iterator[Settings]:
        """Change settings inside a ``with`` block.

        Parameters
        ----------
        **values
            New values by name.

        Yields
        ------
        These settings.

        Examples
        --------
        >>> import strecur as st
        >>> with st.settings.override(progress=False, accelerator="cpu"):
        ...     st.settings.progress
        False
        """
        before = replace(self)
        unknown = sorted(set(values) - set(vars(self)))
        if unknown:
            msg = f"unknown settings {unknown}; there are {sorted(vars(self))}"
            raise AttributeError(msg)
        try:
            vars(self).update(values)
            yield self
        finally:
            vars(self).update(vars(before))


settings = Settings()
