"""What a run's parquet files hold, as far as rewards need it."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

TRUTH = "reward_model.ground_truth"


@contextmanager
def _reading(file: str | Path) -> Iterator[None]:
    """What pyarrow raises becomes a ValueError that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"{file} cannot be read as parquet: {said[0][:300]}. Make it again, or leave it out"
        ) from error


def sources_of(files: Iterable[str | Path]) -> dict[str, int]:
    """Rows of each data source in parquet files.

    Raises:
        ValueError: a file that cannot be read, has no column ``data_source``, or rows without one.
    """
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    for file in files:
        with _reading(file):
            names = pq.read_schema(file).names
            if "data_source" not in names:
                raise ValueError(f"{file} has no column data_source (columns: {', '.join(names)})")
            entries = pq.read_table(file, columns=["data_source"])["data_source"].value_counts().to_pylist()
        for entry in entries:
            source = entry["values"]
            if not isinstance(source, str) or not source:
                raise ValueError(f"{file}: data_source is {source!r} in {entry['counts']} rows; want a name in each")
            counts[source] = counts.get(source, 0) + entry["counts"]
    return counts


def truths_missing(file: str | Path, sources: Collection[str]) -> str:
    """Rows of these sources whose ground truth is null, in words; "" for none, or where verl's column is not there.

    Raises:
        ValueError: the file cannot be read.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with _reading(file):
        read = pq.ParquetFile(file)
        paths = [read.schema.column(i).path for i in range(len(read.schema))]
        places = [i for i, path in enumerate(paths) if path == TRUTH or path.startswith(f"{TRUTH}.")]
        if not places:
            return ""
        groups = [read.metadata.row_group(i).column(j).statistics for i in range(read.num_row_groups) for j in places]
        if all(told is not None and told.has_null_count and told.null_count == 0 for told in groups):
            return ""  # told by the file itself, without reading test cases of gigabytes
        first, missing = None, 0
        start = 0
        for batch in read.iter_batches(columns=["data_source", TRUTH]):
            truth = pc.struct_field(batch["reward_model"], "ground_truth")
            for place in pc.indices_nonzero(pc.is_null(truth)).to_pylist():
                if batch["data_source"][place].as_py() in sources:
                    missing += 1
                    first = start + place if first is None else first
            start += batch.num_rows
    return f"{missing} rows have no ground truth (null), the first is row {first}" if missing else ""
