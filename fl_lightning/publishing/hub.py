"""Uploading folders to the Hub: what passes is tried again with growing waits, what does not is said in one line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from fl_lightning.console import amount
from fl_lightning.errors import InputError, RunError
from fl_lightning.publishing.export_folder import Built
from fl_lightning.storage.run_layout import ADAPTER_CONFIG

log = logging.getLogger(__name__)

WAITS = (2, 4, 8, 16, 32)
"""Seconds before each further attempt, unless the Hub asks for another wait."""
LONGEST_WAIT = 900
"""Seconds; who asks for more is believed, and the command ends."""
PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""Answers that another attempt may change; 409 and 412 say that somebody else was committing."""
T = TypeVar("T")


@dataclass(frozen=True)
class Uploaded:
    """What became of a repository.

    Attributes:
        url: of the repository.
        commit: its newest commit.
        changed: whether this upload made it.
    """

    url: str
    commit: str
    changed: bool


def connect() -> HfApi:
    """The client of the Hub; its token is that of HF_TOKEN or of the hub's own login.

    Raises:
        InputError: if the Hub is switched off, or there is no token.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError("push: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or take --dry-run")
    token = get_token()
    if token is None:
        raise InputError("push: no token for the Hub; set HF_TOKEN, or run 'hf auth login' once")
    return HfApi(token=token)


def upload(api: HfApi, built: Built, *, private: bool) -> Uploaded:
    """Make the repository if it is not there, and bring its files up to date; other files in it stay.

    Args:
        api: as `connect` gives it.
        built: the folder.
        private: whether the repository is to be private; one that is public already is then not written to.

    Raises:
        InputError: if the Hub refuses the token, the name or the card; if the repository is public, or holds an adapter
            where a model is to go, or the reverse.
        RunError: if it could not be reached, however often it was tried.
    """
    name = built.source.repository
    url = persevere(name, lambda: api.create_repo(name, private=private, exist_ok=True))
    before = persevere(name, lambda: api.model_info(name))
    if private and before.private is False:
        raise InputError(
            f"{name}: is public on the Hub already, and private is wanted; make it private there, or take --public"
        )
    if not private and before.private:
        log.warning("%s: is private on the Hub already, and stays so; its settings there make it public", name)
    there = {sibling.rfilename for sibling in before.siblings or []}
    for mark, what in ((ADAPTER_CONFIG, "an adapter"), ("config.json", "a whole model")):
        if (
            mark in there and mark not in built.files
        ):  # transformers would put the adapter on the model that has it in it
            raise InputError(
                f"{name}: holds {what} already, and both together would be loaded wrongly; take another --repo-prefix"
            )
    log.info("%s: uploading %d files, %s", name, len(built.files), amount(built.size))
    commit = persevere(
        name,
        lambda: api.upload_folder(
            repo_id=name,
            folder_path=built.folder,
            allow_patterns=built.files,
            commit_message=f"Round {built.facts.rounds} of {built.source.name}",
        ),
    )
    return Uploaded(str(url), commit.oid, commit.oid != before.sha)


def persevere(what: str, attempt: Callable[[], T], wait: Callable[[float], Any] | None = None) -> T:
    """The attempt's result, tried again while its failures are of the passing kind.

    Args:
        what: the repository, for messages.
        attempt: what to do; it is done again from the start.
        wait: how to wait so many seconds.

    Raises:
        InputError: for a failure that stays until somebody mends its cause.
        RunError: if the last attempt fails, too.
    """
    for growing in (*WAITS, None):
        try:
            return attempt()
        except Exception as error:
            asked = _passing(what, error)
            seconds = growing if asked is None else asked
            if growing is None or seconds is None:
                raise RunError(f"{what}: {_reason(error)}, {len(WAITS) + 1} times running") from error
            if seconds > LONGEST_WAIT:
                raise RunError(f"{what}: {_reason(error)}, and asks to wait {seconds:,} seconds") from error
            log.warning("%s: %s; trying again in %d s", what, _reason(error), seconds)
        (wait or time.sleep)(seconds)
    raise AssertionError("not reached")


def _passing(what: str, error: Exception) -> int | None:
    """The seconds that the Hub asks to wait, None where it does not say; what does not pass is raised in our words."""
    answer = _answer(error)
    if answer is None:
        passing = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)  # half an answer, too
        if any(isinstance(cause, passing) for cause in _causes(error)):
            return None
        if type(error) is RuntimeError:  # all that hf_xet says of a transfer that broke
            return None
        if isinstance(error, ValueError):
            raise InputError(f"{what}: the Hub's client refuses ({_short(error)})") from error
        raise error
    status = answer.response.status_code
    if status in PASSING:
        seconds = answer.response.headers.get("Retry-After", "")
        return int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 9 else None
    owner = what.partition("/")[0]
    refused = {
        401: "the Hub does not take the token (401); set HF_TOKEN to one that may write, or run 'hf auth login'",
        403: f"the token may not write to {owner} (403); take one with write access, or another --repo-prefix",
        404: f"the Hub knows no such place (404); is {owner} your name or an organisation of yours there?",
    }
    said = error if isinstance(error, ValueError) else answer.server_message or "no reason given"  # of the card
    raise InputError(f"{what}: {refused.get(status) or f'the Hub refuses ({status}: {_short(said)})'}") from error


def _reason(error: Exception) -> str:
    """Why, without addresses: those of storage carry keys in them."""
    answer = _answer(error)
    if answer is not None:
        return f"the Hub answers {answer.response.status_code}"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub gives no proper answer"
    return f"the connection broke ({type(list(_causes(error))[-1]).__name__})"


def _answer(error: BaseException) -> HfHubHTTPError | None:
    return next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _short(value: object) -> str:
    return " ".join(str(value).split())[:200]
