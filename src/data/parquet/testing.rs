//! Writes shards like those of RefinedWeb, for tests and benchmarks: a column of text between a number and a list, and a
//! checksum for each page of text, which few writers leave.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnDescPtr;

use super::page::checksum;

/// The column of text is called as in RefinedWeb.
const SCHEMA: &str = "message schema {
    required int64 number;
    optional binary content (UTF8);
    optional group tags (LIST) { repeated group list { optional binary element (UTF8); } }
}";
/// A page is full once it has so many bytes.
const PAGE_BYTES: usize = 1 << 20;

/// Writes a shard with a row for each text (`None`: null), `rows_per_group` of them to a row group.
///
/// # Errors
/// The file cannot be written, or the codec is none that is read.
pub fn write_shard<'a>(
    path: &Path,
    texts: impl Iterator<Item = Option<&'a [u8]>>,
    rows_per_group: usize,
    codec: Compression,
) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let file = BufWriter::new(File::create(path).with_context(context)?);
    let mut writer = SerializedFileWriter::new(file, schema, properties)?;
    let column = writer.schema_descr().column(1);
    let mut texts = texts.peekable();
    let mut number = 0;
    while texts.peek().is_some() {
        let mut chunk = Chunk::new(codec);
        texts.by_ref().take(rows_per_group.max(1)).try_for_each(|text| chunk.push(text))?;
        let rows = chunk.rows;
        let mut group = writer.next_row_group()?;
        write_numbers(&mut group, number..number + rows)?;
        let (bytes, close) = chunk.close(column.clone())?;
        group.append_column(&bytes, close)?;
        write_tags(&mut group, number..number + rows)?;
        group.close()?;
        number += rows;
    }
    writer.close().with_context(context).map(drop)
}

fn write_numbers(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    numbers: std::ops::Range<i64>,
) -> Result<()> {
    let mut column = group.next_column()?.context("a column of numbers")?;
    let numbers: Vec<i64> = numbers.collect();
    column.typed::<Int64Type>().write_batch(&numbers, None, None)?;
    Ok(column.close()?)
}

/// Of every three rows the first has no list, the second an empty one and the third one of two tags.
fn write_tags(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    numbers: std::ops::Range<i64>,
) -> Result<()> {
    let mut column = group.next_column()?.context("a column of lists")?;
    let (mut tags, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for number in numbers {
        let levels: &[(i16, i16)] = [&[(0, 0)][..], &[(1, 0)], &[(3, 0), (3, 1)]][number.rem_euclid(3) as usize];
        definition.extend(levels.iter().map(|(level, _)| level));
        repetition.extend(levels.iter().map(|(_, level)| level));
        let num_tags = levels.iter().filter(|(level, _)| *level == 3).count();
        tags.extend((0..num_tags).map(|tag| ByteArray::from(format!("tag {number} {tag}").into_bytes())));
    }
    column.typed::<ByteArrayType>().write_batch(&tags, Some(&definition), Some(&repetition))?;
    Ok(column.close()?)
}

/// A column chunk of text that is being written.
struct Chunk {
    codec: Compression,
    rows: i64,
    /// Pages that are finished.
    bytes: Vec<u8>,
    uncompressed_bytes: usize,
    page: Page,
}

/// A page that is being written.
#[derive(Default)]
struct Page {
    presence: Vec<bool>,
    values: Vec<u8>,
}

impl Chunk {
    fn new(codec: Compression) -> Self {
        Self { codec, rows: 0, bytes: Vec::new(), uncompressed_bytes: 0, page: Page::default() }
    }

    fn push(&mut self, text: Option<&[u8]>) -> Result<()> {
        self.page.presence.push(text.is_some());
        if let Some(text) = text {
            let len = u32::try_from(text.len()).context("a text of more than 4 GiB")?;
            self.page.values.extend(len.to_le_bytes());
            self.page.values.extend(text);
        }
        self.rows += 1;
        if self.page.values.len() >= PAGE_BYTES { self.finish_page() } else { Ok(()) }
    }

    fn finish_page(&mut self) -> Result<()> {
        let Page { presence, values } = std::mem::take(&mut self.page);
        let num_values = presence.len();
        let mut levels = Vec::new();
        write_varint(&mut levels, (num_values.div_ceil(8) as u64) << 1 | 1);
        let pack = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        levels.extend(presence.chunks(8).map(pack));
        let bytes = [&(levels.len() as u32).to_le_bytes()[..], &levels, &values].concat();
        let compressed = compress(&bytes, self.codec)?;

        // Of the header: kind, sizes, checksum, and of its data page: values, their encoding and that of the levels (twice).
        let mut header = Vec::new();
        let sizes = [0, i32::try_from(bytes.len())?, i32::try_from(compressed.len())?];
        sizes
            .into_iter()
            .chain([checksum(&compressed).cast_signed()])
            .for_each(|number| write_i32(&mut header, number));
        header.push(0x1c);
        [i32::try_from(num_values)?, 0, 3, 3].into_iter().for_each(|number| write_i32(&mut header, number));
        header.extend([0, 0]);
        self.uncompressed_bytes += header.len() + bytes.len();
        self.bytes.extend(header);
        self.bytes.extend(compressed);
        Ok(())
    }

    fn close(mut self, column: ColumnDescPtr) -> Result<(Bytes, ColumnCloseResult)> {
        if !self.page.presence.is_empty() {
            self.finish_page()?;
        }
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(self.codec)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_total_compressed_size(i64::try_from(self.bytes.len())?)
            .set_total_uncompressed_size(i64::try_from(self.uncompressed_bytes)?)
            .set_num_values(self.rows)
            .set_data_page_offset(0)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: self.bytes.len() as u64,
            rows_written: self.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        Ok((self.bytes.into(), close))
    }
}

fn compress(bytes: &[u8], codec: Compression) -> Result<Vec<u8>> {
    match codec {
        Compression::UNCOMPRESSED => Ok(bytes.to_vec()),
        Compression::SNAPPY => Ok(snap::raw::Encoder::new().compress_vec(bytes)?),
        Compression::GZIP(_) => {
            let mut compressed = Vec::new();
            flate2::read::GzEncoder::new(bytes, flate2::Compression::default()).read_to_end(&mut compressed)?;
            Ok(compressed)
        }
        Compression::ZSTD(_) => Ok(zstd::bulk::compress(bytes, 0)?),
        other => anyhow::bail!("shards compressed by {other} are not read"),
    }
}

/// The next field of a struct, which is an integer of 32 bits.
fn write_i32(bytes: &mut Vec<u8>, number: i32) {
    bytes.push(0x15);
    write_varint(bytes, u64::from(((number << 1) ^ (number >> 31)).cast_unsigned()));
}

fn write_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
