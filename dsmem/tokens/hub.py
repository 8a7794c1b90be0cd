"""Whether asking the hub of Hugging Face is of any use: its own clients try again for 23 seconds where none answers."""

from __future__ import annotations

from dsmem.errors import SourceMissing

_TIMEOUT_S = 10.0


def require_answer(name: str, filename: str, repo_type: str) -> None:
    """Raise SourceMissing unless the cache knows that file of a repository, or the hub answers one request.

    Whatever it answers will do: what is wrong with a name is told by who downloads. Raises HFValidationError.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or huggingface_hub.try_to_load_from_cache(name, filename, repo_type=repo_type):
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except Exception as exc:
        # Errors of requests or of an httpx, by the version of huggingface_hub; a status is none.
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise SourceMissing(
            f"{name} is no file here, and the hub can't be asked: {constants.ENDPOINT} does not answer: {reason}"
        ) from exc
