//! The sum of squares of a flat buffer in f64; the twin of `optim/clip.rs`'s.

use anyhow::Result;

use super::{Arg, Buffer, Gpu, Grid, View};

/// Elements of one partial sum.
const PER_BLOCK: usize = 1 << 18;

/// Partial sums on the device.
pub struct Partials(Buffer<f64>);

impl Partials {
    /// For buffers of `len` elements.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self> {
        Ok(Self(gpu.zeros(len.div_ceil(PER_BLOCK))?))
    }
}

/// The sum of squares; waits for the device.
///
/// # Errors
/// Whatever went wrong on the device since the last wait.
pub fn sum_of_squares(gpu: &Gpu, x: View<f32>, partials: &mut Partials) -> Result<f64> {
    let num_blocks = x.len().div_ceil(PER_BLOCK);
    assert_eq!(partials.0.len(), num_blocks, "parts of a sum of squares");
    let grid = Grid { shared_bytes: 256 * 8, ..Grid::new(num_blocks, 256) };
    let args = [partials.0.view_mut().arg(), x.arg(), Arg::U64(x.len() as u64), Arg::U32(PER_BLOCK as u32)];
    gpu.launch("sum_of_squares", grid, &args);
    Ok(gpu.to_vec(partials.0.view())?.iter().sum())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::testing;
    use crate::ops::testing::values;
    use crate::optim::clip;

    #[test]
    fn sums_are_the_cpus_and_not_finite_where_an_element_is_not() {
        for gpu in testing::gpus().into_iter().flatten() {
            for len in [1, 9, 2047, PER_BLOCK, PER_BLOCK + 5] {
                let mut x = values(1, len);
                let sum = |x: &[f32]| {
                    let mut partials = Partials::new(&gpu, len).unwrap();
                    sum_of_squares(&gpu, gpu.buffer_of(x).unwrap().view(), &mut partials).unwrap()
                };
                let expected = clip::sum_of_squares(&x);
                assert!((sum(&x) / expected - 1.0).abs() < 1e-13, "{len}");
                x[len - 1] = f32::NAN;
                assert!(sum(&x).is_nan());
            }
        }
    }
}
