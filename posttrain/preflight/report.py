"""What the checks found, in an order and a form to act on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from posttrain.config.validation import raise_all
from posttrain.errors import PosttrainError
from posttrain.preflight.preview import Preview


@dataclass
class CheckReport:
    """Findings of one recipe.

    `errors` stop a run; `warnings` do not; `facts` are numbers the recipe implies (prompts per step, steps per epoch);
    `previews` are the rows asked for.
    """

    errors: list[PosttrainError] = field(default_factory=list)
    warnings: list[PosttrainError] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a run may start."""
        return not self.errors

    def raise_if_failed(self) -> None:
        """Raise the error found, or all of them as one `RecipeError`."""
        raise_all(self.errors)

    def merge(self, other: CheckReport, *, prefix: str = "") -> None:
        """Take over the findings of a stage; what is already here is not repeated.

        Args:
            prefix: put before facts, e.g. the name of the stage.
        """
        for mine, theirs in ((self.errors, other.errors), (self.warnings, other.warnings)):
            known = {str(error) for error in mine}
            mine += [error for error in theirs if str(error) not in known]
        self.facts += [f"{prefix}{fact}" for fact in other.facts]
        self.previews += other.previews

    def lines(self) -> list[str]:
        """The report as plain lines, without previews."""
        shown = [f"  {fact}" for fact in self.facts]
        shown += [f"warning: {warning}" for warning in self.warnings]
        shown += [f"error: {error}" for error in self.errors]
        return [*shown, self.verdict()]

    def verdict(self) -> str:
        """The last line: "ok", or how many errors."""
        warned = f", {len(self.warnings)} warning{'s' * (len(self.warnings) != 1)}" if self.warnings else ""
        if self.errors:
            return f"{len(self.errors)} error{'s' * (len(self.errors) != 1)}{warned}"
        return f"ok{warned}"

    def show(self, console: Any) -> None:
        """Print facts, previews, warnings and errors on a rich console."""
        for preview in self.previews:
            console.print(preview.render(colour=console.is_terminal and not console.no_color), soft_wrap=True)
        styles = {"warning:": "yellow", "error:": "bold red"}
        for line in self.lines():
            text = Text(line)
            head = line.split(" ")[0]
            if head in styles:
                text.stylize(styles[head], 0, len(head))
            console.print(text, soft_wrap=True)
