//! The rows of all shards, one after the other, decoded a row group at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};

use super::shards::{Shard, Shards};

/// As many decoded row groups are kept, those that were decoded last.
const MAX_KEPT: usize = 4;

/// A column that is shown.
pub(super) struct Column {
    pub(super) name: String,
    /// What its values are, as the viewer calls it.
    pub(super) dtype: &'static str,
}

/// Where a row group is, and which rows are in it.
struct Group {
    shard: usize,
    index: usize,
    /// Of all rows, the number of the first one, and of the first one after it.
    start: u64,
    end: u64,
}

/// The values of a row group: those of each column, in its order.
type Values = Vec<Vec<Value>>;

/// The rows.
pub(super) struct Content {
    shards: Arc<Shards>,
    columns: Vec<Column>,
    groups: Vec<Group>,
    kept: Mutex<VecDeque<(usize, Arc<Values>)>>,
}

impl Content {
    /// Reads where rows are, which is at the end of each shard. The columns are those of the first one.
    pub(super) fn open(shards: Arc<Shards>) -> Result<Self> {
        let (mut columns, mut groups, mut end) = (Vec::new(), Vec::new(), 0_u64);
        for (number, shard) in shards.all.iter().enumerate() {
            let reader = open(shard)?;
            let metadata = reader.metadata();
            if number == 0 {
                columns = shown(metadata);
            }
            for (index, group) in metadata.row_groups().iter().enumerate() {
                let start = end;
                let num_rows = u64::try_from(group.num_rows()).ok();
                end = num_rows.and_then(|num_rows| start.checked_add(num_rows)).with_context(|| {
                    format!("the row group {index} of {} has a number of rows that cannot be", shard.path)
                })?;
                groups.push(Group { shard: number, index, start, end });
            }
        }
        Ok(Self { shards, columns, groups, kept: Mutex::default() })
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub(super) fn num_rows(&self) -> u64 {
        self.groups.last().map_or(0, |group| group.end)
    }

    /// The rows from `offset` on, at most `length` of them, as far as there are any.
    pub(super) fn rows(&self, offset: u64, length: u64) -> Result<Vec<Value>> {
        let (mut row, end) = (offset, offset.saturating_add(length).min(self.num_rows()));
        let mut rows = Vec::new();
        while row < end {
            let at = self.groups.partition_point(|group| group.end <= row);
            let (group, values) = (&self.groups[at], self.values(at)?);
            while row < end.min(group.end) {
                let cells = self.columns.iter().zip(values.iter());
                let cells =
                    cells.map(|(column, values)| (column.name.clone(), values[(row - group.start) as usize].clone()));
                rows.push(cells.collect::<Map<_, _>>().into());
                row += 1;
            }
        }
        Ok(rows)
    }

    /// The values of a row group.
    fn values(&self, at: usize) -> Result<Arc<Values>> {
        let keep = |kept: &mut VecDeque<_>, values: &Arc<Values>| {
            kept.push_front((at, Arc::clone(values)));
            kept.truncate(MAX_KEPT);
        };
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut kept = kept();
            let place = kept.iter().position(|(number, _)| *number == at);
            if let Some((_, values)) = place.and_then(|place| kept.remove(place)) {
                keep(&mut kept, &values);
                return Ok(values);
            }
        }
        let (group, shard) = (&self.groups[at], &self.shards.all[self.groups[at].shard]);
        let values = self
            .decode(shard, group)
            .with_context(|| format!("the row group {} of {} cannot be read", group.index, shard.path))?;
        let values = Arc::new(values);
        keep(&mut kept(), &values);
        Ok(values)
    }

    fn decode(&self, shard: &Shard, group: &Group) -> Result<Values> {
        let reader = open(shard)?;
        let row_group = reader.get_row_group(group.index)?;
        let num_rows = usize::try_from(group.end - group.start)?;
        let columns = row_group.metadata().columns();
        let decoded = self.columns.iter().map(|Column { name, .. }| {
            let at = columns.iter().position(|column| column.column_path().parts() == [name.as_str()]);
            let at = at.with_context(|| format!("there is no column `{name}`"))?;
            let (reader, levels) = (row_group.get_column_reader(at)?, columns[at].column_descr().max_def_level());
            decode(reader, levels, num_rows)
        });
        decoded.collect()
    }
}

fn open(shard: &Shard) -> Result<SerializedFileReader<std::fs::File>> {
    let file = shard.open().map_err(|refusal| anyhow!("{refusal}"))?;
    SerializedFileReader::new(file).with_context(|| format!("{} cannot be read", shard.path))
}

/// The columns that have one value or none in each row.
fn shown(metadata: &ParquetMetaData) -> Vec<Column> {
    let columns = metadata.file_metadata().schema_descr().columns().iter();
    let flat = columns.filter(|column| column.max_rep_level() == 0 && column.path().parts().len() == 1);
    let shown = flat.filter_map(|column| {
        let dtype = match column.physical_type() {
            Type::BYTE_ARRAY => "string",
            Type::INT32 => "int32",
            Type::INT64 => "int64",
            Type::DOUBLE => "float64",
            Type::BOOLEAN => "bool",
            _ => return None,
        };
        Some(Column { name: column.name().to_owned(), dtype })
    });
    shown.collect()
}

fn decode(reader: ColumnReader, max_level: i16, num_rows: usize) -> Result<Vec<Value>> {
    match reader {
        ColumnReader::ByteArrayColumnReader(reader) => {
            read(reader, max_level, num_rows, |bytes: ByteArray| bytes.as_utf8().ok().map(str::to_owned).into())
        }
        ColumnReader::Int32ColumnReader(reader) => read(reader, max_level, num_rows, Value::from),
        ColumnReader::Int64ColumnReader(reader) => read(reader, max_level, num_rows, Value::from),
        ColumnReader::DoubleColumnReader(reader) => read(reader, max_level, num_rows, Value::from),
        ColumnReader::BoolColumnReader(reader) => read(reader, max_level, num_rows, Value::from),
        _ => Err(anyhow!("a column has values of another kind than in the first shard")),
    }
}

fn read<T: DataType>(
    mut reader: ColumnReaderImpl<T>,
    max_level: i16,
    num_rows: usize,
    show: impl Fn(T::T) -> Value,
) -> Result<Vec<Value>> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (records, _, _) = reader.read_records(num_rows, Some(&mut levels), None, &mut values)?;
    ensure!(records == num_rows, "it has {records} rows, and should have {num_rows}");
    let mut values = values.into_iter().map(show);
    if max_level == 0 {
        return Ok(values.collect());
    }
    let is_there = levels.iter().map(|&level| level == max_level);
    Ok(is_there.map(|is_there| if is_there { values.next() } else { None }.unwrap_or_default()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::shards;
    use super::*;
    use crate::data::parquet::testing::write_shard;

    #[test]
    fn the_row_groups_that_were_asked_for_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let texts = [Some(&b"text"[..]); 2 * MAX_KEPT];
        let codec = parquet::basic::Compression::UNCOMPRESSED;
        write_shard(&dir.path().join("a.parquet"), texts.into_iter(), 1, codec).unwrap();
        let content = Content::open(Arc::new(shards::list(dir.path()).unwrap())).unwrap();
        let first: Vec<_> = (0..MAX_KEPT).map(|at| content.values(at).unwrap()).collect();
        let is_kept = |at: usize| Arc::ptr_eq(&content.values(at).unwrap(), &first[at]);
        assert!(is_kept(0));
        // One more takes the place of the second.
        content.values(MAX_KEPT).unwrap();
        assert_eq!([is_kept(0), is_kept(1)], [true, false]);
    }
}
