"""Where the run files of one job on one node live: private while written, named when committed.

``<work_dir>/<attempt>.partial`` becomes ``<work_dir>/<attempt>.run`` in one rename. The store owns
its folder (made 0700 if missing) and everything in it. Segments that the node fetched from others lie
here too, under names of their own (`fetched_segments`).
"""

from __future__ import annotations

from cortex.storage.file_names import run_path, segment_path
from cortex.storage.filesystem import Filesystem
from cortex.storage.run_format import Combined
from cortex.storage.run_reader import OpenFiles, RunFileReader
from cortex.storage.run_writer import Compression, RunFileSummary, RunFileWriter
from cortex.storage.spill_quota import SpillQuota


class MapOutputStore:
    """Use from one thread. `compression` is that of the files it creates."""

    def __init__(
        self,
        fs: Filesystem,
        work_dir: str,
        compression: Compression = "lz4",
        quota: SpillQuota | None = None,
    ) -> None:
        self._fs = fs
        self.work_dir = work_dir
        self._compression = compression
        if not fs.exists(work_dir):
            fs.mkdir(work_dir)
        self._quota = quota or SpillQuota(fs, work_dir)
        self._files = OpenFiles(fs)

    def create(self, attempt: str) -> RunFileWriter:
        """A new private file. What an earlier try of the same attempt left is removed."""
        path = run_path(self.work_dir, attempt, "partial")
        if self._fs.exists(path):
            self._fs.unlink(path)
        return RunFileWriter(self._fs, path, self._compression, self._quota)

    def commit(self, writer: RunFileWriter, attempt: str, combined: Combined | None = None) -> RunFileSummary:
        """Close the writer's file and give it its name; on failure nothing of it is left."""
        try:
            summary = writer.close(combined)
            self._fs.rename(writer.path, run_path(self.work_dir, attempt))
        except BaseException:
            writer.abort()
            raise
        return summary

    def discard(self, attempt: str) -> None:
        """Remove the attempt's file, written or half written; none is fine."""
        for kind in ("partial", "run"):
            path = run_path(self.work_dir, attempt, kind)
            self._files.close(path)
            if self._fs.exists(path):
                self._fs.unlink(path)

    def open(self, attempt: str, partition: int | None = None) -> RunFileReader:
        """A committed file, or only the entries of one partition of it. Raises CorruptRun if missing.

        With `partition`, where the attempt ran on another node, the segment fetched from there, which may
        stand for several attempts (`RunFileReader.combined`).
        """
        path = run_path(self.work_dir, attempt)
        if partition is not None and not self._fs.exists(path):
            fetched = segment_path(self.work_dir, attempt, partition)
            path = fetched if self._fs.exists(fetched) else path
        return RunFileReader(self._fs, path, self._files, partition)

    def path(self, attempt: str) -> str:
        """Where a committed file is, for who reads it in place."""
        return run_path(self.work_dir, attempt)

    def committed(self) -> list[str]:
        """Attempts with a committed file, sorted."""
        names = self._fs.listdir(self.work_dir)
        return [name.removesuffix(".run") for name in names if name.endswith(".run")]

    def close(self) -> None:
        """Close what is open for reading; the files stay."""
        self._files.close()

    def remove_all(self) -> None:
        """The job is over: the folder and all in it go."""
        self._files.close()
        self._fs.remove_tree(self.work_dir)
