"""Bare vLLM on the same prompts: prints a line of JSON with the seconds that each batch took.

Run by run.py as ``python vllm_side.py FOLDER BATCHES PROMPTS NEW_TOKENS eager|compiled``, in the environment that the
rollout role has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from inputs import token_ids
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def main(folder: Path, batches: int, prompts: int, new_tokens: int, eager: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    inputs = [TokensPrompt(prompt_token_ids=token_ids(tokenizer, row["prompt"])) for row in rows]
    engine = LLM(
        str(folder / "policy"),
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=256,
        enforce_eager=eager,
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    seconds, tokens = [], []
    for batch in range(batches):
        start = batch * prompts % len(inputs)
        parameters = [
            SamplingParams(
                temperature=1.0,
                max_tokens=new_tokens,
                stop_token_ids=[tokenizer.convert_tokens_to_ids("<|im_end|>")],
                logprobs=0,
                seed=batch * prompts + place,
                detokenize=False,
            )
            for place in range(prompts)
        ]
        engine.reset_prefix_cache()  # as new weights do
        began = time.perf_counter()
        outputs = engine.generate(inputs[start : start + prompts], parameters, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        tokens.append(sum(len(output.outputs[0].token_ids) for output in outputs))
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), eager=sys.argv[5] == "eager")
