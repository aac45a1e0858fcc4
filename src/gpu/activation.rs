//! The pointwise function between the MLP's two matrices, gated or not; the twin of `ops/activation.rs`.

use super::{Arg, Element, Gpu, Grid, NO_POINTER, View, ViewMut, column_sums, optional};
use crate::ops::activation::Activation;

/// `y (n, m) = f(x (n, m) + bias (m))`.
pub fn forward<T: Element>(gpu: &Gpu, f: Activation, y: ViewMut<T>, x: View<T>, bias: Option<View<f32>>, m: usize) {
    assert_eq!(y.len(), x.len(), "sizes of an activation");
    let (n, args) = (x.len() / m, [y.arg(), x.arg(), optional(bias)]);
    launch::<T>(gpu, "activation_forward", chunks(n, m), &args, [n, m], f);
}

/// A bias before the function, and its gradient.
pub struct Bias<'a> {
    /// (m).
    pub bias: View<'a, f32>,
    /// (m), added to.
    pub dbias: ViewMut<'a, f32>,
    /// [`column_sums::partials_len`] elements.
    pub partials: ViewMut<'a, f32>,
}

/// `dy (n, m)` becomes `dx = dy f'(x + bias)`; `dbias += Σ dx`, as it was rounded, in the same pass.
pub fn backward<T: Element>(gpu: &Gpu, f: Activation, dy: ViewMut<T>, x: View<T>, bias: Option<Bias>, m: usize) {
    assert_eq!(dy.len(), x.len(), "sizes of an activation's gradient");
    let n = x.len() / m;
    let (bias, sums) = match bias {
        Some(Bias { bias, dbias, partials }) => {
            (Some(bias), Some((dbias, partials.window(0..column_sums::partials_len(n, m)))))
        }
        None => (None, None),
    };
    assert!(bias.is_none_or(|bias| bias.len() == m), "bias of an activation");
    let partials = sums.as_ref().map_or(NO_POINTER, |(_, partials)| partials.arg());
    let args = [dy.arg_in_place(), partials, x.arg(), optional(bias)];
    launch::<T>(gpu, "activation_backward", column_sums::grid(n, m), &args, [n, m], f);
    if let Some((dbias, partials)) = sums {
        column_sums::add_partials(gpu, [Some(dbias)], partials.as_view(), m);
    }
}

/// `y (n, m) = f(gate) up`, where a row of `x (n, 2 m)` holds gate, then up.
pub fn gated_forward<T: Element>(gpu: &Gpu, f: Activation, y: ViewMut<T>, x: View<T>, m: usize) {
    assert_eq!(2 * y.len(), x.len(), "sizes of a gated activation");
    let n = y.len() / m;
    launch::<T>(gpu, "gated_forward", chunks(n, m), &[y.arg(), x.arg()], [n, m], f);
}

/// `dx (n, 2 m)`: `dgate = dy up f'(gate)`, then `dup = dy f(gate)`.
pub fn gated_backward<T: Element>(gpu: &Gpu, f: Activation, dx: ViewMut<T>, dy: View<T>, x: View<T>, m: usize) {
    assert_eq!((dx.len(), 2 * dy.len()), (x.len(), x.len()), "sizes of a gated activation's gradient");
    let n = dy.len() / m;
    launch::<T>(gpu, "gated_backward", chunks(n, m), &[dx.arg(), dy.arg(), x.arg()], [n, m], f);
}

/// Threads for eight elements each.
pub(super) fn chunks(n: usize, m: usize) -> Grid {
    Grid::new((n * m.div_ceil(8)).div_ceil(256), 256)
}

fn launch<T: Element>(gpu: &Gpu, kernel: &str, grid: Grid, windows: &[Arg], [n, m]: [usize; 2], f: Activation) {
    let mut args = windows.to_vec();
    args.extend([n as i32, m as i32, code(f)].map(Arg::I32));
    gpu.launch(&format!("{kernel}_{}", T::SUFFIX), grid, &args);
}

/// The kernels' name of a function.
pub(super) fn code(f: Activation) -> i32 {
    match f {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::Relu => 2,
        Activation::Relu2 => 3,
        Activation::Silu => 4,
    }
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
    const SHAPES: [[usize; 2]; 6] = [[1, 1], [3, 8], [17, 15], [300, 64], [33, 265], [8193, 3]];

    fn plain_functions_are_the_definition<T: Element>() {
        for (f, [n, m]) in ALL.into_iter().flat_map(|f| SHAPES.map(|shape| (f, shape))) {
            for with_bias in [true, false] {
                let ((x, wide_x), (dy, wide_dy)) = (rounded::<T>(1, n * m), rounded::<T>(2, n * m));
                let bias = values(3, m);
                let wide_bias = if with_bias { wide(&bias) } else { vec![0.0; m] };
                let old_dbias = values(4, m);
                let Some([y, dx, dbias, sums]) = on_both(|gpu| {
                    let (x, bias) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&bias).unwrap());
                    let (mut y, mut dy) = (gpu.zeros::<T>(n * m).unwrap(), gpu.buffer_of(&dy).unwrap());
                    let [mut dbias, mut sums] = [(); 2].map(|()| gpu.buffer_of(&old_dbias).unwrap());
                    let mut partials = gpu.zeros(column_sums::partials_len(n, m)).unwrap();
                    let bias = with_bias.then(|| bias.view());
                    forward(gpu, f, y.view_mut(), x.view(), bias, m);
                    let with_gradient =
                        bias.map(|bias| Bias { bias, dbias: dbias.view_mut(), partials: partials.view_mut() });
                    backward(gpu, f, dy.view_mut(), x.view(), with_gradient, m);
                    if with_bias {
                        column_sums::add(gpu, sums.view_mut(), dy.view(), partials.view_mut());
                    }
                    [check(gpu, y.view()), check(gpu, dy.view()), check(gpu, dbias.view()), check(gpu, sums.view())]
                }) else {
                    return;
                };
                let what = format!("{f:?} of {n} x {m}, bias: {with_bias}");
                assert_close(&y, &reference::forward(f, &wide_x, &wide_bias), tolerance::<T>(), &what);
                let (expected, _) = reference::backward(f, &wide_dy, &wide_x, &wide_bias);
                assert_close(&dx, &expected, tolerance::<T>(), format!("gradient of {what}"));
                assert_eq!(dbias, sums, "the bias's gradient is that of what was stored, {what}");
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
