"""Scores by transformers alone: the class that the folder ships, or the family's own; this project cannot be imported.

Reads {"path", "conversations"} from standard input, the conditions already in front as system turns; prints scores.
"""

import json
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cool_rlhf", "reward", "rollout"):
            raise ImportError(f"{name} is out of reach here")


sys.meta_path.insert(0, Blocked())

import torch  # noqa: E402
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

asked = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(asked["path"], trust_remote_code=True)
if asked["family"] == "internlm2":
    model = AutoModel.from_pretrained(asked["path"], trust_remote_code=True)
    scores = model.get_scores(tokenizer, asked["conversations"])
else:
    model = AutoModelForSequenceClassification.from_pretrained(asked["path"])
    scores = []
    for conversation in asked["conversations"]:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        batch = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            scores.append(float(model(**batch).logits[0, 0]))
print("SCORES" + json.dumps(scores))
