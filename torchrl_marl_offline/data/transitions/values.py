"""What a recording's numbers may be: real, of a type that torch can hold, indices whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchrl_marl_offline.data.transitions.dataset_errors import DatasetError

_LARGEST_INDEX = 2**31 - 1
_REMEDIES = {
    "c": "complex numbers; give their real and imaginary parts as two columns",
    "O": "objects; give an array of numbers, or a list of one array for each episode",
    "M": "dates; give numbers",
    "m": "times; give numbers",
    "V": "records; give one array of numbers for each field",
}


def check_type(dtype: np.dtype, name: str) -> None:
    """Refuse what is not a real number.

    Args:
        dtype: of the array.
        name: of the array, for the message.
    """
    if dtype.kind not in "fiub":
        raise DatasetError(f"{name} holds {_REMEDIES.get(dtype.kind, 'text; give numbers')}.")


def check_tensor(values: torch.Tensor, name: str) -> None:
    """Refuse tensors that are no plain block of real numbers.

    Args:
        values: the tensor.
        name: of the array, for the message.
    """
    if values.is_complex():
        raise DatasetError(f"{name} holds {_REMEDIES['c']}.")
    if values.layout != torch.strided:
        raise DatasetError(f"{name} is a sparse tensor; give its .to_dense().")
    if values.is_quantized:
        raise DatasetError(f"{name} is a quantized tensor; give its .dequantize().")
    if values.is_meta:
        raise DatasetError(f"{name} is a tensor without values, on the meta device; give one that has them.")


def as_array(values: Any, name: str) -> np.ndarray:
    """Return real numbers as an array of a type that torch knows, in this machine's byte order.

    Args:
        values: an array, a tensor or nested lists of numbers.
        name: for the message.

    Raises:
        DatasetError: what is no real number, or lists of unequal length.
    """
    if isinstance(values, torch.Tensor):
        check_tensor(values, name)
        tensor = values.detach().cpu().resolve_neg()
        plain = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
        values = (tensor if plain else tensor.float()).numpy()  # not bfloat16, nor numbers of 8 bits
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise DatasetError(f"{name} is a masked array with hidden entries; fill them, or drop those episodes.")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{name} holds lists of unequal length; give one array for each episode.") from error
    check_type(array.dtype, name)
    if array.dtype.kind == "f" and array.dtype not in (np.float16, np.float32, np.float64):
        return array.astype(np.float64)  # also the other byte order and long doubles
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def flag_array(values: Any, name: str, start: int = 0) -> np.ndarray:
    """Return bools: nonzero is true; ``start`` is the number of the first row, for the message.

    Raises:
        DatasetError: an entry is NaN, which is neither.
    """
    array = as_array(values, name)
    if array.dtype.kind == "f" and np.isnan(array).any():
        row = start + int(np.argwhere(np.isnan(array))[0][0])
        raise DatasetError(f"{name} is NaN at row {row}, which is neither true nor false; write 0 or 1 there.")
    return array != 0


def is_index_like(dtype: np.dtype) -> bool:
    """Say whether an array of this type holds indices by its type alone."""
    return dtype.kind in "iub"


def indices(values: np.ndarray, *, agents: int, n_actions: int | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return discrete actions as indices, and which rows hold none.

    Args:
        values: ``[T, n]`` or ``[T, n, 1]`` whole numbers of any type, or one-hot rows ``[T, n, A]``.
        agents: ``n``.
        n_actions: their number ``A``, where it is known: it tells one-hot rows.
        name: for the message.

    Returns:
        ``[T, n]`` int64, 0 in the rows that are none, and ``[T]`` bool, true for those.

    Raises:
        DatasetError: ``values`` is of another shape.
    """
    shape = values.shape
    if values.ndim == 3 and shape[1] == agents and shape[2] > 1:
        if n_actions != shape[2]:
            raise DatasetError(
                f"{name} has shape {shape}: one index per agent can be read, or one-hot rows; pass n_actions="
                f"{shape[2]} if they are one-hot, else number an agent's joint choices and give that index."
            )
        ones = (values == 1).sum(-1) == 1
        bad = ~(ones & ((values != 0).sum(-1) == 1))  # [T, n]
        return np.where(bad, 0, (values == 1).argmax(-1)), bad.any(-1)
    if shape not in ((len(values), agents), (len(values), agents, 1)):
        raise DatasetError(f"{name} has shape {shape} instead of [{len(values)}, {agents}]; give one index per agent.")
    flat = values.reshape(len(values), agents)
    if flat.dtype.kind == "f":
        bad = ~np.isfinite(flat) | (flat != np.round(flat)) | (np.abs(flat) > _LARGEST_INDEX)
    else:
        bad = flat > _LARGEST_INDEX if flat.dtype.kind == "u" else np.zeros(flat.shape, bool)
        if flat.dtype.kind == "i":
            bad = (flat > _LARGEST_INDEX) | (flat < -_LARGEST_INDEX)
    return np.where(bad, 0, flat).astype(np.int64), bad.any(-1)
