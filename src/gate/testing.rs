//! What the gate's tests share: seeded random numbers, synthetic losses, and a scene that is put together line by line.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use super::roster::Entry;
use super::{Candidate, Decision, Inputs, Model, OwnHotkey, decide};
use crate::chain::{Commitment, Neuron, Snapshot};
use crate::hub::model_id::{ModelId, ModelMetadata};
use crate::ops::random::{derive, fill_normal};
use crate::recipe;
use crate::rules::Rules;

/// Losses, per step and batch.
pub(super) type Losses = Vec<Vec<f64>>;

/// Steps of a scene.
pub(super) const NUM_STEPS: usize = 80;
/// Batches of a step: about what three pages give.
pub(super) const NUM_BATCHES: usize = 150;
/// Block at which a candidate would stand: later than all others.
pub(super) const CANDIDATE_BLOCK: u64 = 2_500_000;

/// Normally distributed numbers of mean 0 and deviation 1.
pub(super) fn normals(seed: u64, num: usize) -> Vec<f64> {
    let mut numbers = vec![0.0; num];
    fill_normal(derive(seed, 1), 1.0, &mut numbers);
    numbers.into_iter().map(f64::from).collect()
}

/// Losses around a level, independent from batch to batch, with a deviation of 3.5 %.
pub(super) fn noisy(seed: u64, level: f64) -> Losses {
    let numbers = normals(seed, NUM_STEPS * NUM_BATCHES);
    numbers.chunks(NUM_BATCHES).map(|step| step.iter().map(|number| level * (1.0 + 0.035 * number)).collect()).collect()
}

/// The same loss on every batch of as many steps of four as certainty takes.
pub(super) fn flat(level: f64) -> Losses {
    vec![vec![level; 4]; 60]
}

/// All losses times a factor.
pub(super) fn scaled(losses: &Losses, factor: f64) -> Losses {
    losses.iter().map(|step| step.iter().map(|loss| factor * loss).collect()).collect()
}

/// A model of a uid, whose hotkey is `key-UID` and whose hash is `hash-UID`.
pub(super) fn model(uid: u16, block: u64, losses: Result<Losses, &str>) -> Model {
    let id = ModelId {
        namespace: "miner".to_owned(),
        name: format!("model-{uid}"),
        commit: Some("0".repeat(40)),
        hash: Some(format!("hash-{uid}")),
    };
    let metadata = ModelMetadata { id, block: NonZeroU64::new(block).unwrap() };
    let entry = Entry { uid, hotkey: format!("key-{uid}"), metadata, is_own: false, evaluated: true };
    Model { entry, losses: losses.map_err(str::to_owned) }
}

/// A validator's part in a scene.
#[derive(Clone, Debug)]
pub(super) struct Voter {
    pub(super) stake: u64,
    pub(super) last_update: u64,
    pub(super) row: Vec<(u16, u16)>,
}

/// A decision's inputs, owned.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) rules: Rules,
    pub(super) options: recipe::Gate,
    pub(super) leader: Option<u16>,
    pub(super) models: Vec<Model>,
    pub(super) own: Vec<OwnHotkey>,
    pub(super) candidate: Candidate,
    pub(super) num_tested: u64,
    pub(super) max_steps: usize,
    pub(super) unfit: Option<String>,
    /// Block of everybody's registration.
    pub(super) registered_at: u64,
    /// By uid.
    pub(super) validators: BTreeMap<u16, Voter>,
    /// By uid; without any, the leader has all.
    pub(super) incentives: BTreeMap<u16, u16>,
}

impl Scene {
    /// An empty subnet with a candidate and no hotkey.
    pub(super) fn new(candidate: Losses) -> Self {
        Self {
            rules: Rules::default(),
            options: recipe::Gate::default(),
            leader: None,
            models: Vec::new(),
            own: Vec::new(),
            candidate: Candidate { hash: "hash-of-candidate".to_owned(), losses: candidate },
            num_tested: 1,
            max_steps: 100,
            unfit: None,
            registered_at: 10,
            validators: BTreeMap::new(),
            incentives: BTreeMap::new(),
        }
    }

