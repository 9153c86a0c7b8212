"""New weights into a running vLLM engine, in place: loaded into every vLLM worker as its extension class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload


class WeightReceiver:
    """Methods that vLLM mixes into its worker class; called on every worker through ``collective_rpc``.

    Weights arrive under their checkpoint names in any number of chunks. vLLM's layerwise reload puts each layer
    through its own loader and repacking (fused, tensor-parallel and, on a CPU, prepacked) as at the first load.
    """

    model_runner: Any
    device: torch.device

    def begin_weights(self) -> None:
        initialize_layerwise_reload(self.model_runner.get_model())

    def load_weights_chunk(self, chunk: Sequence[tuple[str, Tensor]]) -> None:
        weights = ((name, tensor.to(self.device)) for name, tensor in chunk)
        self.model_runner.get_model().load_weights(weights)

    def finish_weights(self) -> None:
        model = self.model_runner.get_model()
        finalize_layerwise_reload(model, self.model_runner.model_config)
        _repack_tied_output(model)


def _repack_tied_output(model: nn.Module) -> None:
    """An output layer that shares the input embedding's weight got none of its own to load, so that it would go on with
    what it has packed of the former one, as on a CPU."""
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    outputs = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    embedded = {_address(layer) for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in outputs:
        if _address(layer) in embedded:
            layer.quant_method.process_weights_after_loading(layer)


def _address(layer: nn.Module) -> int:
    return layer.get_parameter("weight").data_ptr()
