"""The lattices a model was trained on, and how others differ from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from strecur._anndata import read_pitches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import SectionData

logger = logging.getLogger("strecur")

SAME_SIZE = 1.25
"""Ratio of distances in micrometres up to which spots are taken for alike."""

SAME_UNITS = 1.5
"""The same for distances in the units of the coordinates, which depend on the resolution of the images."""


@dataclass(frozen=True)
class TrainingLattices:
    """Lattices of the training sections.

    Attributes
    ----------
    layout
        Their common layout.
    pitch, pitch_um
        Distances between neighbouring spots that are known, in the units of the coordinates and in micrometres.
    """

    layout: str
    pitch: tuple[float, ...]
    pitch_um: tuple[float, ...]

    def warn_of_differences(self, data: SectionData) -> None:
        """Warn if sections have another layout than those of the training, or spots of another size."""
        if data.grid.layout != self.layout:
            logger.warning(
                "the model was trained on lattices of layout %r, and this one is %r: spots have other neighbours than "
                "in training",
                *(self.layout, data.grid.layout),
            )
            return
        here = read_lattices(data, data.names)
        if self.pitch_um and here.pitch_um:
            known, now, ratio, unit = self.pitch_um, here.pitch_um, SAME_SIZE, "µm"
        elif self.layout == "square":  # of other layouts, spots have one size
            known, now, ratio, unit = self.pitch, here.pitch, SAME_UNITS, "units of the coordinates"
        else:
            return
        if known and now and (max(now) > ratio * max(known) or ratio * min(now) < min(known)):
            logger.warning(
                "neighbouring spots are %.4g to %.4g %s apart, in training %.4g to %.4g; bins of another size hold "
                "other tissue than the model knows",
                *(min(now), max(now), unit, min(known), max(known)),
            )


def read_lattices(data: SectionData, names: Sequence[str]) -> TrainingLattices:
    """Describe the lattices of some sections."""
    pitches, pitches_um = read_pitches(data.table, names)
    return TrainingLattices(data.grid.layout, tuple(pitches), tuple(pitches_um))
