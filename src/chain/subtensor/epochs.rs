//! When a subnet's epochs run: once by the number of the block alone; today the chain notes when the last was, and counts
//! them.

use anyhow::Result;

use super::runtime::{Entry, Part, of_subnet};
use super::view::{Answers, Ask};

/// Blocks between two epochs.
pub(super) const TEMPO: Entry = of_subnet("Tempo");
const LAST_EPOCH_BLOCK: Entry = of_subnet("LastEpochBlock");
const PENDING_EPOCH_AT: Entry = of_subnet("PendingEpochAt");
const SUBNET_EPOCH_INDEX: Entry = of_subnet("SubnetEpochIndex");

/// What [`Epochs`] is read from.
pub(super) fn asks(netuid: u16) -> Vec<Ask> {
    [TEMPO, LAST_EPOCH_BLOCK, PENDING_EPOCH_AT, SUBNET_EPOCH_INDEX]
        .map(|entry| Ask::new(entry, [Part::Number(netuid)]))
        .into()
}

/// The epochs of a subnet, as of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epochs {
    netuid: u16,
    tempo: u16,
    noted: Option<Noted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Noted {
    /// How many there were.
    index: u64,
    /// The block of the next; `None`: there will be none.
    next: Option<u64>,
}

impl Epochs {
    /// What was answered of them.
    pub(super) fn read(answers: &Answers, netuid: u16) -> Result<Self> {
        let tempo: u16 = answers.needed(TEMPO)?.unwrap_or(0);
        let noted = match (answers.one::<u64>(SUBNET_EPOCH_INDEX)?, answers.one::<u64>(LAST_EPOCH_BLOCK)?) {
            (Some(index), Some(last)) => {
                let by_tempo = last.saturating_add(tempo.into());
                // Of the subnet's owner, or because too many were due in one block.
                let called_for = answers.one::<u64>(PENDING_EPOCH_AT)?.filter(|&at| at > 0);
                let next = (tempo > 0).then(|| called_for.map_or(by_tempo, |at| by_tempo.min(at)));
                Some(Noted { index, next })
            }
            _ => None,
        };
        Ok(Self { netuid, tempo, noted })
    }

    /// The block of the next epoch, where the chain notes it: it runs a tempo after the last.
    pub(super) fn noted_next(&self) -> Option<u64> {
        self.noted?.next
    }

    /// The number of the epoch that the block after this one belongs to, and the first block of the next.
    pub(super) fn of_block_after(&self, block: u64) -> (u64, u64) {
        let (tempo, block) = (u64::from(self.tempo), block.saturating_add(1));
        match self.noted {
            // It runs before all else in its block.
            Some(Noted { index, next: Some(next) }) if next <= block => {
                (index.saturating_add(1), block.saturating_add(tempo))
            }
            Some(Noted { index, next }) => (index, next.unwrap_or(u64::MAX)),
            None => {
                let (period, shift) = (tempo + 1, u64::from(self.netuid) + 1);
                let epoch = block.saturating_add(shift) / period;
                (epoch, (epoch + 1).saturating_mul(period).saturating_sub(shift))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_numbered_by_the_block_or_as_the_chain_counts_them() {
        // Epoch 4 of a tempo of 99 on subnet 9 is of the blocks from 390 to 489.
        let by_number = Epochs { netuid: 9, tempo: 99, noted: None };
        assert_eq!([388, 389, 488, 489].map(|block| by_number.of_block_after(block).0), [3, 4, 4, 5]);
        assert_eq!(by_number.of_block_after(400), (4, 490));
        let counted = |next| Epochs { netuid: 9, tempo: 99, noted: Some(Noted { index: 70, next }) };
        assert_eq!(counted(Some(450)).of_block_after(448), (70, 450));
        assert_eq!(counted(Some(450)).of_block_after(449), (71, 549));
        // It was put off.
        assert_eq!(counted(Some(450)).of_block_after(455), (71, 555));
        assert_eq!(counted(None).of_block_after(455), (70, u64::MAX));
    }
}
