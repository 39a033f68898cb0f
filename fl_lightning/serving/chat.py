"""A conversation with an adapter of a run, in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from fl_lightning.config import RunConfig
from fl_lightning.data.records import Turn
from fl_lightning.data.tokenization import encode_prompt
from fl_lightning.errors import InputError, nearest
from fl_lightning.modeling.base_model import context_length
from fl_lightning.modeling.generation.adapter_bank import BankedAdapter
from fl_lightning.modeling.generation.decoding import Answer
from fl_lightning.modeling.generation.token_sampling import Sampler, Sampling
from fl_lightning.seeding import derive_seed
from fl_lightning.serving.detokenizer import TextStream
from fl_lightning.serving.engine import load_answering
from fl_lightning.storage.run_adapters import BASE


class Conversation:
    """What was said, and who answers.

    Args:
        config: of the run.
        folders: {model name: folder of its adapter}; the base is there besides.
        model: who answers first.
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token.
        seed: of the draws.

    Attributes:
        model: who answers.
        turns: what was said.

    Raises:
        InputError: if there is no such model, or the base cannot be loaded.
    """

    def __init__(
        self,
        config: RunConfig,
        folders: Mapping[str, Path],
        model: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._folders, self._max_new_tokens = folders, max_new_tokens
        self._temperature, self._seed = temperature, seed
        self._check(model)
        self._context = context_length(config.model)
        self._answering = load_answering(config)
        self.turns: list[Turn] = []
        self.switch(model)

    def switch(self, model: str) -> None:
        """Go on with another adapter.

        Raises:
            InputError: if there is no such model.
        """
        self._check(model)
        self._adapter = BankedAdapter({}) if model == BASE else self._answering.read(self._folders[model])
        self.model = model

    def say(self, text: str) -> Iterator[str]:
        """The answer to a message, as it comes; both are then part of what was said.

        Raises:
            InputError: if what was said is longer than the model can take; the message is not kept then.
        """
        turns = [*self.turns, Turn("user", text)]
        prompt = encode_prompt(turns, self._answering.tokenizer)
        room = self._max_new_tokens if self._context is None else min(self._max_new_tokens, self._context - len(prompt))
        if room < 1:
            raise InputError(f"{len(prompt)} tokens were said, wanted fewer than {self._context}; /clear forgets them")
        seed = derive_seed(self._seed, "chat", len(turns))
        answer = Answer(prompt, self._adapter, room, Sampler(Sampling(self._temperature, seed=seed)))
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
        known = [*self._folders, BASE]
        if model not in known:
            raise InputError(
                f"model {model!r}: not in this run{nearest(model, known)}; wanted one of {', '.join(known)}"
            )


def talk(conversation: Conversation, console: Console | None = None) -> None:
    """Read messages from the standard input and print answers, until it ends.

    Raises:
        InputError: if the input is no text; or, where nobody types it, if a message cannot be answered.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    by_hand = sys.stdin.isatty()
    if by_hand:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lines can be edited, and brought back)
        console.print(f"talking to {conversation.model}; /model NAME, /clear, /exit", markup=False)
    while True:
        line = _read(by_hand)
        text = line.strip()
        if not line or text == "/exit":
            return
        try:
            if text == "/clear":
                conversation.turns = []
            elif text.split(maxsplit=1)[:1] == ["/model"]:
                conversation.switch(text.removeprefix("/model").strip())
                if by_hand:
                    console.print(f"talking to {conversation.model}", markup=False)
            elif text:
                for piece in conversation.say(text):
                    console.out(_plain(piece), end="", highlight=False)  # as it is: no :smile: becomes a face
                console.print()
                if not by_hand:
                    conversation.turns = []
        except InputError as error:
            if not by_hand:
                raise
            console.print(str(error), markup=False)


def _plain(text: str) -> str:
    """Without what a terminal would take for commands."""
    return "".join(char for char in text if char.isprintable() or char in "\n\t")


def _read(by_hand: bool) -> str:
    """The next line with its end; empty at the end of the input."""
    try:
        line = f"{input('> ')}\n" if by_hand else sys.stdin.readline()
        line.encode()  # in a C locale, bytes that are no text come as halves of surrogate pairs
    except EOFError:
        return ""
    except UnicodeError as error:
        raise InputError("the input is not UTF-8, wanted text") from error
    return line
