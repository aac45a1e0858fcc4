//! From win rates to weights: the reference's softmax and moving average, in its 32-bit floats.

use crate::chain::FULL_SHARE;

/// The softmax of win rates divided by the temperature, in `f32` as PyTorch computes it.
pub fn softmax(win_rates: &[f64], temperature: f64) -> Vec<f32> {
    let scaled: Vec<f32> = win_rates.iter().map(|&rate| rate as f32 / temperature as f32).collect();
    let largest = scaled.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scaled.iter().map(|&value| (value - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Mixes the weights of one step into those of all uids: `alpha` of the old ones stays, and the share of a uid that was
/// not evaluated halves. What is not a number becomes 0, what is infinite the largest number.
///
/// The step's weights are divided by their sum first, as in the reference, although a softmax has the sum 1 already.
///
/// # Panics
///
/// If a uid lies outside the vector.
pub fn mix(weights: &mut [f32], uids: &[u16], step_weights: &[f32], alpha: f64) {
    let mut new = vec![0.0; weights.len()];
    for (&uid, &weight) in std::iter::zip(uids, step_weights) {
        new[usize::from(uid)] = weight;
    }
    let sum: f32 = new.iter().sum();
    let (stays, comes) = (alpha as f32, (1.0 - alpha) as f32);
    for (weight, new) in std::iter::zip(weights, new) {
        let mixed = stays * *weight + comes * (new / sum);
        *weight = if mixed.is_nan() { 0.0 } else { mixed.clamp(f32::MIN, f32::MAX) };
    }
}

/// Weights as bittensor sends them: the largest becomes 65,535, the others in proportion, halves rounded to the even
/// number; what becomes 0 is left out. None at all if nobody has weight.
pub fn as_sent(weights: impl IntoIterator<Item = (u16, f32)>) -> Vec<(u16, u16)> {
    let weights: Vec<(u16, f64)> = weights.into_iter().map(|(uid, weight)| (uid, f64::from(weight))).collect();
    let largest = weights.iter().map(|&(_, weight)| weight).fold(0.0, f64::max);
    if largest == 0.0 {
        return Vec::new();
    }
    let scaled = weights.into_iter().map(|(uid, weight)| {
        // At most the full share, so that nothing is cut off.
        (uid, (weight / largest * f64::from(FULL_SHARE)).round_ties_even() as u16)
    });
    scaled.filter(|&(_, weight)| weight > 0).collect()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::duel::tests::number;
    use super::*;
    use crate::golden;

    /// Panics unless two weights are equal as far as another order of sums lets them: 2e-6 of the value, which leaves a 0
    /// no room. Numbers so small that `f32` holds them denormal may be 0 or another such number.
    pub(in crate::score) fn assert_weight(actual: f32, expected: f64, context: &str) {
        let actual = f64::from(actual);
        let both_denormal = expected > 0.0 && expected < 1e-37 && (0.0..1e-37).contains(&actual);
        let close = (actual - expected).abs() <= 2e-6 * expected.abs();
        assert!(close || both_denormal, "{context}: {actual} {expected}");
    }

    #[test]
    fn golden_softmax_and_moving_average() {
        for case in golden::cases("validation/softmax_ema.json", "cases") {
            if case["name"] == "nan_to_num" {
                let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|value| number(value) as f32);
                let (mut weights, new): (Vec<f32>, Vec<f32>) = (numbers("prev").collect(), numbers("new").collect());
                mix(&mut weights, &[0, 1], &new, 0.5);
                assert_eq!(weights, numbers("weights_f32").collect::<Vec<_>>());
                continue;
            }
            let pairs: Vec<(u16, f64)> = serde_json::from_value(case["win_rate"].clone()).unwrap();
            let (uids, rates): (Vec<u16>, Vec<f64>) = pairs.into_iter().unzip();
            let step_weights = softmax(&rates, case["temperature"].as_f64().unwrap());
            assert_eq!(step_weights.len(), case["softmax_f32"].as_array().unwrap().len());
            for (actual, expected) in std::iter::zip(&step_weights, case["softmax_f32"].as_array().unwrap()) {
                assert_weight(*actual, expected.as_f64().unwrap(), "softmax");
            }
            let mut weights = [0.0; 257];
            for (uid, weight) in case["prev_weights"].as_object().unwrap() {
                weights[uid.parse::<usize>().unwrap()] = weight.as_f64().unwrap() as f32;
            }
            mix(&mut weights, &uids, &step_weights, 0.5);
            let expected = case["weights_f32"].as_object().unwrap();
            for (uid, weight) in weights.iter().enumerate() {
                let expected = expected.get(&uid.to_string()).map_or(0.0, |weight| weight.as_f64().unwrap());
                assert_weight(*weight, expected, "weight");
            }
        }
    }

    #[test]
    fn what_is_no_number_weighs_nothing() {
        let mut weights = [0.25, f32::NAN, f32::INFINITY];
        mix(&mut weights, &[0], &[1.0], 0.5);
        assert_eq!(weights, [0.625, 0.0, f32::MAX]);
    }

    /// The golden values cannot tell: theirs is 0.5.
    #[test]
    fn alpha_is_the_part_of_the_old_weights() {
        let mut weights = [1.0, 0.0];
        mix(&mut weights, &[1], &[1.0], 0.25);
        assert_eq!(weights, [0.25, 0.75]);
    }

    #[test]
    fn weights_are_sent_in_proportion_to_the_largest() {
        assert_eq!(as_sent([(3, 0.5), (7, 0.25), (9, 0.0), (255, 0.125)]), [(3, 65_535), (7, 32_768), (255, 16_384)]);
        assert_eq!(as_sent([(0, 1e-30), (1, 0.0)]), [(0, 65_535)]);
        assert_eq!(as_sent([(0, f32::MAX), (1, 1.0)]), [(0, 65_535)]);
    }

    /// 0.5 and 2.5 go down, 1.5 goes up, as Python's `round` has it.
    #[test]
    fn halves_go_to_the_even_number_and_zeros_are_left_out() {
        // Twice the full share: every odd number is a half.
        assert_eq!(as_sent([(0, 131_070.0), (1, 1.0), (2, 3.0), (3, 5.0)]), [(0, 65_535), (2, 2), (3, 2)]);
    }

    #[test]
    fn nothing_is_sent_where_nobody_has_weight() {
        assert_eq!(as_sent([(0, 0.0), (1, 0.0)]), []);
        assert_eq!(as_sent([]), []);
    }
}
