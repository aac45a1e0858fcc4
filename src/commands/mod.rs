//! One file per verb of the command line. A command prints through the `Printer` it is handed and returns an error whose
//! kind decides the exit code.

pub mod bench;
pub mod chain;
pub mod check;
pub mod compare;
pub mod data;
pub mod emission;
pub mod inspect;
pub mod local;
mod machine;
pub mod publish;
pub mod score;
pub mod train;
pub mod validate;
pub mod wallet;

use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::{BackendChoice, NetworkArgs, ScoringArgs};
use crate::metrics::printer::Printer;
use crate::model::scorer::Scoring;
use crate::network;
use crate::placement::Placement;
use crate::recipe::{self, Backend, Resolved};
use crate::rules::Rules;

/// Fixes the number of threads of this process: part of what determines a run's bits.
pub(crate) fn set_threads(threads: Option<usize>) -> Result<()> {
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = threads {
        pool = pool.num_threads(threads);
    }
    pool.build_global().context("the threads could not be started")
}

/// The folder itself, or the nearest above it that is there.
pub(crate) fn existing_folder(dir: &Path) -> &Path {
    dir.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."))
}

/// Where hub, chain and rules are, by a recipe or by the folder of the embedded network.
pub(crate) struct Place {
    /// The recipe, if one was named.
    pub(crate) resolved: Option<Resolved>,
    /// The hub.
    pub(crate) hub: recipe::Hub,
    /// The chain.
    pub(crate) chain: recipe::Chain,
}

impl Place {
    /// Reads the recipe, if there is one.
    pub(crate) fn of(args: &NetworkArgs) -> Result<Self> {
        let Some(path) = &args.recipe else {
            let (hub, chain) = network::local_sections(&args.local);
            return Ok(Self { resolved: None, hub, chain });
        };
        let resolved = recipe::load_resolved(path, &args.set)?;
        let (hub, chain) = (resolved.recipe.hub.clone(), resolved.recipe.chain.clone());
        Ok(Self { resolved: Some(resolved), hub, chain })
    }

    /// Takes a hotkey that was asked for in place of the recipe's.
    pub(crate) fn choose_hotkey(&mut self, asked: Option<&String>) {
        if let Some(hotkey) = asked {
            self.chain.hotkeys = Some(vec![hotkey.clone()]);
        }
    }

    /// The rules of the recipe, or those of March 2024.
    pub(crate) fn rules(&self) -> Rules {
        self.resolved.as_ref().map_or_else(Rules::default, |resolved| resolved.rules.clone())
    }

    /// Who sees a model before it is committed.
    pub(crate) fn visibility(&self) -> recipe::Visibility {
        self.resolved.as_ref().map(|resolved| resolved.recipe.publish.visibility).unwrap_or_default()
    }

    /// How losses are computed, where the recipe says or the arguments.
    pub(crate) fn scoring(&self, args: &ScoringArgs, rules: &Rules, printer: &Printer) -> Result<Scoring> {
        let device = args.device.or(self.resolved.as_ref().map(|resolved| resolved.recipe.train.device));
        let backend = args.backend.into();
        let placement = Placement::open(device.unwrap_or_default(), backend, printer)?;
        Ok(Scoring { placement, backend, dtype: rules.criteria.dtype })
    }

    /// Pages of a validator's step: the recipe's `score.pages`, where it asks for others than its own version of the
    /// validator draws (which are filled in where it says nothing); else what the version of `rules` draws.
    pub(crate) fn pages_per_step(&self, rules: &Rules) -> usize {
        let own = self.resolved.as_ref().and_then(|resolved| {
            resolved.recipe.score.pages.filter(|&pages| pages != resolved.rules.validator.pages_per_step)
        });
        own.unwrap_or(rules.validator.pages_per_step)
    }
}

impl From<BackendChoice> for Backend {
    fn from(choice: BackendChoice) -> Self {
        match choice {
            BackendChoice::Native => Self::Native,
            BackendChoice::Candle => Self::Candle,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_steps_pages_are_the_versions_unless_the_recipe_asks_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/gpt2-186m.yaml")).to_owned();
        let place = |set: &[&str]| {
            let set = set.iter().map(|&text| text.to_owned()).collect();
            Place::of(&NetworkArgs { recipe: Some(path.clone()), set, local: dir.path().to_owned() }).unwrap()
        };
        let of_march = Rules::default();
        let of_june = Rules { validator: Rules::version("2024-06-25").unwrap().clone(), ..Rules::default() };
        assert_eq!([&of_march, &of_june].map(|rules| place(&[]).pages_per_step(rules)), [3, 18]);
        let own = place(&["score.pages=5"]);
        assert_eq!([&of_march, &of_june].map(|rules| own.pages_per_step(rules)), [5, 5]);
        let none = Place { resolved: None, hub: recipe::Hub::default(), chain: recipe::Chain::default() };
        assert_eq!(none.pages_per_step(&of_june), 18);
    }
}
