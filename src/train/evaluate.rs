//! The held-out loss: the mean over a fixed set of rows, computed as a validator computes a model's losses.

use anyhow::Result;

use crate::interrupt;
use crate::model::Rows;
use crate::model::Scorer;

/// Mean loss over rows of equal length in nats per token; `None` if an orderly end was asked for.
pub fn held_out_loss(model: &mut dyn Scorer, rows: &[Vec<u32>]) -> Result<Option<f64>> {
    let mut sum = 0.0;
    for row in rows {
        if interrupt::requested() {
            return Ok(None);
        }
        sum += model.row_losses(Rows::new(row, 1, row.len()))?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(Some(sum / rows.len() as f64))
}
