"""The specification's toy: a linear softmax that could read its answer from the question or from the step before.

Both inputs are always equal in training; hiding the step before makes the model weigh the question. Ours are the ramp
and the corruption; the rest is written out here.
"""

from __future__ import annotations

import torch

from posttrain.methods.masked_thought.noise import Replacement, corrupt_target_inputs, noise_rate

VALUES, STEPS, BATCH, SEEDS = 10, 2000, 64, 5
MASK = Replacement(mask_id=VALUES, random_ids=torch.tensor([], dtype=torch.long), random_prob=0.0)
RANDOM = Replacement(mask_id=None, random_ids=torch.arange(VALUES), random_prob=1.0)


def probe(ratio: float, replacement: Replacement) -> tuple[float, float, float]:
    """Mean over seeds of: logit of the question's value minus that of a wrong step, share that follows the question
    then, and accuracy on clean inputs."""
    found = torch.zeros(3)
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        question, step = torch.zeros(VALUES, VALUES), torch.zeros(VALUES, VALUES + 1)
        for t in range(STEPS):
            rate = noise_rate(t, STEPS, ratio=ratio, warmup_ratio=2 / 3, schedule="linear")
            value = torch.randint(VALUES, (BATCH,), generator=generator)
            everything = torch.ones(BATCH, dtype=torch.bool)
            shown, _ = corrupt_target_inputs(
                value, everything, rate=rate, replacement=replacement, generator=generator
            )
            # logits = .7 * question[:, value] + step[:, shown]; the gradient of the mean cross-entropy, by hand.
            logits = (0.7 * question[:, value] + step[:, shown]).T
            error = (logits.softmax(1) - torch.nn.functional.one_hot(value, VALUES)) / BATCH
            question.index_add_(1, value, -0.5 * 0.7 * error.T)
            step.index_add_(1, shown, -0.5 * error.T)
        right = torch.arange(VALUES).repeat_interleave(VALUES)
        wrong = torch.arange(VALUES).repeat(VALUES)
        is_altered = right != wrong
        logits = (0.7 * question[:, right] + step[:, wrong]).T
        margin = logits.gather(1, right.unsqueeze(1)) - logits.gather(1, wrong.unsqueeze(1))
        follows = logits.argmax(1) == right
        found += torch.stack(
            [margin[is_altered].mean(), follows[is_altered].float().mean(), follows[~is_altered].float().mean()]
        )
    return tuple((found / SEEDS).tolist())


def test_the_model_leans_on_the_question_the_more_the_more_is_hidden():
    """Measured in the specification: margin -2.49, -1.03, -.22, +.75, +1.36 for masks of 0, .1, .2, .4, .6."""
    ratios = (0.0, 0.1, 0.2, 0.4, 0.6)
    found = [probe(ratio, MASK) for ratio in ratios]
    margins = [margin for margin, _, _ in found]
    assert margins == sorted(margins)
    assert margins[3] - margins[0] > 2
    for (margin, follows, clean), expected in zip(found, (-2.49, -1.03, -0.22, 0.75, 1.36), strict=True):
        assert abs(margin - expected) < 0.1, margins
        assert follows == float(expected > 0) and clean == 1.0


def test_random_tokens_do_so_more_strongly():
    """Measured in the specification: +1.55 and +3.65 for .1 and .4."""
    for ratio, expected in ((0.1, 1.55), (0.4, 3.65)):
        margin, follows, clean = probe(ratio, RANDOM)
        assert abs(margin - expected) < 0.1, margin
        assert (follows, clean) == (1.0, 1.0)
