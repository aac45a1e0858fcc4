//! Weights as the chain takes them, and when they are sent: every 50 blocks, only if the user wants it.

use anyhow::Result;

use super::{Event, Observer, Validator};
use crate::figures::count;
use crate::score::weights::as_sent;

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
