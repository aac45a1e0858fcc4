//! Epilogues of products whose driver cannot compute them in passing: the product, then the kernels of the function.

use super::{Arg, Driver, Epilogue, EpilogueKind, NO_POINTER, Product, activation, column_sums};
use crate::ops::activation::Activation;

/// The product, and behind it its epilogue.
pub(super) fn separately(driver: &dyn Driver, product: Product, Epilogue { kind, argument }: Epilogue) {
    let [n, m, _] = product.sizes;
    let (c, dtype) = product.c;
    let suffix = dtype.suffix();
    let sizes = [n as i32, m as i32, activation::code(Activation::GeluTanh)].map(Arg::I32);
    let (none, [c, argument_of]) = (NO_POINTER, [c, argument].map(Arg::at));
    match kind {
        EpilogueKind::Gelu => {
            driver.multiply(Product { c: (argument, dtype), epilogue: None, ..product });
            let args = [c, argument_of, none, sizes[0], sizes[1], sizes[2]];
            driver.launch(&format!("activation_forward_{suffix}"), activation::chunks(n, m), &args);
        }
        EpilogueKind::GeluGradient => {
            driver.multiply(Product { epilogue: None, ..product });
            let args = [c, none, argument_of, none, sizes[0], sizes[1], sizes[2]];
            driver.launch(&format!("activation_backward_{suffix}"), column_sums::grid(n, m), &args);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use crate::gpu::testing::{check, on_both, rounded, tolerance};
    use crate::gpu::{Element, linear};
    use crate::ops::activation::{self, Activation};
    use crate::ops::linear::reference;
    use crate::ops::testing::{assert_close, wide};

    fn epilogues_are_the_definition<T: Element>() {
        for [n, o, i] in [[1, 1, 1], [17, 15, 16], [70, 264, 33]] {
            let ((x, wide_x), (weight, wide_weight)) = (rounded::<T>(1, n * i), rounded::<T>(2, o * i));
            let ((bias, wide_bias), (dy, wide_dy)) = (rounded::<T>(3, o), rounded::<T>(4, n * i));
            let (next_weight, wide_next_weight) = rounded::<T>(5, i * o);
            let Some([y, argument, dargument]) = on_both(|gpu| {
                let [x, weight, bias] = [&x, &weight, &bias].map(|numbers| gpu.buffer_of(numbers).unwrap());
                let [dy, next_weight] = [&dy, &next_weight].map(|numbers| gpu.buffer_of(numbers).unwrap());
                let [mut y, mut argument, mut dargument] = [(); 3].map(|()| gpu.zeros::<T>(n * o).unwrap());
                let (into, kept) = (y.view_mut(), argument.view_mut());
                linear::forward_gelu(gpu, [n, o, i], into, kept, x.view(), weight.view(), bias.view());
                let (into, weight) = (dargument.view_mut(), next_weight.view());
                linear::backward_gelu(gpu, [n, i, o], into, argument.view(), dy.view(), weight);
                [check(gpu, y.view()), check(gpu, argument.view()), check(gpu, dargument.view())]
            }) else {
                return;
            };
            let (what, none) = (format!("{n} x {o} x {i}"), vec![0.0; o]);
            let expected = reference::forward(&wide_x, &wide_weight, &wide_bias);
            assert_close(&argument, &expected, tolerance::<T>(), format!("argument of {what}"));
            let expected = activation::reference::forward(Activation::GeluTanh, &wide(&argument), &none);
            assert_close(&y, &expected, tolerance::<T>(), format!("gelu of {what}"));
            let (dx, ..) = reference::backward(&wide_dy, &vec![0.0; n * o], &wide_next_weight, i);
            let (expected, _) = activation::reference::backward(Activation::GeluTanh, &dx, &wide(&argument), &none);
            // The product is rounded, and once more behind the function.
            assert_close(&dargument, &expected, 2.0 * tolerance::<T>(), format!("gradient of {what}"));
        }
    }

    #[test]
    fn epilogues_are_the_definition_in_f32() {
        epilogues_are_the_definition::<f32>();
    }

    #[test]
    fn epilogues_are_the_definition_in_bf16() {
        epilogues_are_the_definition::<bf16>();
    }
}
