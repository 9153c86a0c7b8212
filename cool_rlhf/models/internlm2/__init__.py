"""InternLM2 for transformers 5. The other files of this folder are shipped inside checkpoints."""

from .configuration_internlm2 import InternLM2Config
from .modeling_internlm2 import InternLM2ForCausalLM, InternLM2ForRewardModel, InternLM2Model

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2ForRewardModel", "InternLM2Model"]