    /// Thirty noisy models by rank, the leader (uid 0) committed first, the others in mixed order. The model at
    /// `own_rank` is ours, and the candidate's losses are its losses times `factor`, give or take 0.2 %.
    pub(super) fn field(own_rank: u16, factor: f64) -> Self {
        let level = |rank: u16| if rank == 0 { 3.0 } else { 3.0 * (1.001 + 0.002 * f64::from(rank)) };
        let block = |rank: u16| if rank == 0 { 1_000 } else { 2_000 + u64::from(rank * 7 % 29) };
        let mut candidate = scaled(&noisy(own_rank.into(), level(own_rank)), factor);
        let noise = normals(1_000, NUM_STEPS * NUM_BATCHES);
        for (loss, number) in std::iter::zip(candidate.iter_mut().flatten(), noise) {
            *loss *= 1.0 + 0.002 * number;
        }
        let mut scene = Self { leader: Some(0), ..Self::new(candidate) };
        for rank in 0..30 {
            let losses = Ok(noisy(rank.into(), level(rank)));
            scene = match rank == own_rank {
                true => scene.deployed(rank, block(rank), losses),
                false => scene.rival(rank, block(rank), losses),
            };
        }
        scene
    }

    /// With a rival's model.
    pub(super) fn rival(mut self, uid: u16, block: u64, losses: Result<Losses, &str>) -> Self {
        self.models.push(model(uid, block, losses));
        self
    }

    /// With an own hotkey under which nothing is deployed.
    pub(super) fn hotkey(mut self, uid: u16) -> Self {
        let hotkey = format!("key-{uid}");
        self.own.push(OwnHotkey { hotkey, uid, candidate_block: CANDIDATE_BLOCK, immune_until: u64::MAX });
        self
    }

    /// With an own hotkey and its model.
    pub(super) fn deployed(self, uid: u16, block: u64, losses: Result<Losses, &str>) -> Self {
        let mut scene = self.hotkey(uid).rival(uid, block, losses);
        if let Some(model) = scene.models.last_mut() {
            model.entry.is_own = true;
        }
        scene
    }

    /// With an active validator that has set weights after every commitment.
    pub(super) fn validator(mut self, uid: u16, stake: u64, row: &[(u16, u16)]) -> Self {
        self.validators.insert(uid, Voter { stake, last_update: CANDIDATE_BLOCK - 10, row: row.to_vec() });
        self
    }

    /// The chain as the scene describes it.
    pub(super) fn snapshot(&self) -> Snapshot {
        let models = self.models.iter().map(|model| (model.entry.uid, model.entry.hotkey.clone()));
        let own = self.own.iter().map(|own| (own.uid, own.hotkey.clone()));
        let validators = self.validators.keys().map(|uid| (*uid, format!("key-{uid}")));
        let neurons: BTreeMap<u16, String> = models.chain(own).chain(validators).collect();
        let neuron = |(uid, hotkey): (u16, String)| {
            let validator = self.validators.get(&uid);
            let leads = self.incentives.is_empty() && self.leader == Some(uid);
            Neuron {
                uid,
                hotkey,
                registered_at: self.registered_at,
                stake: validator.map_or(0, |voter| voter.stake),
                incentive: self.incentives.get(&uid).copied().unwrap_or(if leads { u16::MAX } else { 0 }),
                validator_permit: validator.is_some(),
                last_update: validator.map_or(0, |voter| voter.last_update),
                emission: 0,
            }
        };
        let commitment = |model: &Model| {
            let metadata = &model.entry.metadata;
            let commitment = Commitment { block: metadata.block.get(), bytes: metadata.id.to_string().into_bytes() };
            (model.entry.hotkey.clone(), commitment)
        };
        Snapshot {
            block: CANDIDATE_BLOCK - 5,
            tempo: 360,
            immunity_period: 7_200,
            activity_cutoff: 5_000,
            neurons: neurons.into_iter().map(neuron).collect(),
            commitments: self.models.iter().map(commitment).collect(),
            weights: self.validators.iter().map(|(uid, voter)| (*uid, voter.row.clone())).collect(),
            ..Snapshot::default()
        }
    }

    pub(super) fn decide(&self) -> Decision {
        decide(&Inputs {
            rules: &self.rules,
            options: &self.options,
            snapshot: &self.snapshot(),
            models: self.models.clone(),
            own: self.own.clone(),
            candidate: self.candidate.clone(),
            num_tested: self.num_tested,
            max_steps: self.max_steps,
            unfit: self.unfit.clone(),
        })
    }
}
