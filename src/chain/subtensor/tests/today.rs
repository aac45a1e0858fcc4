//! What later programs keep otherwise than the recorded ones: entries of these under the later names.

use std::sync::Arc;

use subxt::ext::frame_decode::storage::encode_storage_key_prefix;

use super::golden::recorded;
use super::over;
use super::recorded::Recorded;
use crate::chain::Chain;
use crate::chain::subtensor::Subtensor;
use crate::chain::wallet::Keyring;
use crate::hex;

/// Gives an entry another name, and a value for subnet 9.
fn turn_into(node: &mut Recorded, from: &str, to: &str, value: &[u8]) {
    node.rename(from, to);
    let prefix = encode_storage_key_prefix("SubtensorModule", to);
    node.overlay([(hex::write([prefix.as_slice(), &9_u16.to_le_bytes()].concat()), Some(hex::write(value)))]);
}

fn chain(node: Recorded) -> Subtensor {
    over(Arc::new(node).client(), 9, Keyring::default())
}

#[test]
fn the_activity_cutoff_is_a_part_of_the_tempo_where_the_chain_has_it_so() {
    for (thousandths, tempo, cutoff) in [(13_889_u16, 360_u16, 5_000), (1_000, 100, 100), (1, 10, 1)] {
        let (mut node, _) = recorded("c", "c_v15");
        turn_into(&mut node, "ActivityCutoff", "ActivityCutoffFactorMilli", &thousandths.to_le_bytes());
        turn_into(&mut node, "Tempo", "Tempo", &tempo.to_le_bytes());
        assert_eq!(chain(node).snapshot().unwrap().activity_cutoff, cutoff);
    }
}

#[test]
fn the_next_epoch_is_a_tempo_after_the_last_or_when_it_was_called_for() {
    for (last, called_for, next) in [(700_u64, 0_u64, 1_060), (700, 800, 800), (700, 2_000, 1_060)] {
        let (mut node, _) = recorded("c", "c_v15");
        turn_into(&mut node, "Tempo", "Tempo", &360_u16.to_le_bytes());
        turn_into(&mut node, "LastAdjustmentBlock", "LastEpochBlock", &last.to_le_bytes());
        turn_into(&mut node, "PendingEmission", "PendingEpochAt", &called_for.to_le_bytes());
        turn_into(&mut node, "BlocksSinceLastStep", "SubnetEpochIndex", &7_u64.to_le_bytes());
        assert_eq!(chain(node).snapshot().unwrap().next_epoch, Some(next));
    }
    assert_eq!(chain(recorded("c", "c_v15").0).snapshot().unwrap().next_epoch, None);
}

#[test]
fn what_no_decision_can_do_without_is_missed_and_never_taken_for_nothing() {
    for name in
        ["NetworksAdded", "SubnetworkN", "Tempo", "ImmunityPeriod", "ActivityCutoff", "Emission", "TotalHotkeyStake"]
    {
        let (mut node, _) = recorded("a", "a_v14");
        node.rename(name, "SomethingElse");
        let error = chain(node).snapshot().unwrap_err().to_string();
        let missed = if name == "TotalHotkeyStake" { "TotalHotkeyAlpha" } else { name };
        assert!(error.contains(&format!("the chain has no SubtensorModule.{missed}: ")), "{error}");
    }
}
