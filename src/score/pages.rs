//! What models are scored on, as a recipe says (`score.source`): the documents that its training leaves out, or pages of the
//! data set that validators score on.

use std::sync::Arc;

use anyhow::Result;

use crate::data::pages::{PageSource, Pages};
use crate::data::rows::pages::{Reach, ViewerPages};
use crate::data::set_aside::SetAside;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::prepare;
use crate::data::{self, Opened, PAGE_DOCUMENTS};
use crate::error::input;
use crate::metrics::printer::Printer;
use crate::metrics::transfers;
use crate::recipe::{self, Recipe, Resolved, ScoreSource, SourceKind};
use crate::rules::Rules;

/// Pages to judge a model on that the recipe has trained, on which `data` is open: none that its training has seen.
pub fn of_candidate(resolved: &Resolved, data: &Opened, printer: &Printer) -> Result<Box<dyn PageSource>> {
    let (recipe, row_len) = (&resolved.recipe, resolved.rules.criteria.sequence_length);
    match is_of_viewer(recipe) {
        false => Ok(Box::new(Pages::read(data, recipe.score.page_documents, row_len)?)),
        true => {
            check_rule_of_tokens(&recipe.data)?;
            of_viewer(recipe, Arc::clone(&data.reading.tokenizer), row_len, Reach::of_candidate(&recipe.data), printer)
        }
    }
}

/// Pages as validators draw them, whatever a model may have been trained on; without a recipe those of the embedded text.
pub fn of_validator(resolved: Option<&Resolved>, rules: &Rules, printer: &Printer) -> Result<Box<dyn PageSource>> {
    let row_len = rules.criteria.sequence_length;
    let (text, page_documents) = match resolved.map(|resolved| &resolved.recipe) {
        None => (data::open_sample(row_len)?, PAGE_DOCUMENTS),
        Some(recipe) if is_of_viewer(recipe) => {
            return of_viewer(recipe, Arc::new(Tokenizer::gpt2()?), row_len, Reach::Anywhere, printer);
        }
        Some(recipe) => (data::open(recipe, row_len, printer)?, recipe.score.page_documents),
    };
    Ok(Box::new(Pages::read(&text, page_documents, row_len)?))
}

/// Refuses a rule of rows that is not the one by which the tokens were prepared that are trained on.
fn check_rule_of_tokens(data: &recipe::Data) -> Result<()> {
    let prepared = data.paths.iter().filter_map(|path| prepare::known(path));
    let others = prepared.filter_map(|prepared| prepared.text.get("held_out_every")?.as_u64());
    match others.filter(|_| data.source == SourceKind::Tokens).find(|other| *other != data.held_out_every as u64) {
        None => Ok(()),
        Some(other) => Err(input(format!(
            "data.held_out_every is {}, and the tokens were prepared with {other}: set it to that, or models are scored on rows \
             that they were trained on",
            data.held_out_every
        ))),
    }
}

/// Which rows a recipe's training leaves out; `None` if it trains on another text than it scores on, or on files of which
/// nobody can tell which rows of the data set they are.
pub fn set_aside(resolved: &Resolved) -> Option<SetAside> {
    let recipe = &resolved.recipe;
    let is_same = is_of_viewer(recipe) && recipe.data.is_refinedweb() && recipe.data.paths.is_empty();
    is_same.then(|| SetAside::new(recipe.data.held_out_every as u64))
}

fn is_of_viewer(recipe: &Recipe) -> bool {
    recipe.score.source == Some(ScoreSource::RefinedwebRows)
}

fn of_viewer(
    recipe: &Recipe,
    tokenizer: Arc<Tokenizer>,
    row_len: usize,
    reach: Reach,
    printer: &Printer,
) -> Result<Box<dyn PageSource>> {
    let observer = transfers::observer(printer);
    Ok(Box::new(ViewerPages::of_recipe(&recipe.data, tokenizer, row_len, reach, observer)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::data::pages::Draw;
    use crate::error::exit_code;
    use crate::golden::repository;
    use crate::hub::huggingface::tests::server::{Reply, Server};
    use crate::metrics::printer::tests::Captured;
    use crate::recipe;

    /// A recipe that scores on a server's pages.
    fn resolved(server: &Server, cache: &Path, source: &str) -> Resolved {
        let set = [
            "score.source=refinedweb-rows".to_owned(),
            "data.text_key=body".to_owned(),
            format!("data.source={source}"),
            format!("data.paths=[{}]", if source == "files" { "text" } else { "" }),
            format!("data.rows_endpoint={}", server.endpoint()),
            format!("data.cache={}", cache.display()),
        ];
        recipe::load_resolved(&repository().join("recipes/gpt2-186m.yaml"), &set).unwrap()
    }

    fn printer() -> Printer {
        Printer::with_streams(Captured::default(), Captured::default(), false)
    }

    /// 60,000 rows of the same text.
    fn server() -> Server {
        Server::start(|_| {
            // The column that a recipe names which trains on the data set, and that of all others.
            let row = serde_json::json!({"row": {"body": "word ".repeat(2_000), "content": "word ".repeat(2_000)}});
            Reply::new(200, serde_json::json!({"rows": vec![row; 100], "num_rows_total": 60_000}).to_string())
        })
    }

    fn is_asked_for(server: &Server, draw: &Draw) -> bool {
        let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
        draw.offsets.iter().all(|offset| {
            let query = format!("config=default&split=train&offset={offset}&limit=100");
            paths.contains(&format!("/rows?dataset=tiiuae%2Ffalcon-refinedweb&{query}"))
        })
    }

    #[test]
    fn a_validators_pages_come_from_anywhere_in_the_viewer() {
        let (server, dir) = (server(), tempfile::tempdir().unwrap());
        let resolved = resolved(&server, dir.path(), "files");
        let pages = of_validator(Some(&resolved), &resolved.rules, &printer()).unwrap();
        assert_eq!(pages.num_distinct(), 600);
        let draw = pages.draw(3, 1).unwrap();
        // A document is cut to 1,024 tokens and ended by one more.
        assert_eq!(draw.rows.len(), 3 * 100 * 1_025 / 1_024);
        assert!(is_asked_for(&server, &draw));
        assert_eq!(set_aside(&resolved), None);
    }

    #[test]
    fn a_candidates_pages_are_those_that_its_training_leaves_out() {
        let (server, dir) = (server(), tempfile::tempdir().unwrap());
        let text = data::open_sample(1_024).unwrap();
        for (source, num_distinct) in [("files", 600), ("refinedweb-rows", 10)] {
            let resolved = resolved(&server, dir.path(), source);
            let pages = of_candidate(&resolved, &text, &printer()).unwrap();
            assert_eq!(pages.num_distinct(), num_distinct);
            let draw = pages.draw(3, 1).unwrap();
            assert!(is_asked_for(&server, &draw));
            let rule = set_aside(&resolved);
            assert_eq!(rule.is_some(), source != "files");
            let is_left_out = |rule: &SetAside| draw.offsets.iter().all(|&row| rule.holds(row as u64));
            assert!(rule.iter().all(is_left_out), "{:?}", draw.offsets);
        }
    }

    #[test]
    fn a_viewer_that_says_no_is_an_error_when_it_is_opened() {
        let (server, dir) = (Server::start(|_| Reply::refusal(404, "DatasetNotFound")), tempfile::tempdir().unwrap());
        let resolved = resolved(&server, dir.path(), "files");
        let error = of_validator(Some(&resolved), &resolved.rules, &printer()).err().unwrap();
        assert_eq!(exit_code(&error), 4);
    }
}
