"""Hooks for what is asked: the order of the prompts, and their text right before generation."""

from __future__ import annotations

from posttrain.seam.policy.trainer import PolicyTrainer
from posttrain.seam.sampling import EpochRepeatSampler
from tests.batteries.runs import Recorder, build


class Reversed(EpochRepeatSampler):
    """The last prompts first, two for each generation batch."""

    def blocks(self):
        for start in range(len(self.data) - 1, 0, -self.prompts_per_batch):
            yield [start, start - 1]


class Asking(PolicyTrainer):
    """Names the step in every prompt and takes its own order."""

    def train_order(self, data, **layout):
        self.layout = layout
        return Reversed(data, **layout)

    def prepare_prompts(self, rows):
        self.asked = [*getattr(self, "asked", []), len(rows)]
        step = self.state.global_step
        return [
            {**row, "prompt": [{"role": "user", "content": f"{step}: {row['prompt'][0]['content']}"}]} for row in rows
        ]


def test_order_and_text_are_those_of_the_hooks(tiny_dir, tmp_path):
    reward = Recorder()
    trainer = build("grpo", tiny_dir, tmp_path, reward=reward, trainer_class=Asking, max_steps=2)
    trainer.train()
    prompts = [prompt for prompt, _ in reward.seen]
    assert prompts[::4] == ["0: 11+77=?", "0: 10+70=?", "1: 9+63=?", "1: 8+56=?"]
    assert trainer.asked == [8, 8]
    assert trainer.layout["prompts_per_batch"] == 2 and trainer.layout["num_generations"] == 4
