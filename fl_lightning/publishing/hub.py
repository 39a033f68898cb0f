"""Upload folders to the Hub: transient failures are retried with growing waits, others are reported in one line."""

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

from fl_lightning.console import format_bytes
from fl_lightning.errors import InputError, RunError
from fl_lightning.publishing.export_folder import ExportFolder
from fl_lightning.storage.run_layout import ADAPTER_CONFIG

log = logging.getLogger(__name__)

RETRY_DELAYS = (2, 4, 8, 16, 32)
"""Seconds before each retry, unless the Hub asks for another delay."""
MAX_DELAY = 900
"""Seconds; if the Hub asks for a longer delay, the command ends."""
RETRYABLE = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""HTTP status codes that another attempt may change; 409 and 412 mean a commit by somebody else."""
T = TypeVar("T")


@dataclass(frozen=True)
class UploadResult:
    """A repository after an upload.

    Attributes:
        url: of the repository.
        commit: its newest commit.
        changed: whether this upload made the commit.
    """

    url: str
    commit: str
    changed: bool


def connect() -> HfApi:
    """The client of the Hub, with the token from HF_TOKEN or from the Hub's login.

    Raises:
        InputError: if the Hub is switched off or there is no token.
    """
    if constants.HF_HUB_OFFLINE:
        raise InputError("push: HF_HUB_OFFLINE is set, which switches the Hub off; unset it, or use --dry-run")
    token = get_token()
    if token is None:
        raise InputError("push: expected a token for the Hub, got none; set HF_TOKEN, or run 'hf auth login' once")
    return HfApi(token=token)


def upload(api: HfApi, export: ExportFolder, *, private: bool) -> UploadResult:
    """Create the repository if it does not exist, and upload its files; other files in it stay.

    Args:
        api: from `connect`.
        export: the folder to upload.
        private: whether the repository must be private; a public repository is then refused.

    Raises:
        InputError: if the Hub refuses the token, the name or the card; if the repository is public but must be private;
            or if it has an adapter and a model is uploaded, or the reverse.
        RunError: if all retries failed.
    """
    name = export.source.repository
    url = retry(name, lambda: api.create_repo(name, private=private, exist_ok=True))
    before = retry(name, lambda: api.model_info(name))
    if private and before.private is False:
        raise InputError(
            f"{name}: expected a private repository, got a public one; make it private on the Hub, or use --public"
        )
    if not private and before.private:
        log.warning("%s: stays private on the Hub, as it is; its settings there can make it public", name)
    existing = {sibling.rfilename for sibling in before.siblings or []}
    for marker, content in ((ADAPTER_CONFIG, "an adapter"), ("config.json", "a merged model")):
        # From a repository with both, transformers would apply the adapter to a model that contains it already.
        if marker in existing and marker not in export.files:
            raise InputError(
                f"{name}: expected no other content, got {content} in it, and both together would be loaded wrongly; "
                "use another --repo-prefix"
            )
    log.info("%s: uploading %d files, %s", name, len(export.files), format_bytes(export.size))
    commit = retry(
        name,
        lambda: api.upload_folder(
            repo_id=name,
            folder_path=export.folder,
            allow_patterns=export.files,
            commit_message=f"Round {export.facts.rounds} of {export.source.name}",
        ),
    )
    return UploadResult(str(url), commit.oid, commit.oid != before.sha)


def retry(repository: str, attempt: Callable[[], T], wait: Callable[[float], Any] | None = None) -> T:
    """The result of `attempt`, which is called again after transient failures.

    Args:
        repository: for messages.
        attempt: the request; a retry starts it again from the beginning.
        wait: called with the seconds before a retry; None sleeps.

    Raises:
        InputError: for a failure that retries cannot change.
        RunError: if the last retry failed, too.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            return attempt()
        except Exception as error:
            requested = _requested_delay(repository, error)
            seconds = delay if requested is None else requested
            if delay is None or seconds is None:
                raise RunError(f"{repository}: {_reason(error)}, {len(RETRY_DELAYS) + 1} times in a row") from error
            if seconds > MAX_DELAY:
                raise RunError(f"{repository}: {_reason(error)}, and asks to wait {seconds:,} seconds") from error
            log.warning("%s: %s; trying again in %d s", repository, _reason(error), seconds)
        (wait or time.sleep)(seconds)
    raise AssertionError("not reached")


def _requested_delay(repository: str, error: Exception) -> int | None:
    """The delay in seconds for which the Hub asks before a retry; None if it does not say.

    Raises:
        InputError: if a retry cannot succeed, with a message that says what to do.
    """
    response_error = _response_error(error)
    if response_error is None:
        # A JSONDecodeError is a truncated response.
        transient = (httpx.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError)
        if any(isinstance(cause, transient) for cause in _causes(error)):
            return None
        if type(error) is RuntimeError:  # hf_xet raises it for a transfer that broke
            return None
        if isinstance(error, ValueError):
            raise InputError(f"{repository}: the Hub's client refuses the upload ({_one_line(error)})") from error
        raise error
    status = response_error.response.status_code
    if status in RETRYABLE:
        seconds = response_error.response.headers.get("Retry-After", "")
        return int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 9 else None
    owner = repository.partition("/")[0]
    explanations = {
        401: "the Hub rejects the token (401); set HF_TOKEN to one with write access, or run 'hf auth login'",
        403: f"the token may not write to {owner} (403); use one with write access, or another --repo-prefix",
        404: f"the Hub does not know the owner (404); expected {owner} to be your name or organisation there",
    }
    # A ValueError comes from the check of the card and has its own message.
    reason = error if isinstance(error, ValueError) else response_error.server_message or "no reason given"
    default = f"the Hub refuses the upload ({status}: {_one_line(reason)})"
    raise InputError(f"{repository}: {explanations.get(status, default)}") from error


def _reason(error: Exception) -> str:
    """Why the attempt failed, without URLs: those of the storage contain keys."""
    response_error = _response_error(error)
    if response_error is not None:
        return f"the Hub answers {response_error.response.status_code}"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub gives a malformed answer"
    return f"the connection broke ({type(list(_causes(error))[-1]).__name__})"


def _response_error(error: BaseException) -> HfHubHTTPError | None:
    return next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]
