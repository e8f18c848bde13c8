"""The file of predictions: after a kill it goes on where it was, and its bytes are those of a run without one.

While it grows it is `OUT.unfinished`, and `OUT.progress.json` says how many of its bytes are whole blocks of lines:
what a killed run wrote behind them is cut off. At the end it gets its name, and the progress is deleted.
"""

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from pretraining import files
from pretraining.errors import UserError, one_line

Row = dict[str, Any]
# A .csv and a .parquet have the same columns in every line.
FORMATS = (".jsonl", ".csv", ".parquet")
VERSION = 3  # of what is written: raise it when it changes, and unfinished files are not continued
STATE = {"computed": None, "lines": 0, "bad": 0, "bytes": 0, "done": False}
GROUP = 2**14  # rows of a parquet file's row group


def spell(value: Any) -> str:
    """What JSON has no form of: bytes, dates and decimals of a parquet file."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def as_cell(value: Any) -> Any:
    """A value as a cell of a .csv."""
    if isinstance(value, dict | list):
        return to_json(value)
    return spell(value) if isinstance(value, bytes) else value


to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=spell).encode


def check_out(path: Path) -> None:
    """Raises UserError where a file cannot be written: before anything takes time."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path} has an unknown extension: it must be one of {', '.join(FORMATS)}.")
    if path.exists() and not read_progress(path).get("done"):
        raise UserError(f"{path} is there already: delete it, or give another file by --out.")


def unfinished_of(path: Path) -> Path:
    return Path(f"{path}.unfinished")


def progress_of(path: Path) -> Path:
    return Path(f"{path}.progress.json")


