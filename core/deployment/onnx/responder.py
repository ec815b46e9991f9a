"""Ask an ONNX model test questions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.deployment.onnx.runner import OnnxRunner
from core.evaluation.responders import Answer, Message, Tick

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer


class OnnxResponder:
    """Answers conversations greedily; prompts of like length run together."""

    def __init__(self, runner: OnnxRunner, chat: "ChatTokenizer", batch_size: int) -> None:
        """Take an open model, its chat tokenizer, and how many prompts run at once."""
        self.runner, self.chat, self.batch_size = runner, chat, batch_size

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation, in order."""
        from core.data.examples import as_messages

        ids = [self.chat.prompt_ids(as_messages(messages)) for messages in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        answers: dict[int, Answer] = {}
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            made = self.runner.generate([ids[i] for i in chosen], max_new_tokens, self.chat.stop_ids)
            for index, new in zip(chosen, made, strict=True):
                text = self.chat.tokenizer.decode(new, skip_special_tokens=True)
                answers[index] = Answer(str(text).strip(), ids[index], len(new))
            tick(len(answers), len(ids))
        return [answers[i] for i in range(len(ids))]
