//! The places of some hotkeys as they were last seen, and in words what has become of them since: on a subnet that is full
//! every newcomer takes somebody's place, and a miner whose place is gone earns nothing more.

use std::collections::BTreeMap;

use super::{Hotkey, Snapshot};
use crate::figures::count;

/// The places of hotkeys as they were last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Uid and block of registration; `None`: not registered.
    seen: BTreeMap<Hotkey, Option<(u16, u64)>>,
}

impl Places {
    /// Looks where hotkeys are, and tells what has changed since the last look.
    pub fn changes(&mut self, snapshot: &Snapshot, hotkeys: &[Hotkey]) -> Vec<String> {
        hotkeys.iter().filter_map(|hotkey| self.change(snapshot, hotkey)).collect()
    }

    fn change(&mut self, snapshot: &Snapshot, hotkey: &str) -> Option<String> {
        let now = snapshot.neuron(hotkey).map(|neuron| (neuron.uid, neuron.registered_at));
        let before = self.seen.insert(hotkey.to_owned(), now)?;
        match (before, now) {
            (Some((uid, _)), None) => {
                let taker = snapshot.neurons.iter().find(|neuron| neuron.uid == uid);
                let by = taker.map_or(String::new(), |taker| {
                    format!("; {} took its place at block {}", taker.hotkey, count(taker.registered_at))
                });
                Some(format!(
                    "the hotkey {hotkey} has lost its place, uid {uid}{by}: it earns nothing and cannot commit until it is \
                     registered again"
                ))
            }
            (None, Some((uid, block))) => {
                Some(format!("the hotkey {hotkey} is registered now, as uid {uid} since block {}", count(block)))
            }
            (Some(before), Some(now)) if before != now => Some(format!(
                "the hotkey {hotkey} lost its place, uid {}, and has had another, uid {}, since block {}: what it committed \
                 before is weighed anew",
                before.0,
                now.0,
                count(now.1)
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Neuron;

    fn snapshot(hotkeys: &[(&str, u64)]) -> Snapshot {
        let neuron = |(uid, &(hotkey, registered_at)): (u16, &(&str, u64))| Neuron {
            uid,
            hotkey: hotkey.to_owned(),
            registered_at,
            ..Neuron::default()
        };
        Snapshot { neurons: std::iter::zip(0.., hotkeys).map(neuron).collect(), ..Snapshot::default() }
    }

    #[test]
    fn a_place_that_is_lost_taken_or_found_again_is_told_once() {
        let own = ["a".to_owned(), "b".to_owned()];
        let mut places = Places::default();
        assert_eq!(places.changes(&snapshot(&[("x", 1), ("a", 2)]), &own), [""; 0]);
        assert_eq!(places.changes(&snapshot(&[("x", 1), ("a", 2)]), &own), [""; 0]);
        let lost = places.changes(&snapshot(&[("x", 1), ("y", 5_000)]), &own);
        assert_eq!(lost.len(), 1);
        assert!(lost[0].contains("a has lost its place, uid 1; y took its place at block 5,000"), "{lost:?}");
        assert_eq!(places.changes(&snapshot(&[("x", 1), ("y", 5_000)]), &own), [""; 0]);
        let back = places.changes(&snapshot(&[("a", 6_000), ("b", 7)]), &own);
        assert!(
            back[0].contains("a is registered now, as uid 0") && back[1].contains("b is registered now"),
            "{back:?}"
        );
        // Registered anew between two looks, at the same place and at another.
        let moved = places.changes(&snapshot(&[("a", 8_000), ("c", 1), ("b", 9)]), &own);
        assert!(moved[0].contains("uid 0, and has had another, uid 0, since block 8,000"), "{moved:?}");
        assert!(moved[1].contains("uid 1, and has had another, uid 2, since block 9"), "{moved:?}");
    }
}
