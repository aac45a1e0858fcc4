//! Reading a model folder: find its files, check everything that can be checked without reading data, then stream.
//!
//! What is accepted is what transformers 4.38.0 accepts, with two exceptions, where it would go on with random numbers
//! or run code: a missing tensor is an error, and only safetensors files are read. Files come from strangers: a header
//! is bounded before it is read, offsets and shapes are checked against the file's size, and the names of shards must
//! not lead out of the folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use super::WEIGHTS_FILE;
use super::names;
use super::stream::{FileSum, HashedReader};
use crate::error::input;
use crate::model::arch::Arch;
use crate::model::config::read_object;
use crate::model::layout::Layout;

/// File name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The bound that the safetensors library puts on a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_SHARDS: usize = 10_000;
/// Rows of our matrix that are filled together when transposing.
const STRIP: usize = 16;

/// The weights of a folder, found to be those of an architecture.
#[derive(Debug)]
pub struct ModelFiles {
    shards: Vec<Shard>,
    is_sharded: bool,
    /// What a user may want to know: tensors that are ignored.
    pub notes: Vec<String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: u64,
    /// Tensors to read, by place in the file.
    tensors: Vec<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    name: String,
    bytes: Range<u64>,
    dtype: Dtype,
    transposed: bool,
    param: usize,
    /// Our rows in the order of the file.
    rows: Vec<Range<usize>>,
}

impl ModelFiles {
    /// Finds the weight files of a folder and checks that they hold every parameter in its right shape. Reads headers
    /// only.
    pub fn open(dir: &Path, arch: &Arch, layout: &Layout) -> Result<Self> {
        let (paths, weight_map) = find_files(dir)?;
        let headers = paths.iter().map(|path| Header::read(path)).collect::<Result<Vec<_>>>()?;
        // As in the reference, a later file's tensor replaces an earlier one's.
        let mut found = BTreeMap::new();
        for (index, header) in headers.iter().enumerate() {
            found.extend(header.metadata.tensors().into_iter().map(|(name, info)| (name, (index, info))));
        }
        let by_name: BTreeMap<_, _> =
            std::iter::zip(&paths, &headers).map(|(path, header)| (path.file_name(), header)).collect();
        for (name, shard) in &weight_map {
            let header = by_name.get(&Some(shard.as_ref()));
            if header.is_none_or(|header| header.metadata.info(name).is_none()) {
                return Err(input(format!("{}: {shard} does not hold {name}, as {INDEX_FILE} says.", dir.display())));
            }
        }
        let (prefix, head) = (names::prefix(arch), names::head(arch));
        let prefixed = found.keys().any(|name| name.starts_with(prefix));
        if !prefixed && found.contains_key(&head) {
            return Err(input(format!(
                "{}: the names of the tensors lack `{prefix}` although {head} is there; transformers refuses this.",
                dir.display()
            )));
        }

        let mut shards: Vec<Shard> = std::iter::zip(&paths, &headers)
            .map(|(path, header)| Shard { path: path.clone(), bytes: header.file_bytes, tensors: Vec::new() })
            .collect();
        let mut used = BTreeSet::new();
        let mut take = |name: &str, shape: &[usize]| -> Result<Option<(usize, &TensorInfo)>> {
            let Some(&(shard, info)) = found.get(name) else { return Ok(None) };
            used.insert(name.to_owned());
            let path = paths[shard].display();
            if info.shape != shape {
                let (actual, wanted) = (&info.shape, shape);
                return Err(input(format!(
                    "{path}: {name} has the shape {actual:?}; the configuration makes it {wanted:?}."
                )));
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
                return Err(input(format!(
                    "{path}: {name} is of type {}; only F32, F16, BF16 and F64 are read.",
                    info.dtype
                )));
            }
            Ok(Some((shard, info)))
        };
        for stored in names::stored(arch, layout) {
            let name =
                if prefixed { stored.name.as_str() } else { stored.name.strip_prefix(prefix).unwrap_or(&stored.name) };
            let mut tensor = take(name, &stored.shape)?;
            if arch.tied_head && layout.params()[stored.param].name == "embed.token" {
                // A folder may hold both: files are loaded one after another, and within one the head last.
                let head = take(&head, &stored.shape)?;
                let is_replaced = matches!((&head, &tensor), (Some((head, _)), Some((shard, _))) if head < shard);
                tensor = if is_replaced { tensor } else { head.or(tensor) };
            }
            let Some((shard, info)) = tensor else {
                return Err(input(format!(
                    "{}: the tensor {name} is missing. (transformers would go on with random numbers in its place.)",
                    dir.display()
                )));
            };
            let start = headers[shard].data_start;
            let (from, to) = info.data_offsets;
            shards[shard].tensors.push(Wanted {
                name: stored.name,
                bytes: start + from as u64..start + to as u64,
                dtype: info.dtype,
                transposed: stored.transposed,
                param: stored.param,
                rows: stored.rows,
            });
        }
        for shard in &mut shards {
            shard.tensors.sort_by_key(|tensor| tensor.bytes.start);
        }
        let ignored = found.keys().filter(|name| !used.contains(*name) && !names::is_legacy(arch, name));
        let notes =
            ignored.map(|name| format!("{}: the tensor {name} is no part of the model; it is ignored.", dir.display()));
        Ok(Self { notes: notes.collect(), is_sharded: !weight_map.is_empty(), shards })
    }

