//! Matrix products by cuBLASLt.
//!
//! cuBLASLt's matrices are column-major, ours row-major, and what one reads as a matrix the other reads as its
//! transpose. So it is asked for `C^T = B^T A^T`: the operands change places, and so do m and n ([`column_major`]). Its
//! bias is a column added to each column, which is ours: a row added to each row.
//!
//! Which algorithm suits a product is cuBLASLt's to say. It is asked once for each shape, order, formats and alignment,
//! so that the same products of a run are always computed in the same way. Algorithms that cut k in parts must add the
//! parts up in f32, in a fixed order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::from_ref;

use anyhow::{Result, anyhow};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::handles::Stream;
use crate::gpu::{Address, Dtype, Epilogue, EpilogueKind, Product};

/// What NVIDIA advises for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;
/// cuBLASLt's kernels read biases and epilogues' arguments in pieces of this many bytes, and are not told how they are aligned.
const PIECE_BYTES: u64 = 16;

/// `c = beta c + a b` in column-major order; columns follow each other without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Gemm {
    a: Matrix,
    b: Matrix,
    c: Matrix,
}

/// A matrix as it lies in memory; its leading dimension is the number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Matrix {
    rows: usize,
    columns: usize,
    /// Whether the operand is its transpose.
    transposed: bool,
}

/// The same product with `a` and `b` exchanged: the row-major (r, c) matrix is the column-major (c, r) matrix of the
/// same memory. The first operand must become B^T (n, k): a plain `b` lies as (k, n) in rows, which is (n, k) in
/// columns, just that; a transposed one lies as (n, k) in rows, (k, n) in columns, and is to be transposed. The second
/// must become A^T (k, m): a plain `a`, (m, k) in rows, is (k, m) in columns; a transposed one, (k, m) in rows, is (m, k) in
/// columns, to be transposed. C, (m, n) in rows, is (n, m) in columns.
fn column_major([m, n, k]: [usize; 3], a_transposed: bool, b_transposed: bool) -> Gemm {
    let lying = |rows, columns, transposed| match transposed {
        false => Matrix { rows, columns, transposed },
        true => Matrix { rows: columns, columns: rows, transposed },
    };
    Gemm { a: lying(n, k, b_transposed), b: lying(k, m, a_transposed), c: lying(n, m, false) }
}

/// Whether cuBLASLt can add a product's bias: it takes one of the destination's format, well aligned.
fn adds_bias(product: &Product) -> bool {
    product.bias.is_some_and(|bias| product.a.dtype == product.c.1 && bias.is_multiple_of(PIECE_BYTES))
}

/// Whether cuBLASLt can be asked for a product's epilogue: rows of the argument and their place must be well aligned, and
/// the bias must be one that it adds.
fn takes_epilogue(product: &Product, epilogue: &Epilogue) -> bool {
    const ROW_MULTIPLE: usize = 8;
    product.sizes[1].is_multiple_of(ROW_MULTIPLE)
        && epilogue.argument.is_multiple_of(PIECE_BYTES)
        && (product.bias.is_none() || adds_bias(product))
}

/// All that the choice of an algorithm depends on; beta does not matter for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    gemm: Gemm,
    operands: Dtype,
    destination: Dtype,
    /// Of a, b and c in bytes.
    alignments: [u32; 3],
    /// That of the bias.
    bias: Option<u32>,
    /// And that of the epilogue's argument.
    epilogue: Option<(EpilogueKind, u32)>,
}

/// What became of a product.
pub(super) enum Done {
    /// It is queued.
    Everything,
    /// It is queued, but the bias is the caller's to add, which cuBLASLt cannot.
    AllButBias,
    /// cuBLASLt cannot compute the epilogue; nothing is queued.
    Nothing,
}

impl Key {
    fn of(product: &Product) -> Self {
        let Product { sizes, a, b, c: (c, destination), bias, epilogue, .. } = *product;
        Self {
            gemm: column_major(sizes, a.transposed, b.transposed),
            operands: a.dtype,
            destination,
            alignments: [b.address, a.address, c].map(alignment),
            bias: bias.filter(|_| adds_bias(product)).map(alignment),
            epilogue: epilogue.map(|epilogue| (epilogue.kind, alignment(epilogue.argument))),
        }
    }
}

