//! The pointwise function between the MLP's two matrices, gated or not; the twin of `ops/activation.rs`.

use super::{Arg, Element, Gpu, Grid, View, ViewMut, optional};
use crate::ops::activation::Activation;

/// `y (n, m) = f(x (n, m) + bias (m))`.
pub fn forward<T: Element>(gpu: &Gpu, f: Activation, y: ViewMut<T>, x: View<T>, bias: Option<View<f32>>, m: usize) {
    assert_eq!(y.len(), x.len(), "sizes of an activation");
    let args = [y.arg(), x.arg(), optional(bias)];
    launch::<T>(gpu, "activation_forward", &args, x.len() / m, m, f);
}

/// `dy (n, m)` becomes `dx = dy f'(x + bias)`.
pub fn backward<T: Element>(gpu: &Gpu, f: Activation, dy: ViewMut<T>, x: View<T>, bias: Option<View<f32>>, m: usize) {
    assert_eq!(dy.len(), x.len(), "sizes of an activation's gradient");
    let args = [dy.arg_in_place(), x.arg(), optional(bias)];
    launch::<T>(gpu, "activation_backward", &args, x.len() / m, m, f);
}

/// `y (n, m) = f(gate) up`, where a row of `x (n, 2 m)` holds gate, then up.
pub fn gated_forward<T: Element>(gpu: &Gpu, f: Activation, y: ViewMut<T>, x: View<T>, m: usize) {
    assert_eq!(2 * y.len(), x.len(), "sizes of a gated activation");
    launch::<T>(gpu, "gated_forward", &[y.arg(), x.arg()], y.len() / m, m, f);
}

/// `dx (n, 2 m)`: `dgate = dy up f'(gate)`, then `dup = dy f(gate)`.
pub fn gated_backward<T: Element>(gpu: &Gpu, f: Activation, dx: ViewMut<T>, dy: View<T>, x: View<T>, m: usize) {
    assert_eq!((dx.len(), 2 * dy.len()), (x.len(), x.len()), "sizes of a gated activation's gradient");
    launch::<T>(gpu, "gated_backward", &[dx.arg(), dy.arg(), x.arg()], dy.len() / m, m, f);
}

fn launch<T: Element>(gpu: &Gpu, kernel: &str, windows: &[Arg], n: usize, m: usize, f: Activation) {
    let code = match f {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::Relu => 2,
        Activation::Relu2 => 3,
        Activation::Silu => 4,
    };
    let mut args = windows.to_vec();
    args.extend([n as i32, m as i32, code].map(Arg::I32));
    gpu.launch(&format!("{kernel}_{}", T::SUFFIX), Grid::new((n * m.div_ceil(8)).div_ceil(256), 256), &args);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::testing::{check, on_both, rounded, tolerance};
    use crate::ops::activation::reference;
    use crate::ops::testing::{assert_close, values, wide};

    const ALL: [Activation; 5] =
        [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::Relu2, Activation::Silu];
    const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 8], [17, 15], [300, 64], [33, 265]];

    fn plain_functions_are_the_definition<T: Element>() {
        for (f, [n, m]) in ALL.into_iter().flat_map(|f| SHAPES.map(|shape| (f, shape))) {
            for with_bias in [true, false] {
                let ((x, wide_x), (dy, wide_dy)) = (rounded::<T>(1, n * m), rounded::<T>(2, n * m));
                let bias = values(3, m);
                let wide_bias = if with_bias { wide(&bias) } else { vec![0.0; m] };
                let Some([y, dx]) = on_both(|gpu| {
                    let (x, bias) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&bias).unwrap());
                    let (mut y, mut dy) = (gpu.zeros::<T>(n * m).unwrap(), gpu.buffer_of(&dy).unwrap());
                    let bias = with_bias.then(|| bias.view());
                    forward(gpu, f, y.view_mut(), x.view(), bias, m);
                    backward(gpu, f, dy.view_mut(), x.view(), bias, m);
                    [check(gpu, y.view()), check(gpu, dy.view())]
                }) else {
                    return;
                };
                let what = format!("{f:?} of {n} x {m}, bias: {with_bias}");
                assert_close(&y, &reference::forward(f, &wide_x, &wide_bias), tolerance::<T>(), &what);
                let (expected, _) = reference::backward(f, &wide_dy, &wide_x, &wide_bias);
                assert_close(&dx, &expected, tolerance::<T>(), format!("gradient of {what}"));
            }
        }
    }

    fn gated_functions_are_the_definition<T: Element>() {
        for (f, [n, m]) in ALL.into_iter().flat_map(|f| SHAPES.map(|shape| (f, shape))) {
            let ((x, wide_x), (dy, wide_dy)) = (rounded::<T>(1, 2 * n * m), rounded::<T>(2, n * m));
            let Some([y, dx]) = on_both(|gpu| {
                let (x, dy) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&dy).unwrap());
                let (mut y, mut dx) = (gpu.zeros::<T>(n * m).unwrap(), gpu.zeros::<T>(2 * n * m).unwrap());
                gated_forward(gpu, f, y.view_mut(), x.view(), m);
                gated_backward(gpu, f, dx.view_mut(), dy.view(), x.view(), m);
                [check(gpu, y.view()), check(gpu, dx.view())]
            }) else {
                return;
            };
            let what = format!("gated {f:?} of {n} x {m}");
            assert_close(&y, &reference::gated_forward(f, &wide_x, m), tolerance::<T>(), &what);
            let expected = reference::gated_backward(f, &wide_dy, &wide_x, m);
            assert_close(&dx, &expected, tolerance::<T>(), format!("gradient of {what}"));
        }
    }

    #[test]
    fn functions_are_the_definition_in_f32() {
        plain_functions_are_the_definition::<f32>();
        gated_functions_are_the_definition::<f32>();
    }

    #[test]
    fn functions_are_the_definition_in_bf16() {
        plain_functions_are_the_definition::<bf16>();
        gated_functions_are_the_definition::<bf16>();
    }
}
