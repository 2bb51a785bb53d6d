"""Chat templates: programs that come with a checkpoint, written by others."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from fixate_jax.errors import CheckpointError, FixateError

LIMIT_S = 10.0
"""A template writes a chat in about a millisecond, the first one with its compilation in some tenths of a second."""


class _TooLongError(Exception):
    """Raised in the thread of a template that does not end."""


def rendered(render: Callable[[], str], where: Path) -> str:
    """What a template writes.

    Args:
        render: runs it; in a thread of its own, which is stopped after ``LIMIT_S`` seconds.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: it fails, or does not end.
    """
    texts: list[str] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            texts.append(render())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True, name="chat template")
    thread.start()
    thread.join(LIMIT_S)
    if thread.is_alive():
        assert thread.ident is not None
        # Templates are compiled to Python, where an exception can be raised from outside.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TooLongError))
        raise CheckpointError(f"{where}: the chat template does not end; take the template of the model's authors")
    if errors and isinstance(errors[0], FixateError):
        raise errors[0]
    if errors:
        reason = f"{type(errors[0]).__name__}: {errors[0]}"
        raise CheckpointError(
            f"{where}: the chat template cannot write a chat with a page and a question ({reason:.300}); take the "
            "template of the model's authors, or set backbone.instruction_role user"
        ) from errors[0]
    return texts[0]
