"""Policy runs read prompts as evaluation does, and show rewards what the model wrote."""

from __future__ import annotations

import pytest
from datasets import Dataset

from posttrain.data.rendering import encode_prompt
from posttrain.errors import DataError
from tests.batteries.runs import build, dataset

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.name }};{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ mode }}{% endif %}"
)


def rows(count=8):
    prompts = [{"role": "user", "content": f"say {number}<|im_end|>"} for number in range(count)]
    tools = [[{"name": f"tool{number}", "strict": None if number else True}] for number in range(count)]
    return Dataset.from_list(
        [{"prompt": [prompt], "tools": own, "solution": "2"} for prompt, own in zip(prompts, tools, strict=True)]
    )


def test_rollouts_start_from_the_ids_of_encode_prompt_with_the_inputs_of_their_row(tiny_dir, tmp_path):
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, columns["tools"], strict=True))
        return [0.0] * len(prompts)

    trainer = build("grpo", tiny_dir, tmp_path, data=rows(), reward=reward, chat_template_kwargs={"mode": "go"})
    tokenizer = trainer.processing_class
    tokenizer.chat_template = TEMPLATE
    batch = [trainer.train_dataset[place] for place in (1, 1, 5, 5)]
    found = trainer._generate_and_score_completions(batch)
    ids = [row[mask.bool()].tolist() for row, mask in zip(found["prompt_ids"], found["prompt_mask"], strict=True)]
    wanted = [
        encode_prompt(tokenizer, row["prompt"], tools=[{"name": row["tools"][0]["name"]}], mode="go") for row in batch
    ]
    assert ids == wanted and tokenizer.decode(ids[2]).startswith("tool5;<|im_start|>user\nsay 5<|im_end|><|im_end|>")
    assert all(row.count(tokenizer.eos_token_id) == 1 for row in ids), "what the user typed ends no turn"
    assert [prompt for prompt, _, _ in seen] == [row["prompt"] for row in batch]


def test_rewards_read_special_tokens_but_not_those_at_the_end(tiny_dir, tmp_path):
    trainer = build("grpo", tiny_dir, tmp_path)
    tokenizer = trainer.processing_class
    ids = tokenizer("<bos>2<|im_start|>3<|im_end|>", add_special_tokens=False)["input_ids"]
    padded = [[*ids, tokenizer.pad_token_id], ids[:-1]]
    assert trainer.read_completions(padded, ["", ""]) == ["<bos>2<|im_start|>3"] * 2
    chat = trainer.read_completions(padded[:1], [[]])
    assert chat == [[{"role": "assistant", "content": "<bos>2<|im_start|>3"}]]
    tokenizer.response_template = {}
    assert trainer.read_completions(padded[:1], ["as it was taken apart"]) == ["as it was taken apart"]


def test_a_demonstration_in_a_policy_run_is_cut_behind_the_prompt_of_its_rollouts(tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path, data=rows())
    trainer.processing_class.chat_template = TEMPLATE
    row = trainer.train_dataset[0]
    prompt = encode_prompt(trainer.processing_class, row["prompt"], tools=[{"name": "tool0", "strict": True}])
    end = trainer.processing_class.eos_token_id
    two = trainer.processing_class("2", add_special_tokens=False)["input_ids"]
    assert trainer.encoded_demonstration(row, prompt_ids=prompt) == [*two, end]
    assert trainer.encoded_demonstration(row, prompt_ids=prompt[:-1]) == [*two, end]


def test_a_demonstration_with_a_token_that_the_model_lacks_is_refused(tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path)
    trainer.processing_class.add_tokens(["<call>"])
    row = {**trainer.train_dataset[0], "solution": "a <call>"}
    with pytest.raises(DataError, match=r"demonstration 'a <call>': a row has a token beyond .* \(got 'id 100'"):
        trainer.encoded_demonstration(row, prompt_ids=[])


def test_the_supervised_trainer_takes_the_variables_of_the_template(tiny_dir, tmp_path):
    data = dataset().map(lambda row: {"solution": "2"})
    plain = build("sft", tiny_dir, tmp_path / "a", data=data)
    told = build("sft", tiny_dir, tmp_path / "b", data=data, chat_template_kwargs={"special_tokens_in_text": "token"})
    assert plain.train_dataset[0]["input_ids"] == told.train_dataset[0]["input_ids"]
    tokenizer = plain.processing_class
    tokenizer.chat_template = TEMPLATE
    config = type(plain.args)(output_dir=str(tmp_path / "c"), chat_template_kwargs={"mode": "go"}, bf16=False)
    encoded = plain._encoded(data, tokenizer, config)[0]
    given = encoded["labels"].count(-100)
    assert tokenizer.decode(encoded["input_ids"][:given]).endswith("assistant\ngo")
