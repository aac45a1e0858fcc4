//! Weights as the chain takes them, and when they are sent: every 50 blocks, only if the user wants it.

use anyhow::Result;

use super::{Event, Observer, Validator};
use crate::chain::FULL_SHARE;
use crate::figures::count;

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

impl Validator<'_> {
    /// Ends the epoch if it is over, and sends the weights, if that is wanted. Weights that could not be sent are sent after
    /// the next epoch, as by the reference.
    pub(super) fn end_epoch(&mut self, observe: Observer<'_>) -> Result<()> {
        // The first begins when the subnet is first read.
        let Some(began) = self.state.epoch_block else { return Ok(()) };
        let block = match self.seams.chain.block() {
            Ok(block) => block,
            Err(error) => {
                self.seams.printer.warn(&format!("the chain did not say its block: {error:#}"));
                return Ok(());
            }
        };
        if block.saturating_sub(began) < self.options.rules.blocks_per_epoch {
            return Ok(());
        }
        if let Some(hotkey) = self.options.sets_weights_as.clone() {
            match self.send_weights(&hotkey) {
                Ok(told) => {
                    self.seams.printer.note(&told);
                    observe(&Event::WeightsSet)?;
                }
                Err(error) => {
                    let epoch = self.options.rules.blocks_per_epoch;
                    self.seams
                        .printer
                        .warn(&format!("the weights could not be set and are sent again in {epoch} blocks: {error:#}"));
                }
            }
        }
        self.state.epoch_block = Some(block);
        self.save(observe)
    }

    fn send_weights(&self, hotkey: &str) -> Result<String> {
        let snapshot = self.seams.chain.snapshot()?;
        // A weight on a place that nobody holds any more would be refused, with all others.
        let weights = snapshot.neurons.iter().filter_map(|neuron| {
            let weight = self.state.judge.weights.get(usize::from(neuron.uid));
            weight.map(|&weight| (neuron.uid, weight))
        });
        let weights = as_sent(weights);
        if weights.is_empty() {
            return Ok("Nobody has weight: none was sent.".to_owned());
        }
        let version_key = self.options.rules.validator.weights_version_key;
        let block = self.seams.chain.set_weights(hotkey, &weights, version_key)?;
        Ok(format!("Set weights at block {} as {hotkey}; miners with weight: {}.", count(block), weights.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
