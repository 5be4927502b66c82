"""Go on from a checkpoint, and say what differs from then."""

from __future__ import annotations

import platform
from typing import Any

from tensair_dask._common.functions import changed
from tensair_dask.checkpoints import Checkpoint
from tensair_dask.checkpoints.checkpoint_config import CheckpointConfig
from tensair_dask.coordinator.checkpointing import Checkpointing
from tensair_dask.coordinator.drift_response import DriftResponse
from tensair_dask.coordinator.intake import Intake
from tensair_dask.coordinator.run_events import RunEvents

__all__ = ["Resumption"]


class Resumption:
    """Lets a run go on from a checkpoint, if it is to.

    Parameters
    ----------
    settings
        Which checkpoint that is.
    checkpointing
        Reads it, and puts it into the replicas.
    drift_response
        Whether the model learns.
    intake
        Where the stream goes on.
    events
        Gets an event for what differs.

    Attributes
    ----------
    goes_on
        Whether it does.
    """

    def __init__(
        self,
        settings: CheckpointConfig,
        checkpointing: Checkpointing,
        drift_response: DriftResponse,
        intake: Intake,
        events: RunEvents,
    ) -> None:
        self.goes_on = False
        self._settings = settings
        self._checkpointing = checkpointing
        self._drift_response = drift_response
        self._intake = intake
        self._events = events

    async def begin(self, given_mode: str | None) -> None:
        """Go on from the checkpoint, if there is one; see that more can be written.

        Parameters
        ----------
        given_mode
            Holds in place of the checkpoint's; None if none was given.

        Raises
        ------
        CheckpointError
            If it cannot be read, does not fit, or no further one can be written.
        """
        settings, checkpointing = self._settings, self._checkpointing
        path, checkpoint = settings.restore, None
        if path is not None:
            checkpoint = await checkpointing.load(path, settings.or_begin)
        await checkpointing.check(None if checkpoint is None else path)
        if checkpoint is not None:
            await self._go_on(checkpoint, given_mode)
        elif path is not None:
            text = await checkpointing.nothing_at(path)
            self._events.say_once("begins anew", text)
        if settings.or_begin and settings.to is None:
            self._events.say_once(
                "or_begin",
                "or_begin=True was given without checkpoint_to=: only trainer.save() "
                "writes what the next start could go on from. Give checkpoint_to= the "
                "same folder.",
            )

    async def _go_on(self, checkpoint: Checkpoint, given_mode: str | None) -> None:
        notices = await self._checkpointing.restore(checkpoint)
        self.goes_on = True
        notices += self._compared(checkpoint)
        self._intake.column_names.load_state_dict(checkpoint.columns)
        self._events.index = checkpoint.index
        self._events.note("note", f"going on from {checkpoint.describe()}")
        for text in notices:
            self._events.say_once(text, text)
        self._hold_to_mode(given_mode)

    def _compared(self, checkpoint: Checkpoint) -> list[str]:
        """Say which functions are others than those that the checkpoint was made with.

        One of before they were kept says nothing of them.
        """
        if not checkpoint.functions:
            return []
        now: dict[str, Any] = self._checkpointing.about["functions"]
        same_python = checkpoint.versions.get("python") == platform.python_version()
        was = {"the trainer": now["the trainer"], **checkpoint.functions}
        found = changed(was, now, same_python)
        if not found:
            return []
        return [
            f"Other settings were given than when the checkpoint was saved: "
            f"{'; '.join(found)}. Those that were given hold."
        ]

    def _hold_to_mode(self, given: str | None) -> None:
        """Let a mode that was given hold over the checkpoint's; say which does."""
        saved = self._drift_response.modes.mode
        if given is not None and given != saved:
            self._drift_response.set_mode(given)
            self._events.say_once(
                "mode",
                f"mode={given!r} was given and holds; the checkpoint was saved in mode "
                f"{saved!r}. Leave mode out to go on in that of the checkpoint.",
            )
        elif given is None and saved != "always":
            self._events.say_once(
                "mode",
                f"The mode is {saved!r}, that of the checkpoint, as none was given. "
                "Give mode= for another, or call trainer.set_mode.",
            )
