//! `GET /rows`: a page of rows, as the data set's viewer gives it.
//!
//! The viewer counts rows by `length` and knows no `limit`, which the subnet's validators send: it gives them 100 rows because
//! that is what it gives to whoever does not say.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::content::Content;
use super::server::World;
use crate::local::http::blocking;
use crate::local::refusal::Refusal;

/// Rows of a page, at most.
const MAX_ROWS: u64 = 100;

/// Gives a page.
pub(super) async fn rows(
    State(world): State<Arc<World>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Result<Response, Refusal> {
    required(&asked, "dataset")?;
    let (config, split) = (required(&asked, "config")?, required(&asked, "split")?);
    let (offset, length) = (number(&asked, "offset", 0)?, number(&asked, "length", MAX_ROWS)?);
    if length > MAX_ROWS {
        return Err(invalid(format!("Parameter 'length' must not be greater than {MAX_ROWS}")));
    }
    if (config, split) != ("default", "train") {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "Not found.").with_code("ResponseNotFound"));
    }
    let revision = (HeaderName::from_static("x-revision"), world.shards.commit.clone());
    let page = blocking(move || {
        let content = world.content()?;
        page(&content, offset, length)
    });
    Ok(([revision], Json(page.await?)).into_response())
}

impl World {
    fn content(&self) -> Result<Arc<Content>, Refusal> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = &*content {
            return Ok(Arc::clone(content));
        }
        let opened = Content::open(Arc::clone(&self.shards)).map_err(unexpected)?;
        Ok(Arc::clone(content.insert(Arc::new(opened))))
    }
}

fn page(content: &Content, offset: u64, length: u64) -> Result<Value, Refusal> {
    let features = content.columns().iter().enumerate().map(|(index, column)| {
        let kind = json!({ "dtype": column.dtype, "_type": "Value" });
        json!({ "feature_idx": index, "name": column.name, "type": kind })
    });
    let rows = content.rows(offset, length).map_err(unexpected)?.into_iter().zip(offset..);
    let rows = rows.map(|(row, index)| json!({ "row_idx": index, "row": row, "truncated_cells": [] }));
    Ok(json!({
        "features": features.collect::<Vec<_>>(),
        "rows": rows.collect::<Vec<_>>(),
        "num_rows_total": content.num_rows(),
        "num_rows_per_page": MAX_ROWS,
        "partial": false,
    }))
}

fn required<'a>(asked: &'a HashMap<String, String>, name: &str) -> Result<&'a str, Refusal> {
    let given = asked.get(name).filter(|text| !text.trim().is_empty()).map(String::as_str);
    let missing = || format!("Parameter '{name}' is required");
    given.ok_or_else(|| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, missing()).with_code("MissingRequiredParameter"))
}

fn number(asked: &HashMap<String, String>, name: &str, default: u64) -> Result<u64, Refusal> {
    let Some(text) = asked.get(name) else { return Ok(default) };
    match text.trim().parse::<i128>() {
        Ok(number) if number >= 0 => Ok(u64::try_from(number).unwrap_or(u64::MAX)),
        Ok(_) => Err(invalid(format!("Parameter '{name}' must be positive"))),
        Err(_) => Err(invalid(format!("Parameter '{name}' must be integer"))),
    }
}

fn invalid(sentence: String) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, sentence).with_code("InvalidParameter")
}

fn unexpected(error: anyhow::Error) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).with_code("UnexpectedApiError")
}
