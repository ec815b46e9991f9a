"""Ask a GGUF file test questions, through the runtime that will serve it."""

from collections.abc import Callable, Sequence

from core.deployment.llama.runtime import LlamaRuntime
from core.evaluation.evaluate import Answer, Message, Tick


class LlamaResponder:
    """Answers conversations greedily with the file's own template and tokenizer."""

    def __init__(
        self, runtime: LlamaRuntime, prepare: Callable[[list[Message]], list[Message]] = list
    ) -> None:
        """Take an open runtime.

        Args:
            runtime: The file at work.
            prepare: Turns rows' turns into what the template takes, where that differs: tools, above all.
        """
        self.runtime, self.prepare = runtime, prepare

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation, one after the other."""
        answers = []
        for number, messages in enumerate(prompts, 1):
            ids = self.runtime.encode(self.prepare(messages))
            said = self.runtime.generate(ids, max_new_tokens=max_new_tokens)
            answers.append(Answer(said.text.strip(), ids, said.n_generated))
            if number % 10 == 0 or number == len(prompts):
                tick(number, len(prompts))
        return answers
