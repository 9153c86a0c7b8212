"""The typed schema of every setting. Nothing heavy is imported here: a mistyped key is answered at once.

Defaults are those of the InternLM2 report (section 4.2) where it gives one, and ours where it is silent; the tables of
docs/ say which is which.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelConfig:
    """The base to fine-tune: ``path`` (folder or Hub name), or fresh weights of the given shape."""

    path: str | None = None
    tokenizer: str | None = None  # folder or SentencePiece file for fresh weights; null: train one on the run's texts
    vocab_size: int = 1024  # of the tokenizer that is trained
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn_size: int = 384
    max_positions: int = 32768  # tokens of prompt and response together; a model that is given may have fewer
    dtype: str = "bfloat16"  # bfloat16 (trained with float32 master weights) or float32
    gradient_checkpointing: bool = False  # of what is trained: activations are computed again instead of kept


@dataclass
class DataConfig:
    """Lists of JSONL or Parquet files, globs, or Hub names. ``world``: the embedded one supplies what is left out."""

    sft: list[str] = field(default_factory=list)
    preferences: list[str] = field(default_factory=list)
    validation_preferences: list[str] = field(default_factory=list)  # in place of reward.validation_share
    prompts: list[str] = field(default_factory=list)
    validation_prompts: list[str] = field(default_factory=list)  # empty: split off `prompts`, by prompt
    pretrain: list[str] = field(default_factory=list)
    validation_pretrain: list[str] = field(default_factory=list)  # empty: a few texts of `pretrain` are held out
    test_preferences: list[str] = field(default_factory=list)  # for stage=evaluate; never learnt from, as test_prompts
    test_prompts: list[str] = field(default_factory=list)  # empty, with prompts of your own: their validation prompts
    domains: dict[str, str] = field(default_factory=dict)  # source, or set -> domain of its rows that name none
    weights: dict[str, float] = field(default_factory=dict)  # source of preferences -> how often each pair is seen
    domain_weights: dict[str, float] = field(default_factory=dict)  # domain -> how often PPO sees each of its prompts
    bad_rows: str = "refuse"  # or drop: leave them out and say how many; or drop_hub: those of sets from the Hub
    world: WorldConfig | None = None


@dataclass
class WorldConfig:
    """Sizes of the embedded world (cool_rlhf.demo), in rows."""

    sft: int = 12000
    preferences: int = 2000  # pairs made by the generator; sampled pairs come on top, from `collect`
    prompts: int = 4000
    validation: int = 96
    validation_pairs: int = 500  # of each domain: of fewer, a repair's cost is hard to tell from chance
    test: int = 480
    pretrain: int = 1000
    label_noise: float = 0.05


@dataclass
class LoRAConfig:
    """Low-rank adaptation: small matrices beside the frozen ones are trained, and merged into them on export."""

    rank: int = 0  # 0: off, all weights are trained
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)  # names of linear layers, such as wqkv; empty: all of the backbone


@dataclass
class SFTConfig:
    path: str | None = None  # a finished SFT model: the stage is skipped
    epochs: int = 1
    batch_tokens: int = 65536  # per optimiser step, over all ranks
    micro_batch_tokens: int = 8192  # of one forward and backward pass of a rank
    max_length: int = 8192  # tokens, or the model's positions where they are fewer
    learning_rate: float = 4e-5
    final_learning_rate: float = 0.0
    warmup_fraction: float = 0.03
    weight_decay: float = 0.01
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # of AdamW's two running means
    gradient_clip: float = 1.0
    save_every: int = 500  # steps between snapshots to go on from
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass
class CollectConfig:
    """Preferences gathered by sampling the SFT model before reward training."""

    prompts: int = 0  # how many prompts to sample pairs for; 0 gathers nothing
    samples_per_prompt: int = 4
    pairs_per_prompt: int = 2
    labeller: str = (
        "cool_rlhf.demo.gold:score"  # module:function (messages, response, domain, answer, finished) -> float
    )
    label_noise: float = 0.05
    least_gap: float = 0.0  # values of the rule that are closer than this are a tie, as equal ones are
    judged_as: dict[str, list[str]] = field(default_factory=dict)  # domain -> those it is labelled under, if not itself


@dataclass
class RewardConfig:
    """The loss and every key with its source: docs/reward_model.md."""

    path: str | None = None  # a finished reward model: its training is skipped
    epochs: int = 1
    batch_tokens: int = 16384  # per optimiser step, over all ranks; both sides of a pair count
    micro_batch_tokens: int = 16384  # of one forward and backward pass of a rank
    max_length: int = 8192  # tokens of one conversation, with condition and reward token
    learning_rate: float = 1e-5
    final_learning_rate: float = 5e-6
    warmup_fraction: float = 0.03
    weight_decay: float = 0.01
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # of AdamW's two running means
    gradient_clip: float = 1.0
    gamma: float = 2.0  # of the focal factor; 0: the plain ranking loss
    penalty_weight: float = 0.02  # of the log barrier; 0: none
    bound: float = 5.0  # that the barrier keeps scores within, on both sides
    detach_focal: bool = False  # hold the focal factor constant under differentiation
    margin: bool = True  # rows may say by how much the chosen response should lead
    save_every: int = 500  # steps between snapshots to go on from
    evaluate_every: int = 100  # steps between looks at the held-out pairs, where there are any
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    too_long: str = "cut"  # a pair above max_length loses its beginning, both sides alike, or is left out: drop
    condition_dropout: float = 0.0  # share of the pairs that are learnt without their condition
    validation_share: float = 0.02  # of the prompts: their pairs are held out, to judge training and repairs by


@dataclass
class SamplingConfig:
    temperature: float = 1.0
    top_p: float = 0.9
    max_new_tokens: int = 1024  # of a response, at most; fewer where the prompt leaves less of the positions
    system_prompt: str | None = None  # of prompts that have no system turn of their own
    stop: list[str] = field(default_factory=list)  # texts or special tokens that end a response, beside the turn's end


@dataclass
class RewardRecipe:
    """What a domain's responses are rewarded for: a weighted sum. Without rules and with only its own condition at
    weight 1 it is what a domain without a recipe has."""

    conditions: dict[str, float] = field(default_factory=dict)  # condition of the reward model -> weight of its score
    rules: dict[str, float] = field(default_factory=dict)  # module:function -> weight; see cool_rlhf.protocols.Rule


@dataclass
class PPOConfig:
    """Every switch with its formula, source and names elsewhere: docs/ppo.md. A number that is 0 by default is off."""

    iterations: int = 400  # critic warm-up not counted
    prompts_per_iteration: int = 512
    samples_per_prompt: int = 1  # responses to each of them
    critic_init: str = "reward"  # the round's reward model without its head; or sft, or a checkpoint's path or Hub name
    critic_warmup: int = 50  # iterations in which the policy is frozen
    keep_critic: bool = False  # leave the round's last critic as a checkpoint too, in rounds/R/critic
    epochs: int = 1
    minibatches: int = 1
    clip: float = 0.2  # of the ratio, on both sides
    clip_high: float | None = None  # on the upper side; null: clip
    dual_clip: float = 0.0  # above 1: bounds the loss of a token with a negative advantage at dual_clip · |A|
    value_clip: float = 0.0  # how far a value may move in one iteration before its loss stops pulling
    normalise_advantages: bool = False  # mean 0, variance 1 over the iteration's response tokens
    entropy_coefficient: float = 0.0
    entropy_schedule: str = "constant"  # or cosine, linear: down to nothing at the last iteration
    stop_kl: float = 0.0  # of an iteration, once the policy has moved by more nats a token; the critic goes on
    discount: float = 1.0
    trace_decay: float = 0.99
    critic_trace_decay: float | None = None  # of the returns that the critic learns; null: trace_decay
    kl_coefficient: float = 0.01
    kl_estimator: str = "k1"
    kl_in: str = "reward"  # or loss, with k2 or k3
    kl_gradient: str = "k2"  # of k3 in the loss: the divergence's own, which is k2's; or k3's, as in GRPO
    kl_target: float = 0.0  # nats a response: the coefficient follows the divergence
    kl_horizon: int = 10000  # responses over which it follows
    reward_clip: float = 0.0  # scores are cut to ± this
    normalise_rewards: bool = False  # scores less their mean so far, divided by their deviation so far
    rewards: dict[str, RewardRecipe] = field(default_factory=dict)  # domain -> recipe
    unfinished_penalty: float = 0.0  # subtracted from the (clipped, normalised) score of a response that hit the limit
    # Whose log-probabilities the ratio starts from: trainer, or engine. The engine reports log π before nucleus
    # sampling, but draws from π / Z within the nucleus, Z in [top_p, 1]: with top_p below 1 either ratio is too great
    # by the factor 1 / Z(t), at top_p 0.9 by at most 11 %. It changes no sign, and nothing here corrects it.
    old_logprobs: str = "trainer"
    engine_correction: float = 0.0  # cap of the weights π_trainer / π_engine on advantages; needs temperature 1
    generate_ahead: bool = False  # sample a step's responses while the one before trains; needs either of the two above
    policy_learning_rate: float = 1e-6
    critic_learning_rate: float = 5e-6
    learning_rate_schedule: str = "constant"  # or cosine, linear
    learning_rate_warmup: float = 0.0  # share of the steps in which the rate rises
    final_learning_rate: float = 0.1  # share of the rate that cosine and linear end at
    weight_decay: float = 0.01
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # of AdamW's two running means
    gradient_clip: float = 1.0
    pretrain_coefficient: float = 0.5
    pretrain_ratio: float = 0.5  # pretraining tokens for each PPO token
    micro_batch_tokens: int = 16384  # of one pass of a rank of policy, critic, reference or scorer
    keep_passes: bool = False  # that told old log-probabilities and values, for the update; needs minibatches=1
    validate_every: int = 10
    validation_prompts: int = 512
    validation_texts: int = 64  # held-out texts for the language model's loss; 0: off
    validation_instructions: int = 0  # prompts whose keeping a program checks (cool_rlhf.instructions); 0: off
    validation_conditions: list[str] = field(default_factory=list)  # every response is scored under these too
    # What the kept policy is best by. null: validation/score, or validation/gold with stop_when_parted.
    best_metric: str | None = None
    best_mode: str | None = None  # max or min; null: min for validation/lm_loss and validation/kl, else max
    stop_when_parted: bool = False  # end the round at the validation that finds the score rising while gold falls
    save_every: int = 20  # steps between snapshots to go on from; the last step is saved too
    early_snapshot: float = 0.1  # share of the iterations after which policy_early is kept

    @property
    def responses_per_iteration(self) -> int:
        return self.prompts_per_iteration * self.samples_per_prompt


@dataclass
class OnlineConfig:
    """What happens between rounds of PPO (report, section 4.2.2): the reward model is mended and grows.

    Everything found, made and labelled in a round stands in ``rounds/R``.
    """

    rounds: int = 3
    prompts: int = 300  # held-out ones that SFT, the early and the late policy answer after each round; 0: no paths
    samples_per_prompt: int = 1  # of each policy
    fast_path: bool = True  # look for reward hacking and mend it
    patches: int = 100  # pairs that mend one pattern, a quarter of them held out to judge by
    other_wordings: bool = True  # where a phrase is found, mend others that preferences teach and that are paid alike
    review: bool = False  # patches are labelled too, and count as they were judged (docs/online.md)
    pairs: int = 200  # for people to label, after each round; 0: none
    # Who labels them: people at their own time (stage=annotate; a round takes what has arrived), or within the round
    # itself a rule or judge, with the settings of `annotate`.
    labeller: str = "people"
    # What a round's policy starts from: sft; last, the round before's; or clean, the same unless that one lives off a
    # cheat, then what it had started from itself.
    policy_from: str = "clean"
    cheating: float = 0.5  # share of its rise in score that a policy living off a cheat owes to it (docs/online.md)
    significance: float = 0.01  # level of the fast path's two corrected tests: of drift and of payment
    least_gain: float = 0.2  # share of its scope's rise in score that a finding explains at least
    without_detectors: list[str] = field(default_factory=list)  # names of those that do not look (docs/online.md)
    # Earlier pairs that are learnt again beside each patch, the round's own or kept by an earlier one, and each label
    # so far.
    replay: float = 4.0
    least_replay: int = 2000  # of them, however few patches and labels there are
    epochs: int = 2  # over patches and labels; each replays other earlier pairs
    learning_rate: float = 5.0e-6
    final_learning_rate: float = 2.0e-6
    judging_pairs: int = 2000  # general ones, at most, by which a repair is judged
    least_mended: float = 0.9  # share of a pattern's held-out pairs right from which it is mended, and not in part
    most_lost: float = 0.01  # general accuracy that it may cost


@dataclass
class EvaluateConfig:
    samples_per_prompt: int = 1  # of each model, on every test prompt; 0: no responses at all, the reward model alone
    best_of: int = 0  # also samples this many of the SFT model and takes the best: what can be gained; 0: off
    baseline_pairs: int = 20000  # training pairs, at most, that the n-gram baseline is fitted to; 0: no such baseline


@dataclass
class JudgeConfig:
    """A language model behind an OpenAI-compatible endpoint."""

    url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key; a local server needs none
    requests: int = 8  # at once
    timeout: float = 120.0  # seconds for one answer
    temperature: float | None = None  # null: not sent, the endpoint's own holds; some refuse to be told


@dataclass
class AnnotateConfig:
    """Who labels the pairs of rounds/R/slow_path/pairs.jsonl and rounds/R/fast_path/review.jsonl, and how."""

    labeller: str = "people"  # through a page on this machine; or rule, or judge
    port: int = 8765  # of 127.0.0.1; 0 takes a free one
    token: str | None = None  # in the page's address; null: a new one is made and printed
    overlap: int = 1  # people asked about each pair
    lease_minutes: float = 30.0  # a pair shown to somebody for so long without an answer goes to others too
    rule: str = "cool_rlhf.demo.gold:score"  # module:function, as collect.labeller
    rule_noise: float = 0.05  # share of its verdicts that are turned round
    # Files to take labels from, and to leave all labels in, instead of asking anybody: Label Studio's .json, or TRL's
    # .jsonl.
    import_labels: str | None = None
    export_labels: str | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class RoleConfig:
    """Resources of one role: ``ranks`` processes, each with its share of CPUs and GPUs."""

    ranks: int = 1  # processes, which share a batch out
    cpus: float = 1.0  # of each, for Ray to place it by; it binds to none
    gpus: float = 0.0  # of each: 0, 1, or below 1 a share of one GPU, for Ray to place it by; nothing limits its memory
    threads: int = 1  # that each computes with on the CPU
    # DeepSpeed's: 1 shares the optimiser's state out over the ranks, 2 the gradients too, 3 the weights too. 0 shares
    # nothing, and is 1 in bfloat16.
    zero_stage: int = 2


@dataclass
class RolloutRoleConfig:
    """Resources of the rollout engines (vLLM)."""

    engines: int = 1  # processes, which share the prompts out
    tensor_parallel_size: int = 1  # GPUs over which an engine cuts its model
    cpus: float = 1.0  # per engine
    gpus: float = 0.0  # per engine and tensor-parallel rank
    threads: int = 1  # that each engine computes with on the CPU
    gpu_memory_utilization: float = 0.85  # share of a GPU that an engine fills, with weights and cache; vLLM's name
    # Of keys and values, in each of an engine's ranks. null: what gpu_memory_utilization leaves on a GPU, 1 on a CPU.
    # Set it where several runs share a GPU: otherwise vLLM measures what is free there as it starts, and fails where
    # others' models are loading meanwhile.
    cache_gib: float | None = None
    max_concurrent: int = 256  # sequences at once in one engine
    # Compile the model, for some 40 s at the start: on a CPU a quarter less time a token. null: on GPUs alone.
    compile: bool | None = None
    dtype: str | None = None  # null: the model's


@dataclass
class ClusterConfig:
    address: str | None = None  # null starts Ray here; "auto" or an address joins a running cluster
    cpus: int | None = None  # of this machine, for a Ray started here; null: as many as there are
    gpus: int | None = None
    trainer: RoleConfig = field(default_factory=RoleConfig)
    policy: RoleConfig = field(default_factory=RoleConfig)
    critic: RoleConfig = field(default_factory=RoleConfig)
    # Ranks of these two hold the whole model, which is not trained.
    reference: RoleConfig = field(default_factory=lambda: RoleConfig(zero_stage=0))
    scorer: RoleConfig = field(default_factory=lambda: RoleConfig(zero_stage=0))
    rollout: RolloutRoleConfig = field(default_factory=RolloutRoleConfig)


@dataclass
class LoggingConfig:
    wandb_project: str = "cool_rlhf"
    wandb_mode: str = "auto"  # auto: online where there is a login, else offline; or online, offline, disabled
    # Of the run there; a resumed one keeps its id, whatever these say.
    wandb_name: str | None = None  # null: the experiment's and the run's id
    wandb_group: str | None = None  # runs that stand together; null: W&B's own, so WANDB_RUN_GROUP if that is set
    wandb_tags: list[str] = field(default_factory=list)  # of 1 to 64 characters; empty: WANDB_TAGS likewise
    wandb_entity: str | None = None  # user or team that the project is of; null: WANDB_ENTITY, else the login's own
    progress: bool = True


@dataclass
class Config:
    experiment: str = "custom"
    stage: str = "pipeline"
    output_dir: str = "outputs/${experiment}"
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    conditions: dict[str, str] = field(default_factory=dict)
    sft: SFTConfig = field(default_factory=SFTConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
