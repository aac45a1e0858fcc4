//! For a model over the limit: the single change that would bring it under.

use crate::figures::count;
use crate::model::arch::Arch;

/// Which single change would bring a model under the limit: a narrower MLP, fewer layers, or a smaller width.
pub(super) fn shrink(arch: &Arch, limit: u128) -> String {
    let fits = |changed: &Arch| changed.num_parameters() <= limit;
    let written = |key: &str, value: usize, changed: &Arch| {
        format!("`{key}: {value}` ({} parameters)", count(changed.num_parameters()))
    };
    let mut ways = Vec::new();
    let narrowed = |units: usize| Arch { mlp_width: units * 64, ..arch.clone() };
    // Below three times the width the MLP would be out of proportion: fewer layers are better then.
    let units = largest(arch.mlp_width / 64, |units| fits(&narrowed(units)));
    if units.saturating_mul(64) >= arch.width.saturating_mul(3).max(64) {
        ways.push(written("model.mlp_width", units * 64, &narrowed(units)));
    }
    let lowered = |layers: usize| Arch { layers, ..arch.clone() };
    let layers = largest(arch.layers, |layers| fits(&lowered(layers)));
    if layers >= 1 {
        ways.push(written("model.layers", layers, &lowered(layers)));
    }
    if ways.is_empty() {
        let step = if arch.heads == 0 { 1 } else { arch.heads };
        let slimmed = |units: usize| Arch {
            width: units * step,
            head_size: units,
            mlp_width: arch.family.mlp_width(units * step),
            ..arch.clone()
        };
        let units = largest(arch.width / step, |units| units <= usize::MAX / step / 8 && fits(&slimmed(units)));
        match units {
            0 => return "no width would do; the token embedding alone is too large".to_owned(),
            _ => ways.push(written("model.width", units * step, &slimmed(units))),
        }
    }
    format!("enough would be {}", ways.join(" or "))
}

/// The largest value up to `high` that fits, for a condition that holds below some value and not above; 0 if none.
fn largest(high: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut failing) = (0, high.saturating_add(1));
    while failing - fitting > 1 {
        let middle = fitting + (failing - fitting) / 2;
        match fits(middle) {
            true => fitting = middle,
            false => failing = middle,
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_largest_size_that_fits() {
        let large = Arch::gpt2(50_257, 1024, 1280, 36, 20);
        assert_eq!(
            shrink(&large, 772_000_000),
            "enough would be `model.mlp_width: 5056` (768,129,536 parameters) or `model.layers: 35` (754,352,640 parameters)"
        );
        let wide = Arch::gpt2(50_257, 1024, 8_000, 1, 20);
        assert_eq!(shrink(&wide, 186_000_000), "enough would be `model.width: 2340` (185,739,840 parameters)");
        assert!(shrink(&wide, 1_000).contains("no width would do"));
    }

    #[test]
    fn searches_exactly_and_without_overflow() {
        assert_eq!(largest(10, |value| value <= 7), 7);
        assert_eq!(largest(10, |_| true), 10);
        assert_eq!(largest(10, |_| false), 0);
        assert_eq!(largest(usize::MAX, |value| value <= 3), 3);
        let absurd = Arch { mlp_width: usize::MAX, ..Arch::gpt2(50_257, 1024, 64, 2, 2) };
        assert!(shrink(&absurd, 4_000_000).contains("enough would be"));
    }
}
