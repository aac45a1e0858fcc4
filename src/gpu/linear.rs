//! The linear layer `y (n, o) = x (n, i) weight (o, i)ᵀ + bias (o)` and its gradients; the twin of `ops/linear.rs`.
//!
//! The bias's gradient is the sum of the rows of `dy`, which comes from where `dy` is written, or from `column_sums`.

use super::{Dtype, Element, Epilogue, EpilogueKind, Gpu, Operand, Product, View, ViewMut};

fn operand<T: Element>(window: View<T>, transposed: bool) -> Operand {
    Operand { address: window.address(), dtype: T::DTYPE, transposed }
}

/// `y = x weightᵀ + bias`; `Y` may be f32 where `T` is bfloat16.
pub fn forward<T: Element, Y: Element>(
    gpu: &Gpu,
    [n, o, i]: [usize; 3],
    y_no: ViewMut<Y>,
    x_ni: View<T>,
    weight_oi: View<T>,
    bias_o: Option<View<T>>,
) {
    assert_eq!((y_no.len(), x_ni.len(), weight_oi.len()), (n * o, n * i, o * i), "sizes of a linear layer");
    assert!(bias_o.is_none_or(|bias| bias.len() == o), "bias of a linear layer");
    gpu.multiply(Product {
        sizes: [n, o, i],
        a: operand(x_ni, false),
        b: operand(weight_oi, true),
        beta: 0.0,
        c: (y_no.address(), Y::DTYPE),
        bias: bias_o.map(|bias| bias.address()),
        epilogue: None,
    });
}

/// `argument (n, o) = x weightᵀ + bias`, `y (n, o) = gelu(argument)` with the function's approximation by tanh.
pub fn forward_gelu<T: Element>(
    gpu: &Gpu,
    [n, o, i]: [usize; 3],
    y_no: ViewMut<T>,
    argument_no: ViewMut<T>,
    x_ni: View<T>,
    weight_oi: View<T>,
    bias_o: View<T>,
) {
    let lens = [y_no.len(), argument_no.len(), x_ni.len(), weight_oi.len(), bias_o.len()];
    assert_eq!(lens, [n * o, n * o, n * i, o * i, o], "sizes of a linear layer with its function");
    gpu.multiply(Product {
        sizes: [n, o, i],
        a: operand(x_ni, false),
        b: operand(weight_oi, true),
        beta: 0.0,
        c: (y_no.address(), T::DTYPE),
        bias: Some(bias_o.address()),
        epilogue: Some(Epilogue { kind: EpilogueKind::Gelu, argument: argument_no.address() }),
    });
}

/// `dargument (n, i) = (dy weight) gelu'(argument)`: the gradient through a layer and the function before it.
pub fn backward_gelu<T: Element>(
    gpu: &Gpu,
    [n, o, i]: [usize; 3],
    dargument_ni: ViewMut<T>,
    argument_ni: View<T>,
    dy_no: View<T>,
    weight_oi: View<T>,
) {
    let lens = [dargument_ni.len(), argument_ni.len(), dy_no.len(), weight_oi.len()];
    assert_eq!(lens, [n * i, n * i, n * o, o * i], "sizes of a gradient through a linear layer and its function");
    gpu.multiply(Product {
        sizes: [n, i, o],
        a: operand(dy_no, false),
        b: operand(weight_oi, false),
        beta: 0.0,
        c: (dargument_ni.address(), T::DTYPE),
        bias: None,
        epilogue: Some(Epilogue { kind: EpilogueKind::GeluGradient, argument: argument_ni.address() }),
    });
}

/// `dx (n, i) = dy weight`, or `+=`.
pub fn backward_input<T: Element>(
    gpu: &Gpu,
    [n, o, i]: [usize; 3],
    dx_ni: ViewMut<T>,
    is_added: bool,
    dy_no: View<T>,
    weight_oi: View<T>,
) {
    assert_eq!(
        (dx_ni.len(), dy_no.len(), weight_oi.len()),
        (n * i, n * o, o * i),
        "sizes of a linear layer's gradient"
    );
    gpu.multiply(Product {
        sizes: [n, i, o],
        a: operand(dy_no, false),
        b: operand(weight_oi, false),
        beta: if is_added { 1.0 } else { 0.0 },
        c: (dx_ni.address(), T::DTYPE),
        bias: None,
        epilogue: None,
    });
}

