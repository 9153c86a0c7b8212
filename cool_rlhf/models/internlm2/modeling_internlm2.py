"""InternLM2 (arXiv 2403.17297): language model with ``chat``, and reward model with ``get_score`` and its kin.

Self-contained: this file and those it imports from beside itself travel inside checkpoints, and need torch and
transformers only. Parameter names and shapes are those of the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ModelOutput
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .chat_internlm2 import InternLM2Chat
from .chatml_internlm2 import encode_pieces, start_ids, turn_pieces
from .configuration_internlm2 import InternLM2Config
from .layers_internlm2 import (
    InternLM2Attention,
    InternLM2DecoderLayer,
    InternLM2RMSNorm,
    InternLM2RotaryEmbedding,
)

SCORED_TOKENS = 16384  # padded tokens of conversations that are scored at once


class InternLM2PreTrainedModel(PreTrainedModel):
    config: InternLM2Config
    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": InternLM2DecoderLayer,
        "attentions": InternLM2Attention,
    }
    _input_embed_layer = "tok_embeddings"


class InternLM2Model(InternLM2PreTrainedModel):
    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = InternLM2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_states: Tensor = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None and seen == 0 and attention_mask is not None and attention_mask.ndim == 2:
            # Padding must not count as length, by which dynamic-NTK scaling goes.
            position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        elif position_ids is None:
            position_ids = torch.arange(seen, seen + hidden_states.shape[1], device=hidden_states.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class InternLM2ForCausalLM(InternLM2PreTrainedModel, InternLM2Chat, GenerationMixin):
    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.vocab_size = config.vocab_size
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.output = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, vocabulary) in the model's dtype; ``logits_to_keep`` as elsewhere in transformers."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@dataclass
class InternLM2RewardOutput(ModelOutput):
    """What the reward model returns.

    ``logits`` (B, 1) float32 is the score: the head at each row's last attended token. ``token_scores`` (B, L) float32
    is the head at every token, which is what vLLM's ``token_classify`` returns.
    """

    logits: Tensor | None = None
    token_scores: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class InternLM2ScoreHead(nn.Linear):
    """(…, H) to (…, 1), computed in float32 also where the model was cast after it was loaded, head and all."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.linear(hidden_states.float(), self.weight.float())


class InternLM2ForRewardModel(InternLM2PreTrainedModel):
    """A scalar head without bias over InternLM2, kept in float32 whatever the model's dtype: near the bound of the
    score, bfloat16 cannot tell neighbouring scores apart."""

    _keep_in_fp32_modules_strict = {"v_head"}  # noqa: RUF012

    def __init__(self, config: InternLM2Config) -> None:
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.v_head = InternLM2ScoreHead(config.hidden_size)
        self.reward_token_id = config.reward_token_id
        self.post_init()

    def get_output_embeddings(self) -> None:
        return None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> InternLM2RewardOutput:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        values = self.v_head(outputs.last_hidden_state).squeeze(-1)
        if attention_mask is None:
            last = torch.full((len(values), 1), values.shape[1] - 1, device=values.device)
        else:
            last = attention_mask.cumsum(dim=1).argmax(dim=1, keepdim=True)
        return InternLM2RewardOutput(
            logits=values.gather(1, last),
            token_scores=values,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def get_score(self, tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]) -> float:
        """The score of a conversation, a list of ``{"role", "content"}``."""
        return self.get_scores(tokenizer, [conversation])[0]

    @torch.no_grad()
    def get_scores(
        self, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[dict[str, str]]]
    ) -> list[float]:
        """The score of each conversation, always a list."""
        rows = [self._encode(tokenizer, conversation) for conversation in conversations]
        scores = [0.0] * len(rows)
        for group in _groups([len(row) for row in rows]):
            # Padding to the right of causal attention needs no mask, and without one the fast kernels are taken.
            input_ids = nn.utils.rnn.pad_sequence([rows[index] for index in group], batch_first=True)
            values = self(input_ids=input_ids.to(self.device), use_cache=False).token_scores
            for index, row in zip(group, values.tolist(), strict=True):
                scores[index] = row[len(rows[index]) - 1]
        return scores

    def compare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        a: list[dict[str, str]],
        b: list[dict[str, str]],
        return_logits: bool = False,
    ) -> bool | tuple[bool, list[float]]:
        """True if conversation ``a`` is better than ``b``; with ``return_logits`` also the two scores."""
        scores = self.get_scores(tokenizer, [a, b])
        better = scores[0] > scores[1]
        return (better, scores) if return_logits else better

    def rank(
        self,
        tokenizer: PreTrainedTokenizerBase,
        conversations: Sequence[list[dict[str, str]]],
        return_logits: bool = False,
    ) -> list[int] | tuple[list[int], list[float]]:
        """Each conversation's rank, 0 the best; equals keep their order. With ``return_logits`` also the scores."""
        scores = self.get_scores(tokenizer, conversations)
        best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
        ranks = [0] * len(scores)
        for position, index in enumerate(best_first):
            ranks[index] = position
        return (ranks, scores) if return_logits else ranks

    def _encode(self, tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]) -> Tensor:
        """(L,) token ids ending in the one reward token. A conversation that is too long loses its beginning, but for a
        system turn in front, which is where a condition stands, as far as that leaves room for more."""
        start = start_ids(tokenizer)
        limit = self.config.max_position_embeddings - len(start) - 1
        head: list[int] = []
        turns = _encode_turns(tokenizer, conversation)
        if len(turns) > limit and conversation[0]["role"] == "system":
            head = _encode_turns(tokenizer, conversation[:1])
            head, turns = (head, turns[len(head) :]) if len(head) < limit else ([], turns)
        return torch.tensor([*start, *head, *turns[max(0, len(turns) + len(head) - limit) :], self.reward_token_id])


def _encode_turns(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> list[int]:
    return encode_pieces(tokenizer, [piece for turn in turns for piece in turn_pieces(turn)])


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices by length, the longest first, in groups of at most ``SCORED_TOKENS`` padded tokens."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= SCORED_TOKENS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


__all__ = [
    "InternLM2ForCausalLM",
    "InternLM2ForRewardModel",
    "InternLM2Model",
    "InternLM2PreTrainedModel",
    "InternLM2RewardOutput",
]