def read_progress(path: Path) -> dict[str, Any]:
    """What a killed run has kept; empty: nothing."""
    progress = progress_of(path)
    if not progress.exists():
        return {}
    try:
        found = json.loads(progress.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found.keys() >= STATE.keys() | {"made_of"}:
            raise ValueError("it lacks what was kept")
    except ValueError as error:
        raise UserError(f"{progress} is damaged ({one_line(error)}): delete it to begin {path} anew.") from error
    if found["done"] and not path.exists() and not unfinished_of(path).exists():
        return {}  # it was killed when all was done, and the file has gone elsewhere since
    return found


class Output:
    """One file that is written block by block.

    Args:
        path: its extension says how.
        schema: its columns.
        made_of: what decides its content, by name; an unfinished file of anything else is not continued.

    Raises:
        UserError: it cannot be written, is there already, was begun otherwise, or is being written by another process.
    """

    def __init__(self, path: Path, schema: pa.Schema, made_of: dict[str, Any]):
        self.path, self.schema = path, schema
        check_out(path)
        self.kind = path.suffix.lower()
        files.check_writable(path.parent, "--out")
        self.unfinished, self.progress = unfinished_of(path), progress_of(path)
        self.lock = FileLock(f"{path}.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{path} is being written by another process: wait for it, or name another file."
            ) from error
        # As it will read it back.
        self.state = json.loads(json.dumps({"made_of": made_of | {"version": VERSION}}))
        self.state |= STATE
        self.resume()
        self.file: BinaryIO = self.open()

    @property
    def lines(self) -> int:
        """Lines of the input that are done."""
        return self.state["lines"]

    @property
    def bad(self) -> int:
        """How many of them were bad."""
        return self.state["bad"]

    def resume(self) -> None:
        """Takes up what a killed run left."""
        found = read_progress(self.path)
        if not found:
            return
        ours, theirs = self.state["made_of"], found["made_of"]
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing:
            self.unlock()
            raise UserError(
                f"{self.unfinished} was begun with another {differing[0]}{difference(theirs, ours, differing[0])}: go "
                f"on with the one from before, or delete {self.progress} to begin anew."
            )
        size = self.unfinished.stat().st_size if self.unfinished.exists() else 0
        if size < found["bytes"] and not found["done"]:
            self.unlock()
            raise UserError(
                f"{self.unfinished} has {size:,} bytes, but {found['bytes']:,} were written: delete {self.progress} to "
                "begin anew."
            )
        self.state = found

    def open(self) -> BinaryIO:
        """The unfinished file, cut off behind its last whole block."""
        if self.state["done"]:  # it was killed when nothing was left to write
            return io.BytesIO()
        file = self.unfinished.open("ab")
        file.truncate(self.state["bytes"])
        if not self.state["bytes"] and self.kind == ".csv":
            file.write(self.to_csv([dict(zip(self.schema.names, self.schema.names, strict=True))]))
        return file

    def begun_with(self, computed: dict[str, Any]) -> dict[str, Any]:
        """How the file was computed from its begin on: as this run would, if it begins it."""
        if self.state["computed"] is None:
            self.state["computed"] = computed
        return self.state["computed"]

    def write(self, rows: list[Row], bad: int = 0) -> None:
        """The rows of a block, one for each line, of which some are bad."""
        if self.kind == ".csv":
            self.file.write(self.to_csv(rows))
        else:  # a .parquet file is made of these lines at the end: nothing can be appended to one
            text = "".join(to_json(row) + "\n" for row in rows)
            self.file.write(text.encode(errors="backslashreplace"))  # half a character is "\ud83d" in JSON
        self.commit(len(rows), bad)

    def commit(self, lines: int, bad: int) -> None:
        """What is written is on the disk before it is said to be there."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.state["lines"] += lines
        self.state["bad"] += bad
        self.state["bytes"] = os.fstat(self.file.fileno()).st_size
        self.keep()

    def keep(self) -> None:
        files.write_text(self.progress, json.dumps(self.state, indent=1))

    def to_csv(self, rows: list[Row]) -> bytes:
        lines = []
        for row in rows:
            values = (as_cell(row.get(name)) for name in self.schema.names)
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\r\n").writerow(list(values))  # with \n, \r in a cell gets no quotes
            lines.append(text.getvalue().removesuffix("\r\n") + "\n")
        return "".join(lines).encode(errors="backslashreplace")

    def finish(self) -> None:
        """Gives the file its name."""
        self.file.close()
        self.state["done"] = True
        self.keep()
        if self.unfinished.exists() and self.kind == ".parquet":
            whole = Path(f"{self.path}.whole")
            self.write_parquet(whole)
            files.publish(whole, self.path)
            self.unfinished.unlink()
        elif self.unfinished.exists():
            files.publish(self.unfinished, self.path)
        self.progress.unlink()
        self.close()

    def close(self) -> None:
        """Leaves the file as it is, for another run to go on with."""
        self.file.close()
        if not self.progress.exists():  # no block was written
            self.unfinished.unlink(missing_ok=True)
        self.unlock()

    def unlock(self) -> None:
        Path(self.lock.lock_file).unlink(missing_ok=True)  # before it is free: FileLock sees that
        self.lock.release()

    def write_parquet(self, path: Path) -> None:
        with self.unfinished.open(encoding="utf-8") as file, pq.ParquetWriter(path, self.schema) as writer:
            rows: Iterator[Row] = map(json.loads, file)
            while group := [self.to_arrow(row) for row in itertools.islice(rows, GROUP)]:
                writer.write_table(pa.Table.from_pylist(group, self.schema))

    def to_arrow(self, row: Row) -> Row:
        """A row in the types of the schema: maps as pairs, and what has no type of its own as JSON."""
        changed = {}
        for field in self.schema:
            value = row.get(field.name)
            if pa.types.is_map(field.type) and value is not None:
                value = list(value.items())
            elif pa.types.is_string(field.type) and value is not None:
                value = value if isinstance(value, str) else to_json(value)
                value = value.encode(errors="backslashreplace").decode()  # half a character is none in UTF-8
            changed[field.name] = value
        return changed


def difference(theirs: Row, ours: Row, name: str) -> str:
    """What differs between two settings, for a message."""
    before, now = theirs.get(name), ours[name]
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    key = next(key for key in now if before.get(key) != now[key])
    return f" ({key} was {before.get(key)!r}, and is {now[key]!r})"
