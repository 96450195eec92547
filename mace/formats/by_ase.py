"""Files of any format that ASE reads and this package does not read itself."""

from __future__ import annotations

from collections.abc import Iterator

from mace.formats.frame import Frame
from mace.formats.frame_file import FrameFile, with_columns


class AseFile(FrameFile):
    """A file that ASE reads from its beginning.

    Attributes:
        format: ASE's name of its format.
    """

    seeks = False

    def __init__(self, path: str, format: str) -> None:
        super().__init__(path)
        self.format = format

    def count(self) -> int:
        """Return the number of structures, all of which are read.

        Raises:
            UserError: If one of them cannot be read.
        """
        return sum(1 for _ in self.frames())

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        from ase.io import iread

        images = iread(self.path, index=slice(0, stop), format=self.format, do_not_split_by_at_sign=True)
        return map(Frame.of_atoms, images)


class TrajectoryFile(FrameFile):
    """A trajectory of ASE, which has no room for columns of one's own."""

    def count(self) -> int:
        """Return the number of structures."""
        from ase.io.trajectory import TrajectoryReader

        with TrajectoryReader(self.path) as trajectory:
            return len(trajectory)

    def _read(self, start: int, stop: int | None) -> Iterator[Frame]:
        from ase.io.trajectory import TrajectoryReader

        with TrajectoryReader(self.path) as trajectory:
            for index in range(start, len(trajectory) if stop is None else min(stop, len(trajectory))):
                yield with_columns(Frame.of_atoms(trajectory[index]))
