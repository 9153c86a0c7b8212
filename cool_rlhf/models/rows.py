"""Rows of a frozen embedding and output layer that are trained nonetheless, as parameters of their own.

peft's layer for that copies the whole matrix at each call, which here is each chunk of logits, and looks at a weight
that ZeRO-3 has not gathered.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


def train_rows(model: PreTrainedModel, indices: list[int]) -> None:
    """Have the rows ``indices`` of the embedding of ``model``, and of its output layer if it has one, learn, in place.
    Layers that share their weight share its rows."""
    embedding, head = cast(nn.Embedding, model.get_input_embeddings()), model.get_output_embeddings()
    rows = nn.Parameter(embedding.weight.detach()[indices].clone())
    _turn_into(_TrainedEmbedding, embedding, rows, indices)
    if head is not None:
        tied = head.weight is embedding.weight
        rows = rows if tied else nn.Parameter(head.weight.detach()[indices].clone())
        _turn_into(_TrainedOutput, head, rows, indices)


def _turn_into(kind: type[nn.Module], layer: Any, rows: nn.Parameter, indices: list[int]) -> None:
    own = type(layer)
    layer.__class__ = type(own.__name__, (kind, own), {"__module__": own.__module__})
    layer.rows = rows
    layer.register_buffer("row_indices", torch.tensor(indices, device=rows.device), persistent=False)


class _TrainedEmbedding(nn.Module):
    weight: nn.Parameter
    rows: nn.Parameter  # (R, hidden)
    row_indices: Tensor  # (R,) int64

    def forward(self, input: Tensor) -> Tensor:
        known: Tensor = super().forward(input)  # type: ignore[misc]
        is_row = input[..., None] == self.row_indices
        weight = self.weight
        try:
            self.weight = self.rows  # for the family's own pass, which may scale what it looks up
            learnt = super().forward(is_row.int().argmax(-1))  # type: ignore[misc]
        finally:
            self.weight = weight
        return torch.where(is_row.any(-1, keepdim=True), learnt, known)


class _TrainedOutput(nn.Module):
    rows: nn.Parameter  # (R, hidden)
    row_indices: Tensor  # (R,) int64
    bias: nn.Parameter | None

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = super().forward(input)  # type: ignore[misc]
        bias = None if self.bias is None else self.bias[self.row_indices]
        return logits.index_copy(-1, self.row_indices, F.linear(input, self.rows, bias))