/// What an error of cuBLASLt's is told as.
fn explain(product: &Product, error: CublasError) -> anyhow::Error {
    let ([m, n, k], with) = (product.sizes, if adds_bias(product) { " with a bias" } else { "" });
    let and = if product.epilogue.is_some() { " and an epilogue" } else { "" };
    let (from, to) = (product.a.dtype, product.c.1);
    anyhow!("cuBLASLt failed at a product{with}{and}, ({m}, {k}) by ({k}, {n}), {from:?} to {to:?}: {error}")
}

/// A descriptor of cuBLASLt's, destroyed when dropped.
struct Owned<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: ours alone, with the function that belongs to it. There is nobody to tell of an error.
        let _ = unsafe { (self.1)(self.0) };
    }
}

/// A product prepared.
struct Plan {
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    layouts: [Owned<sys::cublasLtMatrixLayout_t>; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    adds_bias: bool,
}

/// cuBLASLt on one device.
pub(super) struct Products {
    /// `None` where there is no algorithm with the epilogue.
    plans: HashMap<Key, Option<Plan>>,
    workspace: Address,
    handle: Owned<sys::cublasLtHandle_t>,
}

impl Products {
    /// With a workspace of [`WORKSPACE_BYTES`] in which one product at a time works.
    pub(super) fn new(workspace: Address) -> Result<Self, CublasError> {
        let handle = Owned(result::create_handle()?, result::destroy_handle);
        Ok(Self { plans: HashMap::new(), workspace, handle })
    }

    /// Where the workspace is, which the caller gives back.
    pub(super) fn workspace(&self) -> Address {
        self.workspace
    }

    /// Computes products of a kind by the heuristic's choice of a rank from now on; whether there is one.
    pub(super) fn choose(&mut self, product: &Product, rank: usize) -> Result<bool> {
        if product.epilogue.is_some_and(|epilogue| !takes_epilogue(product, &epilogue)) {
            return Ok(false);
        }
        let key = Key::of(product);
        let plan = ranked(&self.handle, &key, product, rank).map_err(|error| explain(product, error))?;
        Ok(plan.map(|plan| self.plans.insert(key, Some(plan))).is_some())
    }