/// `dweight (o, i) = dyᵀ x`, or `+=`; f32.
pub fn backward_weight<T: Element>(
    gpu: &Gpu,
    [n, o, i]: [usize; 3],
    dweight_oi: ViewMut<f32>,
    is_added: bool,
    dy_no: View<T>,
    x_ni: View<T>,
) {
    assert_eq!(
        (dweight_oi.len(), dy_no.len(), x_ni.len()),
        (o * i, n * o, n * i),
        "sizes of a linear layer's gradient"
    );
    gpu.multiply(Product {
        sizes: [o, i, n],
        a: operand(dy_no, true),
        b: operand(x_ni, false),
        beta: if is_added { 1.0 } else { 0.0 },
        c: (dweight_oi.address(), Dtype::F32),
        bias: None,
        epilogue: None,
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::testing::{F32_TOLERANCE, check, on_both, rounded, tolerance};
    use crate::ops::linear::reference;
    use crate::ops::testing::{assert_close, sum, values};

    fn layers_are_the_definition<T: Element>() {
        for [n, o, i] in [[1, 1, 1], [17, 15, 16], [130, 33, 64], [5, 129, 17]] {
            let ((x, wide_x), (weight, wide_weight)) = (rounded::<T>(1, n * i), rounded::<T>(2, o * i));
            let ((bias, wide_bias), (dy, wide_dy)) = (rounded::<T>(3, o), rounded::<T>(4, n * o));
            let (old_dx, wide_old_dx) = rounded::<T>(5, n * i);
            let old_dweight = values(6, o * i);
            let Some([y, wide_y, dx, added_dx, dweight, added_dweight]) = on_both(|gpu| {
                let [x, weight, bias, dy] = [&x, &weight, &bias, &dy].map(|numbers| gpu.buffer_of(numbers).unwrap());
                let (mut y, mut wide_y) = (gpu.zeros::<T>(n * o).unwrap(), gpu.zeros::<f32>(n * o).unwrap());
                let shape = [n, o, i];
                forward(gpu, shape, y.view_mut(), x.view(), weight.view(), Some(bias.view()));
                forward(gpu, shape, wide_y.view_mut(), x.view(), weight.view(), None);
                let [mut dx, mut added_dx] = [(); 2].map(|()| gpu.buffer_of(&old_dx).unwrap());
                backward_input(gpu, shape, dx.view_mut(), false, dy.view(), weight.view());
                backward_input(gpu, shape, added_dx.view_mut(), true, dy.view(), weight.view());
                let mut dweight = gpu.buffer_of(&vec![f32::NAN; o * i]).unwrap();
                let mut added_dweight = gpu.buffer_of(&old_dweight).unwrap();
                backward_weight(gpu, shape, dweight.view_mut(), false, dy.view(), x.view());
                backward_weight(gpu, shape, added_dweight.view_mut(), true, dy.view(), x.view());
                let values = [check(gpu, y.view()), check(gpu, dx.view()), check(gpu, added_dx.view())];
                let [y, dx, added_dx] = values;
                let dweights = [&dweight, &added_dweight].map(|dweight| check(gpu, dweight.view()));
                let [dweight, added_dweight] = dweights;
                [y, check(gpu, wide_y.view()), dx, added_dx, dweight, added_dweight]
            }) else {
                return;
            };
            let what = format!("{n} x {o} x {i}");
            assert_close(&y, &reference::forward(&wide_x, &wide_weight, &wide_bias), tolerance::<T>(), &what);
            let expected = reference::forward(&wide_x, &wide_weight, &vec![0.0; o]);
            assert_close(&wide_y, &expected, F32_TOLERANCE, format!("f32 of {what}"));
            let (expected, expected_dweight, _) = reference::backward(&wide_dy, &wide_x, &wide_weight, o);
            assert_close(&dx, &expected, tolerance::<T>(), format!("dx of {what}"));
            assert_close(&added_dx, &sum(&expected, &wide_old_dx), tolerance::<T>(), format!("added dx of {what}"));
            assert_close(&dweight, &expected_dweight, F32_TOLERANCE, format!("dweight of {what}"));
            let expected = sum(&expected_dweight, &old_dweight);
            assert_close(&added_dweight, &expected, F32_TOLERANCE, format!("added dweight of {what}"));
        }
    }

    #[test]
    fn layers_are_the_definition_in_f32() {
        layers_are_the_definition::<f32>();
    }

    #[test]
    fn layers_are_the_definition_in_bf16() {
        layers_are_the_definition::<bf16>();
    }
}
