"""What a preference set gives away without any language model: the yardsticks beside a reward model's accuracy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from cool_rlhf.protocols import PreferencePair
from reward.evaluation import prompt_numbers
from reward.statistics import Floats

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

HASHED_FEATURES = 2**18
STRENGTHS = (0.1, 1.0, 10.0)  # inverse regularisation, chosen by cross-validation on the training pairs
FOLDS = 3
WORD = regex.compile(r"[\p{L}\p{N}\p{M}_]+|[^\p{L}\p{N}\p{M}_\s]")  # the standard library's `\w` has no vowel signs


def longer_wins(pairs: Sequence[PreferencePair]) -> Floats:
    """Characters of the chosen response less those of the rejected one, (N,)."""
    return np.array([len(_text(pair.chosen)) - len(_text(pair.rejected)) for pair in pairs], dtype=np.float64)


def ngram_margins(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], seed: int, most_pairs: int
) -> Floats:
    """Log-odds that the chosen response is better, (N,) for ``test``, by a linear Bradley–Terry model fitted to
    ``train`` (``most_pairs`` of it, drawn by ``seed``).

    P(a better than b) = σ(w · (φ(a) − φ(b)) + w_d · (φ(a) − φ(b))), φ the tf-idf weights of a response's words and
    pairs of words and the logarithm of its length, and w_d a second vector for the pair's domain: what a condition
    tells the reward model, this model is told as well. No intercept, so that exchanging the two only turns the sign.
    Prompts are not looked at: in a linear model they cancel.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    records = list(train)
    if len(records) > most_pairs:
        records = random.Random(seed).sample(records, most_pairs)
    domains = sorted({pair.domain for pair in records})
    words = HashingVectorizer(
        n_features=HASHED_FEATURES,
        ngram_range=(1, 2),
        alternate_sign=False,
        norm=None,
        tokenizer=WORD.findall,
        token_pattern=None,
    )
    weigh = TfidfTransformer(sublinear_tf=True)
    weigh.fit(words.transform(_text(side) for pair in records for side in (pair.chosen, pair.rejected)))

    def features(pairs: Sequence[PreferencePair]) -> csr_matrix:
        chosen = weigh.transform(words.transform(_text(pair.chosen) for pair in pairs))
        rejected = weigh.transform(words.transform(_text(pair.rejected) for pair in pairs))
        lengths = [np.log((1 + len(_text(pair.chosen))) / (1 + len(_text(pair.rejected)))) for pair in pairs]
        return _crossed(chosen - rejected, np.array(lengths), [pair.domain for pair in pairs], domains)

    model = _fit(features(records), prompt_numbers(records), seed)
    margins: Floats = model.decision_function(features(test))
    return margins


def _crossed(texts: Any, lengths: Floats, of: Sequence[str], domains: Sequence[str]) -> Any:
    """The features once for all domains and once for each, where those of other domains are 0; sparse, a row a pair."""
    from scipy.sparse import csr_matrix, diags, hstack

    shared = hstack([texts, csr_matrix(lengths[:, None])]).tocsr()
    own = [diags(np.array([name == domain for name in of], dtype=np.float64)) @ shared for domain in domains]
    return hstack([shared, *own]).tocsr()


def _fit(features: Any, prompts: Any, seed: int) -> LogisticRegression:
    """The strength with the best cross-validated accuracy, folds split by prompt, then fitted to everything."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    # Each pair both ways round: the solver wants both labels, whichever rows it is given.
    inputs = vstack([features, -features]).tocsr()
    labels = np.repeat([True, False], features.shape[0])
    prompts = np.tile(prompts, 2)

    def fitted(strength: float, rows: Any) -> LogisticRegression:
        model = LogisticRegression(
            C=strength, fit_intercept=False, solver="liblinear", dual=True, tol=1e-3, max_iter=5000, random_state=seed
        )
        return model.fit(inputs[rows], labels[rows])

    everything = np.arange(len(labels))
    if len(np.unique(prompts)) < 2 * FOLDS:
        return fitted(1.0, everything)
    folds = list(GroupKFold(FOLDS).split(inputs, groups=prompts))
    right = {
        strength: sum(fitted(strength, kept).score(inputs[held], labels[held]) * len(held) for kept, held in folds)
        for strength in STRENGTHS
    }
    return fitted(max(right, key=lambda strength: right[strength]), everything)


def _text(conversation: Any) -> str:
    return str(conversation[-1]["content"])
