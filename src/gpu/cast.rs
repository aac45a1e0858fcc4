//! Casts between number formats.

use half::bf16;

use super::{Arg, Gpu, Grid, View, ViewMut};

/// `y = x` to nearest.
pub fn to_bf16(gpu: &Gpu, y: ViewMut<bf16>, x: View<f32>) {
    assert_eq!(x.len(), y.len(), "elements of a cast");
    let grid = Grid::new(x.len().div_ceil(8 * 256), 256);
    gpu.launch("cast_f32_to_bf16", grid, &[y.arg(), x.arg(), Arg::U64(x.len() as u64)]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::testing;
    use crate::ops::testing::values;

    #[test]
    fn casts_round_to_nearest_at_every_length_and_alignment() {
        let specials =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX];
        for gpu in testing::gpus().into_iter().flatten() {
            for len in [1, 7, 8, 9, 2047, 2048, 2049] {
                let mut x = values(1, len + 3);
                x.iter_mut().zip(specials).for_each(|(x, special)| *x = special);
                let on_gpu = gpu.buffer_of(&x).unwrap();
                let mut y = gpu.zeros::<bf16>(len).unwrap();
                for start in [0, 3] {
                    to_bf16(&gpu, y.view_mut(), on_gpu.view().window(start..start + len));
                    let y = gpu.to_vec(y.view()).unwrap();
                    for (y, &x) in y.iter().zip(&x[start..]) {
                        let same = y.to_bits() == bf16::from_f32(x).to_bits() || y.is_nan() && x.is_nan();
                        assert!(same, "{x} became {y}");
                    }
                }
            }
        }
    }
}
