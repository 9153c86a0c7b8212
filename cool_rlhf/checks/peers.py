"""What TRL, OpenRLHF and verl call our settings, for those who come from there (docs/ppo.md says what each does)."""

from __future__ import annotations

_NAMES = {  # ours: theirs, by the last part where they write several with dots
    "output_dir": "save_path default_local_dir",
    "model.path": "model_name_or_path",
    "data.prompts": "train_files prompt_data",
    "data.validation_prompts": "val_files",
    "reward.path": "reward_pretrain",
    "sft.epochs": "num_train_epochs max_epochs",
    "sft.learning_rate": "lr learning_rate",
    "sft.batch_tokens": "batch_size per_device_train_batch_size train_batch_size",
    "sft.micro_batch_tokens": "micro_train_batch_size",
    "sft.max_length": "max_len max_seq_length",
    "sft.gradient_clip": "max_grad_norm max_norm grad_clip",
    "sft.warmup_fraction": "warmup_ratio lr_warmup_ratio",
    "reward.epochs": "num_train_epochs max_epochs",
    "reward.learning_rate": "lr learning_rate",
    "reward.batch_tokens": "batch_size per_device_train_batch_size train_batch_size",
    "reward.micro_batch_tokens": "micro_train_batch_size",
    "reward.max_length": "max_len max_seq_length",
    "reward.gradient_clip": "max_grad_norm max_norm grad_clip",
    "reward.warmup_fraction": "warmup_ratio lr_warmup_ratio",
    "sampling.max_new_tokens": "response_length generate_max_len max_response_length max_completion_length",
    "ppo.kl_coefficient": "kl_coef init_kl_coef init_coef kl_loss_coef kl_coeff beta",
    "ppo.kl_estimator": "kl_penalty",
    "ppo.kl_in": "use_kl_loss use_kl_in_reward",
    "ppo.kl_gradient": "kl_loss_type",
    "ppo.kl_target": "adap_kl_ctrl target target_kl",
    "ppo.kl_horizon": "horizon",
    "ppo.normalise_rewards": "use_score_scaling use_score_norm normalize_reward",
    "ppo.reward_clip": "score_clip reward_clip_range",
    "ppo.unfinished_penalty": "missing_eos_penalty stop_properly_penalty_coef",
    "ppo.discount": "gamma",
    "ppo.trace_decay": "lam lambd gae_lambda",
    "ppo.normalise_advantages": "no_advantage_std_norm",
    "ppo.clip": "cliprange clip_range eps_clip clip_ratio",
    "ppo.clip_high": "eps_clip_low_high clip_ratio_high",
    "ppo.dual_clip": "clip_ratio_c",
    "ppo.entropy_coefficient": "entropy_loss_coef entropy_coeff ent_coef",
    "ppo.iterations": "total_episodes num_episodes total_training_steps",
    "ppo.prompts_per_iteration": "batch_size rollout_batch_size train_batch_size",
    "ppo.samples_per_prompt": "n_samples_per_prompt n num_generations",
    "ppo.epochs": "num_ppo_epochs max_epochs ppo_epochs",
    "ppo.minibatches": "num_mini_batches train_batch_size ppo_mini_batch_size",
    "ppo.stop_kl": "early_stopping target_kl",
    "ppo.policy_learning_rate": "lr learning_rate actor_learning_rate",
    "ppo.critic_learning_rate": "lr learning_rate vf_coef",
    "ppo.learning_rate_schedule": "lr_scheduler_type lr_scheduler",
    "ppo.learning_rate_warmup": "warmup_steps lr_warmup_ratio lr_warmup_steps_ratio",
    "ppo.gradient_clip": "max_grad_norm max_norm grad_clip",
    "ppo.weight_decay": "l2",
    "ppo.adam_betas": "adam_beta1 adam_beta2 betas",
    "ppo.micro_batch_tokens": "micro_train_batch_size micro_rollout_batch_size train_max_tokens_per_gpu "
    "use_dynamic_batch ppo_max_token_len_per_gpu use_dynamic_bsz",
    "ppo.pretrain_coefficient": "ptx_coef",
    "ppo.critic_init": "value_model critic_pretrain",
    "ppo.critic_warmup": "freezing_actor_steps",
    "ppo.value_clip": "cliprange_value",
    "ppo.keep_critic": "save_value_network save_contents",
    "ppo.old_logprobs": "bypass_mode",
    "ppo.engine_correction": "enable_vllm_is_correction rollout_is rollout_is_threshold",
    "ppo.generate_ahead": "async_train one_step_off_policy",
    "ppo.validate_every": "test_freq eval_steps",
    "ppo.save_every": "save_freq save_steps",
    "cluster.gpus": "n_gpus_per_node",
    "cluster.rollout.engines": "vllm_num_engines",
    "cluster.rollout.tensor_parallel_size": "vllm_tensor_parallel_size tensor_model_parallel_size",
    "cluster.rollout.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "cluster.rollout.max_concurrent": "max_num_seqs",
    "logging.wandb_project": "project_name",
    "logging.wandb_name": "experiment_name wandb_run_name",
}
_WITHOUT = {  # theirs: what is so here, where no one setting of ours does the same
    "adv_estimator advantage_estimator": "advantages are always those of GAE, with a critic (ppo.discount, "
    "ppo.trace_decay)",
    "total_epochs": "PPO goes by ppo.iterations, each of ppo.prompts_per_iteration prompts with ppo.epochs passes over "
    "their responses; SFT has sft.epochs, the reward model reward.epochs",
}


def called_elsewhere(name: str) -> list[str]:
    """Our keys of which another project's name is ``name``."""
    return [key for key, names in _NAMES.items() if name in names.split()]


def done_otherwise(name: str) -> str | None:
    """What is so here, where another project's setting ``name`` has no counterpart."""
    return next((told for names, told in _WITHOUT.items() if name in names.split()), None)
