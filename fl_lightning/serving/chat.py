"""A conversation with an adapter of a run, in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping

from rich.console import Console

from fl_lightning.config import RunConfig
from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError, nearest
from fl_lightning.modeling.base_model import context_length
from fl_lightning.modeling.generation.decoding import Answer
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling
from fl_lightning.seeding import derive_seed
from fl_lightning.serving.detokenizer import TextStream
from fl_lightning.serving.engine import BASE_MODEL, load_answering, read_model
from fl_lightning.storage.personal_models import ModelSource
from fl_lightning.storage.run_adapters import BASE


class Conversation:
    """The messages so far, and the model that answers.

    Args:
        config: the config of the run.
        sources: {model name: where its adapters are}; the base model is always available.
        model: name of the model that answers first.
        max_new_tokens: limit of an answer.
        temperature: 0 always takes the most likely token.
        seed: seed of the sampling.

    Attributes:
        model: name of the model that answers.
        turns: the messages so far.

    Raises:
        InputError: unknown model, or the base model cannot be loaded.
    """

    def __init__(
        self,
        config: RunConfig,
        sources: Mapping[str, ModelSource],
        model: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._sources, self._max_new_tokens = sources, max_new_tokens
        self._temperature, self._seed = temperature, seed
        self._check(model)
        self._context = context_length(config.model)
        self._answering = load_answering(config)
        self.turns: list[Turn] = []
        self.switch(model)

    def switch(self, model: str) -> None:
        """Switch to another model.

        Raises:
            InputError: unknown model.
        """
        self._check(model)
        read = self._answering.read
        self._model = BASE_MODEL if model == BASE else read_model(self._sources[model], read)
        self.model = model

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to a message in pieces; both are then added to `turns`.

        Raises:
            InputError: the conversation is longer than the model's context; the message is not added.
        """
        turns = [*self.turns, Turn("user", text)]
        prompt = encode_prompt(turns, self._answering.tokenizer)
        room = self._max_new_tokens if self._context is None else min(self._max_new_tokens, self._context - len(prompt))
        rows = self._answering.model.get_input_embeddings().num_embeddings
        if max(prompt) >= rows:
            raise InputError(
                f"expected text with token ids below {rows}, the base model's embedding, got {max(prompt)}"
            )
        if room < 1:
            raise InputError(f"expected fewer than {self._context} tokens, got {len(prompt)}; /clear forgets them")
        seed = derive_seed(self._seed, "chat", len(turns))
        answer = Answer(prompt, self._model, room, Sampler(Sampling(self._temperature, seed=seed)))
        decoder, stream, sent, said = self._answering.decoder(), TextStream(self._answering.tokenizer), 0, ""
        with self._answering.bank.attached():
            decoder.add([answer])
            while True:
                piece = stream.push(answer.tokens[sent:], last=answer.finish is not None)
                sent, said = len(answer.tokens), said + piece
                yield piece
                if answer.finish is not None:
                    break
                decoder.step()
        self.turns = [*turns, Turn("assistant", said)]

    def _check(self, model: str) -> None:
        known = [*self._sources, BASE]
        if model not in known:
            raise InputError(
                f"model {model!r}: not in this run{nearest(model, known)}; expected one of {', '.join(known)}"
            )


def talk(conversation: Conversation, console: Console | None = None) -> None:
    """Read messages from the standard input and print answers until the input ends.

    Raises:
        InputError: the input is not text; or the input is not a terminal, and a message cannot be answered.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history)
        console.print(f"talking to {conversation.model}; /model NAME, /clear, /exit", markup=False)
    while True:
        line = _read(interactive)
        text = line.strip()
        if not line or text == "/exit":
            return
        try:
            if text == "/clear":
                conversation.turns = []
            elif text.split(maxsplit=1)[:1] == ["/model"]:
                conversation.switch(text.removeprefix("/model").strip())
                if interactive:
                    console.print(f"talking to {conversation.model}", markup=False)
            elif text:
                for piece in conversation.say(text):
                    console.out(_plain(piece), end="", highlight=False)  # literally: no :smile: becomes an emoji
                console.print()
                if not interactive:
                    conversation.turns = []
        except InputError as error:
            if not interactive:
                raise
            console.print(str(error), markup=False)


def _plain(text: str) -> str:
    """The text without terminal control characters."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _read(interactive: bool) -> str:
    """The next line with its line end; empty at the end of the input."""
    try:
        line = f"{input('> ')}\n" if interactive else sys.stdin.readline()
        line.encode()  # in a C locale, invalid bytes arrive as unpaired surrogates
    except EOFError:
        return ""
    except UnicodeError as error:
        raise InputError("expected UTF-8 text in the input") from error
    return line