    /// Names of the files that make up the weights, the list of shards included.
    pub fn names(&self) -> impl Iterator<Item = std::ffi::OsString> {
        let index = self.is_sharded.then(|| INDEX_FILE.into());
        self.shards.iter().filter_map(|shard| shard.path.file_name().map(Into::into)).chain(index)
    }

    /// Sum of the sizes of the weight files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Streams the weights into a buffer of the layout given to [`Self::open`], as f32, and returns the size and hash
    /// of each file.
    pub fn read_into(&self, layout: &Layout, params: &mut [f32]) -> Result<Vec<FileSum>> {
        assert_eq!(params.len(), layout.len(), "the buffer must hold the parameters of the layout");
        self.shards.iter().map(|shard| shard.read_into(layout, params)).collect()
    }
}

impl ModelFiles {
    /// Reads all weights once and refuses those of which one is infinite or not a number: no loss of such a model is
    /// finite.
    pub fn check_finite(&self) -> Result<()> {
        let mut values = Vec::new();
        for shard in &self.shards {
            let mut reader = HashedReader::open(&shard.path)?;
            for tensor in &shard.tensors {
                reader.read(tensor.bytes.start - reader.position(), 1, |_| ())?;
                let element_bytes = tensor.dtype.bitsize() / 8;
                let mut is_finite = true;
                reader.read(tensor.bytes.end - tensor.bytes.start, element_bytes, |bytes| {
                    values.resize(bytes.len() / element_bytes, 0.0);
                    convert(tensor.dtype, bytes, &mut values);
                    is_finite &= values.iter().all(|value| value.is_finite());
                })?;
                if !is_finite {
                    return Err(input(format!(
                        "{}: the weights {} hold numbers that are not finite: every loss of this model would be worthless.",
                        shard.path.display(),
                        tensor.name
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Shard {
    fn read_into(&self, layout: &Layout, params: &mut [f32]) -> Result<FileSum> {
        let mut reader = HashedReader::open(&self.path)?;
        if reader.bytes() != self.bytes {
            bail!("{} changed while it was read", self.path.display());
        }
        for tensor in &self.tensors {
            let param = &layout.params()[tensor.param];
            let values = &mut params[param.range.clone()];
            reader.read(tensor.bytes.start - reader.position(), 1, |_| ())?;
            let element_bytes = tensor.dtype.bitsize() / 8;
            if tensor.transposed {
                let len = tensor.bytes.end - tensor.bytes.start;
                let mut done = 0;
                let [num_outputs, num_inputs] = param.shape[..] else { unreachable!("only matrices are transposed") };
                let mut rows = Vec::new();
                reader.read(len, num_outputs * element_bytes, |bytes| {
                    let num_rows = bytes.len() / (num_outputs * element_bytes);
                    match tensor.dtype {
                        Dtype::F32 => scatter(values, bytemuck::cast_slice(bytes), done, num_inputs),
                        dtype => {
                            rows.resize(num_rows * num_outputs, 0.0);
                            convert(dtype, bytes, &mut rows);
                            scatter(values, &rows, done, num_inputs);
                        }
                    }
                    done += num_rows;
                })?;
            } else {
                let row_len: usize = param.shape[1..].iter().product();
                for rows in &tensor.rows {
                    let values = &mut values[rows.start * row_len..rows.end * row_len];
                    let mut done = 0;
                    reader.read((values.len() * element_bytes) as u64, element_bytes, |bytes| {
                        let num_elements = bytes.len() / element_bytes;
                        convert(tensor.dtype, bytes, &mut values[done..done + num_elements]);
                        done += num_elements;
                    })?;
                }
            }
        }
        reader.finish()
    }
}

/// Puts rows `first..` of an (in, out) matrix into our (out, in) matrix.
fn scatter(values: &mut [f32], rows: &[f32], first: usize, num_inputs: usize) {
    let num_outputs = values.len() / num_inputs;
    values.par_chunks_mut(STRIP * num_inputs).enumerate().for_each(|(strip, ours)| {
        for (row, source) in rows.chunks_exact(num_outputs).enumerate() {
            let source = &source[strip * STRIP..][..ours.len() / num_inputs];
            for (value, ours) in source.iter().zip(ours.chunks_exact_mut(num_inputs)) {
                ours[first + row] = *value;
            }
        }
    });
}

fn convert(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        Dtype::F32 => values.copy_from_slice(bytemuck::cast_slice(bytes)),
        Dtype::BF16 => each(bytes, values, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
        Dtype::F16 => each(bytes, values, |bytes| half_to_float(u16::from_le_bytes(bytes))),
        Dtype::F64 => each(bytes, values, |bytes| f64::from_le_bytes(bytes) as f32),
        other => unreachable!("{other} was refused when the file was opened"),
    }
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = convert(*bytes);
    }
}

/// IEEE half precision to single. The bits shifted into place are the number times 2^-112, also where it is subnormal.
pub(super) fn half_to_float(bits: u16) -> f32 {
    const TWO_POW_112: f32 = f32::from_bits((112 + 127) << 23);
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    if bits & 0x7c00 == 0x7c00 {
        f32::from_bits(sign | 0x7f80_0000 | magnitude)
    } else {
        f32::from_bits(sign | (f32::from_bits(magnitude) * TWO_POW_112).to_bits())
    }
}

struct Header {
    metadata: Metadata,
    data_start: u64,
    file_bytes: u64,
}

impl Header {
    fn read(path: &Path) -> Result<Self> {
        let refuse = |what: String| input(format!("{} is no sound safetensors file: {what}.", path.display()));
        let mut reader = HashedReader::open(path).map_err(|error| input(format!("{error:#}.")))?;
        let file_bytes = reader.bytes();
        if file_bytes < 8 {
            return Err(refuse(format!("it has {file_bytes} bytes")));
        }
        let length = reader.read_bytes(8)?;
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes were read"));
        if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
            return Err(refuse(format!(
                "its header claims {length} bytes, the file has {file_bytes}; it may be truncated"
            )));
        }
        let header = reader.read_bytes(length)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| refuse(error.to_string()))?;
        let data_start = 8 + length;
        let claimed = data_start.checked_add(metadata.data_len() as u64);
        if claimed != Some(file_bytes) {
            let claimed = claimed.map_or_else(|| "more than any file".to_owned(), |bytes| bytes.to_string());
            return Err(refuse(format!(
                "its header describes {claimed} bytes, the file has {file_bytes}; it is truncated or has trailing bytes"
            )));
        }
        let format = metadata.metadata().as_ref().and_then(|pairs| pairs.get("format"));
        if format.map(String::as_str) != Some("pt") {
            return Err(input(format!(
                "{} lacks the metadata format=pt; transformers refuses to load it.",
                path.display()
            )));
        }
        Ok(Self { metadata, data_start, file_bytes })
    }
}

/// Which shard holds each tensor, by names.
type WeightMap = Vec<(String, String)>;

/// The weight files of a folder, and what the list of shards says about them.
fn find_files(dir: &Path) -> Result<(Vec<PathBuf>, WeightMap)> {
    let single = dir.join(WEIGHTS_FILE);
    if single.exists() {
        return Ok((vec![single], Vec::new()));
    }
    let path = dir.join(INDEX_FILE);
    let Some(index) = read_object(&path)? else {
        let only_pickle =
            ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| dir.join(name).exists());
        let reason = if only_pickle { "; pytorch_model.bin is not read, only safetensors files are" } else { "" };
        return Err(input(format!("{} has neither {WEIGHTS_FILE} nor {INDEX_FILE}{reason}.", dir.display())));
    };
    let weight_map = weight_map(&path, index)?;
    let shards: BTreeSet<&str> = weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
    for shard in &shards {
        dir.join(shard)
            .metadata()
            .with_context(|| format!("{shard}, which {INDEX_FILE} names, cannot be read"))
            .map_err(|error| input(format!("{}: {error:#}.", dir.display())))?;
    }
    Ok((shards.iter().map(|shard| dir.join(shard)).collect(), weight_map))
}

/// The files that the list of shards in a folder names, whether they are there or not. Plain names, all of them.
pub(crate) fn shard_names(dir: &Path) -> Result<BTreeSet<String>> {
    let path = dir.join(INDEX_FILE);
    let index = read_object(&path)?.ok_or_else(|| input(format!("{} does not exist.", path.display())))?;
    Ok(weight_map(&path, index)?.into_iter().map(|(_, shard)| shard).collect())
}

/// Which shard holds each tensor, by the list at `path`.
fn weight_map(path: &Path, mut index: Map<String, Value>) -> Result<WeightMap> {
    let Some(Value::Object(map)) = index.remove("weight_map") else {
        return Err(input(format!("{} has no weight_map.", path.display())));
    };
    let mut weight_map = Vec::with_capacity(map.len());
    for (name, shard) in map {
        match shard {
            Value::String(shard) if is_plain_name(&shard) => weight_map.push((name, shard)),
            other => {
                return Err(input(format!(
                    "{}: {name} lies in {other}, which is no file of this folder.",
                    path.display()
                )));
            }
        }
    }
    let num_shards = weight_map.iter().map(|(_, shard)| shard).collect::<BTreeSet<_>>().len();
    if num_shards > MAX_SHARDS {
        return Err(input(format!("{} lists more than {MAX_SHARDS} files.", path.display())));
    }
    Ok(weight_map)
}

/// Whether a text names a file directly in a folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}
