"""Prompts and completions of policy runs as text and tokens: as training and evaluation render and read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import GRPOTrainer

from posttrain.data.rendering import completion_text, encode_prompt, template_inputs
from posttrain.errors import DataError
from posttrain.models.positions import position_limit
from posttrain.seam.known_tokens import refuse_unknown_token, token_rows


class RenderedRollouts(GRPOTrainer):
    """GRPO whose prompts are the ids of `encode_prompt`, and whose rewards read completions with special tokens.

    Prompts with images, environments, and templates that TRL exchanges for tools are rendered by TRL; completions that
    a response template takes apart are read as it says.
    """

    _rendered_rows: Sequence[dict[str, Any]] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._token_rows = token_rows(self.model)  # before an engine spreads the weights

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._rendered_rows = inputs
        try:
            return super()._generate_and_score_completions(inputs)  # type: ignore[no-any-return]
        finally:
            self._rendered_rows = ()

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self._is_vlm or self.environment_factories is not None or self.chat_template is not None:
            return super()._tokenize_prompts(prompts)
        tools = {"tools": self.tools} if self.tools else {}
        rows = self._rendered_rows if len(self._rendered_rows) == len(prompts) else [{}] * len(prompts)
        found: list[list[int]] = []
        last: Any = None
        for prompt, row in zip(prompts, rows, strict=True):
            inputs = {**template_inputs(row, self.chat_template_kwargs), **tools}
            # The rows of a group are neighbours, and read alike.
            if last != (prompt, inputs):
                ids, last = encode_prompt(self._tokenizer, prompt, **inputs), (prompt, inputs)
            found.append(list(ids))
        self._refuse_no_room(max(map(len, found)))
        refuse_unknown_token(max(max(ids, default=0) for ids in found), self._token_rows, where="prompt of a rollout")
        return found, None, {}

    def _refuse_no_room(self, longest: int) -> None:
        """Raise DataError where the completion of a prompt could run beyond the positions of the model."""
        limit, more = position_limit(self.model.config), self.args.max_completion_length
        if limit is not None and more is not None and longest + more > limit:
            raise DataError(
                f"a prompt and its completion do not fit the model's {limit} positions",
                where="max_completion_length",
                got=f"{longest} + {more} tokens",
                allowed=f"at most {limit}",
                fix="Lower it, or leave out the long prompts",
            )

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids, completion_ids, mask, completions, *rest = super()._generate(prompts)
        if not self.tools:
            completions = self.read_completions(completion_ids, completions)
        return prompt_ids, completion_ids, mask, completions, *rest

    def read_completions(self, ids: Sequence[Sequence[int]], found: Sequence[Any]) -> list[Any]:
        """Completions as rewards read them; those that a response template took apart stay as they were found.

        Args:
            ids: tokens of each completion. found: the completions as trl 1.16 reads them, texts or messages.
        """
        if any(getattr(self._tokenizer, name, None) is not None for name in ("response_template", "response_schema")):
            return list(found)
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        texts = [completion_text(self._tokenizer, made, ends) for made in ids]
        return [
            text if isinstance(known, str) else [{"role": "assistant", "content": text}]
            for text, known in zip(texts, found, strict=True)
        ]
