"""The specification's toy: digits 8 and 9 learnt at each of four places, then unlearned alike by NPO.

A small classifier is trained on all digits, then on four sets of classes one after another. The size of a batch is not
in the specification; with 16 rows the numbers are near those it gives.
"""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from posttrain.losses.reductions import LossCounts, reduce_loss
from posttrain.losses.unlearning import npo_loss

OTHERS, FORGET = ((0, 1, 2), (3, 4, 5), (6, 7)), (8, 9)
SEEDS, RATE, BATCH, STEPS = 5, 0.05, 16, 15


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16).float(), torch.tensor(classes)


def learn(model: nn.Module, pixels: Tensor, classes: Tensor, *, epochs: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(classes), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(pixels[rows]), classes[rows]).backward()
            optimizer.step()


def path(place: int, seed: int, pixels: Tensor, classes: Tensor) -> tuple[float, float, float]:
    """Log-probability of 8 and 9 before unlearning, its drop, and the drop of the other classes'."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    learn(model, pixels, classes, epochs=3, generator=generator)
    stages = list(OTHERS)
    stages.insert(place - 1, FORGET)
    for group in stages:
        rows = torch.isin(classes, torch.tensor(group))
        learn(model, pixels[rows], classes[rows], epochs=2, generator=generator)
    rows = torch.isin(classes, torch.tensor(FORGET))

    def logps(chosen: Tensor) -> Tensor:
        return model(pixels[chosen]).log_softmax(1).gather(1, classes[chosen].unsqueeze(1))

    reference, kept = logps(rows).detach().squeeze(1), float(logps(~rows).detach().mean())
    mask, count = torch.ones(len(reference), 1), float(len(reference))
    counts = LossCounts(rows=count, tokens=count, max_completion_length=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        reduce_loss(npo_loss(logps(rows), mask, reference, beta=0.5), mask, counts=counts).backward()
        optimizer.step()
    drop = float(reference.mean() - logps(rows).detach().mean())
    return float(reference.mean()), drop, kept - float(logps(~rows).detach().mean())


def test_what_was_learnt_last_is_forgotten_least(digits):
    found = torch.tensor([[path(place, seed, *digits) for place in (1, 2, 3, 4)] for seed in range(SEEDS)])
    before, drops, damage = found.unbind(2)  # (seeds, places)
    assert int((drops.argmin(dim=1) == 3).sum()) >= 4
    assert float((drops.max(dim=1).values - drops.min(dim=1).values).mean()) > 3
    assert (before.mean(dim=0).diff() > 0).all(), "the later it was learnt, the better it is known"
    assert float(damage.mean(dim=0).max() - damage.mean(dim=0).min()) > 1
    # The specification measured 8.21, 8.23, 9.16 and 2.70.
    assert drops.mean(dim=0)[:3].tolist() == pytest.approx([8.2, 8.2, 9.2], abs=1.0)
