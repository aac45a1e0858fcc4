//! A set of uids in the order in which CPython 3.11 goes through one: the order of a step's models, which decides who of
//! several with equal win rates is kept.
//!
//! A uid is its own hash. A table of a power of two of slots is probed linearly over ten slots, then by the perturbed
//! recurrence of `Objects/setobject.c`; it grows when three fifths of it are full. Nothing is ever removed from one, so
//! there are no dummies.

/// The smallest table.
const MIN_SLOTS: usize = 8;
/// Slots that are looked at after the first before a jump.
const LINEAR_PROBES: usize = 9;
const PERTURB_SHIFT: u32 = 5;

/// A set of uids in CPython's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UidSet {
    table: Vec<Option<u16>>,
    len: usize,
}

impl Default for UidSet {
    fn default() -> Self {
        Self { table: vec![None; MIN_SLOTS], len: 0 }
    }
}

impl FromIterator<u16> for UidSet {
    /// `set(list)`.
    fn from_iter<I: IntoIterator<Item = u16>>(uids: I) -> Self {
        let mut set = Self::default();
        uids.into_iter().for_each(|uid| set.add(uid));
        set
    }
}

impl UidSet {
    /// The uids in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.table.iter().flatten().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of uids.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a uid is in it.
    pub fn contains(&self, uid: u16) -> bool {
        self.table[slot(&self.table, uid)].is_some()
    }

    /// The table: what decides the order of this set and of what becomes of it.
    pub fn slots(&self) -> &[Option<u16>] {
        &self.table
    }

    /// The set with a table that [`Self::slots`] gave; `None` if no set has such a table.
    pub fn from_slots(table: Vec<Option<u16>>) -> Option<Self> {
        let len = table.iter().flatten().count();
        let is_table = table.len().is_power_of_two() && table.len() >= MIN_SLOTS && len * 5 < (table.len() - 1) * 3;
        // So that some slot is free, where looking for a uid ends.
        let is_in_place = |(index, uid): (usize, &Option<u16>)| uid.is_none_or(|uid| slot(&table, uid) == index);
        (is_table && table.iter().enumerate().all(is_in_place)).then_some(Self { table, len })
    }

    /// `set.add`.
    pub fn add(&mut self, uid: u16) {
        let slot = slot(&self.table, uid);
        if self.table[slot].is_some() {
            return;
        }
        self.table[slot] = Some(uid);
        self.len += 1;
        if self.len * 5 >= (self.table.len() - 1) * 3 {
            self.resize(if self.len > 50_000 { self.len * 2 } else { self.len * 4 });
        }
    }

    /// `set.update` with another set.
    pub fn update(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        if (self.len + other.len) * 5 >= (self.table.len() - 1) * 3 {
            self.resize((self.len + other.len) * 2);
        }
        if self.is_empty() && self.table.len() == other.table.len() {
            self.clone_from(other);
        } else if self.is_empty() {
            // All are new, so that none makes the table grow.
            other.iter().for_each(|uid| insert(&mut self.table, uid));
            self.len = other.len;
        } else {
            other.iter().for_each(|uid| self.add(uid));
        }
    }

    fn resize(&mut self, min_used: usize) {
        let mut num_slots = MIN_SLOTS;
        while num_slots <= min_used {
            num_slots *= 2;
        }
        let mut table = vec![None; num_slots];
        self.iter().for_each(|uid| insert(&mut table, uid));
        self.table = table;
    }
}

fn insert(table: &mut [Option<u16>], uid: u16) {
    let slot = slot(table, uid);
    table[slot] = Some(uid);
}

/// The slot that holds a uid, or the free one that it belongs into; some slot is always free.
fn slot(table: &[Option<u16>], uid: u16) -> usize {
    let mask = table.len() - 1;
    let mut perturb = usize::from(uid);
    let mut start = perturb & mask;
    loop {
        let probes = if start + LINEAR_PROBES <= mask { LINEAR_PROBES } else { 0 };
        if let Some(slot) = (start..=start + probes).find(|&slot| table[slot].is_none_or(|there| there == uid)) {
            return slot;
        }
        perturb >>= PERTURB_SHIFT;
        start = (start * 5 + 1 + perturb) & mask;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::golden;

    #[test]
    fn golden_orders_are_cpythons() {
        for case in golden::cases("validation/set_order.json", "cases") {
            let mut set = UidSet::default();
            for step in case["ops"].as_array().unwrap() {
                let uids: Vec<u16> = serde_json::from_value(step[1].clone()).unwrap();
                match step[0].as_str().unwrap() {
                    "set" => set = uids.into_iter().collect(),
                    "update_set" => set.update(&uids.into_iter().collect()),
                    other => panic!("unknown operation {other}"),
                }
            }
            let expected: Vec<u16> = serde_json::from_value(case["order"].clone()).unwrap();
            assert_eq!(set.iter().collect::<Vec<_>>(), expected, "{case}");
            assert_eq!(set.len(), expected.len());
            assert_eq!(UidSet::from_slots(set.slots().to_vec()), Some(set.clone()), "{case}");
            assert!((0..300).all(|uid| set.contains(uid) == expected.contains(&uid)), "{case}");
        }
    }

    #[test]
    fn what_is_no_table_makes_no_set() {
        let table = |uids: &[(usize, u16)], len: usize| {
            let mut table = vec![None; len];
            uids.iter().for_each(|&(slot, uid)| table[slot] = Some(uid));
            table
        };
        assert!(UidSet::from_slots(table(&[(1, 1), (6, 9)], 8)).is_some());
        for bad in [
            vec![],
            table(&[], 4),
            table(&[], 12),
            table(&[(2, 9)], 8),
            table(&[(1, 1), (2, 1)], 8),
            table(&[(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)], 8),
        ] {
            assert!(UidSet::from_slots(bad.clone()).is_none(), "{bad:?}");
        }
    }

    /// Nine uids in sixteen slots are just three fifths of 15. It takes a step that fails to come there, so that the golden
    /// values cannot tell; the order is what CPython 3.11.7 gives.
    #[test]
    fn a_table_grows_when_an_update_would_fill_just_three_fifths() {
        let mut set: UidSet = [0, 1, 2, 3].into_iter().collect();
        set.update(&[20].into_iter().collect());
        set.update(&[40, 60, 100, 250].into_iter().collect());
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 100, 40, 20, 250, 60]);
    }
}