    /// Queues a product, as far as cuBLASLt can compute it; the rest is the caller's. Always with the same stream, for the
    /// workspace's sake.
    pub(super) fn multiply(&mut self, stream: &Stream, product: &Product) -> Result<Done> {
        let Product { a, b, beta, c: (c, _), epilogue, .. } = *product;
        if epilogue.is_some_and(|epilogue| !takes_epilogue(product, &epilogue)) {
            return Ok(Done::Nothing);
        }
        let bias = product.bias.filter(|_| adds_bias(product));
        let [first, second] = [b.address, a.address];
        let key = Key::of(product);
        let explain = |error| explain(product, error);
        let plan = match self.plans.entry(key) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => {
                let unsupported = || explain(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
                let plan = ranked(&self.handle, &key, product, 0).map_err(explain)?;
                if plan.is_none() && epilogue.is_none() {
                    return Err(unsupported());
                }
                place.insert(plan)
            }
        };
        let Some(plan) = plan else { return Ok(Done::Nothing) };
        if let Some(bias) = bias.filter(|_| plan.adds_bias) {
            set(&plan.operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias).map_err(explain)?;
        }
        if let Some(Epilogue { argument, .. }) = epilogue {
            set(&plan.operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &argument).map_err(explain)?;
        }
        let alpha = 1.0_f32;
        let [layout_a, layout_b, layout_c] =
            [&plan.layouts[0], &plan.layouts[1], &plan.layouts[2]].map(|owned| owned.0);
        // SAFETY: the descriptors are alive and are those of these operands, and of the epilogue's argument, which the
        // caller vouches for; the factors are read before the call returns; the workspace is as large as the heuristic
        // was told.
        unsafe {
            result::matmul(
                self.handle.0,
                plan.operation.0,
                from_ref(&alpha).cast(),
                from_ref(&beta).cast(),
                first as *const c_void,
                layout_a,
                second as *const c_void,
                layout_b,
                c as *const c_void,
                layout_c,
                c as *mut c_void,
                layout_c,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.0.cast(),
            )
        }
        .map_err(explain)?;
        Ok(if plan.adds_bias || product.bias.is_none() { Done::Everything } else { Done::AllButBias })
    }
}

use sys::cublasLtMatmulDescAttributes_t as Attribute;

fn set<T>(operation: &Owned<sys::cublasLtMatmulDesc_t>, attribute: Attribute, value: &T) -> Result<(), CublasError> {
    // SAFETY: the descriptor is alive, and the value is copied.
    unsafe { result::set_matmul_desc_attribute(operation.0, attribute, from_ref(value).cast(), size_of::<T>()) }
}

/// How many of its choices cuBLASLt is asked for, always: it promises an order among the answers to one question only.
const CHOICES: usize = 8;

/// cuBLASLt's choice of a rank for a product; without its bias where there is none with it. `None` if there are fewer, or none
/// with the epilogue.
fn ranked(
    handle: &Owned<sys::cublasLtHandle_t>,
    key: &Key,
    product: &Product,
    rank: usize,
) -> Result<Option<Plan>, CublasError> {
    let Product { epilogue, .. } = *product;
    let bias = product.bias.filter(|_| adds_bias(product));
    let with = |bias, rank| plan(handle, key, bias, epilogue, rank);
    match with(bias, rank)? {
        Some(plan) => Ok(Some(plan)),
        None if bias.is_some() && epilogue.is_none() && (rank == 0 || with(bias, 0)?.is_none()) => with(None, rank),
        None => Ok(None),
    }
}

/// Asks cuBLASLt how to compute products of a kind: for its choice of a rank, 0 being the best; `None` if there are fewer.
fn plan(
    handle: &Owned<sys::cublasLtHandle_t>,
    key: &Key,
    bias: Option<Address>,
    epilogue: Option<Epilogue>,
    rank: usize,
) -> Result<Option<Plan>, CublasError> {
    let f32 = sys::cudaDataType_t::CUDA_R_32F;
    let format = |dtype| match dtype {
        Dtype::F32 => f32,
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    };
    // In f32 throughout: not with TF32, and not with bf16 in several pieces.
    let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, f32)?;
    let operation = Owned(operation, result::destroy_matmul_desc);
    // `cublasOperation_t`: 0 as it lies, 1 transposed.
    set(&operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(key.gemm.a.transposed))?;
    set(&operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(key.gemm.b.transposed))?;
    use sys::cublasLtEpilogue_t as Kind;
    let kind = match (epilogue.map(|epilogue| epilogue.kind), bias) {
        (None, None) => Kind::CUBLASLT_EPILOGUE_DEFAULT,
        (None, Some(_)) => Kind::CUBLASLT_EPILOGUE_BIAS,
        (Some(EpilogueKind::Gelu), None) => Kind::CUBLASLT_EPILOGUE_GELU_AUX,
        (Some(EpilogueKind::Gelu), Some(_)) => Kind::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        // It has no bias.
        (Some(EpilogueKind::GeluGradient), _) => Kind::CUBLASLT_EPILOGUE_DGELU,
    };
    set(&operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &kind)?;
    // Bias and argument have the destination's format unless told otherwise; their places are set again for each product.
    if let Some(bias) = bias {
        set(&operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
    }
    if let Some(Epilogue { argument, .. }) = epilogue {
        set(&operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &argument)?;
        set(&operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &(key.gemm.c.rows as i64))?;
    }

    let layout = |Matrix { rows, columns, .. }, dtype| -> Result<_, CublasError> {
        let layout = result::create_matrix_layout(format(dtype), rows as u64, columns as u64, rows as i64)?;
        Ok(Owned(layout, result::destroy_matrix_layout as unsafe fn(_) -> _))
    };
    let a = layout(key.gemm.a, key.operands)?;
    let b = layout(key.gemm.b, key.operands)?;
    let c = layout(key.gemm.c, key.destination)?;

    use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
    let preference = Owned(result::create_matmul_pref()?, result::destroy_matmul_pref);
    let prefer = |attribute, value: *const c_void, bytes| {
        // SAFETY: the descriptor is alive, and the value is copied.
        unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, bytes) }
    };
    let workspace = WORKSPACE_BYTES as u64;
    prefer(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, from_ref(&workspace).cast(), size_of::<u64>())?;
    let in_f32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    prefer(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, from_ref(&in_f32).cast(), size_of::<u32>())?;
    let [at_a, at_b, at_c] = &key.alignments;
    for (attribute, alignment) in [
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, at_a),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, at_b),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, at_c),
        (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, at_c),
    ] {
        prefer(attribute, from_ref(alignment).cast(), size_of::<u32>())?;
    }
    let mut found = [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CHOICES];
    let mut count = 0;
    // SAFETY: all descriptors are alive, and there is room for as many results as are asked for.
    let asked = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle.0,
            operation.0,
            a.0,
            b.0,
            c.0,
            c.0,
            preference.0,
            CHOICES as i32,
            found.as_mut_ptr().cast(),
            &mut count,
        )
    };
    if asked == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
        return Ok(None);
    }
    asked.result()?;
    // SAFETY: as many as were counted have been written.
    let found = found.iter().take(count as usize).map(|found| unsafe { found.assume_init_ref() });
    let usable = found.filter(|found| found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    let adds_bias = bias.is_some();
    Ok(usable.map(|found| found.algo).nth(rank).map(|algorithm| Plan {
        operation,
        layouts: [a, b, c],
        algorithm,
        adds_bias,
    }))
}

