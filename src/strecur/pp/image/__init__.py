"""H&E images of sections: reading, stain, patches and their features."""

from __future__ import annotations
