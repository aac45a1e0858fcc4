//! Adding a bias to a matrix, for products whose driver cannot do it in passing.

use super::{Address, Arg, Driver, Dtype, Grid};

/// `c (rows, columns) += bias (columns)`.
pub(super) fn add(driver: &dyn Driver, c: (Address, Dtype), bias: (Address, Dtype), [rows, columns]: [usize; 2]) {
    let kernel = match (bias.1, c.1) {
        (Dtype::F32, Dtype::F32) => "add_bias_f32_to_f32",
        (Dtype::Bf16, Dtype::F32) => "add_bias_bf16_to_f32",
        (Dtype::Bf16, Dtype::Bf16) => "add_bias_bf16_to_bf16",
        (Dtype::F32, Dtype::Bf16) => unreachable!("products of f32 have results in f32"),
    };
    let args = [Arg::at(c.0), Arg::at(bias.0), Arg::I32(columns as i32)];
    driver.launch(kernel, Grid::new(rows, 256), &args);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::{Element, Gpu, testing};
    use crate::ops::testing::values;

    fn check<C: Element, B: Element>(gpu: &Gpu, [rows, columns]: [usize; 2]) {
        let c: Vec<C> = values(1, rows * columns).into_iter().map(C::from_f32).collect();
        let bias: Vec<B> = values(2, columns).into_iter().map(B::from_f32).collect();
        let mut on_gpu = gpu.buffer_of(&c).unwrap();
        let bias_on_gpu = gpu.buffer_of(&bias).unwrap();
        let (to, from) = ((on_gpu.view_mut().address(), C::DTYPE), (bias_on_gpu.view().address(), B::DTYPE));
        add(&*gpu.driver, to, from, [rows, columns]);
        let sums = gpu.to_vec(on_gpu.view()).unwrap();
        for (i, (sum, c)) in sums.into_iter().zip(c).enumerate() {
            let expected = C::from_f32(c.to_f32() + bias[i % columns].to_f32());
            assert_eq!(sum.to_f32(), expected.to_f32(), "element {i} of {rows} x {columns}");
        }
    }

    #[test]
    fn a_bias_is_added_to_each_row_in_every_pair_of_formats() {
        for gpu in testing::gpus().into_iter().flatten() {
            for sizes in [[1, 1], [3, 5], [2, 256], [5, 777]] {
                check::<f32, f32>(&gpu, sizes);
                check::<f32, bf16>(&gpu, sizes);
                check::<bf16, bf16>(&gpu, sizes);
            }
        }
    }
}