/// The largest power of two that divides an address, up to the 256 bytes of an allocation.
fn alignment(address: Address) -> u32 {
    1 << address.trailing_zeros().min(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::values;

    /// `c` by the textbook, in column-major order.
    fn column_major_product(gemm: &Gemm, a: &[f32], b: &[f32]) -> Vec<f32> {
        let at = |matrix: &Matrix, data: &[f32], row: usize, column: usize| {
            let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
            assert!(row < matrix.rows && column < matrix.columns);
            data[row + column * matrix.rows]
        };
        let k = if gemm.a.transposed { gemm.a.rows } else { gemm.a.columns };
        let mut c = Vec::new();
        for column in 0..gemm.c.columns {
            let element = |row| (0..k).map(|i| at(&gemm.a, a, row, i) * at(&gemm.b, b, i, column)).sum::<f32>();
            c.extend((0..gemm.c.rows).map(element));
        }
        c
    }

    #[test]
    fn the_column_major_product_with_exchanged_operands_is_the_row_major_one() {
        for [m, n, k] in [[2, 3, 4], [5, 2, 3], [1, 4, 2], [3, 1, 5], [4, 4, 1]] {
            let (a, b) = (values(1, m * k), values(2, k * n));
            for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
                let a_at = |i: usize, l: usize| if a_transposed { a[l * m + i] } else { a[i * k + l] };
                let b_at = |l: usize, j: usize| if b_transposed { b[j * k + l] } else { b[l * n + j] };
                let mut expected = Vec::new();
                for i in 0..m {
                    expected.extend((0..n).map(|j| (0..k).map(|l| b_at(l, j) * a_at(i, l)).sum::<f32>()));
                }
                let gemm = column_major([m, n, k], a_transposed, b_transposed);
                assert_eq!(column_major_product(&gemm, &b, &a), expected, "{m} {n} {k} {a_transposed} {b_transposed}");
            }
        }
    }

    #[test]
    fn alignments_are_powers_of_two_up_to_that_of_an_allocation() {
        assert_eq!([0x1000, 0x1100, 0x1080, 0x1010, 0x1006, 0x1001].map(alignment), [256, 256, 128, 16, 2, 1]);
    }
}
