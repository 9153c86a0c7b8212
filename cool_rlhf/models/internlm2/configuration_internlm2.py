"""Configuration of the InternLM2 family. Self-contained: this file travels inside checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig


class InternLM2Config(PreTrainedConfig):
    """Shape and token ids of an InternLM2 model (arXiv 2403.17297, section 2.2); the defaults are those of the 7B.

    Released ``config.json`` files load as they are, with two of their habits translated. ``rope_theta`` and
    ``rope_scaling`` become ``rope_parameters``, which transformers 5 and vLLM read; files are written with all three,
    and with ``torch_dtype`` beside ``dtype``, for servers that read the released fields. ``attn_implementation`` in a
    file is kept for the next file but not heeded: it would otherwise decide over the library's default and, as a
    field, shadow the keyword of ``from_pretrained``.
    """

    model_type = "internlm2"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    default_theta = 1_000_000.0

    vocab_size: int = 92544
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    bias: bool = False
    tie_word_embeddings: bool = False
    rope_theta: float | int = 1_000_000.0
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 2
    reward_token_id: int | None = 92527

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        scaling = kwargs.get("rope_scaling")
        if scaling is not None and "type" in scaling:
            kwargs["rope_scaling"] = {"rope_type" if key == "type" else key: value for key, value in scaling.items()}
        super().__post_init__(**kwargs)
        assert self.rope_parameters is not None  # the base class fills it
        self.rope_theta = self.rope_parameters["rope_theta"]

    def validate_architecture(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        names = {"attn_implementation": "file_attn_implementation"}
        return super().from_dict({names.get(key, key): value for key, value in config_dict.items()}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        rope = output.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            scaling = {key: value for key, value in rope.items() if key not in ("rope_type", "rope_theta")}
            output["rope_scaling"] = {"type": rope["rope_type"], **scaling}
        if "file_attn_implementation" in output:
            output["attn_implementation"] = output.pop("file_attn_implementation")
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        """What a file holds."""
        output = super().to_diff_dict()
        if output.get("dtype") is not None:
            output["torch_dtype"] = output["dtype"]
        return output
