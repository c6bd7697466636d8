"""What a slow, literal reference of a method's loss needs: the rows of one optimizer step and their log-probs."""

from __future__ import annotations

from typing import Any

import torch


def recording(trainer_class: type) -> type:
    """The trainer class, with the rows of the last optimizer step kept in `seen` before any of them is dropped."""

    class Recording(trainer_class):
        seen: list[dict[str, Any]]

        def loss_weights(self, window: list[dict[str, Any]]) -> list[torch.Tensor]:
            self.seen = [dict(tensors) for tensors in window]
            return super().loss_weights(window)

    return Recording


def rows(window: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    """The rows that are trained: log-probs with gradient and entropies of their tokens, advantage, kind."""
    found = []
    for tensors in window:
        for index in range(len(tensors["advantages"])):
            if tensors["row_weight"][index] == 0:
                continue
            prompt = tensors["prompt_ids"][index][tensors["prompt_mask"][index].bool()]
            completion = tensors["completion_ids"][index][tensors["completion_mask"][index].bool()]
            logits = model(torch.cat([prompt, completion]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
            everything = logits.log_softmax(-1)
            found.append(
                {
                    "logps": everything.gather(1, completion.unsqueeze(1)).squeeze(1),
                    "entropies": -(everything.exp() * everything).sum(-1).detach(),
                    "advantage": float(tensors["advantages"][index]),
                    "is_demonstration": bool(tensors["is_demonstration"][index]),
                    "prompt": tuple(prompt.tolist()),
                }
            )
    return found


def gradient(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    """Gradient of the loss by parameter name, tied parameters once."""
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
