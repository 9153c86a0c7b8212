"""How tensors travel between processes.

torch pickles a tensor by way of its file format, 0.15 ms each; a step of PPO sends some thousand small ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INLINE_BYTES = 2**16  # a larger tensor's bytes lie beside the pickle, where Ray moves them without another copy


def send_tensors_plainly() -> None:
    """Have Ray send this process's tensors as dtype, shape and bytes. They arrive on the CPU, without a gradient and
    with memory of their own, also where they were views of one tensor. What other processes send is read either way.
    Nothing happens in a process that has no Ray.
    """
    if not ray.is_initialized():
        return
    import torch

    ray.util.register_serializer(torch.Tensor, serializer=to_parts, deserializer=from_parts)


def to_parts(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], Any]:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), flat.tobytes() if flat.nbytes <= INLINE_BYTES else flat


def from_parts(parts: tuple[torch.dtype, tuple[int, ...], Any]) -> Tensor:
    import torch

    dtype, shape, data = parts
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)  # a copy: Ray's memory is read-only
