//! placeholder
use super::{Element, Gpu, View, ViewMut};
use crate::ops::attention::Shape;
use half::bf16;
pub fn forward<T: Element>(
    _gpu: &Gpu,
    _shape: Shape,
    _y: ViewMut<T>,
    _lse: ViewMut<f32>,
    _qkv: View<T>,
    _key_bias: Option<View<f32>>,
) {
}
pub fn backward(
    _gpu: &Gpu,
    _shape: Shape,
    _dqkv: ViewMut<bf16>,
    _dy: View<bf16>,
    _qkv: View<bf16>,
    _y: View<bf16>,
    _lse: View<f32>,
    _key_bias: Option<View<f32>>,
    _delta: ViewMut<f32>,
) {
}
pub fn max_head_size<T: Element>() -> usize {
    128
}
