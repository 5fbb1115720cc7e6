from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

if TYPE_CHECKING:
    from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT


def make_fabric(accelerator: str, devices: int, precision: str | None) -> Fabric:
    """Choose device and precision.

    More than one device needs one process each, started by ``torchrun``; this is not possible in a notebook.

    Parameters
    ----------
    accelerator, devices
        Device family and number of devices, as in Lightning.
    precision
        Precision as in Lightning. If ``None``, bf16 mixed precision if the hardware supports it, otherwise float32.

    Raises
    ------
    ValueError
        If the device or precision is not available, or several devices are asked for outside ``torchrun``.
    """
    if devices > 1 and "LOCAL_RANK" not in os.environ:
        msg = (
            f"devices={devices} needs one process per device: put the call into a script and start it with "
            f"'torchrun --nproc-per-node={devices} script.py'"
        )
        raise ValueError(msg)
    n_machines = int(os.environ.get("GROUP_WORLD_SIZE", "1")) if devices > 1 else 1
    make = partial(Fabric, accelerator=accelerator, devices=devices, num_nodes=n_machines)
    try:
        fabric = make(precision=cast("_PRECISION_INPUT", precision or "32-true"))
    except (ImportError, RuntimeError, ValueError) as error:
        msg = f"accelerator={accelerator!r}, devices={devices}, precision={precision!r} is not available: {error}"
        raise ValueError(msg) from error
    if precision is None and fast_bf16(fabric.device):
        # as a plugin, bf16 is not announced on every call
        fabric = make(plugins=MixedPrecision("bf16-mixed", "cpu" if fabric.device.type == "cpu" else "cuda"))
    if devices > 1:
        fabric.launch()
    return fabric


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are supported in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(check() for check in checks if check is not None)
    return False
