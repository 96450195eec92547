"""Published structures with labels, by name, for fine-tuning that replays what a model was trained on."""

from __future__ import annotations

from mace.files.published import Progress, replay_file, without_progress
from mace.structures.labels import LabelKeys
from mace.structures.sources import Source


def replay_source(name: str, progress: Progress = without_progress) -> Source:
    """Return the file of a published set of structures, downloaded if need be, and the keys of its labels.

    Args:
        name: A key of `mace.files.published.REPLAY_SETS`.
        progress: Shows the download.

    Raises:
        UserError: If there is no such set, or it can neither be found nor downloaded.
    """
    return Source(str(replay_file(name, progress)), LabelKeys(energy="energy", forces="forces", stress="stress"))
