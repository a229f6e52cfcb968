"""Devices as users name them."""

from __future__ import annotations

import torch


def check_device_is_there(device: torch.device | str) -> None:
    """Refuse a CUDA device that is not there.

    Raises:
        ValueError: it is not.
    """
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be one such as cpu or cuda, got {device!r}.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} NVIDIA GPUs; use 'cpu'."
        )
