"""What tells one training from another, so that a checkpoint is taken up by the same one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strecur._settings import settings
from strecur.engine import Checkpoint
from strecur.engine.checkpoint import describe_sections
from strecur.models._network import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from strecur.engine import Section
    from strecur.models._network import Architecture, Backbone


def open_checkpoint(
    folder: str | Path | None,
    architecture: Architecture,
    backbone: Backbone,
    *,
    halting: str | None,
    judges: Sequence[Section],
    precision: str | None,
) -> Checkpoint | None:
    """Describe what the engine does not see; ``None`` without a folder."""
    if folder is None:
        return None
    about = {
        "architecture": to_json(architecture),
        "backbone": to_json(backbone),
        "halting": halting,
        "precision": precision or settings.precision,
        "validation": describe_sections(judges),
    }
    return Checkpoint(folder, about)
